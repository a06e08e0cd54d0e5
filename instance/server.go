package instance

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"ipipou/authd"
	"ipipou/instance/probe"
	"ipipou/plans"
)

// A server is the server tunnels of an instance: who is bound to each, and from
// which local address.
type server struct {
	in    *Instance
	ctx   context.Context
	fail  context.CancelCauseFunc
	auth  *authd.Server
	mends *mender

	mu    sync.Mutex
	bound []binding
}

type binding struct {
	tunnel plans.Tunnel
	peer   netip.AddrPort // invalid: nobody
	local  netip.Addr     // main or alternate
	ping   *probe.Prober  // nil without
}

// newServer opens the sockets of servers whose gate is closed already.
func newServer(ctx context.Context, in *Instance, tunnels []plans.Tunnel, fail context.CancelCauseFunc) (*server, error) {
	s := &server{in: in, ctx: ctx, fail: fail}
	conf := authd.ServerConfig{Log: in.Log, Bind: s.bind, Refused: s.refused, Store: in.store()}
	for _, t := range tunnels {
		at, err := local(t, in.vars)
		if err != nil {
			return nil, &Error{ExitSockets, err}
		}
		s.bound = append(s.bound, binding{tunnel: t, ping: s.prober(len(s.bound), t)})
		conf.Tunnels = append(conf.Tunnels, authd.ServerTunnel{
			Name: t.Title(), Local: at, Device: t.FOUDev, Auth: authOf(t), Reply: t.Auth.Reply, TTL: t.Auth.TTL, Inner: inner(t),
			Diverted:  t.Backend == plans.BPF,
			Keepalive: time.Duration(t.Auth.Keepalive) * time.Second, Lifetime: time.Duration(t.Auth.Lifetime) * time.Second,
		})
	}
	var err error
	if s.auth, err = authd.NewServer(conf); err != nil {
		return nil, &Error{ExitSockets, err}
	}
	for i, t := range conf.Tunnels {
		in.Log.Info(fmt.Sprintf("%s: waiting for an authentication at %s", tunnels[i].Title(), t.Local),
			authd.Event("waiting", t.Name, netip.AddrPort{}, slog.String("local", t.Local.String())))
	}
	return s, nil
}

// alt reports whether the peer is bound by the alternate local address.
func (b binding) alt() bool { return b.local == b.tunnel.FOUIPAlt }

// bindings are who is bound to each tunnel now.
func (s *server) bindings() []binding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bound)
}

// lacks reports whether something is missing that a bound tunnel needs. Nobody moves
// meanwhile.
func (s *server) lacks(i int, missing func(b binding) bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bound[i].peer.IsValid() && missing(s.bound[i])
}

// bind makes the authenticated peer the one that the tunnel leads to. If that fails
// because somebody took away what it needs, it is tried once more with that put back,
// whoever did that: the mender may have been at it already.
func (s *server) bind(i int, peer netip.AddrPort) error {
	before := s.mends.mended.Load()
	err := s.move(i, peer)
	if err != nil && s.ctx.Err() == nil {
		s.mends.all(s.ctx)
		if s.mends.mended.Load() != before {
			err = s.move(i, peer)
		}
	}
	if err != nil {
		return s.failed(i, peer, err)
	}
	s.in.board.authenticated(s.bound[i].tunnel.Title())
	if ping := s.bound[i].ping; ping != nil {
		ping.Hurry()
	}
	return nil
}

func (s *server) refused(i int, reason string) {
	title := nobody
	if i >= 0 {
		title = s.bound[i].tunnel.Title()
	}
	s.in.board.refused(title, reason)
}

func (s *server) move(i int, peer netip.AddrPort) *Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := &s.bound[i]
	t := b.tunnel
	if b.peer == peer && t.Auth.Lifetime == 0 {
		return nil // a keepalive
	}
	vars := s.in.values()
	at, err := local(t, vars)
	if err != nil {
		return &Error{ExitBind, err}
	}
	maps.Copy(vars, t.PeerVars(peer))
	plan, code := t.Bind(), ExitBind
	switch {
	case b.peer == peer:
		plan, code = t.Readmit(), ExitRebind
	case b.peer.IsValid():
		maps.Copy(vars, plans.OldVars(b.local, b.peer))
		plan, code = t.Rebind(), ExitRebind
	}
	took, err := s.in.run.Run(s.ctx, plan, vars)
	if err != nil {
		return &Error{code, fmt.Errorf("%s: %s to %s failed: %w", t.Title(), plan.Name, peer, err)}
	}
	switch {
	case b.peer == peer:
		return nil
	case b.peer.IsValid():
		s.in.Log.Info(fmt.Sprintf("%s: peer moved from %s to %s", t.Title(), b.peer, peer),
			authd.Event("moved", t.Title(), peer, slog.String("from", b.peer.String())))
	default:
		s.in.Log.Info(fmt.Sprintf("%s: peer bound at %s", t.Title(), peer), authd.Event("bound", t.Title(), peer))
	}
	s.in.board.set(t.Title(), Up, peer)
	if b.ping != nil {
		b.ping.Begin()
	}
	b.peer, b.local = peer, at.Addr()
	if t.ForceAlt || slices.Contains(took, plans.TookAlt) {
		b.local = t.FOUIPAlt
	}
	return nil
}

// redo runs a plan for a tunnel whose peer is bound, with the values of that one.
func (s *server) redo(ctx context.Context, i int, plan func(t plans.Tunnel, alt bool) plans.Plan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.bound[i]
	if !b.peer.IsValid() {
		return nil
	}
	vars := s.in.values()
	maps.Copy(vars, b.tunnel.PeerVars(b.peer))
	_, err := s.in.run.Run(ctx, plan(b.tunnel, b.alt()), vars)
	return err
}

// rehome hangs on an outer interface what hung on another one of its name, which had
// that index.
func (s *server) rehome(ctx context.Context, dev string, index int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.bound {
		if b.tunnel.FOUDev != dev || b.tunnel.Backend == plans.BPF {
			continue
		}
		vars := s.in.values()
		maps.Copy(vars, b.tunnel.PeerVars(b.peer))
		if err := s.in.leave(ctx, b.tunnel, index, vars); err != nil {
			return err
		}
		if _, err := s.in.run.Run(ctx, b.tunnel.Rehome(b.peer.IsValid(), b.alt()), vars); err != nil {
			return err
		}
	}
	return nil
}

// failed ends an instance of one tunnel, as in the Python tool. Of several, the
// others go on, and this one waits for the peer's next authentication.
func (s *server) failed(i int, peer netip.AddrPort, err *Error) error {
	if s.ctx.Err() != nil {
		return err
	}
	if len(s.in.Config.Tunnels) == 1 {
		s.fail(err)
	} else {
		s.in.Log.Error(strings.ReplaceAll(err.Error(), "\n", "; "), authd.Event("failed", s.bound[i].tunnel.Title(), peer))
	}
	return err
}

// store is where replay state outlives a restart: systemd's $STATE_DIRECTORY or
// /var/lib/ipipou.
func (in *Instance) store() authd.ReplayStore {
	dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":")
	if dir == "" {
		dir = "/var/lib/ipipou"
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		in.Log.Warn(fmt.Sprintf("a replay right after a restart can't be told: %v (a unit wants StateDirectory=ipipou)", err))
		return nil
	}
	return authd.FileStore{Dir: dir}
}
