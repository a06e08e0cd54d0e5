package authd

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// keeping is whom a server sends keepalives, and when. Without tunnels that want any it
// is empty.
type keeping struct {
	kept map[int]*kept // by tunnel; only those with a Keepalive
	some chan struct{} // somebody was bound
	mu   sync.Mutex    // of what kept points to
}

type kept struct {
	every, life time.Duration
	peer        netip.AddrPort // invalid: nobody is bound
	next        time.Time      // when the next keepalive is due
	until       time.Time      // when the peer may be bound no more; zero: never
}

func newKeeping(tunnels []ServerTunnel) *keeping {
	k := &keeping{kept: map[int]*kept{}, some: make(chan struct{}, 1)}
	for i, t := range tunnels {
		if t.Keepalive > 0 {
			k.kept[i] = &kept{every: t.Keepalive, life: t.Lifetime}
		}
	}
	return k
}

// bound notes that a peer has authenticated and is bound.
func (k *keeping) bound(tunnel int, peer netip.AddrPort, now time.Time) {
	t := k.kept[tunnel]
	if t == nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if t.life > 0 {
		t.until = now.Add(t.life)
	}
	if t.peer == peer {
		return
	}
	t.peer, t.next = peer, now.Add(t.every)
	select {
	case k.some <- struct{}{}:
	default: // one is pending
	}
}

// due are the peers to send to at the time now, by tunnel, and when to ask again; zero:
// after somebody was bound. Who is due soon, within a tenth of his interval, is sent to now
// and from now on together with the others: thousands of peers, each with a time of his own,
// would be looked through thousands of times in an interval.
func (k *keeping) due(now time.Time) (peers map[int]netip.AddrPort, again time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	peers = map[int]netip.AddrPort{}
	for i, t := range k.kept {
		if !t.until.IsZero() && !now.Before(t.until) {
			t.peer = netip.AddrPort{}
		}
		if !t.peer.IsValid() {
			continue
		}
		if !now.Add(t.every / 10).Before(t.next) {
			peers[i], t.next = t.peer, now.Add(t.every)
		}
		if again.IsZero() || t.next.Before(again) {
			again = t.next
		}
	}
	return peers, again
}

// keepalives sends empty datagrams until ctx ends. The other end's kernel takes one for a
// packet that is too short for the tunnel and drops it (tunnel4_rcv, net/ipv4/tunnel4.c).
func (s *Server) keepalives(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.keeping.some:
		case <-timer.C:
		}
		peers, again := s.keeping.due(s.now())
		for i, peer := range peers {
			if ctx.Err() != nil {
				return // where nothing can be sent, each takes sendFor
			}
			t := s.tunnels[i]
			if err := s.senders[t.Device].send(t.Local, peer, t.TTL, nil); err != nil {
				s.folds.warn(t.failed("%s: %s: keepalive not sent: %v", peer, err))
			}
		}
		timer.Stop()
		if !again.IsZero() {
			timer.Reset(again.Sub(s.now()))
		}
	}
}
