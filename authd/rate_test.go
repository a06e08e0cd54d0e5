package authd

import (
	"net/netip"
	"testing"
	"time"
)

// count returns how many of n datagrams of src are allowed.
func count(l *limiter, src netip.Addr, now time.Time, n int) int {
	ok := 0
	for range n {
		if l.allow(src, now) {
			ok++
		}
	}
	return ok
}

func host(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func TestLimiterSource(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(now)
	if got := count(l, host(1), now, 1000); got != sourceBurst {
		t.Errorf("burst %d", got)
	}
	if got := count(l, host(2), now, 1); got != 1 {
		t.Error("one address is refused for another's sake")
	}
	now = now.Add(500 * time.Millisecond)
	if got := count(l, host(1), now, 1000); got != sourceRate/2 {
		t.Errorf("half a second later %d", got)
	}
	now = now.Add(time.Hour)
	if got := count(l, host(1), now, 1000); got != sourceBurst {
		t.Errorf("an hour later %d", got)
	}
	now = now.Add(-time.Hour)
	if got := count(l, host(1), now, 1000); got != 0 {
		t.Errorf("after the clock was set back %d", got)
	}
	now = now.Add(time.Second)
	if got := count(l, host(1), now, 1000); got != sourceRate {
		t.Errorf("and a second later %d", got)
	}
}

func TestLimiterGlobal(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(now)
	got := 0
	for i := range 100 {
		got += count(l, host(i), now, 100)
	}
	if got != globalBurst {
		t.Errorf("burst %d", got)
	}
	now = now.Add(time.Second / 10)
	got = 0
	for i := range 100 {
		got += count(l, host(1000+i), now, 100)
	}
	if got != globalRate/10 {
		t.Errorf("a tenth of a second later %d", got)
	}
}

func TestLimiterBounded(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(now)
	// A flood from forged sources, each a new one.
	for i := range 20 * maxSources {
		now = now.Add(time.Second / globalRate)
		if !l.allow(host(i), now) {
			t.Fatalf("number %d refused", i)
		}
		if n := len(l.sources); n > maxSources {
			t.Fatalf("%d sources kept", n)
		}
	}
	// All busy: new ones are limited by the total only.
	l = newLimiter(now)
	for i := range maxSources {
		l.sources[host(i)] = &bucket{0, now}
	}
	if got := count(l, host(1<<20), now, 2*globalBurst); got != globalBurst {
		t.Errorf("%d of a new source", got)
	}
	if n := len(l.sources); n != maxSources {
		t.Errorf("%d sources", n)
	}
	// A search for idle ones is due once in sweepEvery.
	for _, b := range l.sources {
		b.tokens = sourceBurst
	}
	l.allow(host(1<<20), now)
	if n := len(l.sources); n != maxSources {
		t.Errorf("searched again at once, %d left", n)
	}
	l.allow(host(1<<20), now.Add(sweepEvery))
	if n := len(l.sources); n != 1 {
		t.Errorf("%d sources", n)
	}
}
