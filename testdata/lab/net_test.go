package lab

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fouByHand makes one end of an unguarded ipip-over-FOU tunnel, with the commands a user would type.
func fouByHand(t testing.TB, ns *NS, local, remote, inner, innerPeer string) {
	t.Helper()
	ns.Run(t, "ip", "fou", "add", "port", "10000", "ipproto", "4", "local", local)
	ns.Run(t, "ip", "link", "add", "ipipou0", "type", "ipip", "local", local, "remote", remote,
		"encap", "fou", "encap-sport", "10000", "encap-dport", "10000", "ttl", "64")
	ns.Run(t, "ip", "addr", "add", inner, "peer", innerPeer, "dev", "ipipou0")
	ns.Run(t, "ip", "link", "set", "ipipou0", "up")
}

func TestLabKernelFOU(t *testing.T) {
	n := NewNet(t)
	before := n.Srv.Snapshot(t)
	fouByHand(t, n.Srv, SrvAddr, BadAddr, "172.28.0.0", "172.28.0.1")
	fouByHand(t, n.Bad, BadAddr, SrvAddr, "172.28.0.1", "172.28.0.0")
	n.Srv.Ping(t, "172.28.0.1")
	n.Bad.Ping(t, "172.28.0.0")

	size := int64(20_000_000)
	if os.Getenv("IPIPOU_LAB_SIZE") != "" {
		fmt.Sscan(os.Getenv("IPIPOU_LAB_SIZE"), &size)
	}
	for _, way := range []struct {
		from, to *NS
		addr     string
	}{{n.Srv, n.Bad, "172.28.0.1"}, {n.Bad, n.Srv, "172.28.0.0"}} {
		d := TransferTCP(t, way.from, way.to, way.addr, size)
		t.Logf("%s to %s: %d MB in %.1f s, %.0f Mbit/s", way.from.Name, way.to.Name, size/1e6, d.Seconds(),
			float64(size)*8/1e6/d.Seconds())
	}
	c := n.Srv.Counters(t, "ipipou0")
	if c.RX.Bytes < uint64(size) || c.TX.Bytes < uint64(size) {
		t.Errorf("ipipou0 counted %+v, so the %d bytes each way went elsewhere", c, size)
	}

	during := n.Srv.Snapshot(t)
	for _, want := range []string{"ipipou0 linkinfo=", "fou show: ", "172.28.0.1"} {
		if !strings.Contains(Diff(before, during), want) {
			t.Errorf("a snapshot shows no %q of the tunnel:\n%s", want, Diff(before, during))
		}
	}
	n.Srv.Run(t, "ip", "link", "del", "ipipou0")
	n.Srv.Run(t, "ip", "fou", "del", "port", "10000", "local", SrvAddr)
	SameState(t, "the server after the tunnel", before, n.Srv.Snapshot(t))
}

func TestLabNAT(t *testing.T) {
	t.Parallel()
	n := NewNet(t)
	n.C1.Ping(t, SrvAddr)
	n.C2.Ping(t, SrvAddr)
	n.Bad.Ping(t, SrvAddr)
	// The public hosts have no route to the clients: only the router makes them reachable.
	n.Srv.NoPing(t, C1Addr)
	TransferTCP(t, n.C1, n.Srv, SrvAddr, 1_000_000)
	TransferTCP(t, n.C2, n.Srv, SrvAddr, 1_000_000)

	conn := n.Srv.ListenUDP(t, SrvAddr+":10000")
	seen := func(client *NS, src string) string {
		t.Helper()
		client.SendUDP(t, src, SrvAddr+":10000", []byte("who am I?"))
		conn.SetReadDeadline(time.Now().Add(commandTimeout))
		buf := make([]byte, 100)
		size, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatalf("server received nothing from %s: %v", src, err)
		}
		if string(buf[:size]) != "who am I?" {
			t.Fatalf("server received %q", buf[:size])
		}
		return netip.AddrPortFrom(from.Addr().Unmap(), from.Port()).String()
	}
	check := func(client *NS, src, want string) {
		t.Helper()
		if got := seen(client, src); got != want {
			t.Errorf("server sees %s as %s, want %s", src, got, want)
		}
	}
	check(n.C1, C1Addr+":10000", RtrAddr+":10000")
	check(n.C2, C2Addr+":10001", RtrAddr+":10001")
	n.NATForce(t, C1Addr, RtrAddr+":4000")
	check(n.C1, C1Addr+":10000", RtrAddr+":4000")
	n.NATForce(t, C2Addr, RtrAddr2+":5000")
	check(n.C2, C2Addr+":10001", RtrAddr2+":5000")
	check(n.C1, C1Addr+":10000", RtrAddr+":4000")
	n.NATForce(t, C1Addr, RtrAddr3+":4001")
	check(n.C1, C1Addr+":10000", RtrAddr3+":4001")
	n.NATForce(t, C1Addr, "")
	check(n.C1, C1Addr+":10000", RtrAddr+":10000")
	check(n.C2, C2Addr+":10001", RtrAddr2+":5000")
}

// Without a gate a stranger who names the peer's address gets in: what tests of the gate rely on to mean something.
func TestLabSpoof(t *testing.T) {
	t.Parallel()
	n := NewNet(t)
	fouByHand(t, n.Srv, SrvAddr, RtrAddr, "172.28.0.0", "172.28.0.1")
	var packets uint64
	for _, inner := range [][]byte{
		IPv4Echo("172.28.0.1", "172.28.0.0", 1, 1),
		IPv4UDP("172.28.0.1:1000", "172.28.0.0:2000", []byte("odd")),
	} {
		packets++
		n.Bad.SendUDP(t, RtrAddr+":10000", SrvAddr+":10000", inner)
		Eventually(t, commandTimeout, func() error {
			if c := n.Srv.Counters(t, "ipipou0"); c.RX.Packets != packets {
				return fmt.Errorf("ipipou0 received %+v, want %d packets", c.RX, packets)
			}
			return nil
		})
	}
	// The echo's checksums were right, or there would be no answer. It goes out by the tunnel, to the router.
	if c := n.Srv.Counters(t, "ipipou0"); c.TX.Packets == 0 {
		t.Errorf("no answer to the echo: %+v", c)
	}
}

func TestLabProc(t *testing.T) {
	ns := NewNS(t, "proc")
	p := ns.Start(t, "sh", "-c", `trap 'echo bye >&2; exit 3' TERM; echo ready; while :; do sleep 0.1; done`)
	p.WaitLog(t, `(?m)^re(ady)$`, commandTimeout)
	p.Signal(t, syscall.SIGTERM)
	if code := p.Wait(t, commandTimeout); code != 3 {
		t.Errorf("exit %d, want 3", code)
	}
	if logs := p.Logs(); logs != "ready\nbye\n" {
		t.Errorf("logs %q", logs)
	}
	_, err := ns.Try("sh", "-c", "echo out; echo err >&2; exit 5")
	if err == nil || !strings.Contains(err.Error(), "exit status 5\n--- stdout:\nout\n--- stderr:\nerr") {
		t.Errorf("error %v", err)
	}
}

// The guest's clock and the host's must agree, for authentication is by time.
func TestLabClock(t *testing.T) {
	host := os.Getenv("IPIPOU_LAB_TIME")
	var seconds int64
	if _, err := fmt.Sscan(host, &seconds); err != nil {
		t.Fatalf("IPIPOU_LAB_TIME=%q: %v", host, err)
	}
	if ahead := time.Since(time.Unix(seconds, 0)); ahead < -2*time.Second || ahead > 15*time.Minute {
		t.Errorf("guest's clock is %v ahead of the host's", ahead)
	}
}

// Two networks are the same to Snapshot, and one is after traffic what it was before.
func TestLabSnapshot(t *testing.T) {
	t.Parallel()
	a, b := NewNet(t), NewNet(t)
	before := a.Srv.Snapshot(t)
	SameState(t, "the server of another network", before, b.Srv.Snapshot(t))
	SameState(t, "the router of another network", a.Rtr.Snapshot(t), b.Rtr.Snapshot(t))
	a.C1.Ping(t, SrvAddr)
	a.Srv.Ping(t, BadAddr)
	SameState(t, "the server after traffic", before, a.Srv.Snapshot(t))

	a.Srv.RunInput(t, "table ip x {\n set s { type ipv4_addr; flags timeout; elements = { 1.2.3.4 timeout 60s }; }\n"+
		" chain c {\n counter drop\n }\n}\n", "nft", "-f", "-")
	a.Srv.Sysctl(t, map[string]string{"net/ipv4/conf/s0/forwarding": "1"})
	diff := Diff(before, a.Srv.Snapshot(t))
	for _, want := range []string{`+ nft list ruleset: x c #1 {"rule"`, "1.2.3.4", "+ sysctl net/ipv4/conf/s0/forwarding = 1"} {
		if !strings.Contains(diff, want) {
			t.Errorf("no %q in the difference:\n%s", want, diff)
		}
	}
}
