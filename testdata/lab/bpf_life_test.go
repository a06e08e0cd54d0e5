package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Where the kernel has no drivers BPF takes their place without being asked, and says why; else the drivers do.
func TestBPFAuto(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	before := snapshots(t, p.Srv, p.C1, p.C2)
	p.start(t)
	want := `WARN backend bpf: this kernel lacks a driver \(modprobe \S+: .*\)`
	if InGuest() {
		want = `INFO backend: the kernel's drivers`
	}
	for _, proc := range []*Proc{p.server, p.client[0]} {
		proc.WaitLog(t, want, commandTimeout)
	}
	p.works(t, 0)
	p.works(t, 1)
	stop(t, p.client[0], p.client[1], p.server)
	sameStates(t, "in the end", p.dir, before)
}

// The client's own address changes, and its outer interface is made anew: nobody tells it, and the tunnel follows.
func TestBPFOwnAddress(t *testing.T) {
	t.Parallel()
	p := newHub(t)
	before := snapshots(t, p.Srv)
	p.start(t)
	p.works(t, 0)
	last := C1Addr
	for _, to := range []string{"10.1.1.9", C1Addr} {
		n, m := p.client[0].Len(), p.server.Len()
		p.C1.batch(t, "addr add "+to+"/32 dev c0", "addr del "+last+"/24 dev c0", "addr del "+to+"/32 dev c0", "addr add "+to+"/24 dev c0",
			"route replace default via 10.1.1.1")
		movesTo(t, p.client[0], n, "ipipou0", "own", last, to)
		p.server.WaitLogFrom(t, m, p.tunnel(0)+` moved from \S+ to `+RtrAddr, commandTimeout)
		p.works(t, 0)
		last = to
	}
	n := p.client[0].Len()
	p.C1.batch(t, "link del c0")
	p.Rtr.batch(t, veth("r1", 9, "c0", p.C1), "addr add 10.1.1.1/24 dev r1", "link set r1 up")
	p.C1.batch(t, "addr add "+C1Addr+"/24 dev c0", "link set c0 up", "route add default via 10.1.1.1")
	p.client[0].WaitLogFrom(t, n, `ipipou0: the outer interface was made anew, tunnel moved`, commandTimeout)
	p.C1.waitRunning(t)
	p.client[0].Signal(t, syscall.SIGUSR1)
	Eventually(t, commandTimeout, func() error {
		_, err := p.C1.Try("ping", "-c", "1", "-W", "1", serverInner[0])
		return err
	})
	p.works(t, 1)
	stop(t, p.client[0], p.client[1], p.server)
	sameStates(t, "in the end", p.dir, before)
}

// A peer that says nothing is shut out after its time, one that does is not.
func TestBPFLifetime(t *testing.T) {
	t.Parallel()
	life := 2 * time.Second
	if InGuest() {
		life = 20 * time.Second // starting programs takes long there
	}
	p := newPair(t, bpf+fmt.Sprintf("auth-lifetime = %.0f\n", life.Seconds()), bpf)
	since := time.Now()
	p.start(t)
	inner := p.Srv.ListenUDP(t, "0.0.0.0:2000")
	authenticate := func() {
		t.Helper()
		n := p.client[0].Len()
		p.client[0].Signal(t, syscall.SIGUSR1)
		p.client[0].WaitLogFrom(t, n, `reply source=\S+ length=73 ok=true`, commandTimeout)
	}
	p.staysIn(t, inner, 1, life, since, authenticate)
	time.Sleep(2 * life) // nothing of the peer's, and no event that would tell
	if p.arrives(t, inner, 0, "idle", 100*time.Millisecond) {
		t.Error("a peer that was silent for longer than auth-lifetime is let in")
	}
	since = time.Now()
	authenticate()
	if !p.arrives(t, inner, 0, "again", life/2) && time.Since(since) < life {
		t.Error("one who authenticated again is shut out")
	}
	stop(t, p.client[0], p.client[1], p.server)
}

// By address alone, data authenticates its sender too, as the kernel's tunnels have it.
func TestBPFByAddress(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	s.startServer(t, "--backend", "bpf", "--fou-dev", "s0", "--auth-by-remote-ip", "--fou-remote-ip", RtrAddr)
	inner := s.Srv.ListenUDP(t, "0.0.0.0:2000")
	data := IPv4UDP(clientInner[0]+":1000", serverInner[0]+":2000", []byte("hello"))
	s.Bad.SendUDP(t, BadAddr+":10000", SrvAddr+":10000", data)
	n := s.server.Len()
	s.Rtr.SendUDP(t, RtrAddr+":7000", SrvAddr+":10000", data)
	s.server.WaitLogFrom(t, n, `ipipou0: peer bound at `+RtrAddr+`:7000`, commandTimeout)
	if strings.Contains(s.server.Logs(), "bound at "+BadAddr) {
		t.Error("a stranger was bound")
	}
	s.Rtr.SendUDP(t, RtrAddr+":7000", SrvAddr+":10000", data)
	inner.SetReadDeadline(time.Now().Add(commandTimeout))
	if k, _, err := inner.ReadFrom(make([]byte, 100)); err != nil || k != len("hello") {
		t.Errorf("the peer's data does not arrive: %d bytes, %v", k, err)
	}
	stop(t, s.server)
}

// Killed, a client and a server leave the host to their next start; an instance beside them is none of their business.
func TestBPFCrash(t *testing.T) {
	t.Parallel()
	p := newHub(t)
	before := snapshots(t, p.Srv, p.C1, p.C2)
	beside := startIPIPOU(t, p.dir, p.Srv, "--static", "--backend", "bpf", "--number", "7", "--encap", "fou", "--fou-dev", "s0",
		"--fou-remote", BadAddr, "--tunl-ip", "10.7.0.1/30", "-vv")
	beside.WaitLog(t, `ipipou7: up`, commandTimeout)
	other := startIPIPOU(t, p.dir, p.Bad, "--static", "--backend", "bpf", "--number", "7", "--encap", "fou", "--fou-dev", "b0",
		"--fou-remote", SrvAddr, "--tunl-ip", "10.7.0.2/30", "-vv")
	other.WaitLog(t, `ipipou7: up`, commandTimeout)
	p.start(t)
	for range 2 {
		kill(t, p.server)
		kill(t, p.client[0])
		p.works(t, 1)
		p.startServer(t)
		p.server.WaitLog(t, `WARN an earlier server died and left \d+ things behind: undoing them first`, commandTimeout)
		p.startClient(t, 0)
		p.client[0].WaitLog(t, `WARN an earlier client0 died and left \d+ things behind: undoing them first`, commandTimeout)
		n := p.server.Len()
		p.client[1].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, p.tunnel(1)+` bound at`, commandTimeout)
		p.works(t, 0)
		p.works(t, 1)
		p.Bad.Ping(t, "10.7.0.1")
		for _, proc := range []*Proc{p.server, p.client[0]} {
			if n := count(proc.Logs(), `ERROR`); n > 0 {
				t.Errorf("%d errors while undoing what was left", n)
			}
		}
	}
	stop(t, p.client[0], p.client[1], p.server)
	p.Bad.Ping(t, "10.7.0.1")
	stop(t, beside, other)
	sameStates(t, "in the end", p.dir, before)
}

// Printed scripts of a hub and a client, each call of which has a mount table of its own, in the shells of small hosts.
func TestBPFScripts(t *testing.T) {
	for _, name := range []string{"dash", "busybox"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newHub(t)
			path, err := exec.LookPath(name)
			if err != nil {
				t.Fatal(err)
			}
			shell := []string{"env", filepath.Join(p.dir, "sh")} // busybox is what it is called
			if err := os.Symlink(path, shell[1]); err != nil {
				t.Fatal(err)
			}
			before := snapshots(t, p.Srv, p.C1, p.C2)
			server := printed(t, p.Srv, p.dir, shell, "--config", p.config[0])
			client := printed(t, p.C1, p.dir, shell, "--config", p.config[1])
			server.do(t, "up")
			second := p.ipipou(t, p.C2, "--config", p.config[2])
			second.WaitLog(t, `authentication sent`, commandTimeout)
			p.C1.NoPing(t, serverInner[0], "-c", "1")
			client.do(t, "up")
			server.do(t, "bind", RtrAddr, "10000", "0")
			server.do(t, "bind", RtrAddr, "10001", "1")
			p.works(t, 0)
			p.works(t, 1)
			if out := server.fails(t, "bind", RtrAddr, "10000", "0"); !strings.Contains(out, "is bound already: rebind it") {
				t.Errorf("a second bind: %s", out)
			}
			p.NATForce(t, C1Addr, RtrAddr2+":4000")
			client.do(t, "auth")
			server.do(t, "rebind", RtrAddr2, "4000", "0")
			p.works(t, 0)
			p.works(t, 1)
			TransferTCP(t, p.C1, p.Srv, serverInner[0], 2_000_000)
			TransferTCP(t, p.Srv, p.C1, clientInner[0], 2_000_000)
			status := server.do(t, "status")
			for _, want := range []string{"ipipou0 peer 0: rx-packets ", "ipipou0 peer 1: rx-packets ", "nobody: rx-packets 0", " stranger "} {
				if !strings.Contains(status, want) {
					t.Errorf("the status has no %q:\n%s", want, status)
				}
			}
			if strings.Contains(status, "ipipou0 peer 0: rx-packets 0") {
				t.Errorf("nothing was counted:\n%s", status)
			}
			client.do(t, "rebind", SrvAddr, "10000")
			p.works(t, 0)
			client.do(t, "down")
			server.do(t, "down")
			stop(t, second)
			sameStates(t, "in the end", "", before)
		})
	}
}

// fails runs an operation that must not end well, and returns what it said.
func (s *scriptHost) fails(t testing.TB, args ...string) string {
	t.Helper()
	out, err := s.ns.Try(s.argv(args...)...)
	if err == nil {
		t.Errorf("%v ended well:\n%s", args, out)
		return ""
	}
	return err.Error()
}

// Three nodes whose routes choose the outer destination, with a network behind each; a stranger's packets stay out.
func TestBPFNodes(t *testing.T) {
	for _, encap := range []string{"fou", "none"} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			n, dir := NewNet(t), t.TempDir()
			// Srv and Bad are neighbours, and C1 reaches them by the router, for once without masquerading.
			n.Rtr.Run(t, "nft", "delete", "table", "ip", "lab")
			for _, ns := range []*NS{n.Srv, n.Bad} {
				ns.batch(t, "route add 10.1.0.0/16 via "+RtrAddr)
			}
			config := tomlFile(t, dir, "mesh", "backend = \"bpf\"", "mode = \"any4\"", "encap = \""+encap+"\"", "forward = true", "verb = 2",
				"[[node]]", "name = \"a\"", "fou-local-ip = \""+SrvAddr+"\"", "tunl-ip = [\"10.9.0.1\", \"fd09::1\"]", "bridge = { name = \"br0\", address = \"10.42.1.1/24\" }",
				"[[node]]", "name = \"b\"", "fou-local-ip = \""+BadAddr+"\"", "tunl-ip = [\"10.9.0.2\", \"fd09::2\"]", "bridge = { name = \"br0\", address = \"10.42.2.1/24\" }",
				"[[node]]", "name = \"c\"", "fou-local-ip = \""+C1Addr+"\"", "tunl-ip = [\"10.9.0.3\", \"fd09::3\"]", "bridge = { name = \"br0\", address = \"10.42.3.1/24\" }")
			hosts := []*NS{n.Srv, n.Bad, n.C1}
			before := snapshots(t, hosts...)
			var procs []*Proc
			var behind []*NS
			for i, ns := range hosts {
				procs = append(procs, startIPIPOU(t, dir, ns, "--config", config, "--node", string(rune('a'+i))))
			}
			for i, p := range procs {
				p.WaitLog(t, `ipipou0: up`, commandTimeout)
				box := NewNS(t, "box")
				hosts[i].batch(t, veth("v-box", 20+i, "e0", box), "link set v-box up master br0")
				box.batch(t, fmt.Sprintf("addr add 10.42.%d.2/24 dev e0", i+1), "link set e0 up", fmt.Sprintf("route add default via 10.42.%d.1", i+1))
				box.waitRunning(t)
				behind = append(behind, box)
			}
			for i := range hosts {
				j := (i + 1) % 3
				hosts[i].Ping(t, fmt.Sprintf("10.9.0.%d", j+1))
				hosts[i].Ping(t, fmt.Sprintf("fd09::%d", j+1))
				if err := both(behind[i], behind[j], fmt.Sprintf("10.42.%d.2", i+1), fmt.Sprintf("10.42.%d.2", j+1), 2_000_000); err != nil {
					t.Error(err)
				}
			}
			// A router between may forge neither a node's place nor its inner address from its own.
			inner := n.Srv.ListenUDP(t, "10.9.0.1:2000")
			forged := func(from, word string) []byte {
				data := IPv4UDP(from+":1000", "10.9.0.1:2000", []byte(word))
				if encap == "fou" {
					return IPv4UDP(RtrAddr+":10000", SrvAddr+":10000", data)
				}
				return ipv4(4, netip.MustParseAddr(RtrAddr), netip.MustParseAddr(SrvAddr), data)
			}
			n.Rtr.sendPackets(t, forged("10.9.0.2", "forged"), forged("10.42.3.9", "forged"), forged("192.0.2.77", "forged"))
			n.Bad.SendUDP(t, "10.42.3.9:1000", "10.9.0.1:2000", []byte("another node's"))
			n.Bad.SendUDP(t, "10.42.2.9:1000", "10.9.0.1:2000", []byte("true"))
			buf := make([]byte, 100)
			inner.SetReadDeadline(time.Now().Add(commandTimeout))
			if k, from, err := inner.ReadFrom(buf); err != nil || string(buf[:k]) != "true" {
				t.Errorf("received %q of %v (%v), want only what is true", buf[:k], from, err)
			}
			for _, ns := range hosts {
				ns.batch(t, "link del v-box")
			}
			stop(t, procs...)
			sameStates(t, "in the end", dir, before)
		})
	}
}

// A port that is taken is said before anything is done; an outer interface that is gone is no reason for a bad end; and
// a tunnel without UDP moves as often as its other end does.
func TestBPFPortsAndMoves(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	before := snapshots(t, w.a)
	args := func(number, remote string, more ...string) []string {
		return append([]string{"--static", "--backend", "bpf", "--number", number, "--fou-local-ip", "192.0.2.1", "--fou-remote", remote,
			"--tunl-ip", "10." + number + ".0.1/30", "--verb", "3"}, more...)
	}
	first := startIPIPOU(t, w.dir, w.a, args("0", "192.0.2.2", "--encap", "fou", "--fou-local-port", "5555")...)
	first.WaitLog(t, `ipipou0: up`, commandTimeout)
	second := startIPIPOU(t, w.dir, w.a, args("1", "192.0.2.3", "--encap", "fou", "--fou-local-port", "5555")...)
	if code := second.Wait(t, commandTimeout); code != 54 {
		t.Errorf("exit %d where the port is taken, want 54", code)
	}
	second.WaitLog(t, `ipipou: ipipou1: UDP port: .*address already in use`, commandTimeout)
	stop(t, first)
	sameStates(t, "after a port that was taken", w.dir, before)

	script := printed(t, w.a, w.dir, nil, args("0", "192.0.2.2")...)
	script.do(t, "up")
	for i := range 12 {
		script.do(t, "rebind", fmt.Sprintf("192.0.2.%d", 20+i))
	}
	script.do(t, "rebind", "192.0.2.2")
	other := startIPIPOU(t, w.dir, w.b, "--static", "--backend", "bpf", "--fou-dev", "b0", "--fou-remote", "192.0.2.1", "--tunl-ip", "10.0.0.2/30", "-vv")
	other.WaitLog(t, `ipipou0: up`, commandTimeout)
	w.a.Ping(t, "10.0.0.2")
	script.do(t, "down")
	sameStates(t, "after moves", "", before)

	last := startIPIPOU(t, w.dir, w.a, args("0", "192.0.2.2")...)
	last.WaitLog(t, `ipipou0: up`, commandTimeout)
	w.a.batch(t, "link del a0")
	for dev, p := range map[string]*Proc{"a0": last, "b0": other} {
		p.WaitLog(t, ` WARN the BPF program on `+dev+` is gone, and can't be put back yet: `+dev+` is gone too`, commandTimeout)
	}
	stop(t, last, other)
	for _, p := range []*Proc{last, other} {
		if n := count(p.Logs(), "ERROR"); n > 0 {
			t.Errorf("%s: %d errors", p, n)
		}
	}
}
