package lab

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// With a keepalive nobody has to tell the client that the router's mapping has changed, and a transfer goes on over it.
func TestKeepaliveRoams(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	// So slow that a transfer is not over before the client has moved.
	s.C1.Run(t, "modprobe", "sch_tbf")
	for ns, dev := range map[*NS]string{s.C1: "c0", s.Rtr: "r1"} {
		ns.Run(t, "tc", "qdisc", "add", "dev", dev, "root", "tbf", "rate", "40mbit", "burst", "64kb", "latency", "100ms")
	}
	before := []string{s.Srv.Snapshot(t), s.C1.Snapshot(t)}
	client, server := newKey(t), newKey(t)
	s.startServer(t, "--fou-dev", "s0", "--auth-key-b64", server.private, "--auth-remote-pubkey-b64", client.public,
		"--auth-secret", "s", "--reply-on-auth-ok")
	s.startClient(t, "--auth-key-b64", client.private, "--auth-remote-pubkey-b64", server.public, "--auth-secret", "s",
		"--keepalive", "1")
	s.works(t)
	index := s.Srv.link(t, "ipipou0").IfIndex

	const size, part = 20_000_000, 1_000_000
	for i, way := range []struct {
		from, to *NS
		addr     string
	}{{s.C1, s.Srv, serverInner[0]}, {s.Srv, s.C1, clientInner[0]}} {
		result := make(chan error, 1)
		start := way.to.Counters(t, "ipipou0").RX.Bytes
		go func() {
			_, err := Transfer(way.from, way.to, way.addr, size)
			result <- err
		}()
		for j, to := range []string{RtrAddr2, RtrAddr3} {
			Eventually(t, commandTimeout, func() error {
				if got := way.to.Counters(t, "ipipou0").RX.Bytes - start; got < part {
					return fmt.Errorf("%d bytes received, want %d before the router forgets", got, part)
				}
				return nil
			})
			select {
			case err := <-result:
				t.Fatalf("the transfer was over before the client moved: %v", err)
			default:
			}
			n := s.server.Len()
			s.NATForce(t, C1Addr, fmt.Sprintf("%s:%d", to, 4000+2*i+j))
			s.moves(t, n, fmt.Sprintf("%s:%d", to, 4000+2*i+j))
			start = way.to.Counters(t, "ipipou0").RX.Bytes
		}
		if err := <-result; err != nil {
			t.Error(err)
		}
	}
	if now := s.Srv.link(t, "ipipou0").IfIndex; now != index {
		t.Errorf("ipipou0 is another device than before the moves: index %d, was %d", now, index)
	}
	stop(t, s.client, s.server)
	SameState(t, "the server in the end", before[0], s.Srv.Snapshot(t))
	SameState(t, "the client in the end", before[1], s.C1.Snapshot(t))
}

// The client's own address changes: nobody tells it, and the tunnel follows.
func TestOwnAddressChanges(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	s.C1.Sysctl(t, map[string]string{"net/ipv4/conf/all/promote_secondaries": "1"})
	s.Rtr.Run(t, "ip", "addr", "add", "10.1.3.1/24", "dev", "r1")
	before := []string{s.Srv.Snapshot(t), s.C1.Snapshot(t)}
	key := newKey(t)
	s.startServer(t, "--fou-dev", "s0", "--auth-remote-pubkey-b64", key.public, "--auth-secret", "s", "--reply-on-auth-ok")
	s.startClient(t, "--auth-key-b64", key.private, "--auth-secret", "s")
	s.works(t)
	index := []int{s.Srv.link(t, "ipipou0").IfIndex, s.C1.link(t, "ipipou0").IfIndex}

	last := C1Addr
	for _, change := range []struct {
		to       string
		commands []string
	}{
		// Another address of the subnet, and another subnet, there before the old one goes.
		{"10.1.1.9", []string{"addr add 10.1.1.9/24 dev c0", "addr del 10.1.1.2/24 dev c0"}},
		{"10.1.3.2", []string{"addr add 10.1.3.2/24 dev c0", "addr del 10.1.1.9/24 dev c0", "route replace default via 10.1.3.1"}},
		// A time without any, and without a route. This is the address that there was in the beginning.
		{C1Addr, []string{"addr del 10.1.3.2/24 dev c0", "addr add " + C1Addr + "/24 dev c0", "route replace default via 10.1.1.1"}},
	} {
		n, m := s.client.Len(), s.server.Len()
		for _, command := range change.commands {
			s.C1.batch(t, command)
		}
		s.client.WaitLogFrom(t, n, regexp.QuoteMeta("ipipou0: own address changed, tunnel moved from "+last+" to "+change.to), commandTimeout)
		s.server.WaitLogFrom(t, m, `ipipou0: peer moved from \S+ to `+RtrAddr, commandTimeout)
		s.works(t)
		if local := s.C1.link(t, "ipipou0").LinkInfo.Data.Local; local != change.to {
			t.Errorf("the tunnel's local address is %s, want %s", local, change.to)
		}
		if ports := s.C1.Run(t, "ip", "fou", "show"); strings.Count(ports, "\n") != 1 || !strings.Contains(ports, "local "+change.to+" ") {
			t.Errorf("FOU listeners, want one at %s:\n%s", change.to, ports)
		}
		last = change.to
	}
	// A link that flaps takes the route with it, no more.
	s.C1.batch(t, "link set c0 down", "link set c0 up", "route replace default via 10.1.1.1")
	s.C1.waitRunning(t)
	s.works(t)

	for i, ns := range []*NS{s.Srv, s.C1} {
		if now := ns.link(t, "ipipou0").IfIndex; now != index[i] {
			t.Errorf("in %s ipipou0 is another device than before: index %d, was %d", ns.Name, now, index[i])
		}
	}
	stop(t, s.client, s.server)
	SameState(t, "the server in the end", before[0], s.Srv.Snapshot(t))
	SameState(t, "the client in the end", before[1], s.C1.Snapshot(t))
}

// Clients move out of the one public address that they share and back into it, in turn.
func TestCollisions(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	before := p.Srv.Snapshot(t)
	p.start(t)
	addrs := [2]string{C1Addr, C2Addr}
	for _, move := range []struct {
		client int
		to     string
		alt    [2]bool // who is on an alternate address then
	}{
		{1, RtrAddr2 + ":5000", [2]bool{}},
		{1, RtrAddr + ":5001", [2]bool{1: true}},
		{1, RtrAddr + ":5002", [2]bool{1: true}}, // from one port to another, still the second
		{0, RtrAddr3 + ":4000", [2]bool{1: true}},
		{1, RtrAddr + ":5003", [2]bool{}}, // the first has gone, so there is no need any more
		{0, RtrAddr + ":4001", [2]bool{0: true}},
		{1, RtrAddr2 + ":5004", [2]bool{0: true}},
		{1, RtrAddr + ":5005", [2]bool{0: true}},
	} {
		n := p.server.Len()
		p.NATForce(t, addrs[move.client], move.to)
		p.client[move.client].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, fmt.Sprintf(`ipipou%d: peer moved from \S+ to %s\n`, move.client, move.to), commandTimeout)
		have := p.Srv.Run(t, "ip", "-4", "-o", "addr", "show", "dev", "s0") + p.Srv.Run(t, "ip", "fou", "show") +
			p.Srv.Run(t, "nft", "list", "map", "ip", "ipipou0", "alt_in")
		for i, alt := range move.alt {
			at := fmt.Sprintf("172.29.0.%d", i)
			for _, trace := range []string{"inet " + at + "/32", "local " + at + " ", ": " + at} {
				if strings.Contains(have, trace) != alt {
					t.Errorf("client %d moved to %s: %q is there: %v, want %v, in\n%s", move.client, move.to, trace, !alt, alt, have)
				}
			}
			p.works(t, i)
		}
	}
	if n := count(p.server.Logs(), "ERROR"); n > 0 {
		t.Errorf("%d errors in the server's log", n)
	}
	// The server first: it must get rid of all this by itself.
	stop(t, p.server, p.client[1], p.client[0])
	SameState(t, "the server in the end", before, p.Srv.Snapshot(t))
}
