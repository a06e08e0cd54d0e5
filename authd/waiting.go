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
}

// waiting is what waits to be bound: of each tunnel the newest, so that no storm of
// authentications makes it longer than there are tunnels.
type waiting struct {
	tunnels chan int // each at most once, the longest waiting first

	mu     sync.Mutex
	newest map[int]accepted
}

func newWaiting(tunnels int) *waiting {
	return &waiting{tunnels: make(chan int, tunnels), newest: make(map[int]accepted)}
}

// put makes a the newest of its tunnel. It never waits.
func (w *waiting) put(a accepted) {
	w.mu.Lock()
	defer w.mu.Unlock()
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
