package instance

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"

	"ipipou/authd"
	"ipipou/instance/probe"
	"ipipou/plans"
)

// prober is what pings a tunnel's other end, and says what it finds; up, lost and asked may
// do more. asked is called at each ping while the path is lost.
func (in *Instance) prober(t plans.Tunnel, peer func() netip.AddrPort, up, lost, asked func()) *probe.Prober {
	from, to := t.Pinged()
	return probe.New(probe.Config{
		Device: t.Dev, From: from, To: to, Every: t.MonitorEvery,
		OnUp: func() {
			in.Log.Info(fmt.Sprintf("%s: up, %s answers", t.Title(), to), authd.Event("up", t.Title(), peer()))
			in.board.set(t.Title(), Up, peer())
			up()
		},
		OnLost: func(err error) {
			why := ""
			if err != nil {
				why = ": " + err.Error()
			}
			in.Log.Warn(fmt.Sprintf("%s: lost, no answer to %d pings of %s%s", t.Title(), probe.LostAfter, to, why),
				authd.Event("lost", t.Title(), peer(), slog.String("reason", "no-answer")))
			in.board.set(t.Title(), Lost, peer())
			lost()
		},
		OnAsk: asked,
	})
}

func running(p *probe.Prober) func(context.Context) error {
	return func(ctx context.Context) error {
		p.Run(ctx)
		return nil
	}
}

// heard and unheard note what is known of the path to the other end. It may have moved to
// another address, which its name tells.
func (m *mover) heard() { m.lost.Store(false) }

func (m *mover) unheard() {
	m.lost.Store(true)
	if m.monitored() {
		signal(m.look)
	}
}

// peer is where the other end is, for who does not hold the lock.
func (m *mover) peer() netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.remote()
}

// pinged watches the path of a static tunnel.
func (in *Instance) pinged(m *mover) {
	m.ping = in.prober(*m.tunnel, m.peer, m.heard, m.unheard, func() { signal(m.look) })
	m.ping.Begin()
}

// prober is what pings the peer that is bound to a tunnel; nil if it is not asked for.
func (s *server) prober(i int, t plans.Tunnel) *probe.Prober {
	if t.Monitor != plans.MonitorPing {
		return nil
	}
	peer := func() netip.AddrPort {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.bound[i].peer
	}
	return s.in.prober(t, peer, func() {}, func() {}, func() {})
}

func (s *server) pinged() (parts []func(context.Context) error) {
	for _, b := range s.bound {
		if b.ping != nil {
			parts = append(parts, running(b.ping))
		}
	}
	return parts
}

// watched has a client's state follow its keepalives' answers, or those to pings.
func (c *client) watched(conf *authd.ClientConfig) {
	title := c.tunnel.Title()
	remote := func() netip.AddrPort { return c.auth.Remote() }
	conf.OnRefused = func(reason string) { c.in.board.refused(title, reason) }
	if c.tunnel.Monitor == plans.MonitorPing {
		c.ping = c.in.prober(*c.tunnel, remote,
			func() { c.heard(); c.auth.Path(false) },
			func() { c.unheard(); c.auth.Path(true) },
			func() {})
		c.ping.Begin()
		conf.OnReply = func() {
			c.in.board.authenticated(title)
			c.ping.Hurry()
		}
		return
	}
	conf.OnLost = func() {
		c.unheard()
		c.in.board.set(title, Lost, remote())
	}
	conf.OnReply = func() {
		c.heard()
		c.in.board.authenticated(title)
		c.in.board.set(title, Up, remote())
	}
}

// wayNow is how the kernel would send to the server, nil if it would not. The caller holds
// the lock.
func (c *client) wayNow(from netip.Addr) *authd.Way {
	device := 0
	if dev := c.tunnel.FOUDev; dev != "" {
		if device = c.in.moment().index(dev); device == 0 {
			return nil
		}
	}
	way, err := authd.WayTo(from, c.at, device)
	if err != nil {
		return nil
	}
	return &way
}

// rerouted reports whether there is another way to the server than that of the last
// authentication, so that it may see us at another address.
func (c *client) rerouted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	from, err := local(*c.tunnel, c.vars)
	if err != nil {
		return false
	}
	now := c.wayNow(from.Addr())
	if now == nil || c.way != nil && *c.way == *now {
		return false
	}
	c.way = now
	c.in.Log.Info(fmt.Sprintf("%s: the way to %s has changed, authenticating anew", c.tunnel.Dev, c.at))
	return true
}
