package authd

import (
	"crypto/ed25519"
	"fmt"
	"sync"
	"time"
)

// checker decides about received payloads. It touches no socket and no file,
// and is safe for concurrent use.
type checker struct {
	now    func() time.Time
	auths  []Auth
	ids    []string                                       // of the keys, "" without
	verify func(key ed25519.PublicKey, s, p []byte) error // [VerifySignature], or a test's

	mu     sync.Mutex
	rate   *limiter
	replay map[string]*ReplayState // by id: tunnels of one key share a state
	seen   []*ReplayState          // the same by tunnel, nil without a key

	accepted uint64 // signatures

	cookies *cookies
	proved  []uint64 // by tunnel: when the newest cookie of an accepted proof was issued
}

func newChecker(auths []Auth, now func() time.Time) *checker {
	c := &checker{
		now:    now,
		auths:  auths,
		ids:    make([]string, len(auths)),
		verify: VerifySignature,
		rate:   newLimiter(),
		replay: make(map[string]*ReplayState),
		seen:   make([]*ReplayState, len(auths)),
		proved: make([]uint64, len(auths)),
	}
	// Times of one process hold the monotonic clock too.
	start := now()
	c.cookies = newCookies(func() time.Duration { return now().Sub(start) })
	for i, a := range auths {
		if a.RemoteKey == nil || a.Challenge {
			continue // a proof is known by its cookie
		}
		id := replayID(a.RemoteKey)
		if c.replay[id] == nil {
			c.replay[id] = new(ReplayState)
		}
		c.ids[i], c.seen[i] = id, c.replay[id]
	}
	return c
}

// state returns the id of the key of tunnel i and a copy of what is remembered
// of it. The id is "" without a key.
func (c *checker) state(i int) (string, ReplayState) {
	id := c.ids[i]
	if id == "" {
		return "", ReplayState{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return id, c.replay[id].clone()
}

// restore sets what is remembered of id. It is for before the first check.
func (c *checker) restore(id string, s ReplayState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*c.replay[id] = s.clone()
}

// checkSigned checks a server's ed25519 payload and advances seen if it is good.
// The signature comes last: it costs a thousand times the others.
func checkSigned(a Auth, seen *ReplayState, now time.Time, allow func() bool, payload []byte) error {
	st, err := ParseStamp(payload)
	if err != nil {
		return err
	}
	if err := checkSkew(a.MaxSkew, now, st); err != nil {
		return err
	}
	if err := seen.check(st); err != nil {
		return err
	}
	if !allow() {
		return ErrRate
	}
	if err := VerifySignature(a.RemoteKey, a.Secret, payload); err != nil {
		return err
	}
	seen.accept(st)
	return nil
}

// checkSkew compares whole seconds, as the payload has no others. It stays
// clear of time.Duration for the difference: 40 bits of seconds overflow one.
func checkSkew(limit time.Duration, now time.Time, st Stamp) error {
	d := st.Time - now.Unix()
	if limit == 0 || withinLimit(limit, d) {
		return nil
	}
	return skewError(d)
}

// withinLimit reports whether sec seconds, of either sign, are at most limit.
func withinLimit(limit time.Duration, sec int64) bool {
	return max(sec, -sec) <= int64(limit/time.Second)
}

// skewError is by how many seconds the sender's clock is ahead of ours, or
// behind if negative. It is text only when logged: a search of many keys makes
// one for each.
type skewError int64

func (e skewError) Error() string {
	if e < 0 {
		return fmt.Sprintf("%v: the sender's clock is %d s behind", ErrSkew, -e)
	}
	return fmt.Sprintf("%v: the sender's clock is %d s ahead", ErrSkew, int64(e))
}

func (skewError) Unwrap() error { return ErrSkew }
