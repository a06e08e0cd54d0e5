package authd

import (
	"net/netip"
	"sync"
)

// accepted is a valid authentication.
type accepted struct {
	tunnel  int
	peer    netip.AddrPort
	payload []byte
	order   uint64 // of those that were signed, see [checker]; else 0
}

// waiting is what waits to be bound: of each tunnel the newest, so that no storm of
// authentications makes it longer than there are tunnels.
type waiting struct {
	tunnels chan int // each at most once, the longest waiting first

	mu     sync.Mutex
	newest map[int]accepted
	last   []uint64 // order of the newest by tunnel, also if it waits no more
}

func newWaiting(tunnels int) *waiting {
	return &waiting{tunnels: make(chan int, tunnels), newest: make(map[int]accepted), last: make([]uint64, tunnels)}
}

// put makes a the newest of its tunnel, unless a later one came first: that would lead
// the tunnel back to where its peer was before. It never waits.
func (w *waiting) put(a accepted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.order < w.last[a.tunnel] {
		return
	}
	w.last[a.tunnel] = a.order
	_, ok := w.newest[a.tunnel]
	w.newest[a.tunnel] = a
	if !ok {
		w.tunnels <- a.tunnel
	}
}

// take returns what waits of a tunnel that came from the channel.
func (w *waiting) take(tunnel int) accepted {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.newest[tunnel]
	delete(w.newest, tunnel)
	return a
}
