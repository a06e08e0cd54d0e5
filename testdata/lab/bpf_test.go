package lab

import (
	"fmt"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"time"
)

// What is named TestBPF… also runs on the host itself, whose kernel need not have ipip, sit or fou.

const bpf = "backend = \"bpf\"\n"

// Two clients behind one public address, each with its own key: two interfaces and ports as the kernel's drivers would
// have them, and one of both for all, where the peer is found by its key. Both carry TCP both ways at once.
func TestBPFTwoClients(t *testing.T) {
	for name, p := range map[string]func(testing.TB) *pair{
		"two ports": func(t testing.TB) *pair { return newPair(t, bpf, bpf) },
		"one port":  newHub,
	} {
		t.Run(name, func(t *testing.T) {
			p := p(t)
			hosts := []*NS{p.Srv, p.C1, p.C2}
			before := snapshots(t, hosts...)
			p.start(t)
			p.works(t, 0)
			p.works(t, 1)
			size := int64(200_000_000)
			if InGuest() {
				size = 20_000_000
			}
			var all sync.WaitGroup
			for i, ns := range []*NS{p.C1, p.C2} {
				all.Go(func() {
					if _, err := Transfer(ns, p.Srv, p.serverInner(i), size); err != nil {
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
			stop(t, p.client[0], p.client[1], p.server)
			sameStates(t, "after the tunnels", p.dir, before)
		})
	}
}

// newHub is a pair whose server has one interface, one address and one port for both peers.
func newHub(t testing.TB) *pair {
	t.Helper()
	p := newPair(t, bpf+"fou-local-port = 10000\ntunl-dev = \"ipipou0\"\ntunl-ip = \"172.28.0.0\"\n", bpf)
	p.hub = true
	edit(t, p.config[0], "number = 0\n", "number = 0\ntunl-peer-ip = \"172.28.0.1\"\n")
	edit(t, p.config[0], "number = 1\n", "number = 1\ntunl-peer-ip = \"172.28.0.3\"\n")
	edit(t, p.config[2], SrvAddr+":10001", SrvAddr+":10000")
	edit(t, p.config[2], "number = 1\n", "number = 1\ntunl-peer-ip = \"172.28.0.0\"\n")
	return p
}

// A hub's peers move in turn, into each other's old places too; what comes from where one was is dropped.
func TestBPFRoaming(t *testing.T) {
	t.Parallel()
	p := newHub(t)
	before := snapshots(t, p.Srv, p.C1, p.C2)
	p.start(t)
	inner := p.Srv.ListenUDP(t, "172.28.0.0:2000")
	at := [2]string{}
	for i := range at {
		at[i] = p.server.WaitLog(t, p.tunnel(i)+` bound at (\S+)`, commandTimeout)[1]
	}
	addrs := [2]string{C1Addr, C2Addr}
	for _, move := range []struct {
		client int
		to     string
	}{
		{0, RtrAddr + ":4000"}, {0, RtrAddr2 + ":4001"}, {1, RtrAddr2 + ":4002"}, {1, RtrAddr + ":4000"}, {0, RtrAddr3 + ":4003"},
	} {
		n := p.server.Len()
		p.NATForce(t, addrs[move.client], move.to)
		p.client[move.client].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, fmt.Sprintf(`%s moved from %s to %s\n`, p.tunnel(move.client), at[move.client], move.to), commandTimeout)
		p.works(t, 0)
		p.works(t, 1)
		from := clientInner[move.client] + ":1000"
		p.Bad.SendUDP(t, at[move.client], SrvAddr+":10000", IPv4UDP(from, "172.28.0.0:2000", []byte("from the old place")))
		[]*NS{p.C1, p.C2}[move.client].SendUDP(t, from, "172.28.0.0:2000", []byte("from the new one"))
		buf := make([]byte, 100)
		inner.SetReadDeadline(time.Now().Add(commandTimeout))
		if k, _, err := inner.ReadFrom(buf); err != nil || string(buf[:k]) != "from the new one" {
			t.Errorf("after the move to %s: received %q (%v)", move.to, buf[:k], err)
		}
		at[move.client] = move.to
	}
	stop(t, p.server, p.client[0], p.client[1])
	sameStates(t, "after roaming", p.dir, before)
}

// Strangers' data reaches nobody inside, whatever the state of the daemon; the peers' does.
func TestBPFStrangers(t *testing.T) {
	t.Parallel()
	p := newPair(t, bpf, bpf)
	before := snapshots(t, p.Srv)
	p.Bad.Run(t, "ip", "route", "add", "172.29.0.0/16", "via", SrvAddr)
	inner, fence := p.Srv.ListenUDP(t, "0.0.0.0:2000"), p.Srv.ListenUDP(t, SrvAddr+":2001")
	peers := [2]string{RtrAddr + ":10000", RtrAddr + ":10001"}
	answers := p.Bad.Sniff(t, "b0")
	shutOut := func(when string) {
		t.Helper()
		fou, bare := strangers(peers)
		p.Bad.sendPackets(t, append(fou, bare...)...)
		p.Bad.sendPackets(t, fragments(fou[1])[1])
		p.Bad.sendPackets(t, IPv4UDP(BadAddr+":2001", SrvAddr+":2001", []byte("all of them are there")))
		fence.SetReadDeadline(time.Now().Add(commandTimeout))
		if _, err := fence.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		inner.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		buf := make([]byte, 100)
		if n, from, err := inner.ReadFrom(buf); err == nil {
			t.Errorf("%s: a listener inside the tunnel received %q of %v", when, buf[:n], from)
		}
		if _, heard := answers.find(func(packet) bool { return true }); heard {
			t.Errorf("%s: the server answered", when)
		}
	}
	p.startServer(t)
	shutOut("before any authentication")
	for i := range 2 {
		p.startClient(t, i)
	}
	shutOut("while clients are bound")
	p.C1.SendUDP(t, clientInner[0]+":1000", serverInner[0]+":2000", []byte("a peer"))
	inner.SetReadDeadline(time.Now().Add(commandTimeout))
	if n, _, err := inner.ReadFrom(make([]byte, 100)); err != nil || n != len("a peer") {
		t.Fatalf("the client's data does not arrive: %d bytes, %v", n, err)
	}
	kill(t, p.server)
	shutOut("after the daemon was killed")
	p.works(t, 0)
	p.works(t, 1)
	p.startServer(t)
	p.server.WaitLog(t, `WARN an earlier server died and left \d+ things behind: undoing them first`, commandTimeout)
	if n := count(p.server.Logs(), `ERROR`); n > 0 {
		t.Errorf("%d errors while undoing what was left", n)
	}
	shutOut("after the restart")
	for i := range 2 {
		n := p.server.Len()
		p.client[i].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, fmt.Sprintf(`ipipou%d: peer bound at %s`, i, regexp.QuoteMeta(peers[i])), commandTimeout)
		p.works(t, i)
	}
	stop(t, p.client[0], p.client[1], p.server)
	sameStates(t, "in the end", p.dir, before)
}
