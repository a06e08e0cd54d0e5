package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A scriptHost is a host on which a printed script is run in place of the program.
type scriptHost struct {
	ns   *NS
	path string   // of the script
	env  []string // the command that goes before it
}

// printed has the program print its script.
func printed(t testing.TB, ns *NS, dir string, env []string, args ...string) *scriptHost {
	t.Helper()
	out, err := run("", append([]string{Bin(t), "--print-only", "--with-secrets"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	host := filepath.Join(dir, ns.Name)
	if err := os.MkdirAll(host, 0o755); err != nil {
		t.Fatal(err)
	}
	s := &scriptHost{ns: ns, path: filepath.Join(host, "script.sh")}
	if err := os.WriteFile(s.path, []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	if env == nil {
		env = []string{"env", "sh"}
	}
	// After `env` and its options, before the shell.
	s.env = append(append(append(s.env, env[:len(env)-1]...), "IPIPOU_RUN_DIR="+host+"/run"), env[len(env)-1])
	return s
}

func (s *scriptHost) argv(args ...string) []string {
	return append(append(append([]string{}, s.env...), s.path), args...)
}

// do runs an operation, which has to end well.
func (s *scriptHost) do(t testing.TB, args ...string) string {
	t.Helper()
	return s.ns.Run(t, s.argv(args...)...)
}

// What the program does and what the script does that it prints is the same: after each operation two hosts, equal
// before, are equal still.
func TestPrintedScriptServer(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]string{
		"plain":   "",
		"options": "auth-lifetime = 3000\nencap-csum = true\nno-nft-counter = true\nroutes = [\"10.77.0.0/24\"]\n",
		"forced":  "force-fou-local-ip-alt = true\nno-encap-csum = true\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, dir := NewNet(t), NewNet(t), t.TempDir()
			keys := []key{newKey(t), newKey(t)}
			config := filepath.Join(dir, "office.toml")
			text := "server = true\nfou-dev = \"s0\"\nauth-secret = \"lab secret\"\nverb = 3\n"
			top, tunnel := more, ""
			if line, ok := strings.CutPrefix(more[strings.LastIndex(strings.TrimSuffix(more, "\n"), "\n")+1:], "routes"); ok {
				top, tunnel = strings.TrimSuffix(more, "routes"+line), "routes"+line
			}
			text += top
			for i, k := range keys {
				text += fmt.Sprintf("[[tunnel]]\nnumber = %d\nauth-remote-pubkey-b64 = %q\n", i, k.public)
				if i == 0 {
					text += tunnel
				}
			}
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			before := a.Srv.Snapshot(t)
			same := func(what string) {
				t.Helper()
				SameState(t, "after "+what+", the host of the program (-) and that of the script (+)",
					a.Srv.Snapshot(t), b.Srv.Snapshot(t))
			}
			same("nothing")

			script := printed(t, b.Srv, dir, nil, "--config", config)
			server := startIPIPOU(t, dir, a.Srv, "--config", config)
			server.WaitLog(t, `ipipou1: waiting for an authentication`, commandTimeout)
			script.do(t, "up")
			same("up")

			salt := uint32(0)
			for i, move := range []struct {
				op     string
				tunnel int
				to     string
				what   string
			}{
				{"bind", 0, RtrAddr + ":10000", "the first bind"},
				{"bind", 1, RtrAddr + ":10001", "the bind of a second one behind the same address"},
				{"rebind", 0, RtrAddr + ":4000", "a rebind to another port"},
				{"rebind", 1, RtrAddr + ":4001", "a rebind to another port behind the same address"},
				{"rebind", 1, RtrAddr2 + ":4001", "a rebind out of the collision"},
				{"rebind", 0, RtrAddr2 + ":4000", "a rebind of the other one into the collision"},
				{"rebind", 1, RtrAddr3 + ":10001", "a rebind of the one away from there"},
				{"rebind", 1, RtrAddr2 + ":10001", "a rebind back into the collision"},
				{"rebind", 0, RtrAddr + ":10000", "a rebind out of it to where it was first"},
			} {
				if more != "" && i > 4 {
					break // the ways in and out of the collision differ in nothing then
				}
				salt++
				n := server.Len()
				a.Bad.SendUDP(t, move.to, fmt.Sprintf("%s:%d", SrvAddr, 10000+move.tunnel),
					keys[move.tunnel].sign("lab secret", time.Now(), salt))
				expr := fmt.Sprintf(`ipipou%d: peer (bound at|moved from \S+ to) %s\n`, move.tunnel, move.to)
				server.WaitLogFrom(t, n, expr, commandTimeout)
				ip, port, _ := strings.Cut(move.to, ":")
				script.do(t, move.op, ip, port, fmt.Sprintf("ipipou%d", move.tunnel))
				same(move.what)
			}
			stop(t, server)
			script.do(t, "down")
			same("down")
			SameState(t, "the server after down", before, b.Srv.Snapshot(t))
		})
	}
}

func TestPrintedScriptClient(t *testing.T) {
	t.Parallel()
	a, b, dir := NewNet(t), NewNet(t), t.TempDir()
	args := []string{"--fou-dev", "c0", "-r", SrvAddr + ":10000", "--tunl-ip", clientInner[0], "--auth-token", "a token",
		"--routes", "10.78.0.0/24", "--verb", "3"}
	before := a.C1.Snapshot(t)
	same := func(what string) {
		t.Helper()
		SameState(t, "after "+what+", the host of the program (-) and that of the script (+)",
			a.C1.Snapshot(t), b.C1.Snapshot(t))
	}
	script := printed(t, b.C1, dir, nil, args...)
	client := startIPIPOU(t, dir, a.C1, args...)
	client.WaitLog(t, `authentication sent`, commandTimeout)
	script.do(t, "up")
	same("up")
	for _, move := range [][2]string{{C1Addr, "10.1.1.9"}, {"10.1.1.9", C1Addr}} {
		n := client.Len()
		for _, net := range []*Net{a, b} {
			net.C1.batch(t, "addr add "+move[1]+"/32 dev c0", "addr del "+move[0]+"/24 dev c0",
				"addr del "+move[1]+"/32 dev c0", "addr add "+move[1]+"/24 dev c0", "route replace default via 10.1.1.1")
		}
		client.WaitLogFrom(t, n, `own address changed, tunnel moved from \S+ to `+strings.ReplaceAll(move[1], ".", `\.`), commandTimeout)
		script.do(t, "rebind")
		same("a move from " + move[0] + " to " + move[1])
	}
	client.Signal(t, syscall.SIGINT)
	if code := client.Wait(t, commandTimeout); code != 0 {
		t.Errorf("exit %d after SIGINT, want 0", code)
	}
	script.do(t, "down")
	same("down")
	SameState(t, "the client after down", before, b.C1.Snapshot(t))
}

// With everything on it that a tunnel can have.
func TestPrintedScriptStatic(t *testing.T) {
	t.Parallel()
	for name, args := range map[string][]string{
		"to one": {"--mode", "any4", "--encap", "gue", "--fou-dev", "s0", "--fou-remote", BadAddr, "--tunl-ip", "10.9.0.1,fd09::1/64", "--tunl-peer-ip",
			"10.9.0.2", "--routes", "default,10.78.0.0/24 via 10.9.0.2 metric 5,fd78::/64,203.0.112.0/23", "--bridge", "br0 10.42.1.1/24", "--forward",
			"--forward-to", "10.77.0.0/16,s0", "--masquerade", "--mtu", "1400", "--tos", "inherit", "--post-up", "true", "--pre-down", "true"},
		"to many": {"--mode", "gre", "--fou-dev", "s0", "--key", "5", "--tunl-ip", "10.9.0.1/32", "--routes",
			"10.9.0.2/32 via " + BadAddr + " onlink,10.9.0.3/32 via 198.51.100.1 onlink table 7"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b, dir := NewNet(t), NewNet(t), t.TempDir()
			for _, net := range []*Net{a, b} { // one that is there already, for a new one's address is random
				net.Srv.batch(t, "link add br0 address 02:00:00:00:03:01 type bridge", "link set br0 up")
				Eventually(t, commandTimeout, func() error {
					if out := net.Srv.Run(t, "ip", "link", "show", "br0"); !strings.Contains(out, "state DOWN") {
						return fmt.Errorf("not yet without a carrier: %s", out)
					}
					return nil
				})
			}
			before := a.Srv.Snapshot(t)
			same := func(what string) {
				t.Helper()
				SameState(t, "after "+what+", the host of the program (-) and that of the script (+)", a.Srv.Snapshot(t), b.Srv.Snapshot(t))
			}
			script := printed(t, b.Srv, dir, nil, args...)
			program := startIPIPOU(t, dir, a.Srv, append(args, "-vv")...)
			program.WaitLog(t, `ipipou0: up`, commandTimeout)
			script.do(t, "up")
			same("up")
			n := program.Len()
			for _, net := range []*Net{a, b} {
				net.Srv.batch(t, "addr add 203.0.113.9/32 dev s0", "addr del "+SrvAddr+"/24 dev s0", "addr del 203.0.113.9/32 dev s0", "addr add 203.0.113.9/24 dev s0")
			}
			program.WaitLogFrom(t, n, `own address changed, tunnel moved from \S+ to 203\.0\.113\.9`, commandTimeout)
			script.do(t, "rebind")
			same("a move")
			stop(t, program)
			script.do(t, "down")
			same("down")
			for _, net := range []*Net{a, b} {
				net.Srv.batch(t, "addr add "+SrvAddr+"/32 dev s0", "addr del 203.0.113.9/24 dev s0", "addr del "+SrvAddr+"/32 dev s0", "addr add "+SrvAddr+"/24 dev s0")
			}
			SameState(t, "the host after down", before, b.Srv.Snapshot(t))
		})
	}
}
