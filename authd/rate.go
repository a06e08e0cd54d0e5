package authd

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// A class is what a datagram is sorted into before its proof is looked at. Each
// has rates and a queue of its own, so that a flood of one starves only itself.
type class uint8

const (
	// byCookie: its sender receives what is sent to its source, since it met a
	// challenge of ours, and names a key.
	byCookie class = iota

	// byHint: its hint names a key that it may be good for, and its time is after all
	// that was accepted of it: who saw one of those has its hint too. Who floods this
	// one knows the public key and the secret, or caught one that never came here; by
	// chance garbage is here once in 65536 times a key.
	byHint

	// bySource: it comes from where the peer of such a key is.
	bySource

	// byTime: its time is within timelySpan of ours.
	byTime

	// byNothing: all other signed ones. A client whose clock is wrong is here, as is
	// garbage, whose 40 bits of time are random.
	byNothing

	// verifiers is how many classes there are of what is to be verified.
	verifiers

	byToken   = verifiers     // as long as a token
	byAddress = verifiers + 1 // for an address-only tunnel
	byHello   = verifiers + 2 // wants a challenge and names a key
	classes   = verifiers + 3
)

// timelySpan is between a payload's time and ours, in class byTime.
const timelySpan = 5 * time.Minute

// Datagrams of a class that are looked at, a second and in a burst, from one
// prefix of prefixLen bits: sources are easily forged within what a network lets
// out, and seldom are more than a few clients in one.
const (
	prefixLen   = 24
	prefixRate  = 100
	prefixBurst = 200

	// prefixBuckets is for all prefixes: each has the one that its hash says.
	// A flood from forged sources, each another, fills that of nobody: 50,000/s
	// are 6/s a bucket.
	prefixBuckets = 1 << 13
)

// budgets are of all prefixes together. Those of what is verified are in
// signature checks, of some 50 µs each, so that floods of all classes at once
// take less than half a core. The larger bursts are a search of 10,000 keys, half
// a second. A right token costs nothing to tell, so there a total would only lock
// out who has it.
var budgets = [classes]struct{ rate, burst float64 }{
	byCookie:  {2000, 2000},
	byHint:    {3000, 3000},
	bySource:  {1000, 1000},
	byTime:    {2000, 10000},
	byNothing: {1000, 10000},
	byAddress: {5000, 5000},
	byHello:   {5000, 5000},
}

// lookCost is what it costs to see, by the time say, that a key need not be
// tried, and what a hint costs to make, in signature checks.
const lookCost = 1.0 / 500

// bucket is a token bucket. The zero one is full.
type bucket struct {
	tokens float64
	at     time.Time
}

func (b *bucket) refill(now time.Time, rate, burst float64) {
	// A clock that was set back gives nothing and takes nothing.
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(burst, b.tokens+d.Seconds()*rate)
	}
	b.at = now
}

func (b *bucket) take(n float64) bool {
	if b.tokens < n {
		return false
	}
	b.tokens -= n
	return true
}

// limiter limits what is looked at. It allocates nothing, whoever floods. It is
// not safe for concurrent use.
type limiter struct {
	seed     maphash.Seed // so that nobody knows whose bucket is whose
	prefixes [prefixBuckets]bucket
	all      [classes]bucket
}

func newLimiter() *limiter { return &limiter{seed: maphash.MakeSeed()} }

// admit takes a datagram of class k from the bucket of src's prefix, if there is
// something left of the budget: that is for spend to take.
func (l *limiter) admit(k class, src netip.Addr, now time.Time) bool {
	if k != byToken && !l.left(k, now, 1) {
		return false
	}
	b := l.prefix(k, src)
	b.refill(now, prefixRate, prefixBurst)
	return b.take(1)
}

// prefix returns the bucket of src's prefix.
func (l *limiter) prefix(k class, src netip.Addr) *bucket {
	a := src.As4()
	key := [4]byte{a[0], a[1], a[2], byte(k)}
	return &l.prefixes[maphash.Bytes(l.seed, key[:])%prefixBuckets]
}

// left reports whether n are left of the budget of class k.
func (l *limiter) left(k class, now time.Time, n float64) bool {
	l.all[k].refill(now, budgets[k].rate, budgets[k].burst)
	return l.all[k].tokens >= n
}

// spend takes n from the budget of class k.
func (l *limiter) spend(k class, now time.Time, n float64) bool {
	return l.left(k, now, n) && l.all[k].take(n)
}
