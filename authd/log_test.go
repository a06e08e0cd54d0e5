package authd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
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

// Each cause of a refusal has a word of its own, which docs/logs.md has too.
func TestReasons(t *testing.T) {
	source, err := os.ReadFile("auth.go")
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := len(regexp.MustCompile(`(?m)^\tErr\w+ += errors\.New`).FindAll(source, -1)); n != len(refusals) {
		t.Errorf("%d causes, and %d have a word", n, len(refusals))
	}
	seen := map[string]bool{}
	for _, r := range refusals {
		if got := Reason(fmt.Errorf("%w, and so on", r.err)); got != r.name || seen[got] {
			t.Errorf("%v is %q, as another is", r.err, got)
		}
		seen[r.name] = true
		if !bytes.Contains(page, []byte("`"+r.name+"`")) {
			t.Errorf("docs/logs.md does not have %s", r.name)
		}
	}
	if got := Reason(errors.New("no route")); got != "other" {
		t.Errorf("what is no refusal is %q", got)
	}
}

// A client's ups and downs have their fields too.
func TestClientEvents(t *testing.T) {
	l := newTap()
	c, err := newClient(ClientConfig{Name: "a", Local: clientAddr, Remote: at(10000), Auth: Auth{Token: []byte("sesame")}, Log: slog.New(l.handler())})
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range []event{isUp, isLost, isSilent} {
		c.tell(ev)
	}
	c.ignored(Datagram{Src: at(10000)}, ErrReply)
	server := " tunnel=a peer=" + at(10000).String()
	for _, want := range []string{
		" event=up" + server, " event=lost" + server + " reason=no-reply",
		" event=silent" + server + " reason=no-reply", " event=ignored" + server + " reason=reply",
	} {
		if !slices.ContainsFunc(l.lines(), func(line string) bool { return strings.HasSuffix(line, want) }) {
			t.Errorf("no %s in %q", want, l.lines())
		}
	}
}
