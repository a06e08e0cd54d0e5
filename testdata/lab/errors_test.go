package lab

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// fails runs the program, which must end by itself with that code, one line that matches, and nothing changed.
func (s *solo) fails(t testing.TB, ns *NS, code int, line string, args ...string) {
	t.Helper()
	before := ns.quick(t)
	p := s.launch(t, ns, args...)
	if got := p.Wait(t, commandTimeout); got != code {
		t.Errorf("%s: exit %d, want %d", p, got, code)
	}
	if logs := p.Logs(); !regexp.MustCompile(`^ipipou: [^\n]*(` + line + `)[^\n]*\n$`).MatchString(logs) {
		t.Errorf("%s: it said\n%swant one line with %q", p, logs, line)
	}
	SameState(t, ns.Name+" after a failed start", before, ns.quick(t))
	noJournal(t, s.dir, ns)
}

// What others have is in the way, or is used; in no case is it touched.
func TestThingsOfOthers(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	token := []string{"--auth-token", "a token of the lab's"}
	server := append([]string{"-s", "--fou-dev", "s0"}, token...)
	client := append([]string{"--fou-dev", "c0", "-r", SrvAddr + ":10000", "--tunl-ip", clientInner[0]}, token...)

	t.Run("UDP port", func(t *testing.T) {
		for ns, addr := range map[*NS]string{s.Srv: SrvAddr, s.C1: C1Addr} {
			conn := ns.ListenUDP(t, addr+":10000")
			s.fails(t, ns, 53, `ip fou add port 10000 .*Address already in use`, map[*NS][]string{s.Srv: server, s.C1: client}[ns]...)
			conn.Close()
		}
	})
	t.Run("interface", func(t *testing.T) {
		for ns, args := range map[*NS][]string{s.Srv: server, s.C1: client} {
			ns.Run(t, "ip", "link", "add", "ipipou0", "type", "dummy")
			s.fails(t, ns, 52, `interface ipipou0 exists already`, args...)
			ns.Run(t, "ip", "link", "del", "ipipou0")
		}
	})
	t.Run("nft table", func(t *testing.T) {
		s.Srv.RunInput(t, "table ip ipipou0 {\n chain c {\n counter\n }\n}\n", "nft", "-f", "-")
		s.fails(t, s.Srv, 40, `File exists`, server...)
		s.Srv.Run(t, "nft", "delete", "table", "ip", "ipipou0")
	})
	t.Run("device", func(t *testing.T) {
		s.fails(t, s.Srv, 2, `nowhere0 does not exist`, append(server, "--fou-dev", "nowhere0")...)
		s.fails(t, s.C1, 2, `nowhere0 does not exist`, append(client, "--fou-dev", "nowhere0")...)
		s.fails(t, s.Srv, 2, `198\.51\.100\.1`, append([]string{"-s", "-b", "198.51.100.1"}, token...)...)
	})
	t.Run("listeners and alternate address", func(t *testing.T) {
		var before []string
		s.Srv.Run(t, "ip", "addr", "add", "172.29.0.0/32", "dev", "s0")
		s.Srv.Run(t, "ip", "fou", "add", "port", "10000", "ipproto", "4", "local", SrvAddr)
		s.Srv.Run(t, "ip", "fou", "add", "port", "10000", "ipproto", "4", "local", "172.29.0.0", "dev", "s0")
		s.C1.Run(t, "ip", "fou", "add", "port", "10000", "ipproto", "4")
		for _, ns := range []*NS{s.Srv, s.C1} {
			before = append(before, ns.Snapshot(t))
		}
		s.startServer(t, append([]string{"--fou-dev", "s0", "--force-fou-local-ip-alt"}, token...)...)
		s.startClient(t, token...)
		s.works(t)
		if n := count(s.server.Logs(), `WARN .*FOU listener on port 10000 exists already: it is used, and will stay`); n != 2 {
			t.Errorf("%d warnings about the listeners that the server found, want 2", n)
		}
		if n := count(s.server.Logs(), `WARN .*172\.29\.0\.0 exists already: it is used, and will stay`); n != 1 {
			t.Errorf("%d warnings about the address that the server found, want 1", n)
		}
		s.client.WaitLog(t, `WARN .*FOU listener on port 10000 exists already`, commandTimeout)
		s.roam(t, RtrAddr+":4000")
		s.works(t)
		stop(t, s.client, s.server)
		SameState(t, "the server with things of others", before[0], s.Srv.Snapshot(t))
		SameState(t, "the client with a listener of others", before[1], s.C1.Snapshot(t))
		s.Srv.batch(t, "addr del 172.29.0.0/32 dev s0", "fou del port 10000 local "+SrvAddr, "fou del port 10000 local 172.29.0.0 dev s0")
		s.C1.batch(t, "fou del port 10000")
		s.NATForce(t, C1Addr, "")
	})
	t.Run("second instance", func(t *testing.T) {
		before := s.Srv.Snapshot(t)
		s.startServer(t, append([]string{"--fou-dev", "s0"}, token...)...)
		during := s.Srv.quick(t)
		p := s.launch(t, s.Srv, append(server, "--verb", "1")...)
		if code := p.Wait(t, commandTimeout); code != 1 {
			t.Errorf("second instance: exit %d, want 1", code)
		}
		if logs := p.Logs(); !regexp.MustCompile(`^ipipou: instance \S+ is running already, as process \d+\n$`).MatchString(logs) {
			t.Errorf("second instance said %q", logs)
		}
		SameState(t, "the server with a second instance", during, s.Srv.quick(t))
		s.startClient(t, token...)
		s.works(t)
		stop(t, s.client, s.server)
		SameState(t, "the server in the end", before, s.Srv.Snapshot(t))
	})
}

// Somebody takes away what the program has made: it says so with the exit code, and cleans up the rest.
func TestThingsTakenAway(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	token := []string{"--auth-token", "a token of the lab's"}
	server := append([]string{"--fou-dev", "s0"}, token...)
	before, quick := s.Srv.Snapshot(t), s.Srv.quick(t)
	ends := func(t *testing.T, code int, line string) {
		t.Helper()
		if got := s.server.Wait(t, commandTimeout); got != code {
			t.Errorf("exit %d, want %d", got, code)
		}
		logs := strings.TrimSpace(s.server.Logs())
		if last := logs[strings.LastIndex(logs, "\n")+1:]; !regexp.MustCompile(`^ipipou: .*(` + line + `)`).MatchString(last) {
			t.Errorf("its last line is %q, want one with %q", last, line)
		}
	}
	t.Run("name before bind", func(t *testing.T) {
		s.startServer(t, server...)
		s.Srv.Run(t, "ip", "link", "add", "ipipou0", "type", "dummy")
		s.client = s.launch(t, s.C1, clientArgs(token...)...)
		ends(t, 100, `bind to \S+ failed: ip link add`)
		stop(t, s.client)
		s.Srv.Run(t, "ip", "link", "del", "ipipou0", "type", "dummy")
		SameState(t, "the server after a bind that failed", quick, s.Srv.quick(t))
	})
	t.Run("interface before exit", func(t *testing.T) {
		for range 5 {
			s.startServer(t, server...)
			s.startClient(t, token...)
			// Held meanwhile, so that there is hardly time to put it back.
			s.Srv.Run(t, "sh", "-c", strings.ReplaceAll("kill -STOP PID; ip link del ipipou0; kill PID; kill -CONT PID", "PID", strconv.Itoa(s.server.Pid())))
			code := s.server.Wait(t, commandTimeout)
			stop(t, s.client)
			if code != 0 || count(s.server.Logs(), "WARN the interface ipipou0 was gone: put back") == 0 {
				break
			}
		}
		ends(t, 200, `clean-up failed`)
		SameState(t, "the server after a clean-up that failed in part", before, s.Srv.Snapshot(t))
	})
}

// Ctrl-C ends also a client that waits for a name to be resolved.
func TestInterruptedWhileResolving(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	// A server of names that receives and does not answer.
	conn := s.Bad.ListenUDP(t, BadAddr+":53")
	dir := filepath.Join("/etc/netns", s.C1.Name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.WriteFile(filepath.Join(dir, "resolv.conf"), []byte("nameserver "+BadAddr+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := s.C1.Snapshot(t)
	p := s.launch(t, s.C1, clientArgs("-r", "server.lab.test:10000")...)
	if _, err := conn.Read(make([]byte, 512)); err != nil {
		t.Fatal(err)
	}
	p.Signal(t, syscall.SIGINT)
	if code := p.Wait(t, commandTimeout); code != 0 {
		t.Errorf("exit %d after SIGINT, want 0; it said\n%s", code, p.Logs())
	}
	SameState(t, "the client in the end", before, s.C1.Snapshot(t))
	noJournal(t, s.dir, s.C1)
}
