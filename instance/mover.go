package instance

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"ipipou/instance/probe"
	"ipipou/plans"
)

// A mover is a tunnel that knows where its other end is, and the values its
// plans were run with. It follows what changes: its own address, and what the
// other end's name stands for.
type mover struct {
	in    *Instance
	again chan struct{} // it has to look where its ends are
	look  chan struct{} // the other end's name may stand for something else
	lost  atomic.Bool   // the path is dead, as far as is known
	ping  *probe.Prober // of the path; nil without

	mu     sync.Mutex
	tunnel *plans.Tunnel     // of the configuration, which a thousand share; not to be changed
	at     netip.Addr        // of the other end, what its name stood for last
	vars   map[string]string // of those by which it is moved
	index  int               // of the outer interface; another when it was made anew
	owed   bool              // the last move failed half-way
}

func newMover(in *Instance, t *plans.Tunnel, now *moment) *mover {
	m := &mover{in: in, again: make(chan struct{}, 1), look: make(chan struct{}, 1), tunnel: t, at: t.RemoteIP, vars: map[string]string{}, index: now.index(t.FOUDev)}
	for _, name := range append(t.OwnVars(), t.Addressing()...) {
		if value, known := in.vars[name]; known {
			m.vars[name] = value
		}
	}
	return m
}

// all are the values for the tunnel's plans: its own, and of the others the instance's.
func (m *mover) all(own map[string]string) map[string]string {
	vars := m.in.values()
	maps.Copy(vars, own)
	return vars
}

// relink makes the tunnel's interface anew, which somebody has deleted.
func (m *mover) relink(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, err := m.in.run.Run(ctx, m.now().Relink(false), m.all(m.vars))
	return err
}

// leave takes a tunnel's listeners off its outer interface, which had that index.
func (in *Instance) leave(ctx context.Context, t plans.Tunnel, index int, vars map[string]string) error {
	vars = maps.Clone(vars)
	vars[plans.OldDevice] = "if" + strconv.Itoa(index)
	_, err := in.run.Run(ctx, t.Leave(), vars)
	return err
}

func (m *mover) trigger() { signal(m.again) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is pending
	}
}

// now is the tunnel with the other end where it is now. The caller holds the lock.
func (m *mover) now() plans.Tunnel {
	t := *m.tunnel
	t.RemoteIP = m.at
	return t
}

func (m *mover) remote() netip.AddrPort {
	return netip.AddrPortFrom(m.at, m.tunnel.RemotePort)
}

// gone is the error of a tunnel whose outer interface is no more.
func (m *mover) gone(now *moment) error {
	if m.index == 0 || now.index(m.tunnel.FOUDev) != 0 {
		return nil
	}
	return fmt.Errorf("the interface %s is gone", m.tunnel.FOUDev)
}

// fresh are the tunnel's outer addresses now, and whether one of them or the
// interface is another than before. Where there is no interface it is an error: there
// is nothing to move to.
func (m *mover) fresh(now *moment) (vars map[string]string, changed bool, err error) {
	vars = maps.Clone(m.vars)
	for name, value := range m.tunnel.PeerVars(m.remote()) {
		if _, known := vars[name]; known {
			vars[name] = value
		}
	}
	for _, name := range m.tunnel.OwnVars() {
		if m.tunnel.Role == plans.Server && name == m.tunnel.IPVar() {
			continue // who waits at an address stays with it
		}
		value, asked, err := now.ask(name)
		if err != nil {
			return nil, false, err
		}
		if asked {
			vars[name] = value
		}
	}
	// Last: it may have had its address still when that was asked for.
	if err := m.gone(now); err != nil {
		return nil, false, err
	}
	return vars, now.index(m.tunnel.FOUDev) != m.index || !maps.Equal(vars, m.vars), nil
}

func (m *mover) stale(now *moment) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, changed, err := m.fresh(now)
	return err == nil && (changed || m.owed)
}

// follow moves the tunnel if an end of it has another address. The caller holds
// the lock.
func (m *mover) follow() error {
	now := m.in.moment()
	vars, changed, err := m.fresh(now)
	if err != nil || !changed && !m.owed {
		return err
	}
	m.owed = true
	outer := now.index(m.tunnel.FOUDev)
	if outer != m.index {
		if err := m.in.leave(context.Background(), m.now(), m.index, m.all(m.vars)); err != nil {
			return err
		}
	}
	if _, err := m.in.run.Run(context.Background(), m.now().Move(), m.all(vars)); err != nil {
		return err
	}
	before, after := m.vars, vars
	m.vars, m.index, m.owed = vars, outer, false
	m.in.learn(vars)
	said, theirs := false, false
	for name, new := range after {
		if old := before[name]; old != new && slices.Contains(m.tunnel.Addressing(), name) {
			whose := "own"
			if name != m.tunnel.IPVar() {
				whose, theirs = "the other end's", true
			}
			m.in.Log.Info(fmt.Sprintf("%s: %s address changed, tunnel moved from %s to %s", m.tunnel.Dev, whose, old, new))
			said = true
		}
	}
	if !said {
		m.in.Log.Info(m.tunnel.Dev + ": the outer interface was made anew, tunnel moved")
	}
	m.moved(theirs)
	return nil
}

// moved has it found out, where the path is watched, whether it leads to the other end now.
// A static tunnel that is not watched is up.
func (m *mover) moved(theirs bool) {
	switch {
	case m.ping != nil && theirs:
		m.ping.Begin()
	case m.ping != nil:
		m.ping.Hurry()
	case m.tunnel.Role == plans.Static:
		m.in.board.set(m.tunnel.Title(), Up, m.remote())
	}
}

// refreshes reports whether the other end's name is resolved anew. A server's peer is where
// it authenticates from.
func (m *mover) refreshes() bool {
	if m.tunnel.Role == plans.Server {
		return false
	}
	return m.tunnel.Refresh > 0 || m.monitored() && m.tunnel.RemoteHost != ""
}

func (m *mover) monitored() bool { return m.tunnel.Monitor != plans.NoMonitor }

// lookups is how often a name is resolved at most, whatever happens.
const lookups = time.Second

// watch resolves the other end's name again and again, and when there is reason to. While
// it can't be resolved, and while the address in use is one of its answers, the tunnel
// stays.
func (m *mover) watch(ctx context.Context) error {
	host, failing := m.tunnel.RemoteHost, false
	var tick <-chan time.Time
	if m.tunnel.Refresh > 0 {
		ticker := time.NewTicker(m.tunnel.Refresh)
		defer ticker.Stop()
		tick = ticker.C
	}
	var next time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		case <-m.look:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
		}
		next = time.Now().Add(lookups)
		ips, err := lookup(ctx, *m.tunnel)
		if ctx.Err() != nil {
			return nil
		}
		m.mu.Lock()
		now := m.at
		moved := err == nil && !slices.Contains(ips, now)
		if moved {
			m.at = ips[0]
		}
		m.mu.Unlock()
		switch {
		case err != nil && !failing:
			m.in.Log.Warn(fmt.Sprintf("%s: %s can't be resolved, staying with %s: %v", m.tunnel.Dev, host, now, err))
		case err == nil && failing:
			m.in.Log.Info(fmt.Sprintf("%s: %s can be resolved again", m.tunnel.Dev, host))
		}
		failing = err != nil
		if moved {
			m.in.Log.Info(fmt.Sprintf("%s: %s is at %s now, no more at %s", m.tunnel.Dev, host, ips[0], now))
			m.trigger()
			signal(m.in.named)
		}
	}
}

// lookup is every address of the other end's name in the tunnel's outer family.
func lookup(ctx context.Context, t plans.Tunnel) ([]netip.Addr, error) {
	network := "ip4"
	if t.OuterIPv6() {
		network = "ip6"
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, network, t.RemoteHost)
	for i := range ips {
		ips[i] = ips[i].Unmap()
	}
	return ips, err
}

func resolve(ctx context.Context, t plans.Tunnel) (netip.Addr, error) {
	ips, err := lookup(ctx, t)
	if err != nil {
		return netip.Addr{}, err
	}
	return ips[0], nil
}
