package authd

import (
	"context"
	"log/slog"
	"slices"
)

// proveLen is how many payloads of a class wait to be verified: at 50 µs each for
// a fraction of a second, as what is older is of no use to its sender.
const proveLen = 512

func (s *Server) receive(ctx context.Context, conn packetReceiver) error {
	buf := make([]byte, bufLen)
	for {
		n, from, err := conn.recv(ctx, buf)
		if err != nil {
			return err
		}
		d, err := ParseUDP(buf[:n])
		s.handle(conn, from, d, err)
	}
}

// handle decides about one packet that the filter of conn passed. As the filter
// may pass too much, it looks at all of it again.
func (s *Server) handle(conn packetReceiver, from arrival, d Datagram, err error) {
	e, ok := s.endpoints[d.Dst]
	if !ok || s.connOf(e) != conn || !from.expected(e.diverted) {
		return
	}
	if err == nil && s.isData(e, d) {
		return
	}
	q := quest{at: e, src: d.Src, payload: d.Payload}
	i := nobody
	if err == nil {
		i, err = s.checker.find(&q)
		// To ask for the device is a system call, so it is not done for garbage.
		if (err == nil || err == errProve || err == errChallenge) && !conn.arrivedOn(from.index, e.device) {
			i, err = nobody, ErrDevice
		}
	}
	switch err {
	case errProve:
		kept := q
		kept.payload = slices.Clone(q.payload)
		s.enqueue(&kept)
	case errChallenge:
		s.challenge(&q, i)
	default:
		s.found(&q, i, err)
	}
}

// enqueue passes q on to the verifier of its class. If too many wait there, it
// takes the place of the one that waits longest, whose sender may have given up.
func (s *Server) enqueue(q *quest) {
	for c := s.unproved[q.class]; ; {
		select {
		case c <- q:
			return
		default:
		}
		select {
		case old := <-c:
			s.found(old, nobody, ErrRate)
		default:
		}
	}
}

// proving verifies the signatures of one class, apart from receiving and from the
// other classes, so that none of those waits.
func (s *Server) proving(ctx context.Context, c <-chan *quest) {
	for {
		select {
		case <-ctx.Done():
			return
		case q := <-c:
			s.prove(q)
		}
	}
}

func (s *Server) prove(q *quest) {
	i, err := s.checker.prove(q)
	if err == errProve {
		s.enqueue(q)
		return
	}
	s.found(q, i, err)
}

// found passes on what was decided: an authentication of tunnel i, or why not.
func (s *Server) found(q *quest, i int, err error) {
	if only, ok := q.at.only(); ok {
		i = only
	}
	name, port := q.at.label, q.at.local.Port()
	if i != nobody {
		name, port = s.tunnels[i].Name, 0
	}
	if s.log.Enabled(context.Background(), slog.LevelDebug) {
		s.log.Debug(name+": datagram", "source", q.src, "length", len(q.payload), "ok", err == nil)
	}
	if err != nil {
		s.refused(i, Reason(err))
		s.folds.warn(warning{"refused", "%s: %s refused: %v", name, port, q.src, err})
		return
	}
	s.unbound.put(accepted{i, q.src, slices.Clone(q.payload), q.order})
}

// connOf returns the socket that e is served by. Two sockets may see one packet,
// as the filter of the shared one passes a range of ports if need be.
func (s *Server) connOf(e *endpoint) packetReceiver {
	if o := s.openAt(e); o != nil {
		return o.conn
	}
	return s.shared
}

// openAt returns the address-only tunnel that e is of, or nil.
func (s *Server) openAt(e *endpoint) *openTunnel {
	if i, ok := e.only(); ok {
		return s.open[i]
	}
	return nil
}

// isData reports whether d is tunnel data: what the filter lets pass for the
// sake of another tunnel, or passed before it knew the peer.
func (s *Server) isData(e *endpoint, d Datagram) bool {
	if !e.inner.looks(d.Payload) {
		return false
	}
	o := s.openAt(e)
	if o == nil {
		return !e.likeData[len(d.Payload)]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return o.peer == d.Src
}
