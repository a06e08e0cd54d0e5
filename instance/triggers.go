package instance

import (
	"context"

	"ipipou/authd"
)

// triggers makes clients authenticate anew on a signal, and tunnels move whose
// outer address has changed when it does.
func (in *Instance) triggers(ctx context.Context, clients []*client, movers []*mover, fail context.CancelCauseFunc) {
	var changes <-chan struct{}
	if len(movers) > 0 {
		var err error
		if changes, err = authd.WatchAddrs(ctx); err != nil {
			fail(&Error{ExitSockets, err})
			return
		}
		follow(in.anew(), movers) // what changed before there was somebody to notice
	}
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
			for _, c := range clients {
				c.trigger()
			}
		case _, ok := <-changes:
			if !ok {
				changes = nil
				continue
			}
			follow(in.anew(), movers)
		}
	}
}

// follow triggers those that have to move.
func follow(now *moment, movers []*mover) {
	for _, m := range movers {
		if m.stale(now) {
			m.trigger()
		}
	}
}
