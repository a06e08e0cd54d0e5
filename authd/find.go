package authd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxLikely is how many signature checks a datagram may cause at the price of
// one, as a source may be the peer of many tunnels. More of 10,000 keys than that
// hardly ever have one hint.
const maxLikely = 4

// nobody is the tunnel of a payload that was not found to be any tunnel's.
const nobody = -1

// errSearch is of a payload that is of no likely tunnel's peer.
var errSearch = errors.New("not found at once")

// A quest is for the tunnel whose peer sent a payload to an endpoint.
type quest struct {
	at      *endpoint
	src     netip.AddrPort
	payload []byte

	// What find leaves to search.
	stamp Stamp
	tried []int
}

// find returns the tunnel whose peer sent q's payload. With an error the payload
// is refused: of a tunnel, because it is of that one's peer and yet not good, and
// of nobody else. After errSearch it is for search to decide. An error changes
// nothing but the rate.
//
// What it takes does not grow with the tunnels: tokens have an index, and of keys
// it tries the likely ones.
func (c *checker) find(q *quest) (tunnel int, err error) {
	e := q.at
	if i, ok := e.only(); ok {
		return i, c.check(i, q.src, q.payload)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	allow := sync.OnceValue(func() bool { return c.rate.allow(q.src.Addr(), now) })

	isToken := e.tokens.lens[len(q.payload)]
	if isToken {
		if !allow() {
			return nobody, ErrRate
		}
		if i, ok := e.tokens.tunnel(q.payload); ok {
			return i, c.auths[i].checkSource(q.src)
		}
		if e.inner.looks(q.payload) {
			// Of data only what is as long as a token comes here.
			return nobody, ErrToken
		}
	}
	q.stamp, err = ParseStamp(q.payload)
	switch {
	case err == nil && len(e.keys.tunnels) > 0:
	case isToken:
		return nobody, ErrToken
	default:
		return nobody, fmt.Errorf("%w: %d bytes", ErrLength, len(q.payload))
	}

	for _, i := range c.likely(q, now) {
		if !allow() {
			return nobody, ErrRate
		}
		// It is tried even if it is stale. Then this says whose replay it is,
		// which to search for would take all keys.
		stale := c.fresh(q, i, now)
		q.tried = append(q.tried, i)
		if !c.signed(q, i) {
			continue
		}
		if stale == nil {
			c.seen[i].accept(q.stamp)
		}
		return i, stale
	}
	return nobody, errSearch
}

// likely returns the tunnels whose keys to try first: those whose peer is at the
// source, the hinted ones before the others, and then what else the hint names.
func (c *checker) likely(q *quest, now time.Time) []int {
	var named []int
	if q.at.keys.near(q.stamp, now) {
		named = q.at.keys.named(q.stamp, now)
	}
	var both, here []int
	for _, i := range q.at.here[q.src] {
		switch {
		case slices.Contains(named, i):
			both = append(both, i)
		case c.auths[i].RemoteKey != nil:
			here = append(here, i)
		}
	}
	named = slices.DeleteFunc(named, func(i int) bool { return slices.Contains(both, i) })
	all := slices.Concat(both, here, named)
	return all[:min(len(all), maxLikely)]
}

// fresh returns why tunnel i refuses q's payload though its peer signed it.
func (c *checker) fresh(q *quest, i int, now time.Time) error {
	a := &c.auths[i]
	if err := a.checkSource(q.src); err != nil {
		return err
	}
	if err := checkSkew(a.MaxSkew, now, q.stamp); err != nil {
		return err
	}
	return c.seen[i].check(q.stamp)
}

// passed returns how much of fresh a payload passed before an error of it: that
// of the key for which it passed most is the likeliest reason.
func passed(err error) int {
	switch {
	case err == nil:
		return 0
	case err == ErrRemoteIP, err == ErrRemotePort:
		return 1
	}
	if _, ok := err.(skewError); ok {
		return 2
	}
	return 3
}

// signed reports whether the peer of tunnel i signed q's payload.
func (c *checker) signed(q *quest, i int) bool {
	return c.verify(c.auths[i].RemoteKey, c.auths[i].Secret, q.payload) == nil
}

// search does what find left, with all keys that it did not try. That takes long,
// so it keeps nobody from calling find meanwhile. It returns what find does, but
// for errSearch.
func (c *checker) search(q *quest) (tunnel int, err error) {
	keys := q.at.keys.tunnels
	hinted := c.hinted(q)
	// Not always from the first: under a flood of garbage none comes far.
	begin := rand.IntN(len(keys))
	tried := len(q.tried)
	var skipped error
	for part, tunnels := range [][]int{hinted, keys[begin:], keys[:begin]} {
		for _, i := range tunnels {
			if slices.Contains(q.tried, i) || part > 0 && slices.Contains(hinted, i) {
				continue
			}
			stale, ok := c.look(q, i)
			if !ok {
				return nobody, fmt.Errorf("%w: %d of %d keys tried", ErrRate, tried, len(keys))
			}
			if stale != nil {
				if passed(stale) > passed(skipped) {
					skipped = stale
				}
				continue
			}
			tried++
			if c.signed(q, i) {
				return i, c.settle(q, i)
			}
		}
	}
	if tried == 0 && skipped != nil {
		// What it is in detail is of one key, and the sender may have another.
		return nobody, sentinel(skipped)
	}
	return nobody, fmt.Errorf("%w: %d of %d keys tried", ErrSignature, tried, len(keys))
}

// hinted returns the tunnels that the hint names at a time that find does not
// look it up for: the sender's clock may be wrong and its hint is good.
func (c *checker) hinted(q *quest) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys := &q.at.keys
	if keys.near(q.stamp, c.now()) || !c.afford(lookCost*float64(len(keys.tunnels))) {
		return nil
	}
	return keys.search(q.stamp)
}

// look returns why the key of tunnel i need not be tried, or nil; and whether
// there may be so many looks or tries. A replay is to be tried: if the key fits,
// the search is over.
func (c *checker) look(q *quest, i int) (stale error, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stale = c.fresh(q, i, c.now())
	if stale == nil || errors.Is(stale, ErrReplayed) {
		return nil, c.afford(1)
	}
	return stale, c.afford(lookCost)
}

// settle accepts q's payload for tunnel i, whose peer signed it. Another may have
// been accepted since look.
func (c *checker) settle(q *quest, i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.fresh(q, i, c.now()); err != nil {
		return err
	}
	c.seen[i].accept(q.stamp)
	return nil
}

// afford takes what is to be done from what may be done in searches.
func (c *checker) afford(cost float64) bool {
	c.searches.refill(c.now(), searchRate, searchBurst)
	return c.searches.take(cost)
}

// moved takes note of where a tunnel's peer is, for likely.
func (c *checker) moved(e *endpoint, tunnel int, peer netip.AddrPort) {
	if _, ok := e.only(); ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.bound(tunnel, peer)
}
