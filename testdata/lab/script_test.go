package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// shells are the commands that run a script with nothing but what a script may want: a shell, iproute2, nft and
// openssl; and in the case of dash, which has no applets, programs of every system and one that sends.
func shells(t testing.TB) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for shell, tools := range map[string][]string{
		"dash":    {"dash:sh", "mkdir", "rm", "date", "od", "sleep", "ip", "nft", "openssl", "socat"},
		"busybox": {"ip", "nft", "openssl"},
	} {
		dir := t.TempDir()
		if shell == "busybox" {
			if out, err := exec.Command("busybox", "--install", "-s", dir).CombinedOutput(); err != nil {
				t.Fatalf("busybox --install: %v\n%s", err, out)
			}
			for _, name := range tools {
				os.Remove(filepath.Join(dir, name)) // busybox has an `ip` of its own
			}
		}
		for _, tool := range tools {
			program, name, ok := strings.Cut(tool, ":")
			if !ok {
				name = program
			}
			path, err := exec.LookPath(program)
			if err == nil {
				err = os.Symlink(path, filepath.Join(dir, name))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		all[shell] = []string{"env", "-i", "PATH=" + dir, filepath.Join(dir, "sh")}
	}
	return all
}

// exits runs an operation, which has to end with that code, and returns all it wrote.
func (s *scriptHost) exits(t testing.TB, want int, args ...string) string {
	t.Helper()
	out, err := s.ns.Try(append([]string{"sh", "-c", `exec "$@" 2>&1`, "sh"}, s.argv(args...)...)...)
	if code := exitCode(err); code != want {
		t.Errorf("script %s: exit %d, want %d: %v", strings.Join(args, " "), code, want, err)
	}
	return out
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	return -1
}

// A server that is nothing but the script, its peers bound by hand, and clients that are the program.
func TestScriptServer(t *testing.T) {
	t.Parallel()
	for shell, env := range shells(t) {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, "", "")
			before := p.Srv.Snapshot(t)
			script := printed(t, p.Srv, p.dir, env, "--config", p.config[0])
			script.do(t, "up")
			for i, ns := range []*NS{p.C1, p.C2} {
				client := p.ipipou(t, ns, "--config", p.config[i+1])
				client.WaitLog(t, `authentication sent`, commandTimeout)
				p.Srv.NoPing(t, clientInner[i], "-c", "1", "-W", "1")
				script.do(t, "bind", RtrAddr, fmt.Sprint(10000+i), fmt.Sprintf("ipipou%d", i))
				p.works(t, i)
				TransferTCP(t, ns, p.Srv, serverInner[i], 2_000_000)
				TransferTCP(t, p.Srv, ns, clientInner[i], 2_000_000)
			}
			status := script.do(t, "status")
			for _, want := range []string{"remote 203.0.113.2 local 203.0.113.1", "local 172.29.0.1", "172.28.0.2 peer 172.28.0.3", "map peers {"} {
				if !strings.Contains(status, want) {
					t.Errorf("status shows no %q:\n%s", want, status)
				}
			}
			for i, ns := range []*NS{p.C1, p.C2} {
				addr := []string{C1Addr, C2Addr}[i]
				p.NATForce(t, addr, RtrAddr3+fmt.Sprint(":", 4000+i))
				script.do(t, "rebind", RtrAddr3, fmt.Sprint(4000+i), fmt.Sprintf("ipipou%d", i))
				ns.Ping(t, serverInner[i]) // the client's packets make the mapping
				p.works(t, i)
			}
			script.do(t, "down")
			SameState(t, "the server after down", before, p.Srv.Snapshot(t))
		})
	}
}

// A client that is nothing but the script.
func TestScriptClient(t *testing.T) {
	t.Parallel()
	for shell, env := range shells(t) {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, "", "")
			before := p.C1.Snapshot(t)
			p.startServer(t)
			script := printed(t, p.C1, p.dir, env, "--config", p.config[1])
			script.do(t, "up")
			p.server.WaitLog(t, `ipipou0: peer bound at`, commandTimeout)
			p.works(t, 0)
			TransferTCP(t, p.C1, p.Srv, serverInner[0], 2_000_000)
			TransferTCP(t, p.Srv, p.C1, clientInner[0], 2_000_000)
			if status := script.do(t, "status"); !strings.Contains(status, "encap-dport 10000") {
				t.Errorf("status:\n%s", status)
			}

			n := p.server.Len()
			p.C1.batch(t, "addr add 10.1.1.9/32 dev c0", "addr del "+C1Addr+"/24 dev c0", "addr del 10.1.1.9/32 dev c0",
				"addr add 10.1.1.9/24 dev c0", "route replace default via 10.1.1.1")
			p.NATForce(t, "10.1.1.9", RtrAddr2+":4000")
			script.do(t, "rebind")
			p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+RtrAddr2+`:4000`, commandTimeout)
			p.works(t, 0)

			script.do(t, "down")
			p.C1.batch(t, "addr add "+C1Addr+"/32 dev c0", "addr del 10.1.1.9/24 dev c0", "addr del "+C1Addr+"/32 dev c0",
				"addr add "+C1Addr+"/24 dev c0", "route replace default via 10.1.1.1")
			SameState(t, "the client after down", before, p.C1.Snapshot(t))
		})
	}
}

// Operations at the wrong time, and with the wrong words, change nothing.
func TestScriptRefuses(t *testing.T) {
	t.Parallel()
	for shell, env := range shells(t) {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			n := NewNet(t)
			script := printed(t, n.Srv, t.TempDir(), env, "-s", "--fou-dev", "s0", "--auth-token", "t")
			before := n.Srv.Snapshot(t)
			refuse := func(code int, says string, args ...string) {
				t.Helper()
				if out := script.exits(t, code, args...); !strings.Contains(out, says) {
					t.Errorf("script %s says %q, not %q", strings.Join(args, " "), out, says)
				}
			}
			refuse(2, "usage")
			refuse(2, "usage", "sideways")
			refuse(0, "is not up", "down")
			refuse(1, "is not up", "bind", RtrAddr, "10000")
			SameState(t, "the host before up", before, n.Srv.Snapshot(t))
			script.do(t, "up")
			up := n.Srv.Snapshot(t)
			refuse(1, "is up already", "up")
			refuse(1, "not bound", "rebind", RtrAddr, "10000")
			for _, peer := range [][]string{
				{}, {RtrAddr}, {"", "10000"}, {"example.org", "10000"}, {"1.2.3", "10000"}, {"1.2.3.4.5", "10000"}, {"1.2.3.256", "10000"},
				{"1..3.4", "10000"}, {"$(id)", "10000"}, {"1.2.3.4 drop", "10000"}, {RtrAddr, "0"}, {RtrAddr, "65536"},
				{RtrAddr, "1e3"}, {RtrAddr, ""}, {RtrAddr, "-1"}, {RtrAddr, "10000", "eth9"},
			} {
				script.exits(t, 2, append([]string{"bind"}, peer...)...)
			}
			SameState(t, "the host after all that", up, n.Srv.Snapshot(t))
			script.do(t, "bind", RtrAddr, "10000")
			bound := n.Srv.Snapshot(t)
			refuse(1, "run", "bind", RtrAddr2, "10000")
			refuse(2, "not a port", "rebind", RtrAddr2, "x")
			SameState(t, "the host after all that", bound, n.Srv.Snapshot(t))
			if status := script.do(t, "status"); !strings.Contains(status, "ipip remote "+RtrAddr) {
				t.Errorf("status:\n%s", status)
			}
			script.do(t, "down")
			SameState(t, "the server after down", before, n.Srv.Snapshot(t))
			script.exits(t, 0, "down")
		})
	}
}

// What is in the way on a real host.
func TestScriptObstacles(t *testing.T) {
	t.Parallel()
	n := NewNet(t)
	script := printed(t, n.Srv, t.TempDir(), shells(t)["dash"], "-s", "--fou-dev", "s0", "--auth-token", "t")
	for _, c := range []struct {
		code      int
		make, del string
	}{
		{40, "nft add table ip ipipou0", "nft delete table ip ipipou0"},
		{52, "ip link add ipipou0 type bridge", "ip link del ipipou0"},
		{53, "ip fou add port 10000 ipproto 47 local " + SrvAddr + " dev s0", "ip fou del port 10000 local " + SrvAddr + " dev s0"},
	} {
		n.Srv.Run(t, strings.Fields(c.make)...)
		before := n.Srv.Snapshot(t)
		script.exits(t, c.code, "up")
		SameState(t, "the host after `up` met `"+c.make+"`", before, n.Srv.Snapshot(t))
		n.Srv.Run(t, strings.Fields(c.del)...)
	}
	// A listener like ours, of somebody else's: it is used, and stays.
	n.Srv.Run(t, "ip", "fou", "add", "port", "10000", "ipproto", "4", "local", SrvAddr, "dev", "s0")
	before := n.Srv.Snapshot(t)
	script.do(t, "up")
	script.do(t, "bind", RtrAddr, "10000")
	script.do(t, "down")
	SameState(t, "the host after a listener of somebody else's was used", before, n.Srv.Snapshot(t))
}

// saboteur puts an `ip` and an `nft` before the real ones that do something else at the nth change of the host.
// The text of the shell that is run in place of it has the command in "$@".
func saboteur(t testing.TB, env []string, n int, instead string) (broken []string, log string) {
	t.Helper()
	dir := t.TempDir()
	log = filepath.Join(dir, "log")
	real := strings.TrimPrefix(env[2], "PATH=")
	for _, tool := range []string{"ip", "nft"} {
		path, err := filepath.EvalSymlinks(filepath.Join(real, tool))
		if err != nil {
			t.Fatal(err)
		}
		text := "#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin\n" +
			"case \" $* \" in\n" +
			"*' add '* | *' set '* | *' -f '*)\n" +
			"  echo \"" + tool + " $*\" >>" + log + "\n" +
			"  if [ $(wc -l <" + log + ") -eq " + fmt.Sprint(n) + " ]; then\n    set -- " + path + " \"$@\"\n    " + instead + "\n  fi\n  ;;\n" +
			"esac\nexec " + path + " \"$@\"\n"
		if err := os.WriteFile(filepath.Join(dir, tool), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	broken = append(broken, env...)
	broken[2] = "PATH=" + dir + ":" + real
	return broken, log
}

var codeOf = map[string]int{"nft -f": 40, "ip address": 51, "ip link": 52, "ip fou": 53}

// Each step of each operation is made to fail once. What was done before it is undone, and the exit code tells which
// kind of step it was.
func TestScriptUndoes(t *testing.T) {
	t.Parallel()
	all := shells(t)
	n := NewNet(t)
	for _, c := range []struct {
		name  string
		shell string
		ready [][]string // done before
		op    []string
		args  []string
		steps int // at least
	}{
		{"up", "busybox", nil, []string{"up"}, nil, 2},
		{"bind", "dash", [][]string{{"up"}}, []string{"bind", RtrAddr, "10000"}, nil, 4},
		{"alternate bind", "busybox", [][]string{{"up"}}, []string{"bind", RtrAddr, "10000"}, []string{"--force-fou-local-ip-alt"}, 6},
		{"rebind", "dash", [][]string{{"up"}, {"bind", RtrAddr, "10000"}}, []string{"rebind", RtrAddr2, "4000"}, nil, 2},
		{"rebind to the alternate address", "dash", [][]string{{"up"}, {"bind", RtrAddr, "10000", "ipipou0"}, {"bind", RtrAddr2, "10001", "ipipou1"}},
			[]string{"rebind", RtrAddr, "10001", "ipipou1"}, []string{"two"}, 5},
		{"client up", "busybox", nil, []string{"up"}, []string{"client"}, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"-s", "--fou-dev", "s0", "--auth-token", "t"}, c.args...)
			switch {
			case len(c.args) > 0 && c.args[0] == "client":
				args = []string{"--fou-dev", "s0", "-r", BadAddr + ":10000", "--tunl-ip", "172.28.0.1", "--auth-token", "t"}
			case len(c.args) > 0 && c.args[0] == "two":
				config := filepath.Join(dir, "two.toml")
				text := "server = true\nfou-dev = \"s0\"\nauth-token = \"t\"\n[[tunnel]]\nnumber = 0\n[[tunnel]]\nnumber = 1\n"
				if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
				args = []string{"--config", config}
			}
			before := n.Srv.Snapshot(t)
			good := printed(t, n.Srv, dir, all[c.shell], args...)
			for _, op := range c.ready {
				good.do(t, op...)
			}
			ready := n.Srv.quick(t)
			for step := 1; ; step++ {
				broken, log := saboteur(t, all[c.shell], step, "echo 'refused by the test' >&2; exit 2")
				bad := &scriptHost{good.ns, good.path, append(append(append([]string{}, broken[:3]...), good.env[len(good.env)-2]), broken[3])}
				out, err := n.Srv.Try(bad.argv(c.op...)...)
				text, _ := os.ReadFile(log)
				done := strings.Split(strings.TrimSpace(string(text)), "\n")
				if len(done) < step {
					if err != nil {
						t.Errorf("nothing was refused, and yet: %v", err)
					}
					if step <= c.steps {
						t.Errorf("only %d steps, want %d at least:\n%s", step-1, c.steps, text)
					}
					t.Logf("%d steps", step-1)
					good.do(t, "down")
					SameState(t, "the host after down", before, n.Srv.Snapshot(t))
					return
				}
				if err == nil && strings.HasPrefix(done[step-1], "nft") {
					// A step that may fail: the one about connection tracking.
					good.do(t, "down")
					for _, op := range c.ready {
						good.do(t, op...)
					}
					continue
				}
				words := strings.Fields(done[step-1])
				want := codeOf[words[0]+" "+words[1]]
				if c.name == "client up" && words[0] == "nft" {
					want = 120 // it is what the authentication is sent through
				}
				if exitCode(err) != want {
					t.Errorf("%s refused: exit %d, want %d: %s%v", done[step-1], exitCode(err), want, out, err)
				}
				if err != nil && !strings.Contains(err.Error(), "refused by the test") {
					t.Errorf("%s refused: the reason is not in %v", done[step-1], err)
				}
				SameState(t, "the host after "+done[step-1]+" was refused", ready, n.Srv.quick(t))
			}
		})
	}
}

// Ctrl-C goes to the shell and to the command that it runs. The command gets done, and all is undone.
func TestScriptCtrlC(t *testing.T) {
	t.Parallel()
	n := NewNet(t)
	for shell, env := range shells(t) {
		for step, when := range map[int]string{1: "before", 2: "after", 3: "after"} {
			t.Run(fmt.Sprint(shell, "/", step, " ", when), func(t *testing.T) {
				good := printed(t, n.Srv, t.TempDir(), env, "-s", "--fou-dev", "s0", "--auth-token", "t", "--force-fou-local-ip-alt")
				before := n.Srv.Snapshot(t)
				op := []string{"up"}
				if step == 3 {
					good.do(t, "up")
					op = []string{"bind", RtrAddr, "10000"}
				}
				ready := n.Srv.Snapshot(t)
				instead := map[string]string{
					"before": "echo ready; sleep 2; exec \"$@\"",
					"after":  "\"$@\" || exit; echo ready; sleep 2; exit 0",
				}[when]
				broken, _ := saboteur(t, env, step, strings.ReplaceAll(instead, "echo ready", ": >"+good.path+".ready"))
				bad := &scriptHost{good.ns, good.path, append(append(append([]string{}, broken[:3]...), good.env[len(good.env)-2]), broken[3])}
				// A session of its own, so that there is a process group like that of a terminal.
				p := n.Srv.Start(t, append([]string{"setsid"}, bad.argv(op...)...)...)
				Eventually(t, commandTimeout, func() error { _, err := os.Stat(good.path + ".ready"); return err })
				if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGINT); err != nil {
					t.Fatal(err)
				}
				if code := p.Wait(t, commandTimeout); code != 1 {
					t.Errorf("exit %d after Ctrl-C, want 1", code)
				}
				if !regexp.MustCompile(`: interrupted\n`).MatchString(p.Logs()) {
					t.Errorf("it does not say that it was interrupted")
				}
				SameState(t, "the host after Ctrl-C", ready, n.Srv.Snapshot(t))
				good.do(t, "down")
				SameState(t, "the host after down", before, n.Srv.Snapshot(t))
			})
		}
	}
}
