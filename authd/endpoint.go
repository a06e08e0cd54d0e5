package authd

import (
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
)

// endpoint is an address and port with the tunnels whose peers authenticate
// there. Several are told apart by key and token.
type endpoint struct {
	local    netip.AddrPort
	device   string
	diverted bool
	label    string // for the log, while it is not known which tunnel it is about
	tunnels  []int
	inner    Inner        // what is data of any of them
	likeData map[int]bool // lengths of tokens that look like data
	tokens   tokens
	ids      keyIDs

	// In use with the checker's lock held.
	keys keyring
	peer map[int]netip.AddrPort   // of the tunnels, as bound last
	here map[netip.AddrPort][]int // the tunnels of a peer
}

// newEndpoint returns that of t, without t itself.
func newEndpoint(t ServerTunnel) *endpoint {
	e := &endpoint{
		local:    t.Local,
		device:   t.Device,
		diverted: t.Diverted,
		likeData: make(map[int]bool),
		tokens:   tokens{lens: make(map[int]bool), tunnels: make(map[[sha256.Size]byte]int)},
		ids:      make(keyIDs),
		keys:     newKeyring(),
		peer:     make(map[int]netip.AddrPort),
		here:     make(map[netip.AddrPort][]int),
	}
	rand.Read(e.tokens.key[:])
	return e
}

// add adds tunnel i of all, after it was found valid by itself.
func (e *endpoint) add(i int, all []ServerTunnel) error {
	t := all[i]
	if err := e.admit(t, all); err != nil {
		return err
	}
	e.tunnels = append(e.tunnels, i)
	e.label = t.Name
	if len(e.tunnels) > 1 {
		e.label = fmt.Sprintf("port %d", e.local.Port())
	}
	e.inner |= t.Inner.kinds()
	if t.Auth.RemoteKey != nil {
		e.keys.add(t.Auth.RemoteKey, t.Auth.Secret, i)
	}
	if t.Auth.Challenge {
		if err := e.ids.add(newKeyID(t.Auth.RemoteKey, t.Auth.Secret), i, all); err != nil {
			return err
		}
	}
	if t.Auth.Token != nil {
		e.tokens.add(t.Auth.Token, i)
	}
	return nil
}

// admit returns why t can't share e with the tunnels that are there, and what
// to do.
func (e *endpoint) admit(t ServerTunnel, all []ServerTunnel) error {
	if len(e.tunnels) == 0 {
		return nil
	}
	first := all[e.tunnels[0]]
	shared := fmt.Sprintf("%s is the endpoint of %s too", e.local, first.Name)
	for _, u := range []ServerTunnel{t, first} {
		if u.Auth.addressOnly() {
			return fmt.Errorf("%s, and %s has neither a remote key nor a token for its peer to be told by: give it one, or a port of its own", shared, u.Name)
		}
	}
	if t.Device != e.device {
		return fmt.Errorf("%s, whose device is %q and not %q: give both the same, or each a port of its own", shared, e.device, t.Device)
	}
	if t.Diverted != e.diverted {
		return fmt.Errorf("%s, and the BPF data path carries only one of the two: give both the same backend, or each a port of its own", shared)
	}
	if u, ok := e.keys.tunnel(t.Auth.RemoteKey); ok {
		return fmt.Errorf("%s has the same remote key on %s: give each peer a key of its own, or each tunnel a port of its own", all[u].Name, e.local)
	}
	if u, ok := e.tokens.tunnel(t.Auth.Token); ok {
		return fmt.Errorf("%s has the same token on %s: give each peer a token of its own, or each tunnel a port of its own", all[u].Name, e.local)
	}
	return nil
}

// only returns the tunnel, if it has e for itself.
func (e *endpoint) only() (tunnel int, ok bool) { return e.tunnels[0], len(e.tunnels) == 1 }

// bound takes note of where a tunnel's peer is.
func (e *endpoint) bound(tunnel int, peer netip.AddrPort) {
	old := e.peer[tunnel]
	if old == peer {
		return
	}
	left := slices.DeleteFunc(e.here[old], func(i int) bool { return i == tunnel })
	if len(left) > 0 {
		e.here[old] = left
	} else {
		delete(e.here, old)
	}
	e.peer[tunnel] = peer
	e.here[peer] = append(e.here[peer], tunnel)
}

// tokens finds the tunnel of a token by a digest with a key that nobody knows, so
// that how long it takes tells nothing of how much of a token was guessed, and
// does not grow with the tokens.
type tokens struct {
	key     [sha256.Size]byte
	lens    map[int]bool
	tunnels map[[sha256.Size]byte]int
}

func (t *tokens) add(token []byte, tunnel int) {
	t.lens[len(token)] = true
	t.tunnels[t.digest(token)] = tunnel
}

func (t *tokens) tunnel(payload []byte) (tunnel int, ok bool) {
	if !t.lens[len(payload)] {
		return 0, false
	}
	tunnel, ok = t.tunnels[t.digest(payload)]
	return tunnel, ok
}

func (t *tokens) digest(token []byte) [sha256.Size]byte {
	// Of a constant size, so that it stays on the stack.
	var msg [len(t.key) + maxPayload]byte
	n := copy(msg[:], t.key[:])
	n += copy(msg[n:], token)
	return sha256.Sum256(msg[:n])
}
