package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ipipou/authd"
	"ipipou/plans"
	"ipipou/runner"
)

const (
	// settle is how long changes are gathered: who loads a firewall anew, or takes a
	// network down, makes many.
	settle = 200 * time.Millisecond

	// retryMend is when what could not be put back is tried again, if nothing happens
	// before. It also bounds a fight with somebody who takes it away each time.
	retryMend = 3 * time.Second

	// partsEvery is how often routes and the like are looked for at most, on a host where
	// others come and go all the time.
	partsEvery = time.Second

	// listenersEvery is how often FOU listeners are looked for, of which the kernel tells
	// nothing.
	listenersEvery = 30 * time.Second
)

// A mender notices what others take away from an instance that is up, and puts it
// back.
type mender struct {
	in     *Instance
	server *server  // nil without
	movers []*mover // of clients and static tunnels
	every  []*mover // those of BPF servers' interfaces, too
	guards []*guard
	outer  map[string]int // index of servers' outer interfaces
	names  names
	told   map[string]string // what could not be put back, and why
	last   map[string]time.Time
	down   map[string]bool // interfaces that somebody has set down

	mu     sync.Mutex   // one look at all at a time
	mended atomic.Int64 // how many things were put back
}

// errGone is why nothing is put back on an interface that is gone.
var errGone = errors.New("gone too")

type guard struct {
	plans.Guard
	was  string // what its look printed
	owed bool   // it is there again, but not yet all who are bound are let in
}

func newMender(in *Instance, s *server, movers []*mover, now *moment) *mender {
	m := &mender{
		in: in, server: s, every: movers, outer: map[string]int{}, names: names{in, map[string]int{}, map[string]bool{}},
		told: map[string]string{}, last: map[string]time.Time{}, down: map[string]bool{},
	}
	for _, mv := range movers {
		if mv.tunnel.Role != plans.Server {
			m.movers = append(m.movers, mv)
		}
	}
	m.names.check(in.Config.Tunnels)
	for _, g := range in.Config.Guards() {
		was, err := m.look(g.Look)
		if err != nil && m.lost(g) == nil {
			in.Log.Warn(fmt.Sprintf("%s can't be watched: %v", m.title(g), err))
			continue
		}
		m.guards = append(m.guards, &guard{Guard: g, was: was})
	}
	for _, t := range in.Config.Tunnels {
		if t.Role == plans.Server && t.Backend != plans.BPF {
			m.outer[t.FOUDev] = now.index(t.FOUDev)
		}
	}
	return m
}

// run looks after each change, until ctx ends.
func (m *mender) run(ctx context.Context) error {
	links, err := authd.WatchAddrs(ctx)
	if err != nil {
		return err
	}
	rules, err := authd.WatchTables(ctx, m.in.Config.Tables())
	if err != nil {
		return err
	}
	lost, err := authd.WatchLost(ctx)
	if err != nil {
		return err
	}
	seldom := time.NewTicker(listenersEvery)
	defer seldom.Stop()
	if !slices.ContainsFunc(m.in.Config.Tunnels, plans.Tunnel.Listens) {
		seldom.Stop()
	}
	// What was lost before there was somebody to notice is noticed too.
	again := time.NewTimer(0)
	defer again.Stop()
	parts := true
	var last time.Time // when parts were looked for
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-links:
		case <-rules:
		case <-lost:
			parts = true
		case <-again.C:
		case <-seldom.C:
			if !m.parts(ctx, plans.Listeners) {
				parts = true
				again.Reset(retryMend)
			}
			continue
		}
		pause := settle
		if parts {
			pause = max(settle, time.Until(last.Add(partsEvery)))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		whole := m.all(ctx)
		if parts {
			last = time.Now()
			parts = !m.parts(ctx, plans.Listings()...)
		}
		if !whole || parts {
			again.Reset(retryMend)
		}
	}
}

// all looks at everything, puts back what is gone, and says whether all is there now.
func (m *mender) all(ctx context.Context) (whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	whole = true
	put := func(what string, back func(context.Context) error) {
		if m.mend(ctx, what, back) {
			m.mended.Add(1)
		} else {
			whole = false
		}
	}
	for _, g := range m.guards {
		there, err := m.intact(g)
		if err != nil {
			whole = false
		} else if !there || g.owed {
			put(m.title(g.Guard), func(ctx context.Context) error { return m.restore(ctx, g) })
		}
	}
	links, addrs, err := present()
	if err != nil {
		return false
	}
	seen := map[string]bool{}
	for _, t := range m.in.Config.Tunnels {
		if t.Backend == plans.BPF && m.names.free(t, links) && !seen[t.Dev] {
			seen[t.Dev] = true
			put("the interface "+t.Dev, m.names.retaken(t, func(ctx context.Context) error { return m.remake(ctx, t.Dev) }))
		}
	}
	for _, mv := range m.movers {
		if mv.tunnel.Backend != plans.BPF && m.names.free(*mv.tunnel, links) {
			put("the interface "+mv.tunnel.Dev, m.names.retaken(*mv.tunnel, mv.relink))
		}
	}
	if m.server == nil {
		return whole
	}
	for dev, was := range m.outer {
		if now := index(dev); now != 0 && now != was {
			put("what hung on "+dev, func(ctx context.Context) error {
				err := m.server.rehome(ctx, dev, was)
				if err == nil {
					m.outer[dev] = now
				}
				return err
			})
		}
	}
	for i, b := range m.server.bindings() {
		if b.tunnel.Backend == plans.BPF || !b.peer.IsValid() {
			continue
		}
		// Both lists may be from before it was bound there.
		if m.names.free(b.tunnel, links) && m.server.lacks(i, func(b binding) bool { return index(b.tunnel.Dev) == 0 }) {
			relink := func(ctx context.Context) error { return m.server.redo(ctx, i, plans.Tunnel.Relink) }
			put("the interface "+b.tunnel.Dev, m.names.retaken(b.tunnel, relink))
		}
		if b.alt() && !addrs[b.local] && m.server.lacks(i, func(b binding) bool { return b.alt() && !here(b.local) }) {
			put("the alternate local address "+b.local.String(), func(ctx context.Context) error {
				return m.server.redo(ctx, i, func(t plans.Tunnel, _ bool) plans.Plan { return t.Retake() })
			})
		}
	}
	return whole
}

// mend puts one thing back and says so; what fails is said once. It is not left half-way
// when ctx ends: its undos follow, and would not find what they undo.
func (m *mender) mend(ctx context.Context, what string, back func(context.Context) error) bool {
	if ctx.Err() != nil || time.Since(m.last[what]) < retryMend {
		return false
	}
	m.last[what] = time.Now()
	if err := back(context.WithoutCancel(ctx)); err != nil {
		m.failed(what, err)
		return false
	}
	delete(m.told, what)
	m.in.Log.Warn(what + " was gone: put back")
	return true
}

// failed says once that something could not be put back.
func (m *mender) failed(what string, err error) {
	if m.told[what] == err.Error() {
		return
	}
	m.told[what] = err.Error()
	level := slog.LevelError
	if errors.Is(err, errGone) {
		level = slog.LevelWarn
	}
	m.in.Log.Log(context.Background(), level, fmt.Sprintf("%s is gone, and can't be put back yet: %s", what, strings.ReplaceAll(err.Error(), "\n", "; ")))
}

func (m *mender) look(c plans.Command) (string, error) {
	c, err := c.Expand(m.in.values())
	if err != nil {
		return "", err
	}
	return m.in.run.Look(c)
}

// intact reports whether a guarded thing is what it was. The error says that the host was
// too busy to tell: to make a gate anew shuts it for a moment to all.
func (m *mender) intact(g *guard) (there bool, err error) {
	now, err := m.look(g.Look)
	if errors.Is(err, runner.ErrKilled) {
		return false, err
	}
	if g.was == "" && err == nil {
		g.was = now // there was no interface for it when it was looked at first
	}
	return err == nil && g.Same(g.was, now), nil
}

// title is what a guarded thing is called now.
func (m *mender) title(g plans.Guard) string {
	thing, _, err := g.Names(m.in.values())
	if err != nil {
		thing += " (" + err.Error() + ")"
	}
	return thing
}

// lost is the error of a guarded thing whose interface is gone, nil if it has none or the
// interface is there.
func (m *mender) lost(g plans.Guard) error {
	_, dev, err := g.Names(m.in.values())
	if err != nil || dev == "" || index(dev) != 0 {
		return err
	}
	return fmt.Errorf("%s is %w", dev, errGone)
}

// restore makes a table or a filter anew, and lets those in again who are bound.
func (m *mender) restore(ctx context.Context, g *guard) error {
	// It may have come back meanwhile, with a tunnel that moved to another interface.
	there, err := m.intact(g)
	if err == nil && !there {
		err = m.lost(g.Guard)
	}
	if err == nil && !there {
		_, err = m.in.run.Run(ctx, g.Mend, m.in.values())
	}
	if err != nil {
		return cmp.Or(m.lost(g.Guard), err)
	}
	g.owed = true
	if g.Gate && m.server != nil {
		var errs []error
		for i, b := range m.server.bindings() {
			if b.peer.IsValid() && b.tunnel.Backend != plans.BPF {
				errs = append(errs, m.server.redo(ctx, i, plans.Tunnel.Reopen))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	// It may be listed in other words, if others have a hand in it.
	was, err := m.look(g.Look)
	if err == nil {
		g.was, g.owed = was, false
	}
	return err
}

// remake makes a TUN device of BPF tunnels anew.
func (m *mender) remake(ctx context.Context, dev string) error {
	before := m.in.values()
	vars := maps.Clone(before)
	if _, err := m.in.run.Run(ctx, m.in.Config.Remake(dev), vars); err != nil {
		return err
	}
	// The rest may have been learned anew meanwhile, by a tunnel that moved.
	maps.DeleteFunc(vars, func(name, value string) bool { return before[name] == value })
	m.in.learn(vars)
	if m.server == nil {
		return nil
	}
	var errs []error
	for i, b := range m.server.bindings() {
		if b.tunnel.Dev == dev && b.peer.IsValid() {
			errs = append(errs, m.server.redo(ctx, i, func(t plans.Tunnel, _ bool) plans.Plan { return t.Reroute() }))
		}
	}
	return errors.Join(errs...)
}
