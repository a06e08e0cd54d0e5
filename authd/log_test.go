package authd

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

// tap is a log that tests wait for lines of.
type tap struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	changed chan struct{}
}

func newTap() *tap { return &tap{changed: make(chan struct{})} }

func (l *tap) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.changed)
	l.changed = make(chan struct{})
	return l.buf.Write(b)
}

// logger logs in words: without the time, and without what [Event] adds.
func (l *tap) logger() *slog.Logger { return slog.New(words{l.handler()}) }

// words leaves out what a message says itself, as the log for people does.
type words struct{ slog.Handler }

func (h words) Handle(ctx context.Context, r slog.Record) error {
	said := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "" {
			said.AddAttrs(a)
		}
		return true
	})
	return h.Handler.Handle(ctx, said)
}

// handler logs the fields too.
func (l *tap) handler() slog.Handler {
	return slog.NewTextHandler(l, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	})
}

// lines are those from level on, "WARN" say, without debugging ones.
func (l *tap) lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ls []string
	for s := range strings.Lines(l.buf.String()) {
		if !strings.HasPrefix(s, "level=DEBUG") {
			ls = append(ls, strings.TrimSpace(s))
		}
	}
	return ls
}

func (l *tap) has(s string) bool {
	for _, line := range l.lines() {
		if strings.Contains(line, s) {
			return true
		}
	}
	return false
}

// wait waits for a line that holds s.
func (l *tap) wait(t testing.TB, s string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		l.mu.Lock()
		c := l.changed
		l.mu.Unlock()
		if l.has(s) {
			return
		}
		select {
		case <-c:
		case <-timeout:
			t.Fatalf("no %q in the log:\n%s", s, strings.Join(l.lines(), "\n"))
		}
	}
}

// patience is how long to wait for what must come. Nothing depends on it but
// how soon a broken test fails.
const patience = 30 * time.Second

// get waits for a value.
func get[T any](t testing.TB, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// clock is a clock that is set by hand.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock(sec int64) *clock { return &clock{t: time.Unix(sec, 0)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}
