package lab

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A peer that says nothing is shut out after its time, one that does is not; on the main address and on the alternate.
func TestLifetime(t *testing.T) {
	t.Parallel()
	p := newPair(t, "auth-lifetime = 3\n", "")
	before := p.Srv.Snapshot(t)
	p.start(t)
	admitted := func() int {
		return strings.Count(p.Srv.Run(t, "nft", "list", "set", "ip", "ipipou0", "alive"), "timeout 3s")
	}
	busy := func() {
		t.Helper()
		result := make(chan string, 2)
		for i, ns := range []*NS{p.C1, p.C2} {
			go func() {
				out, err := ns.Try("ping", "-n", "-q", "-i", "0.4", "-c", "25", "-W", "10", serverInner[i])
				result <- fmt.Sprint(out, err)
			}()
		}
		var ended time.Time // the first of them
		for range 2 {
			if out := <-result; !strings.Contains(out, " 25 received") {
				t.Errorf("a busy peer was shut out:\n%s", out)
			}
			if ended.IsZero() {
				ended = time.Now()
			}
		}
		if n := admitted(); n != 2 && time.Since(ended) < 3*time.Second {
			t.Errorf("%d peers are admitted, want 2", n)
		}
	}
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
	idle := func() {
		t.Helper()
		Eventually(t, commandTimeout, func() error {
			if n := admitted(); n > 0 {
				return fmt.Errorf("%d idle peers are still admitted", n)
			}
			return nil
		})
	}
	authenticate()
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
	authenticate()
	busy()

	// One who is shut out comes back from elsewhere.
	idle()
	n := p.server.Len()
	p.NATForce(t, C1Addr, RtrAddr+":4000")
	p.client[0].Signal(t, syscall.SIGUSR1)
	p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+regexp.QuoteMeta(RtrAddr+":4000"), commandTimeout)
	p.works(t, 0)
	stop(t, p.client[0], p.client[1], p.server)
	if n := count(p.server.Logs(), "ERROR|peer moved"); n != 1 {
		t.Errorf("%d errors and moves in the server's log, want one move", n)
	}
	SameState(t, "the server in the end", before, p.Srv.Snapshot(t))
}
