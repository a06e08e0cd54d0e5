package authd

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
)

// work binds and answers, apart from receiving, as binding takes its time.
func (s *Server) work(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case i := <-s.unbound.tunnels:
			s.accept(s.unbound.take(i))
		}
	}
}

func (s *Server) accept(a accepted) {
	t := s.tunnels[a.tunnel]
	s.log.Info(fmt.Sprintf("%s: %s authenticated by %s", t.Name, a.peer, t.Auth.schemeInWords()),
		Event("accepted", t.Name, a.peer, slog.String("scheme", t.Auth.scheme())))

	// A disk takes longer than a bind. This process doesn't accept it twice, and a
	// next one finds it kept, unless we are killed in these very milliseconds.
	kept := make(chan error, 1)
	go func() { kept <- s.keep(a.tunnel) }()
	failed := s.bind(a.tunnel, a.peer)
	if err := <-kept; err != nil {
		s.folds.warn(t.failed("%s: %s authenticated, but not remembered over a restart: %v", a.peer, err))
	}
	if failed != nil {
		return
	}
	s.checker.moved(s.endpointOf(t), a.tunnel, a.peer)
	s.keeping.bound(a.tunnel, a.peer, s.now())
	if err := s.setPeer(a.tunnel, a.peer); err != nil {
		s.folds.warn(t.failed("%s: %s bound, but its data still comes here: %v", a.peer, err))
	}
	// Nobody waits for an answer to data.
	if t.replies() && !t.Inner.looks(a.payload) {
		s.reply(t, a)
	}
}

// keep stores what was accepted of a tunnel's key.
func (s *Server) keep(tunnel int) error {
	id, st := s.checker.state(tunnel)
	if s.store == nil || id == "" {
		return nil
	}
	return s.store.Save(id, st)
}

func (s *Server) reply(t ServerTunnel, a accepted) {
	var p []byte
	var err error
	if t.Auth.Challenge {
		p, err = accept2(t.Auth, a.payload)
	} else {
		p, err = Reply(t.Auth, a.payload, s.now(), rand.Reader)
	}
	if err == nil {
		err = s.senders[t.Device].send(t.Local, a.peer, t.TTL, p)
	}
	if err != nil {
		s.folds.warn(t.failed("%s: %s bound, but the reply failed: %v", a.peer, err))
	}
}

// setPeer makes the filter of an address-only tunnel refuse peer's data.
func (s *Server) setPeer(i int, peer netip.AddrPort) error {
	o, ok := s.open[i]
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o.peer == peer {
		return nil
	}
	if err := o.conn.setFilter(Filter(openFilter(s.tunnels[i], peer))); err != nil {
		return err
	}
	o.peer = peer
	return nil
}
