package authd

import (
	"context"
	"fmt"
	"net/netip"
)

// keyIDs finds the tunnels of an endpoint that challenge.
type keyIDs map[keyID]int

// add refuses an id that another key has by chance, once in 2^64.
func (k keyIDs) add(id keyID, tunnel int, all []ServerTunnel) error {
	if i, taken := k[id]; taken {
		return fmt.Errorf("its key and secret can't be told from those of %s by their id: give one of the two another secret or port", all[i].Name)
	}
	k[id] = tunnel
	return nil
}

// find2 is find for version 2. After errProve the sender has answered from where it
// says it is, and names a key, so that its signature is worth verifying.
func (c *checker) find2(q *quest) (tunnel int, err error) {
	if len(q.at.ids) == 0 {
		return nobody, ErrVersion2
	}
	if !q.answerable() {
		return nobody, errSource
	}
	switch type2(q.payload) {
	case helloMsg:
		return c.meet(q)
	case proofMsg:
		return c.screen(q)
	}
	return nobody, errType
}

var errType = fmt.Errorf("%w: a type that is not for a server", ErrMalformed)

// meet makes the challenge that a hello asks for. What it takes is a look-up and a
// MAC, and it remembers nothing.
func (c *checker) meet(q *quest) (tunnel int, err error) {
	h, err := parseHello(q.payload)
	if err != nil {
		return nobody, err
	}
	tunnel, err = c.keyOf(q, h.id)
	if err != nil {
		return tunnel, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); !c.rate.admit(byHello, q.src.Addr(), now) || !c.rate.spend(byHello, now, 1) {
		return tunnel, ErrRate
	}
	q.challenge = challenge{h.nonce, c.cookies.issue(q.src, q.at.local, h)}.build()
	return tunnel, errChallenge
}

func (c *checker) screen(q *quest) (tunnel int, err error) {
	p, err := parseProof(q.payload)
	if err != nil {
		return nobody, err
	}
	tunnel, err = c.keyOf(q, p.id)
	if err != nil {
		return tunnel, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.cookies.check(q.src, q.at.local, p.hello, p.cookie); err != nil {
		return tunnel, err
	}
	if err := c.newer(tunnel, p); err != nil {
		return tunnel, err
	}
	q.class, q.proof, q.likely = byCookie, p, []int{tunnel}
	if !c.rate.admit(q.class, q.src.Addr(), c.now()) {
		return tunnel, ErrRate
	}
	return tunnel, errProve
}

// answerable reports whether a challenge may go to src. The packet socket sees what the
// kernel's IP will drop for its source (ip_route_input_slow, net/ipv4/route.c), and a
// stranger must not make us send to this host itself, or to a group.
func (q *quest) answerable() bool {
	ip := q.src.Addr()
	return (ip.IsGlobalUnicast() || ip.IsLinkLocalUnicast()) && ip.As4()[0] != 0 &&
		ip != q.at.local.Addr() && q.src.Port() != 0
}

var errSource = fmt.Errorf("%w: a source that nobody can have", ErrMalformed)

// keyOf returns the tunnel that a datagram names.
func (c *checker) keyOf(q *quest, id keyID) (tunnel int, err error) {
	i, ok := q.at.ids[id]
	if !ok {
		return nobody, ErrKeyID
	}
	return i, c.auths[i].checkSource(q.src)
}

// prove2 is prove for version 2.
func (c *checker) prove2(q *quest) (tunnel int, err error) {
	tunnel = q.likely[0]
	if !c.afford(q, 1) {
		return tunnel, ErrRate
	}
	if err := verify2(c.auths[tunnel].RemoteKey, c.auths[tunnel].Secret, q.payload); err != nil {
		return tunnel, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.newer(tunnel, q.proof); err != nil {
		return tunnel, err // another was accepted since
	}
	c.proved[tunnel] = q.proof.cookie.issued
	c.accept(q)
	return tunnel, nil
}

// newer refuses a cookie that was proved, or was issued before the one that was.
func (c *checker) newer(tunnel int, p proof) error {
	switch last := c.proved[tunnel]; {
	case p.cookie.issued == last:
		return ErrProved
	case p.cookie.issued < last:
		return ErrOlder
	}
	return nil
}

// answersLen is how many challenges wait to be sent. Whose does not fit asks again.
const answersLen = 256

// challenged is whom a challenge is for.
type challenged struct {
	tunnel  int
	to      netip.AddrPort
	payload []byte
}

// challenge passes on the challenge to q's sender.
func (s *Server) challenge(q *quest, i int) {
	s.log.Debug(s.tunnels[i].Name+": challenging", "source", q.src)
	select {
	case s.answers <- challenged{i, q.src, q.challenge}:
	default:
		s.found(q, i, ErrRate)
	}
}

// answering sends challenges, apart from receiving, and from binding, which takes
// its time.
func (s *Server) answering(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-s.answers:
			t := s.tunnels[a.tunnel]
			if err := s.senders[t.Device].send(t.Local, a.to, t.TTL, a.payload); err != nil {
				s.folds.warn(t.failed("%s: %s not challenged: %v", a.to, err))
			}
		}
	}
}

// accept2 is the answer to a proof after which the peer is bound.
func accept2(a Auth, payload []byte) ([]byte, error) {
	p, err := parseProof(payload)
	return acceptance{p.nonce, p.cookie.issued}.build(a.Key, a.Secret), err
}
