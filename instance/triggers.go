package instance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ipipou/authd"
)

// resolverCache is how long Go's resolver may take the files of before for those of now
// (cacheMaxAge in net/hosts.go, and resolv.conf's in net/dnsclient_unix.go are 5 s).
const resolverCache = 5500 * time.Millisecond

// nameFiles say what names stand for, and who is asked.
var nameFiles = []string{"/etc/hosts", "/etc/resolv.conf"}

// triggers makes clients authenticate anew on a signal, and tunnels move whose
// outer address has changed when it does. Of those that are monitored, clients
// authenticate when there is another way to their server too, and names are resolved anew
// with each of these changes, and when the files that resolve them change.
func (in *Instance) triggers(ctx context.Context, clients []*client, movers []*mover, fail context.CancelCauseFunc) {
	w := watcher{in: in, clients: slices.Clone(clients), movers: movers}
	w.clients = slices.DeleteFunc(w.clients, func(c *client) bool { return !c.monitored() })
	for _, m := range movers {
		if m.monitored() && m.refreshes() {
			w.named = append(w.named, m)
		}
	}
	if err := w.open(ctx); err != nil {
		fail(&Error{ExitSockets, err})
		return
	}
	// What changed before there was somebody to notice.
	w.follow()
	w.look()
	var settled, stale <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-in.Again:
			if len(clients) == 0 {
				in.Log.Info("SIGUSR1: ignored, there is nobody to authenticate to")
				continue
			}
			in.Log.Info("SIGUSR1: authenticating anew")
			in.notify(notifyReloading)
			for _, c := range clients {
				c.trigger()
			}
			in.notify(notifyReady)
		case <-w.addrs:
			w.follow()
			settled = w.unsettled(settled)
		case <-w.routes:
			settled = w.unsettled(settled)
		case <-settled:
			settled = nil
			w.look()
		case <-in.named:
			if err := w.retarget(); err != nil {
				fail(&Error{ExitSockets, err})
				return
			}
		case <-w.files:
			w.resolve()
			stale = time.After(resolverCache)
		case <-stale:
			stale = nil
			w.resolve()
		}
	}
}

// A watcher has what is watched for those that are monitored; a channel is nil where
// nobody wants it.
type watcher struct {
	in      *Instance
	movers  []*mover  // all
	clients []*client // monitored ones
	named   []*mover  // monitored, with another end that has a name

	addrs, routes, files <-chan struct{}
	watch                *authd.RouteWatch
	moved                bool // an end of a tunnel has another address, since the last look
	looked               time.Time
}

func (w *watcher) open(ctx context.Context) (err error) {
	if len(w.movers) > 0 {
		if w.addrs, err = authd.WatchAddrs(ctx); err != nil {
			return err
		}
	}
	if len(w.clients) > 0 {
		if w.watch, err = authd.WatchRoutes(ctx, w.servers()); err != nil {
			return err
		}
		w.routes = w.watch.Changed
	}
	if len(w.named) > 0 {
		// Hosts run out of these (fs.inotify.max_user_instances), and there are other
		// occasions to resolve a name.
		if w.files, err = watchFiles(ctx, nameFiles); err != nil {
			w.in.Log.Warn(fmt.Sprintf("%s are not watched: %v", strings.Join(nameFiles, " and "), err))
		}
	}
	return nil
}

// servers are the addresses of the clients' servers.
func (w *watcher) servers() []netip.Addr {
	var to []netip.Addr
	for _, c := range w.clients {
		to = append(to, c.peer().Addr())
	}
	slices.SortFunc(to, netip.Addr.Compare)
	return slices.Compact(to)
}

// looksEvery is how often it is looked at most whether there is another way: a route that
// comes and goes makes each client authenticate as often.
const looksEvery = time.Second

// unsettled is the timer after which to look: a network that comes or goes makes many
// changes. One that runs is left alone, for there may be no end of changes.
func (w *watcher) unsettled(settled <-chan time.Time) <-chan time.Time {
	if settled == nil && len(w.clients)+len(w.named) > 0 {
		settled = time.After(max(settle, time.Until(w.looked.Add(looksEvery))))
	}
	return settled
}

// look is after a change of addresses, links, routes or rules. In another network names
// may stand for something else.
func (w *watcher) look() {
	w.looked = time.Now()
	for _, c := range w.clients {
		if c.rerouted() {
			c.trigger()
			w.moved = true
		}
	}
	if w.moved {
		w.resolve()
	}
	w.moved = false
}

// retarget watches the routes to where the servers are now.
func (w *watcher) retarget() error {
	if w.watch == nil {
		return nil
	}
	return w.watch.To(w.servers())
}

func (w *watcher) resolve() {
	for _, m := range w.named {
		signal(m.look)
	}
}

// follow triggers those that have to move.
func (w *watcher) follow() {
	now := w.in.anew()
	for _, m := range w.movers {
		if m.stale(now) {
			m.trigger()
			w.moved = true
		}
	}
}
