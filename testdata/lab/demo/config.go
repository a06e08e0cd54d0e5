package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ipipou/testdata/lab"
)

// configure writes the three configurations, with keys of the program's own making.
func (d *demo) configure() {
	d.dir = "/run/demo" // goes with the namespace, or with the machine
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		d.Fatal(err)
	}
	serverPrivate, serverPublic := d.keygen()
	config := "server = true\nfou-dev = \"s0\"\n" + d.path.server + "reply-on-auth-ok = true\nauth-secret = \"of the demo\"\n" +
		"auth-key-b64 = \"" + serverPrivate + "\"\n"
	for i := range d.clients {
		private, public := d.keygen()
		config += fmt.Sprintf("\n[[tunnel]]\nnumber = %d\n%sauth-remote-pubkey-b64 = %q\n", i, d.path.peer[i], public)
		d.write(i+1, fmt.Sprintf("number = %d\nfou-dev = \"c0\"\nfou-remote = %q\ntunl-ip = %q\n%sauth-key-b64 = %q\n"+
			"auth-remote-pubkey-b64 = %q\nauth-secret = \"of the demo\"\n",
			i, d.path.remote[i], clientInner[i], d.path.client[i], private, serverPublic))
	}
	d.write(0, config)
}

func (d *demo) config(i int) string {
	return filepath.Join(d.dir, []string{"server", "client1", "client2"}[i]+".toml")
}

func (d *demo) write(i int, text string) {
	if err := os.WriteFile(d.config(i), []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d *demo) keygen() (private, public string) {
	out, err := exec.Command(lab.Bin(d), "--auth-keygen").Output()
	keys := strings.Fields(string(out))
	if err != nil || len(keys) != 2 {
		d.Fatalf("ipipou --auth-keygen: %v: %q", err, out)
	}
	return keys[0], keys[1]
}

// shown is a configuration without its private key.
func (d *demo) shown(i int) []string {
	text, err := os.ReadFile(d.config(i))
	if err != nil {
		d.Fatal(err)
	}
	hidden := regexp.MustCompile(`(?m)^(auth-key-b64 = ).*`).ReplaceAllString(string(text), `${1}"…"`)
	return strings.Split(strings.TrimSpace(hidden), "\n")
}

// plan is one function of the printed script.
func (d *demo) plan(i int, function string) []string {
	script, err := exec.Command(lab.Bin(d), "--config", d.config(i), "--print-only").Output()
	if err != nil {
		d.Fatalf("ipipou --print-only: %v", err)
	}
	_, rest, found := strings.Cut(string(script), "\n"+function+"() {\n")
	body, _, ended := strings.Cut(rest, "\n}\n")
	if !found || !ended {
		d.Fatalf("the printed script has no %s()", function)
	}
	lines := strings.Split(strings.ReplaceAll(function+"() {\n"+body+"\n}", "\t", "  "), "\n")
	from, to := slices.Index(lines, d.path.skip[0]), slices.Index(lines, d.path.skip[1])
	if from < 0 || to <= from {
		return lines
	}
	return slices.Replace(lines, from, to, fmt.Sprintf("  … %d lines more, in which %s", to-from, d.path.skip[2]))
}
