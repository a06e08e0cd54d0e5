package plans

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// key is a public key that nobody has the private one of.
const key = "eQYNhD/Xwl6Zaq+z3QXDzNI77x8CEKqY1n5kt9bKeEI="

// noFiles is a host without any file.
func noFiles(name string) ([]byte, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// flags makes settings as the command line would: "--name value" or "--name".
func flags(t *testing.T, words ...string) Settings {
	t.Helper()
	s := Settings{}
	for i := 0; i < len(words); i++ {
		name := strings.TrimPrefix(words[i], "--")
		value := ""
		if i+1 < len(words) && !strings.HasPrefix(words[i+1], "--") {
			i++
			value = words[i]
		}
		if err := s.Set(name, value, "--"+name); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func resolve(t *testing.T, words ...string) Config {
	t.Helper()
	c, err := Resolve(nil, nil, flags(t, words...), noFiles)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// golden compares text with a file under testdata/, or writes it with -update.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("..", "testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./plans -update writes it)", err)
	}
	if diff := cmp.Diff(string(want), text); diff != "" {
		t.Errorf("%s differs (-want +got); go test ./plans -update writes it anew:\n%s", path, diff)
	}
}

// show writes a plan for a golden file.
func show(b *strings.Builder, indent string, steps []Step) {
	for _, s := range steps {
		line := func(label, text string) {
			if text != "" {
				fmt.Fprintf(b, "%s%-7s %s\n", indent, label, strings.ReplaceAll(text, "\n", "\n"+indent+"        "))
			}
		}
		line("#", s.Comment)
		if !s.Unless.IsZero() {
			line("unless", s.Unless.String())
		}
		if !s.If.IsZero() {
			line("if", s.If.String())
		}
		if !s.Taken.IsZero() {
			line("taken", strings.Join(s.Lines, " or ")+" in "+s.Taken.String())
		}
		if s.Absent != "" {
			line("absent", strings.Join(s.Lines, " or ")+": "+s.Absent)
		}
		if s.Ask.Name != "" {
			line("ask", s.Ask.Name+"="+s.Ask.Query.String())
		} else if s.TakeBack != "" {
			line("back", s.TakeBack)
		} else {
			line("do", s.Do.String())
		}
		if !s.Undo.IsZero() {
			label := "undo"
			if s.Passing {
				label = "passing"
			}
			line(label, s.Undo.String())
		}
		if !s.UndoIf.IsZero() {
			line("where", s.UndoIf.String())
		}
		for _, look := range s.UndoUnless {
			line("needed", look.String())
		}
		line("key", s.Key)
		if s.MayFail {
			line("", "(may fail)")
		}
		for _, e := range s.Else {
			line("if "+string(e.When), e.Say+e.Error)
			if !e.Confirm.IsZero() {
				line("where", e.Confirm.String()+" prints "+strings.Join(e.Lines, "\nor "))
			}
			show(b, indent+"    ", e.Steps)
		}
		b.WriteByte('\n')
	}
}

func operations(c Config) string {
	var b strings.Builder
	for _, v := range c.Facts() {
		fmt.Fprintf(&b, "%s=%s%s  # %s\n", v.Name, v.Value, v.Query, v.Comment)
	}
	all := []Plan{c.Up()}
	for _, t := range c.Tunnels {
		if t.Role == Server {
			all = append(all, t.Bind(), t.Rebind(), t.Readmit())
		} else {
			all = append(all, t.Move())
		}
	}
	for _, p := range all {
		fmt.Fprintf(&b, "\n== %s\n\n", p.Name)
		show(&b, "", p.Steps)
	}
	return b.String()
}

func TestPlans(t *testing.T) {
	server := []string{"--server", "--auth-remote-pubkey-b64", key, "--auth-secret", "s"}
	client := []string{"--fou-remote", "203.0.113.1:10000", "--tunl-ip", "172.28.0.1", "--auth-token", "t"}
	for name, words := range map[string][]string{
		"server-dev":          append(server, "--fou-dev", "s0"),
		"server-ip":           append(server, "--fou-local", "203.0.113.1"),
		"server-dev-ip":       append(server, "--fou-local", "203.0.113.1:4500@s0", "--number", "7"),
		"server-csum":         append(server, "--fou-dev", "s0", "--encap-csum"),
		"server-no-csum":      append(server, "--fou-dev", "s0", "--no-encap-csum"),
		"server-no-counter":   append(server, "--fou-dev", "s0", "--no-nft-counter"),
		"server-force-alt":    append(server, "--fou-dev", "s0", "--force-fou-local-ip-alt", "--fou-local-ip-alt", "192.168.99.1"),
		"server-lifetime":     append(server, "--fou-dev", "s0", "--auth-lifetime", "60"),
		"server-table-device": append(server, "--fou-dev", "s0", "--tunl-dev", "drop", "--nft-table", "mine"),
		"server-routes":       append(server, "--fou-dev", "s0", "--routes", "10.1.0.0/24,10.2.0.0/16"),
		"server-gre":          append(server, "--fou-dev", "s0", "--mode", "gre", "--key", "258", "--tunl-ip", "172.28.0.0,fd00::1/64"),
		"server-gre-lifetime": append(server, "--fou-dev", "s0", "--mode", "gre", "--auth-lifetime", "60"),
		"server-token":        {"--server", "--fou-dev", "s0", "--auth-token", "t"},
		"server-address":      {"--server", "--fou-dev", "s0", "--auth-by-remote-ip", "--fou-remote", "198.51.100.1"},
		"client-dev":          append(client, "--fou-dev", "c0"),
		"client-ip":           append(client, "--fou-local-ip", "10.1.1.2"),
		"client-host":         {"--fou-remote", "server.example:10000", "--tunl-ip", "172.28.0.1", "--fou-dev", "c0"},
		"client-csum":         append(client, "--fou-dev", "c0", "--encap-csum"),
		"client-no-csum":      append(client, "--fou-dev", "c0", "--no-encap-csum"),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, "plans/"+name+".txt", operations(resolve(t, words...)))
		})
	}
}

// many is a server of two tunnels and a client beside them.
func many(t *testing.T) Config {
	t.Helper()
	f, err := parseTOML("many.toml", []byte(`
fou-dev = "s0"
auth-secret = "s"
[[tunnel]]
server = true
auth-remote-pubkey-b64 = "`+key+`"
auth-lifetime = 60
[[tunnel]]
server = true
number = 1
auth-token = "t"
[[tunnel]]
number = 2
fou-dev = "s1"
fou-remote = "192.0.2.7:4500"
tunl-ip = "172.28.9.1"
auth-token = "t"
[[tunnel]]
number = 3
fou-remote = "other.example:4501"
tunl-ip = "172.28.9.3"
auth-token = "t"
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve([]string{"many"}, []File{f}, Settings{}, noFiles)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestManyPlans(t *testing.T) { golden(t, "plans/many.txt", operations(many(t))) }

func TestScripts(t *testing.T) {
	for name, c := range map[string]Config{
		"server": resolve(t, "--server", "--fou-dev", "s0", "--auth-remote-pubkey-b64", key, "--auth-secret", "s"),
		"client": resolve(t, "--fou-dev", "c0", "--fou-remote", "server.example:10000", "--tunl-ip", "172.28.0.1", "--auth-token", "t"),
		"many":   many(t),
		"client-challenge": resolve(t, "--fou-dev", "c0", "--fou-remote", "server.example:10000", "--tunl-ip", "172.28.0.1",
			"--auth-key-b64", "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=", "--auth-secret", "s", "--auth-challenge"),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, "scripts/"+name+".sh", Script(c, Describe(c, false), false))
		})
	}
}

// A way on that a script cannot tell is never taken: its shell only says that there is no such command.
func TestScriptsKnowTheirFailures(t *testing.T) {
	files, err := filepath.Glob("../testdata/scripts/*.sh")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	ways := regexp.MustCompile(`(?m)^\t\t(?:el)?if (\w+)(?: &&.*)?; then$`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, way := range ways.FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(string(text), "\n"+way[1]+"() {") {
				t.Errorf("%s: %s is not there: %s", file, way[1], way[0])
			}
		}
	}
}

func TestSecretsAreNotDescribed(t *testing.T) {
	c := resolve(t, "--server", "--fou-dev", "s0", "--auth-token", "hunter2-token")
	d := resolve(t, "--server", "--fou-dev", "s0", "--auth-remote-pubkey-b64", key, "--auth-secret", "hunter2-secret",
		"--auth-key-b64", "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=")
	for _, secret := range []string{"hunter2-token", "hunter2-secret", "RuBZkT23"} {
		for _, c := range []Config{c, d} {
			if text := Script(c, Describe(c, false), false); strings.Contains(text, secret) {
				t.Errorf("the script shows %s", secret)
			}
		}
	}
	if text := strings.Join(append(Describe(c, true), Describe(d, true)...), "\n"); !strings.Contains(text, "hunter2-token") ||
		!strings.Contains(text, "hunter2-secret") || !strings.Contains(text, "RuBZkT23") {
		t.Errorf("--with-secrets hides something:\n%s", text)
	}
}

// Several clients stand in one plan, each with its own server.
func TestClientsNameTheirOwnServer(t *testing.T) {
	for _, tu := range many(t).Tunnels {
		if tu.Role != Client {
			continue
		}
		Plan{Steps: append(tu.connect(), tu.Move().Steps...)}.Walk(func(s Step) {
			for _, c := range []Command{s.Do, s.Undo} {
				for _, w := range c.Argv {
					_, name, _, ok := cutVar(w)
					if ok && strings.HasPrefix(name, "PEER_") && name != tu.varPeerIP && name != tu.varPeerPort {
						t.Errorf("%s has another tunnel's ${%s}: %s", tu.Dev, name, c)
					}
				}
			}
		})
	}
}

// A plan must not ask for a value that neither the facts nor the caller know.
func TestEveryVariableIsKnown(t *testing.T) {
	configs := []Config{many(t), resolve(t, "--server", "--fou-local-ip", "192.0.2.1", "--auth-token", "t")}
	for _, c := range bpfConfigs(t) {
		configs = append(configs, c)
	}
	for _, c := range configs {
		for _, fault := range unknownVariables(c) {
			t.Error(fault)
		}
	}
	if _, err := cmd("a", "${NO}").Expand(nil); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Error("an unknown variable expands")
	}
}

// unknownVariables are the commands of the plans that can't be expanded, and why.
func unknownVariables(c Config) (faults []error) {
	vars := map[string]string{OldIP: "192.0.2.8", OldPort: "1", OldLocal: "c", PeerIP: "192.0.2.7", PeerPort: "2", RunDir: "/run"}
	for _, v := range c.Facts() {
		vars[v.Name] = "192.0.2.9"
		if v.Number || strings.HasPrefix(v.Name, PeerPort) {
			vars[v.Name] = "3"
		}
	}
	plans := []Plan{c.Up()}
	for _, tu := range c.Tunnels {
		plans = append(plans, tu.Bind(), tu.Rebind(), tu.Readmit(), tu.Move())
	}
	again, _ := mends(c)
	vars[OldDevice] = "if7"
	for _, p := range append(plans, again...) {
		p.Walk(func(s Step) {
			if s.Ask.Name != "" {
				vars[s.Ask.Name] = "7"
			}
			for _, command := range []Command{s.Do, s.Undo, s.Unless, s.If, s.Ask.Query} {
				if _, err := command.Expand(vars); err != nil {
					faults = append(faults, fmt.Errorf("%s: %w", command, err))
				}
			}
		})
	}
	return faults
}
