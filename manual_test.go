package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"ipipou/plans"
)

// golden compares with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test . -run %s -update writes it anew", path, t.Name())
	}
}

func TestHelp(t *testing.T) {
	t.Setenv("COLUMNS", "80")
	for _, c := range commands {
		args, path := []string{"--help"}, "testdata/help.txt"
		if c.word != "" {
			args, path = []string{c.word, "--help"}, "testdata/help-"+c.word+".txt"
		}
		text := printed(t, args...)
		for line := range strings.Lines(text) {
			if len(line) > 81 {
				t.Errorf("%v: wider than 80 columns: %s", args, line)
			}
		}
		golden(t, path, text)
	}
	for _, o := range plans.Options {
		if !slices.ContainsFunc(groups, func(g kong.Group) bool { return g.Key == o.Group }) {
			t.Errorf("--%s is in the group %q, which the help does not have", o.Name, o.Group)
		}
	}
}

// What is said to be the default is what is taken.
func TestDefaults(t *testing.T) {
	one := func(args ...string) (plans.Config, plans.Tunnel) {
		l, _, err := parse(append(args, "--fou-dev=eth0"), nil)
		if err != nil {
			t.Fatal(err)
		}
		c, err := plans.Resolve(nil, nil, l.settings, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c, c.Tunnels[0]
	}
	c, server := one("--server", "--monitor=ping")
	_, client := one("--fou-remote=203.0.113.1:10000", "--tunl-ip=172.28.0.7")
	_, static := one("--static", "--fou-remote=203.0.113.1")
	if _, third := one("--server", "--number=3"); third.FOUPort != server.FOUPort+3 || third.Dev != "ipipou3" ||
		third.FOUIPAlt.String() != "172.29.0.3" || third.Addrs[0].IP.String() != "172.28.0.6" {
		t.Errorf("the defaults of number 3 are not 3 further on: %+v", third)
	}
	if server.Addrs[0].Peer != server.Addrs[0].IP.Next() || client.Addrs[0].Peer != client.Addrs[0].IP.Prev() {
		t.Error("the peer's address is not the one beside")
	}
	for name, want := range map[string]string{
		"number":                    fmt.Sprint(server.Number),
		"fou-local-ip-alt":          server.FOUIPAlt.String() + " + N",
		"fou-local-port":            fmt.Sprintf("%d + N", server.FOUPort),
		"backend":                   string(server.Backend),
		"encap":                     fmt.Sprintf("%s; of a static tunnel, %s", server.Encap, static.Encap),
		"mode":                      string(server.Mode),
		"tunl-dev":                  strings.Replace(server.Dev, "0", "N", 1),
		"tunl-ip":                   fmt.Sprintf("a server's, %s + 2N", server.Addrs[0].IP),
		"tunl-peer-ip":              "a server's, --tunl-ip + 1; a client's, --tunl-ip - 1",
		"auth-secret":               string(server.Auth.Secret) + ", which protects nothing",
		"auth-max-time-discrepancy": fmt.Sprint(server.Auth.MaxSkew),
		"auth-lifetime":             fmt.Sprint(server.Auth.Lifetime),
		"keepalive":                 fmt.Sprint(client.Auth.Keepalive),
		"monitor-interval":          server.MonitorEvery.String(),
		"verb":                      fmt.Sprint(c.Verbosity),
		"log-format":                c.LogFormat,
	} {
		if o, _ := plans.OptionByPrefix(name); o.Default != want {
			t.Errorf("the default of --%s is %q, and said to be %q", name, want, o.Default)
		}
	}
}

// All that an option's help names as its values it can be, and nothing else.
func TestValues(t *testing.T) {
	seed := "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso="
	for _, o := range plans.Options {
		if o.Values == nil {
			continue
		}
		for _, value := range append([]string{"neither"}, o.Values...) {
			err := os.ErrNotExist
			for _, base := range [][]string{
				{"--fou-dev", "eth0", "--fou-remote", "203.0.113.1:10000", "--tunl-ip", "172.28.0.1", "--auth-key-b64", seed},
				{"--static", "--fou-dev", "eth0", "--fou-remote", "203.0.113.1"},
				{"--static", "--fou-dev", "eth0", "--fou-remote", "2001:db8::1"},
				{"--static", "--fou-dev", "eth0"},
			} {
				if l, _, fault := parse(append(base, "--"+o.Name, value), nil); fault != nil {
					t.Fatal(fault)
				} else if _, err = plans.Resolve(nil, nil, l.settings, os.ReadFile); err == nil {
					break
				}
			}
			if (err == nil) != (value != "neither") {
				t.Errorf("--%s %s: %v", o.Name, value, err)
			}
		}
	}
}

// keyFiles are the files that the examples name, each of other content: 32 bytes, which
// make a seed, a public key and a secret.
func keyFiles(name string) ([]byte, error) {
	key := sha256.Sum256([]byte(name))
	return []byte(base64.StdEncoding.EncodeToString(key[:]) + "\n"), nil
}

// resolved is what files say together, of each of their nodes if they don't say which,
// with the flags over them.
func resolved(flags plans.Settings, name string, texts ...string) (all []plans.Config, err error) {
	var files []plans.File
	var layers []plans.Settings
	for _, text := range texts {
		f, err := plans.Load(name, func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			return nil, err
		}
		files = append(files, f)
		for _, n := range f.Nodes {
			layer := plans.Settings{"node": {Value: n.Name, Where: "--node"}}
			maps.Copy(layer, flags)
			layers = append(layers, layer)
		}
	}
	_, named := files[0].Top["node"]
	if layers == nil || named {
		layers = []plans.Settings{flags}
	}
	for _, layer := range layers {
		c, err := plans.Resolve([]string{"office"}, files, layer, keyFiles)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// The examples are good as they are, and those of a server and its client go together.
func TestExamples(t *testing.T) {
	all := map[string][]plans.Config{}
	for _, name := range []string{"server", "client", "static", "hub-bpf"} {
		all[name] = checkConfig(t, name, "./office.toml", read(t, "docs/examples/"+name+".toml"))
	}
	if files, _ := filepath.Glob("docs/examples/*"); len(files) != len(all) {
		t.Errorf("not all of %v are tested", files)
	}
	client := all["client"][0].Tunnels[0]
	for _, name := range []string{"server", "hub-bpf"} {
		server := all[name][0].Tunnels[0]
		if server.FOUPort != client.RemotePort || server.Addrs[0].Peer != client.Addrs[0].IP || server.Auth.Challenge != client.Auth.Challenge {
			t.Errorf("the client is none of %s's", name)
		}
	}
}

var (
	keyLine = regexp.MustCompile(`(?m)^#?([a-z0-9-]+) = .*$`)
	offLine = regexp.MustCompile(`(?m)^#([a-z0-9-]+) = .*$`)
	flagRef = regexp.MustCompile(`--([a-z0-9-]+)`)
)

// about is what the manual says of a key.
func about(o plans.Option) string {
	text := o.About()
	if o.Kind == plans.String && o.Values != nil {
		text += " One of " + strings.Join(o.Values, ", ") + "."
	}
	if o.Process {
		text += " Only at the top of the file."
	}
	return text
}

// The reference has each key once, says of it what the help says, and is a configuration:
// as it is, and with any key turned on.
func TestReference(t *testing.T) {
	const path = "./docs/reference.toml" // with ./ it is no name
	paragraphs := strings.Split(read(t, path), "\n\n")
	count := map[string]int{}
	for i, p := range paragraphs {
		for _, m := range keyLine.FindAllStringSubmatch(p, -1) {
			count[m[1]]++
			o, ok := plans.OptionByPrefix(m[1])
			if !ok || o.Name != m[1] {
				t.Errorf("%s: there is no key %s", path, m[1])
				continue
			}
			paragraphs[i] = filled("# ", flagRef.ReplaceAllString(about(o), "$1"), 80) + m[0]
		}
	}
	for _, o := range plans.Options {
		if count[o.Name] != 1 {
			t.Errorf("%s has the key %s %d times", path, o.Name, count[o.Name])
		}
	}
	text := strings.TrimSuffix(strings.Join(paragraphs, "\n\n"), "\n") + "\n"
	golden(t, path, text)
	if _, err := resolved(nil, path, text); err != nil {
		t.Error(err)
	}
	key := "--auth-key-file=laptop.key"
	with := map[string][]string{ // what a key goes with, if not with a client
		"static":                 {"--encap=fou"},
		"node":                   {"--fou-remote=192.0.2.9"},
		"mode":                   {key},
		"auth-by-remote-ip":      {"--server"},
		"auth-by-remote-port":    {"--server"},
		"force-fou-local-ip-alt": {"--server"},
		"fou-local-ip-alt":       {"--server"},
		"auth-lifetime":          {"--server", "--auth-token=t"},
		"refresh":                {"--fou-remote=vpn.example.net:10000"},
		"key":                    {"--mode=gre", key},
		"forward-to":             {"--forward"},
		"masquerade":             {"--forward"},
		"monitor-interval":       {"--monitor=ping"},
		"auth-remote-pubkey-b64": {key}, "auth-remote-pubkey-file": {key}, "auth-challenge": {key},
	}
	for _, m := range offLine.FindAllStringSubmatchIndex(text, -1) {
		name := text[m[2]:m[3]]
		on := []string{text[:m[0]] + text[m[0]+1:]}
		if name == "node" {
			on = append(on, read(t, "docs/examples/static.toml"))
		}
		l, _, err := parse(with[name], nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := resolved(l.settings, path, on...); err != nil {
			t.Errorf("with %s: %v", name, err)
		}
	}
	examples := regexp.MustCompile(`(?m)(^#(     .*)?\n)+`).FindAllString(text, -1)
	found := 0
	for _, e := range examples {
		if strings.Contains(e, "[[") {
			found++
			checkConfig(t, path, path, strings.ReplaceAll(e, "#    ", ""))
		}
	}
	if found != 2 {
		t.Errorf("found %d examples of tables: has the form changed?", found)
	}
}

// filled is text in lines of so many columns.
func filled(prefix, text string, columns int) string {
	out, line := "", prefix
	for i, word := range strings.Fields(text) {
		switch {
		case i == 0:
		case len(line)+1+len(word) > columns:
			out, line = out+line+"\n", prefix
		default:
			line += " "
		}
		line += word
	}
	return out + line + "\n"
}
