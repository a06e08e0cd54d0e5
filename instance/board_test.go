package instance

import (
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ipipou/plans"
)

func TestBoard(t *testing.T) {
	clock := time.Unix(1000, 0)
	var said []State
	b := newBoard(plans.Config{Tunnels: []plans.Tunnel{{Dev: "ipipou0"}}}, func() time.Time { return clock },
		func(_ string, s standing) { said = append(said, s.State) })
	later := func() { clock = clock.Add(time.Minute) }
	a, moved := netip.MustParseAddrPort("192.0.2.1:10"), netip.MustParseAddrPort("192.0.2.2:20")

	later()
	b.set("ipipou0", Up, a)
	b.authenticated("ipipou0")
	bound := clock
	later()
	b.set("ipipou0", Up, a) // nothing new
	b.refused("ipipou0", "signature")
	b.refused("ipipou0", "signature")
	b.refused(nobody, "length")
	later()
	b.set("ipipou0", Lost, a)
	lost := clock
	got := b.standings()
	want := map[string]standing{
		"ipipou0": {State: Lost, Since: lost, Peer: a, Bound: bound, Authenticated: bound, Refused: map[string]uint64{"signature": 2}},
		nobody:    {Refused: map[string]uint64{"length": 1}},
	}
	compare := cmp.Options{cmpopts.EquateComparable(netip.AddrPort{})}
	if d := cmp.Diff(want, got, compare); d != "" {
		t.Error(d)
	}
	later()
	b.set("ipipou0", Up, moved)
	if s := b.standings()["ipipou0"]; s.Bound != clock || s.Peer != moved || s.Since != clock {
		t.Errorf("after the move: %+v", s)
	}
	later()
	b.set("ipipou0", Lost, a)
	if s := b.standings()["ipipou0"]; !s.Bound.IsZero() || s.Peer != a {
		t.Errorf("at an address where it was never answered: %+v", s)
	}
	later()
	b.set("ipipou0", Up, a)
	if s := b.standings()["ipipou0"]; s.Bound != clock {
		t.Errorf("answered there: %+v", s)
	}
	b.refused("ipipou0", "signature")
	if got["ipipou0"].Refused["signature"] != 2 {
		t.Error("a standing that was handed out changes")
	}
	if d := cmp.Diff([]State{Up, Lost, Up, Lost, Up}, said); d != "" {
		t.Error(d)
	}
}

// The change that is told last is the one that stands, whoever else sets it meanwhile.
func TestBoardsChangesInOrder(t *testing.T) {
	var mu sync.Mutex
	var last standing
	b := newBoard(plans.Config{Tunnels: []plans.Tunnel{{Dev: "ipipou0"}}}, time.Now, func(_ string, s standing) {
		runtime.Gosched() // others come in here, if they can
		mu.Lock()
		defer mu.Unlock()
		last = s
	})
	for range 100 {
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() {
				b.set("ipipou0", []State{Up, Lost}[i%2], netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, 1}), uint16(i)))
			})
		}
		all.Wait()
		if now := b.standings()["ipipou0"]; now.State != last.State || now.Peer != last.Peer {
			t.Fatalf("%v is told last, and %v stands", last, now)
		}
	}
}
