package instance

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"ipipou/plans"
	"ipipou/runner"
)

// stateHooks run the operator's commands for changes of tunnels' states, one at a time. nil
// has none to run.
type stateHooks struct {
	in    *Instance
	wake  chan struct{}
	hooks map[string]plans.Tunnel // by title; only those with commands

	mu     sync.Mutex
	order  []string            // titles whose change is waiting
	newest map[string]standing // of these, one each, so that it is bounded
}

func newStateHooks(in *Instance) *stateHooks {
	h := &stateHooks{in: in, wake: make(chan struct{}, 1), hooks: map[string]plans.Tunnel{}, newest: map[string]standing{}}
	for _, t := range in.Config.Tunnels {
		if len(t.StateHook) > 0 {
			h.hooks[t.Title()] = t
		}
	}
	return h
}

// changed is told of each change of a tunnel's state or peer. What waits is the newest.
func (h *stateHooks) changed(title string, s standing) {
	if h == nil || len(h.hooks[title].StateHook) == 0 {
		return
	}
	h.mu.Lock()
	if _, waits := h.newest[title]; !waits {
		h.order = append(h.order, title)
	}
	h.newest[title] = s
	h.mu.Unlock()
	signal(h.wake)
}

// next is the change that waits for longest.
func (h *stateHooks) next() (title string, s standing, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.order) == 0 {
		return "", standing{}, false
	}
	title = h.order[0]
	s = h.newest[title]
	h.order = slices.Delete(h.order, 0, 1)
	delete(h.newest, title)
	return title, s, true
}

// run runs the commands until ctx ends; then what waits is dropped, and one that runs is
// awaited, for as long as a command may take.
func (h *stateHooks) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.wake:
		}
		for ctx.Err() == nil {
			title, s, ok := h.next()
			if !ok {
				break
			}
			h.call(ctx, h.hooks[title], s)
		}
	}
}

func (h *stateHooks) call(ctx context.Context, t plans.Tunnel, s standing) {
	peer := "-"
	if s.Peer != (netip.AddrPort{}) {
		peer = s.Peer.String()
	}
	for _, argv := range t.StateHook {
		if ctx.Err() != nil {
			return
		}
		c := plans.Command{Argv: append(slices.Clone(argv), t.Dev, string(s.State), peer)}
		h.in.Log.Debug(c.String())
		if _, stderr, err := h.in.run.Exec(c); err != nil {
			failed := &runner.StepError{Command: c, Stderr: stderr, Err: err}
			h.in.Log.Warn(fmt.Sprintf("%s: state-hook: %s", t.Title(), strings.ReplaceAll(failed.Error(), "\n", "; ")))
		}
	}
}
