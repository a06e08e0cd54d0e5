package instance

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"ipipou/plans"
)

// A State is what is known of a tunnel's path.
type State string

// The states. A server's tunnel waits until a peer is bound, a client's until it is
// answered; a static one is up when it is made.
const (
	Waiting State = "waiting"
	Up      State = "up"
	Lost    State = "lost"
)

// A standing is how it stands with one tunnel.
type standing struct {
	State State
	Since time.Time      // of the state
	Peer  netip.AddrPort // outer endpoint of the other end; invalid: not known
	Bound time.Time      // since when just this peer has it; zero: nobody
	// Authenticated is when an authentication was accepted last, by us (server) or by the
	// other end (client).
	Authenticated time.Time
	Refused       map[string]uint64 // what came and was refused, by authd.Reason
}

// A board has the standing of each tunnel of an instance, by its title; under "nobody"
// that of what is no tunnel's in particular.
type board struct {
	now func() time.Time
	// changed is called after each change of state or peer, in their order; it must not block,
	// nor look at the board.
	changed func(title string, s standing)

	mu      sync.Mutex
	tunnels map[string]*standing
}

const nobody = "nobody"

func newBoard(c plans.Config, now func() time.Time, changed func(string, standing)) *board {
	b := &board{now: now, changed: changed, tunnels: map[string]*standing{nobody: {}}}
	start := now()
	for _, t := range c.Tunnels {
		b.tunnels[t.Title()] = &standing{State: Waiting, Since: start}
	}
	return b
}

// set notes the state of a tunnel's path and its peer.
func (b *board) set(title string, state State, peer netip.AddrPort) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.tunnels[title]
	if s.State == state && s.Peer == peer {
		return
	}
	now := b.now()
	if s.State != state {
		s.State, s.Since = state, now
	}
	if s.Peer != peer {
		s.Peer, s.Bound = peer, time.Time{}
	}
	if state == Up && s.Bound.IsZero() { // who never answered is not bound
		s.Bound = now
	}
	b.changed(title, *s)
}

// authenticated notes that an authentication was accepted.
func (b *board) authenticated(title string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tunnels[title].Authenticated = b.now()
}

// refused counts what came and was refused.
func (b *board) refused(title, reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.tunnels[title]
	if s.Refused == nil {
		s.Refused = map[string]uint64{}
	}
	s.Refused[reason]++
}

// standings is how it stands now.
func (b *board) standings() map[string]standing {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make(map[string]standing, len(b.tunnels))
	for title, s := range b.tunnels {
		now := *s
		now.Refused = maps.Clone(s.Refused)
		all[title] = now
	}
	return all
}
