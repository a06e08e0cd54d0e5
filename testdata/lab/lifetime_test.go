package lab

import (
	"fmt"
	"net"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// arrives reports whether a datagram that a client sends through its tunnel does.
func (p *pair) arrives(t testing.TB, inner *net.UDPConn, i int, word string, within time.Duration) bool {
	t.Helper()
	[]*NS{p.C1, p.C2}[i].SendUDP(t, clientInner[i]+":1000", p.serverInner(i)+":2000", []byte(word))
	inner.SetReadDeadline(time.Now().Add(within))
	for buf := make([]byte, 100); ; {
		n, _, err := inner.ReadFrom(buf)
		if err != nil || string(buf[:n]) == word {
			return err == nil
		}
	}
}

// staysIn has the first clients, who were let in for a time at the earliest at `since`, send for longer than that, and
// never be silent for so long: all of it has to arrive. It returns when the last round of it was sent.
func (p *pair) staysIn(t testing.TB, inner *net.UDPConn, clients int, life time.Duration, since time.Time, authenticate func()) time.Time {
	t.Helper()
	for round := range 12 {
		now := time.Now()
		for i := range clients {
			if p.arrives(t, inner, i, fmt.Sprint("busy ", i, round), life/2) {
				continue
			}
			if silent := time.Since(since); silent < life {
				t.Fatalf("client %d was busy and is shut out in round %d, after %v", i, round, silent)
			}
			now = time.Now() // it is this machine that was too busy
			authenticate()
		}
		since = now
		time.Sleep(life / 8) // it is time that is tested
	}
	return since
}

// A peer that says nothing is shut out after its time, one that does is not; on the main address and on the alternate.
func TestLifetime(t *testing.T) {
	t.Parallel()
	const life = 3 * time.Second
	p := newPair(t, "auth-lifetime = 3\n", "")
	before := p.Srv.Snapshot(t)
	p.start(t)
	admitted := func() int {
		return strings.Count(p.Srv.Run(t, "nft", "list", "set", "ip", "ipipou0", "alive"), "timeout 3s")
	}
	inner := p.Srv.ListenUDP(t, "0.0.0.0:2000")
	authenticate := func() {
		t.Helper()
		var n [2]int
		for i, c := range p.client {
			n[i] = c.Len()
			c.Signal(t, syscall.SIGUSR1)
		}
		for i, c := range p.client {
			c.WaitLogFrom(t, n[i], `reply source=\S+ length=73 ok=true`, commandTimeout)
		}
	}
	busy := func() {
		t.Helper()
		since := time.Now()
		authenticate()
		since = p.staysIn(t, inner, 2, life, since, authenticate)
		if n := admitted(); n != 2 && time.Since(since) < life {
			t.Errorf("%d peers are admitted, want 2", n)
		}
	}
	idle := func() {
		t.Helper()
		Eventually(t, commandTimeout, func() error {
			if n := admitted(); n > 0 {
				return fmt.Errorf("%d idle peers are still admitted", n)
			}
			return nil
		})
	}
	busy()
	idle()
	for i, ns := range []*NS{p.C1, p.C2} {
		dev := fmt.Sprintf("ipipou%d", i)
		was, dropped := p.Srv.Counters(t, dev), p.Srv.dropped(t)
		ns.NoPing(t, serverInner[i], "-c", "2", "-W", "1")
		if now := p.Srv.Counters(t, dev); now.RX != was.RX {
			t.Errorf("%s received from a peer whose time was over: %+v, before %+v", dev, now.RX, was.RX)
		}
		if n := p.Srv.dropped(t) - dropped; n != 2 {
			t.Errorf("the gate dropped %d packets of 2", n)
		}
	}
	// They are let in where they were, so nothing moves.
	busy()

	// One who is shut out comes back from elsewhere.
	idle()
	n, since := p.server.Len(), time.Now()
	p.NATForce(t, C1Addr, RtrAddr+":4000")
	p.client[0].Signal(t, syscall.SIGUSR1)
	p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+regexp.QuoteMeta(RtrAddr+":4000"), commandTimeout)
	if !p.arrives(t, inner, 0, "from elsewhere", life/2) && time.Since(since) < life {
		t.Error("one who came back is shut out")
	}
	stop(t, p.client[0], p.client[1], p.server)
	if n := count(p.server.Logs(), "ERROR|peer moved"); n != 1 {
		t.Errorf("%d errors and moves in the server's log, want one move", n)
	}
	SameState(t, "the server in the end", before, p.Srv.Snapshot(t))
}
