package authd

import (
	"net/netip"
	"time"
)

// Datagrams a second and bursts that are looked at, from one address and from
// all. A signature check takes some 50 µs, so the total keeps one core from
// being used up by forgeries.
const (
	sourceRate  = 100
	sourceBurst = 200
	globalRate  = 5000
	globalBurst = 5000
	maxSources  = 4096

	// A payload that names no key, or a wrong one, is tried with the keys of
	// all tunnels of its endpoint. What that takes is counted by itself, in
	// signature checks a second and in a burst, so that a flood of garbage
	// takes a tenth of a core and nothing of what those need who are found at
	// once. The burst is a search of 10,000 keys, half a second.
	searchRate  = 2000
	searchBurst = 10000

	// lookCost is what it costs to see, by the time say, that a key need not
	// be tried, and what a hint costs to make, in signature checks.
	lookCost = 1.0 / 500

	// sweepEvery keeps a full map from being searched for each packet. An
	// address that sent one datagram is forgettable again after 10 ms.
	sweepEvery = 10 * time.Millisecond
)

// bucket is a token bucket.
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

// limiter limits how often the expensive checks run. It is not safe for
// concurrent use.
type limiter struct {
	all     bucket
	sources map[netip.Addr]*bucket
	swept   time.Time
}

func newLimiter(now time.Time) *limiter {
	return &limiter{
		all:     bucket{globalBurst, now},
		sources: make(map[netip.Addr]*bucket),
	}
}

// allow takes a token for src. The total is asked last, so that one address
// that sends too much does not use it up.
func (l *limiter) allow(src netip.Addr, now time.Time) bool {
	if b := l.source(src, now); b != nil && !b.take(1) {
		return false
	}
	l.all.refill(now, globalRate, globalBurst)
	return l.all.take(1)
}

// source returns the bucket of src, or nil while maxSources others are busy;
// then the total alone limits.
func (l *limiter) source(src netip.Addr, now time.Time) *bucket {
	if b, ok := l.sources[src]; ok {
		b.refill(now, sourceRate, sourceBurst)
		return b
	}
	if len(l.sources) >= maxSources {
		l.sweep(now)
	}
	if len(l.sources) >= maxSources {
		return nil
	}
	b := &bucket{sourceBurst, now}
	l.sources[src] = b
	return b
}

// sweep forgets full buckets: a new one would be the same.
func (l *limiter) sweep(now time.Time) {
	if d := now.Sub(l.swept); d >= 0 && d < sweepEvery {
		return
	}
	l.swept = now
	for a, b := range l.sources {
		b.refill(now, sourceRate, sourceBurst)
		if b.tokens >= sourceBurst {
			delete(l.sources, a)
		}
	}
}
