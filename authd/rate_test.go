package authd

import (
	"net/netip"
	"testing"
	"time"
)

// count returns how many of n datagrams of src are admitted.
func count(l *limiter, k class, src netip.Addr, now time.Time, n int) int {
	ok := 0
	for range n {
		if l.admit(k, src, now) {
			ok++
		}
	}
	return ok
}

func host(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

func TestLimiterPrefix(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter()
	if got := count(l, byHint, host(1), now, 1000); got != prefixBurst {
		t.Errorf("burst %d", got)
	}
	if got := count(l, byHint, host(2), now, 1); got != 0 {
		t.Error("another address of the prefix is admitted")
	}
	// Two in a row do not have the bucket of the first, but once in millions.
	if count(l, byHint, host(1<<8), now, 1)+count(l, byHint, host(2<<8), now, 1) == 0 {
		t.Error("one prefix is refused for another's sake")
	}
	if count(l, byTime, host(1), now, 1)+count(l, byNothing, host(1), now, 1) == 0 {
		t.Error("one class is refused for another's sake")
	}
	for _, tt := range []struct {
		after time.Duration
		want  int
	}{
		{500 * time.Millisecond, prefixRate / 2},
		{time.Hour, prefixBurst},
		{-time.Hour, 0}, // the clock was set back
		{time.Second, prefixRate},
	} {
		now = now.Add(tt.after)
		if got := count(l, byHint, host(1), now, 1000); got != tt.want {
			t.Errorf("after %v: %d, want %d", tt.after, got, tt.want)
		}
	}
}

func TestLimiterBudget(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter()
	spend := func(k class) int {
		n := 0
		for l.spend(k, now, 1) {
			n++
		}
		return n
	}
	for k := range verifiers {
		if got := spend(k); got != int(budgets[k].burst) {
			t.Errorf("class %d: burst %d", k, got)
		}
		if l.admit(k, host(1), now) {
			t.Errorf("class %d: admitted, and nothing is left", k)
		}
	}
	now = now.Add(time.Second / 10)
	for k := range verifiers {
		if got := spend(k); got != int(budgets[k].rate)/10 {
			t.Errorf("class %d: a tenth of a second later %d", k, got)
		}
	}
	if !l.admit(byToken, host(1), now) {
		t.Error("a token is refused for others' sake")
	}
}

// A flood from forged sources, each another, leaves almost nobody out.
func TestLimiterForged(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter()
	const rate = 50000
	refused := 0
	for i := range 5 * rate {
		now = now.Add(time.Second / rate)
		if !l.admit(byToken, host(i<<8), now) {
			refused++
		}
	}
	if refused > 0 {
		t.Errorf("%d refused", refused)
	}
}
