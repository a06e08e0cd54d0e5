package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// keygen makes a key pair as users do.
func keygen(t testing.TB) (private, public string) {
	t.Helper()
	out, err := run("", Bin(t), "--auth-keygen")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Fields(out)
	if len(lines) != 2 {
		t.Fatalf("--auth-keygen printed %q", out)
	}
	return lines[0], lines[1]
}

// pair is a server of two tunnels and two clients behind one NAT, each with a key of its own.
type pair struct {
	*Net
	dir    string
	server *Proc
	client [2]*Proc
	config [3]string // server, clients
	hub    bool      // one interface and port of the server's for both
}

// serverInner is the server's inner address for a client.
func (p *pair) serverInner(i int) string {
	if p.hub {
		return serverInner[0]
	}
	return serverInner[i]
}

// tunnel is what the server's log calls the tunnel of a client.
func (p *pair) tunnel(i int) string {
	if p.hub {
		return fmt.Sprintf("ipipou0/%d: peer", i)
	}
	return fmt.Sprintf("ipipou%d: peer", i)
}

// inner addresses of the two tunnels.
var (
	serverInner = [2]string{"172.28.0.0", "172.28.0.2"}
	clientInner = [2]string{"172.28.0.1", "172.28.0.3"}
)

// newPair writes the configuration of a server with two tunnels and of its clients; more is added to the server's top.
func newPair(t testing.TB, more, clientMore string) *pair {
	t.Helper()
	p := &pair{Net: NewNet(t), dir: t.TempDir()}
	serverPrivate, serverPublic := keygen(t)
	server := "server = true\nfou-dev = \"s0\"\nauth-secret = \"lab secret\"\nreply-on-auth-ok = true\nverb = 3\n" +
		"auth-key-b64 = \"" + serverPrivate + "\"\n" + more
	for i := range p.client {
		private, public := keygen(t)
		server += fmt.Sprintf("\n[[tunnel]]\nnumber = %d\nauth-remote-pubkey-b64 = %q\n", i, public)
		p.config[i+1] = filepath.Join(p.dir, fmt.Sprintf("client%d.toml", i))
		client := fmt.Sprintf("number = %d\nfou-dev = \"c0\"\nfou-remote = \"%s:%d\"\ntunl-ip = %q\nverb = 3\n"+
			"auth-key-b64 = %q\nauth-remote-pubkey-b64 = %q\nauth-secret = \"lab secret\"\n%s",
			i, SrvAddr, 10000+i, clientInner[i], private, serverPublic, clientMore)
		if err := os.WriteFile(p.config[i+1], []byte(client), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.config[0] = filepath.Join(p.dir, "server.toml")
	if err := os.WriteFile(p.config[0], []byte(server), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// ipipou starts the program in a namespace, with directories of its own for that host.
func (p *pair) ipipou(t testing.TB, ns *NS, args ...string) *Proc {
	t.Helper()
	return startIPIPOU(t, p.dir, ns, args...)
}

func startIPIPOU(t testing.TB, dir string, ns *NS, args ...string) *Proc {
	t.Helper()
	host := filepath.Join(dir, ns.Name)
	return ns.Start(t, append([]string{"env", "IPIPOU_RUN_DIR=" + host + "/run", "STATE_DIRECTORY=" + host + "/state", Bin(t)}, args...)...)
}

func (p *pair) startServer(t testing.TB) {
	t.Helper()
	p.server = p.ipipou(t, p.Srv, "--config", p.config[0])
	p.server.WaitLog(t, `ipipou(1|0/1): waiting for an authentication`, commandTimeout)
}

func (p *pair) startClient(t testing.TB, i int) {
	t.Helper()
	from := p.server.Len()
	p.client[i] = p.ipipou(t, []*NS{p.C1, p.C2}[i], "--config", p.config[i+1])
	p.server.WaitLogFrom(t, from, p.tunnel(i)+` bound at`, commandTimeout)
	p.client[i].WaitLog(t, fmt.Sprintf(`ipipou%d: up`, i), commandTimeout)
}

func (p *pair) start(t testing.TB) {
	t.Helper()
	p.startServer(t)
	p.startClient(t, 0)
	p.startClient(t, 1)
}

// stop ends a process by SIGTERM, which has to end well.
func stop(t testing.TB, procs ...*Proc) {
	t.Helper()
	for _, p := range procs {
		p.Signal(t, syscall.SIGTERM)
		if code := p.Wait(t, commandTimeout); code != 0 {
			t.Errorf("%s: exit %d after SIGTERM, want 0", p, code)
		}
	}
}

func (p *pair) works(t testing.TB, i int) {
	t.Helper()
	p.Srv.Ping(t, clientInner[i])
	[]*NS{p.C1, p.C2}[i].Ping(t, p.serverInner(i))
}

// Two clients behind one public address, each with its own key; both tunnels carry 100 MB each way at once.
func TestTwoClientsBehindOneAddress(t *testing.T) {
	p := newPair(t, "", "")
	hosts := []*NS{p.Srv, p.C1, p.C2}
	var before []string
	for _, ns := range hosts {
		before = append(before, ns.Snapshot(t))
	}
	p.start(t)
	p.works(t, 0)
	p.works(t, 1)

	const size = 100_000_000
	var all sync.WaitGroup
	for i, ns := range []*NS{p.C1, p.C2} {
		all.Go(func() {
			if _, err := Transfer(ns, p.Srv, serverInner[i], size); err != nil {
				t.Errorf("client %d to server: %v", i, err)
			}
		})
		all.Go(func() {
			if _, err := Transfer(p.Srv, ns, clientInner[i], size); err != nil {
				t.Errorf("server to client %d: %v", i, err)
			}
		})
	}
	all.Wait()
	for i := range 2 {
		if c := p.Srv.Counters(t, fmt.Sprintf("ipipou%d", i)); c.RX.Bytes < size || c.TX.Bytes < size {
			t.Errorf("ipipou%d counted %+v, so the %d bytes each way went elsewhere", i, c, size)
		}
	}
	asPlanned(t, p.client[0], p.client[1], p.server) // one by an alternate address
	stop(t, p.client[0], p.client[1], p.server)
	for i, ns := range hosts {
		SameState(t, ns.Name+" after the tunnels", before[i], ns.Snapshot(t))
	}
}

// The router maps a client anew: the tunnel follows at the next SIGUSR1, and the old address is shut out.
func TestRoaming(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	before := p.Srv.Snapshot(t)
	p.start(t)
	old := p.server.WaitLog(t, `ipipou0: peer bound at (\S+)`, commandTimeout)[1]
	for _, to := range []string{RtrAddr + ":4000", RtrAddr2 + ":4001", RtrAddr + ":4002", RtrAddr3 + ":4003"} {
		n := p.server.Len()
		p.NATForce(t, C1Addr, to)
		p.client[0].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, `ipipou0: peer moved from `+old+` to `+to, commandTimeout)
		p.works(t, 0)
		p.works(t, 1)
		counters := p.Srv.Counters(t, "ipipou0")
		p.Bad.SendUDP(t, old, SrvAddr+":10000", IPv4Echo("172.28.0.1", "172.28.0.0", 1, 1))
		p.works(t, 1)
		if now := p.Srv.Counters(t, "ipipou0"); now.RX.Packets != counters.RX.Packets {
			t.Errorf("a packet from the old address %s reached the tunnel", old)
		}
		old = to
	}
	stop(t, p.client[0], p.client[1], p.server)
	SameState(t, "the server after roaming", before, p.Srv.Snapshot(t))
}
