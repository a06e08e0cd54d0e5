package instance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"ipipou/plans"
	"ipipou/runner"
)

// A confirmation is what an instance waits for that undoes itself otherwise.
type confirmation struct {
	mu     sync.Mutex
	within time.Duration // 0: it waits for none
	end    time.Time     // zero: it does not wait, or no more
	said   chan struct{} // closed when it was confirmed
	over   bool          // what was not confirmed is being undone
}

// begin starts the time, if there is one.
func (c *confirmation) begin(within time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if within > 0 {
		c.within, c.end, c.said = within, time.Now().Add(within), make(chan struct{})
	}
}

// deadline is when the time is over, zero if there is nothing to be confirmed.
func (c *confirmation) deadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.end
}

// confirm keeps what was started, and says in a few words what was done.
func (c *confirmation) confirm() (said string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.over:
		return "", errors.New("too late: it is being undone")
	case c.end.IsZero():
		return "there is nothing to be confirmed", nil
	}
	c.end = time.Time{}
	close(c.said)
	return "confirmed", nil
}

// wait ends when ctx does or what was started is confirmed, or else with an error.
func (c *confirmation) wait(ctx context.Context) error {
	if c.within == 0 {
		return nil
	}
	over := time.NewTimer(c.within)
	defer over.Stop()
	select {
	case <-ctx.Done():
	case <-c.said:
		return nil
	case <-over.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end.IsZero() { // at the last moment
		return nil
	}
	c.end, c.over = time.Time{}, true
	if ctx.Err() != nil {
		return nil
	}
	return &Error{plans.ExitGeneral, fmt.Errorf("not confirmed within %s: undone", c.within)}
}

// Confirm keeps the instance of that name, which was started with --confirm, and says in a
// few words what was done.
func Confirm(name string) (said string, err error) {
	dirs := runner.Dirs()
	t, found := find(dirs, name)
	if !found {
		return "", fmt.Errorf("%s: %w", name, noInstance(dirs, nil))
	}
	a, err := ask(t.socket(), askConfirm)
	if err == nil {
		return a.Confirmed, nil
	}
	if a.Error != "" {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	switch pid, alive := holder(t.path(".lock")); {
	case alive && pid != 0:
		return "", fmt.Errorf("%s: process %d does not answer: %s", name, pid, silence(err))
	case alive, held(t.path(".lock")):
		return "", fmt.Errorf("%s does not answer: %s", name, silence(err))
	}
	return "", fmt.Errorf("%s: there is no process to confirm it to; what a dead one has left, the next start undoes, or: ipipou down %[1]s", name)
}
