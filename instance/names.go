package instance

import (
	"context"
	"errors"
	"fmt"
	"net"

	"ipipou/plans"
)

// names are those of the tunnels' interfaces. What somebody makes by the name of one
// that he deleted is his: it is left alone, also in the end. The mender's lock guards
// them.
type names struct {
	in    *Instance
	ours  map[string]int  // index of our interface of that name, as it was first seen
	taken map[string]bool // by somebody else
}

// free reports whether there is no interface of the tunnel's name.
func (n *names) free(t plans.Tunnel, links map[string]net.Interface) bool {
	now, ours := links[t.Dev].Index, n.ours[t.Dev]
	switch {
	case now == 0:
		return true
	case ours == 0:
		n.ours[t.Dev] = now
	case now != ours && !n.taken[t.Dev]:
		n.taken[t.Dev] = true
		said := "it is left alone, and the tunnel is down until it is away"
		if err := n.in.run.Forget(t.Own()); err != nil {
			said = err.Error()
		}
		n.in.Log.Error(fmt.Sprintf("the interface %s was deleted, and somebody has made another one of that name: %s", t.Dev, said))
	}
	return false
}

// own reports whether the interface of a tunnel's name, which has that index, is ours.
func (n *names) own(dev string, index int) bool {
	ours := n.ours[dev]
	return !n.taken[dev] && (ours == 0 || ours == index)
}

// retaken makes the tunnel's interface by back, and ours again if it was not.
func (n *names) retaken(t plans.Tunnel, back func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		if n.taken[t.Dev] {
			// Before it is there, for we may be killed.
			if _, err := n.in.run.Run(ctx, t.Own(), nil); err != nil {
				return err
			}
		}
		err := back(ctx)
		switch {
		case err == nil:
			n.ours[t.Dev] = index(t.Dev)
			delete(n.taken, t.Dev)
		case n.taken[t.Dev]:
			err = errors.Join(err, n.in.run.Forget(t.Own()))
		}
		return err
	}
}

// check looks at those that are there: at the start, to know ours, and before all is
// undone.
func (n *names) check(tunnels []plans.Tunnel) {
	links, _, err := present()
	if err != nil {
		n.in.Log.Warn(fmt.Sprintf("the interfaces' names can't be watched: %v", err))
		return
	}
	for _, t := range tunnels {
		n.free(t, links)
	}
}
