package instance

import (
	"errors"
	"strings"
	"testing"

	"ipipou/plans"
)

// hostTunnels are one that the kernel's drivers carry and two that share an
// interface of BPF.
func hostTunnels(t testing.TB) []plans.Tunnel {
	t.Helper()
	var all []plans.Tunnel
	for _, text := range []string{
		"static = true\nencap = \"fou\"\nfou-dev = \"lo\"\nfou-remote = \"192.0.2.2:7777\"\ntunl-ip = \"10.9.0.1/30\"\nnumber = 3",
		"server = true\nbackend = \"bpf\"\nfou-dev = \"lo\"\nfou-local-port = 10000\ntunl-dev = \"ipipou0\"\ntunl-ip = \"172.28.0.0\"\n" +
			"[[tunnel]]\ntunl-peer-ip = \"172.28.0.1\"\nauth-token = \"t\"\n[[tunnel]]\nnumber = 1\ntunl-peer-ip = \"172.28.0.2\"\nauth-token = \"u\"",
	} {
		f, err := plans.Load("./a.toml", func(string) ([]byte, error) { return []byte(text), nil })
		if err != nil {
			t.Fatal(err)
		}
		c, err := plans.Resolve([]string{"a"}, []plans.File{f}, plans.Settings{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c.Tunnels...)
	}
	return all
}

// Whatever the programs that are asked print, what is shown of a tunnel is a row
// whose cells are words, or an error of one line; and nothing but looks is run.
func FuzzHost(f *testing.F) {
	tunnels := hostTunnels(f)
	f.Add(uint8(1), `[{"ifindex":4,"linkinfo":{"info_kind":"tun"}}]`, `[]`, "", uint8(0))
	f.Fuzz(func(t *testing.T, which uint8, first, rest, stderr string, fails uint8) {
		tunnel := tunnels[int(which)%len(tunnels)]
		// The answers of rest are lines: what tc says, bpftool of the program, and
		// by turns of a map and what is in it. HANDLE is that of our filter.
		lines, asked := strings.Split(strings.ReplaceAll(rest, "HANDLE", tunnel.FilterHandle()), "\n"), 0
		answer := func(c plans.Command) (string, string, error) {
			asked++
			if line := " " + strings.Join(c.Argv, " ") + " "; !strings.Contains(line, " show ") && !strings.Contains(line, " dump ") {
				t.Errorf("%s is more than a look", c)
			}
			stdout := first
			if asked > 1 {
				stdout, lines = lines[0], append(lines[1:], "")
			}
			if asked == int(fails) {
				return stdout, stderr, errors.New("exit status 1")
			}
			return stdout, "", nil
		}
		h := newHost()
		h.exec = answer
		var r Report
		r.look(h, plans.Config{Tunnels: []plans.Tunnel{tunnel}}, nil)
		if text := r.Fault; strings.ContainsAny(text, "\n\r") {
			t.Errorf("error %q", text)
		}
		if len(r.Tunnels) != 1 {
			t.Fatalf("%d tunnels", len(r.Tunnels))
		}
		// One line each, and below the heading as many words, but for the drops.
		var b strings.Builder
		Style{}.table(&b, r)
		lines = strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
		for _, line := range lines[:2] {
			if n := len(strings.Fields(line)); n < len(columns) || line == lines[0] && n != len(columns) {
				t.Errorf("%d words in %q", n, line)
			}
		}
		if r.Fault == "" && len(lines) > 3 {
			t.Errorf("lines %q", lines)
		}
	})
}
