package authd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// maxLikely is how many likely keys a datagram is tried with, as a source may be
// the peer of many tunnels. More of 10,000 keys than that hardly ever have one
// hint.
const maxLikely = 4

// nobody is the tunnel of a payload that was not found to be any tunnel's.
const nobody = -1

// errProve is of a payload whose signature is to be verified.
var errProve = errors.New("to be verified")

// errChallenge is of a payload that asks for a challenge.
var errChallenge = errors.New("to be challenged")

// A quest is for the tunnel whose peer sent a payload to an endpoint.
type quest struct {
	at      *endpoint
	src     netip.AddrPort
	payload []byte

	// What find leaves to prove.
	class  class
	stamp  Stamp
	likely []int // tunnels, whose keys to try first
	tried  []int

	order uint64 // of what was proved, the latest the highest

	// Of version 2, instead.
	proof     proof
	challenge []byte // the answer, after errChallenge
}

// lengthError is of how many bytes a payload is. It is text only when logged.
type lengthError int

func (e lengthError) Error() string { return fmt.Sprintf("%v: %d bytes", ErrLength, int(e)) }
func (lengthError) Unwrap() error   { return ErrLength }

// find does with q's payload what takes microseconds: all but to verify
// signatures. It returns the tunnel whose peer sent it. With an error the payload
// is refused: of a tunnel, because it is of that one's peer and yet not good, and
// of nobody else. After errProve it is for prove to decide; after errChallenge there
// is nothing to decide. The checks are in the order of their cost, and what fails one
// changes nothing but the rates.
//
// What it takes does not grow with the tunnels: tokens have an index, and so have
// hints. What is refused makes no garbage, as it may be 50,000 datagrams a second.
func (c *checker) find(q *quest) (tunnel int, err error) {
	if isVersion2(q.payload) {
		return c.find2(q)
	}
	e := q.at
	only, alone := e.only()
	if alone {
		if err := c.auths[only].checkSource(q.src); err != nil {
			return only, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if alone && c.auths[only].addressOnly() {
		if !c.rate.admit(byAddress, q.src.Addr(), now) || !c.rate.spend(byAddress, now, 1) {
			return only, ErrRate
		}
		return only, nil
	}
	signed := len(e.keys.tunnels) > 0 && len(q.payload) >= SignedLen
	if e.tokens.lens[len(q.payload)] {
		// Of data only what is as long as a token comes here.
		signed = signed && !e.inner.looks(q.payload)
		err := ErrRate
		if c.rate.admit(byToken, q.src.Addr(), now) {
			if i, ok := e.tokens.tunnel(q.payload); ok {
				return i, c.auths[i].checkSource(q.src)
			}
			err = ErrToken
		}
		// Too many that are as long as a token keep nobody out who has a key.
		if !signed {
			return nobody, err
		}
	}
	if !signed {
		return nobody, lengthError(len(q.payload))
	}
	q.stamp, err = ParseStamp(q.payload)
	if err != nil {
		return nobody, err
	}
	if alone {
		if err := c.fresh(q, only, now); err != nil {
			return only, err
		}
	}
	c.sort(q, now)
	if !c.rate.admit(q.class, q.src.Addr(), now) {
		return nobody, ErrRate
	}
	return nobody, errProve
}

// sort finds q's likely keys and its class: those of peers that are at its source,
// the hinted ones before the others, and then what else the hint names.
func (c *checker) sort(q *quest, now time.Time) {
	fresh := func(i int) bool { return c.fresh(q, i, now) == nil }
	named := q.at.keys.named(q.stamp, now)
	var both, here []int
	for _, i := range q.at.here[q.src] {
		switch {
		case slices.Contains(named, i):
			both = append(both, i)
		case c.auths[i].RemoteKey != nil:
			here = append(here, i)
		}
	}
	switch {
	case slices.ContainsFunc(named, func(i int) bool { return fresh(i) && q.stamp.Time > c.seen[i].Time }):
		q.class = byHint
	case len(named) > 0 && !slices.ContainsFunc(named, fresh):
		// By its hint it is a replay, say. It is tried nevertheless, since
		// then the log says whose it is.
		q.class = byNothing
	case slices.ContainsFunc(here, fresh):
		q.class = bySource
	default:
		q.class = q.stamp.class(now)
	}
	named = slices.DeleteFunc(named, func(i int) bool { return slices.Contains(both, i) })
	all := slices.Concat(both, here, named)
	q.likely = all[:min(len(all), maxLikely)]
}

// class returns that of a payload of which no more than its stamp is known.
func (s Stamp) class(now time.Time) class {
	if withinLimit(timelySpan, s.Time-now.Unix()) {
		return byTime
	}
	return byNothing
}

// fresh returns why tunnel i refuses q's payload though its peer signed it.
func (c *checker) fresh(q *quest, i int, now time.Time) error {
	a := &c.auths[i]
	if err := a.checkSource(q.src); err != nil {
		return err
	}
	if a.Challenge {
		return ErrVersion1
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
	case err == ErrRemoteIP, err == ErrRemotePort, err == ErrVersion1:
		return 1
	}
	if _, ok := err.(skewError); ok {
		return 2
	}
	return 3
}

// prove does what find left, verifying with nothing locked: others call find
// meanwhile. It returns what find does. After errProve it is to be called again, as
// the likely keys were in vain and q is of another class now.
func (c *checker) prove(q *quest) (tunnel int, err error) {
	if q.class == byCookie {
		return c.prove2(q)
	}
	searched := q.class == byTime || q.class == byNothing
	if searched {
		q.likely = append(q.likely, c.named(q)...)
	}
	for _, i := range q.likely {
		if slices.Contains(q.tried, i) {
			continue
		}
		if !c.afford(q, 1) {
			return nobody, q.unproved(ErrRate, len(q.tried))
		}
		q.tried = append(q.tried, i)
		if c.signed(q, i) {
			return i, c.settle(q, i)
		}
	}
	switch {
	case len(q.tried) == len(q.at.keys.tunnels):
		return nobody, q.unproved(ErrSignature, len(q.tried))
	case searched:
		return c.search(q)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	q.class = q.stamp.class(now)
	if !c.rate.admit(q.class, q.src.Addr(), now) {
		return nobody, q.unproved(ErrRate, len(q.tried))
	}
	return nobody, errProve
}

// signed reports whether the peer of tunnel i signed q's payload.
func (c *checker) signed(q *quest, i int) bool {
	return c.verify(c.auths[i].RemoteKey, c.auths[i].Secret, q.payload) == nil
}

// search tries all keys that are left, which may take long.
func (c *checker) search(q *quest) (tunnel int, err error) {
	keys := q.at.keys.tunnels
	// Not always from the first: under a flood of garbage none comes far.
	begin := rand.IntN(len(keys))
	tried := len(q.tried)
	var skipped error
	for _, tunnels := range [][]int{keys[begin:], keys[:begin]} {
		for _, i := range tunnels {
			if slices.Contains(q.tried, i) {
				continue
			}
			stale, ok := c.look(q, i)
			if !ok {
				return nobody, q.unproved(ErrRate, tried)
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
		return nobody, refusal(skipped)
	}
	err = q.unproved(ErrSignature, tried)
	if skipped != nil {
		err = fmt.Errorf("%w, and any other refuses it: %v", err, refusal(skipped))
	}
	return nobody, err
}

// unproved is err, after so many keys were tried.
func (q *quest) unproved(err error, tried int) error {
	all := len(q.at.keys.tunnels)
	if all == 1 {
		return err
	}
	return fmt.Errorf("%w: %d of %d keys tried", err, tried, all)
}

// named returns the tunnels that the hint names at a time that find does not
// look it up for: the sender's clock may be wrong and its hint is good.
func (c *checker) named(q *quest) []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	keys, now := &q.at.keys, c.now()
	if keys.quick(q.stamp, now) || !c.rate.spend(q.class, now, lookCost*float64(len(keys.tunnels))) {
		return nil
	}
	named := keys.search(q.stamp)
	return named[:min(len(named), maxLikely)]
}

// look returns why the key of tunnel i need not be tried, or nil; and whether
// there may be so many looks or tries. A replay is to be tried: if the key fits,
// the search is over.
func (c *checker) look(q *quest, i int) (stale error, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	stale = c.fresh(q, i, now)
	if stale == nil || errors.Is(stale, ErrReplayed) {
		return nil, c.rate.spend(q.class, now, 1)
	}
	return stale, c.rate.spend(q.class, now, lookCost)
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
	c.accept(q)
	return nil
}

// accept takes note that q was proved after all before it: classes are verified at the
// same time, and the later one's verifier may be the first to pass it on.
func (c *checker) accept(q *quest) {
	c.accepted++
	q.order = c.accepted
}

// afford takes so many signature checks from the budget of q's class.
func (c *checker) afford(q *quest, checks float64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rate.spend(q.class, c.now(), checks)
}

// moved takes note of where a tunnel's peer is, for sort.
func (c *checker) moved(e *endpoint, tunnel int, peer netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.bound(tunnel, peer)
}
