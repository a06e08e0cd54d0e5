package instance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"

	"ipipou/plans"
	"ipipou/runner"
)

// singles is how many parts are put back one by one at a time, by a process each.
const singles = 100

// parts looks whether what hangs on the tunnels is there, puts back what is gone, and
// says whether all is there now. Each listing is one process, however many tunnels
// there are.
func (m *mender) parts(ctx context.Context, listings ...plans.Listing) (whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []plans.Part
	m.hold(func() { all = m.expected() })
	found, err := m.compare(all, listings)
	if err == nil && len(found.lost) == 0 && len(found.down) == 0 {
		return true
	}
	// It may have been taken away by ourselves, in a plan that was underway.
	m.hold(func() { whole = m.complete(ctx, listings) })
	return whole
}

// An id tells a part from all others.
type id struct {
	in  plans.Listing
	key string
}

func idOf(p plans.Part) id { return id{p.In, p.Key} }

// hold calls f while no tunnel is bound and none moves.
func (m *mender) hold(f func()) {
	if m.server != nil {
		m.server.mu.Lock()
		defer m.server.mu.Unlock()
	}
	for _, mv := range m.every {
		mv.mu.Lock()
		defer mv.mu.Unlock()
	}
	f()
}

// expected are the parts that tunnels have by now, those that several have in common
// once. Nobody may be bound or move meanwhile.
func (m *mender) expected() []plans.Part {
	var all []plans.Part
	seen := map[id]bool{}
	vars := m.in.values() // of which each tunnel overwrites its own
	add := func(t plans.Tunnel, bound bool, own map[string]string) {
		maps.Copy(vars, own)
		parts, err := t.Parts(bound, vars)
		if err != nil {
			m.failed(t.Title()+"'s parts", err)
		}
		for _, p := range parts {
			if !seen[idOf(p)] {
				seen[idOf(p)] = true
				all = append(all, p)
			}
		}
	}
	if m.server != nil {
		for _, b := range m.server.bound {
			add(b.tunnel, b.peer.IsValid(), b.tunnel.PeerVars(b.peer))
		}
	}
	for _, mv := range m.movers {
		add(mv.now(), true, mv.vars)
	}
	return all
}

// A comparison is of what there should be with what there is.
type comparison struct {
	lost []plans.Part
	down []string // interfaces that have parts and are not up, and were not known to be so
	// unseen are those of which nobody can tell: their interface is gone or down, or the
	// host can't be asked.
	unseen []plans.Part
}

// compare looks for parts of some kinds. The error says that the host was too busy to tell.
func (m *mender) compare(all []plans.Part, listings []plans.Listing) (found comparison, err error) {
	links, _, err := present()
	if err != nil {
		return found, err
	}
	for dev := range m.down {
		if l := links[dev]; l.Index == 0 || l.Flags&net.FlagUp != 0 {
			delete(m.down, dev)
		}
	}
	var owned map[string]bool
	for _, l := range listings {
		some := slices.DeleteFunc(slices.Clone(all), func(p plans.Part) bool { return p.In != l })
		if len(some) == 0 {
			continue
		}
		stdout, err := m.in.run.Look(l.Look())
		if errors.Is(err, runner.ErrKilled) {
			return found, err
		}
		var keys map[string]bool
		if err == nil {
			keys, err = l.Keys(stdout)
		}
		if err != nil {
			if look := l.Look().String(); m.told[look] != err.Error() {
				m.told[look] = err.Error()
				m.in.Log.Warn(fmt.Sprintf("%s and its like can't be watched: %v", some[0].Name, err))
			}
			found.unseen = append(found.unseen, some...)
			continue
		}
		delete(m.told, l.Look().String())
		for _, p := range some {
			if p.Dev != "" {
				link := links[p.Dev]
				if link.Index == 0 || !m.names.own(p.Dev, link.Index) {
					found.unseen = append(found.unseen, p)
					continue
				}
				if link.Flags&net.FlagUp == 0 {
					if !m.down[p.Dev] && !slices.Contains(found.down, p.Dev) {
						found.down = append(found.down, p.Dev)
					}
					found.unseen = append(found.unseen, p)
					continue
				}
			}
			if keys[p.Key] {
				delete(m.told, p.Name) // whoever put it back
				continue
			}
			if owned == nil && !p.Undo.IsZero() {
				owned = m.in.run.Pending()
			}
			if p.Undo.IsZero() || owned[p.Undo.String()] {
				found.lost = append(found.lost, p)
			}
		}
	}
	return found, nil
}

// complete puts back what is gone: all by one plan or, if that fails, part by part.
// Nobody may be bound or move meanwhile.
func (m *mender) complete(ctx context.Context, listings []plans.Listing) (whole bool) {
	found, err := m.compare(m.expected(), listings)
	if err != nil || ctx.Err() != nil {
		return false
	}
	for _, dev := range found.down {
		m.down[dev] = true
		m.in.Log.Warn(dev + " was set down by somebody: it is left so, and what it loses by that is put back when it is up")
	}
	restore := func(parts ...plans.Part) error {
		_, err := m.in.run.Run(context.WithoutCancel(ctx), plans.Restore(parts), map[string]string{})
		return err
	}
	// What could not be put back before keeps nothing else from coming back.
	slices.SortStableFunc(found.lost, func(a, b plans.Part) int { return cmp.Compare(m.told[a.Name], m.told[b.Name]) })
	failed := map[id]bool{}
	if len(found.lost) > 0 && restore(found.lost...) != nil {
		left, err := m.compare(found.lost, listings)
		if err != nil {
			return false
		}
		for _, p := range left.unseen {
			failed[idOf(p)] = true
		}
		for i, p := range left.lost {
			if i >= singles {
				failed[idOf(p)] = true
				continue
			}
			if err := restore(p); err != nil {
				failed[idOf(p)] = true
				m.failed(p.Name, err)
			}
		}
	}
	m.restored(slices.DeleteFunc(found.lost, func(p plans.Part) bool { return failed[idOf(p)] }))
	return len(failed) == 0
}

// restored says what was put back, in a line for all that a tunnel has of a kind.
func (m *mender) restored(parts []plans.Part) {
	type lot struct {
		of string
		in plans.Listing
	}
	var order []lot
	lots := map[lot][]string{}
	for _, p := range parts {
		delete(m.told, p.Name)
		m.mended.Add(1)
		l := lot{p.Of, p.In}
		if lots[l] == nil {
			order = append(order, l)
		}
		lots[l] = append(lots[l], p.Name)
	}
	for _, l := range order {
		what := lots[l][0]
		if more := len(lots[l]) - 1; more > 0 {
			what += fmt.Sprintf(" (and %d more)", more)
		}
		m.in.Log.Warn(what + " was gone: put back")
	}
}
