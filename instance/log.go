package instance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// LogSettings is what a log shows, and how.
type LogSettings struct {
	Verbosity int    // 0 lets errors through, 1 warnings, 2 information, 3 and more everything
	Format    string // "text", "logfmt" or "json"
	Time, PID bool   // in each line
}

// NewLog makes a log of a line for each record.
//
// Text is the format of the Python tool, so that what reads its logs can go on:
// `2026-11-21T15:32:01.123 4711  INFO text`. Logfmt and JSON are those of
// log/slog, with the fields time, level, msg, pid, those of an [authd.Event], and
// such as `error`, which text has too. Where w is the journal, each line begins
// with its priority.
//
// What others make us say stays within its line: what can't be printed is escaped.
func NewLog(w io.Writer, s LogSettings) *slog.Logger {
	out := &lines{w: w, journal: isJournal(w)}
	level := slog.LevelError - slog.Level(4*min(s.Verbosity, 3))
	options := &slog.HandlerOptions{Level: level}
	if !s.Time {
		options.ReplaceAttr = timeless
	}
	var h slog.Handler
	switch s.Format {
	case "logfmt":
		h = slog.NewTextHandler(out, options)
	case "json":
		h = slog.NewJSONHandler(out, options)
	default:
		return slog.New(handler{&text{w: out, level: level, time: s.Time, pid: s.PID}, out})
	}
	if s.PID {
		h = h.WithAttrs([]slog.Attr{slog.Int("pid", os.Getpid())})
	}
	return slog.New(handler{h, out})
}

func timeless(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		return slog.Attr{}
	}
	return a
}

// lines writes the lines of a log, each with its priority if w is the journal.
type lines struct {
	mu      sync.Mutex
	w       io.Writer
	journal bool
	level   slog.Level // of what is written next
}

func (l *lines) Write(line []byte) (int, error) {
	if l.journal {
		line = append([]byte(priority(l.level)), line...)
	}
	return l.w.Write(line)
}

// handler tells its lines the level of each record.
type handler struct {
	slog.Handler
	out *lines
}

func (h handler) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.level = r.Level
	return h.Handler.Handle(ctx, r)
}

func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return handler{h.Handler.WithAttrs(attrs), h.out}
}

// WithGroup is not used by this program.
func (h handler) WithGroup(string) slog.Handler { return h }

// text is the log for people, to be used by one at a time.
type text struct {
	w         io.Writer
	level     slog.Level
	time, pid bool
	attrs     []slog.Attr
}

func (h *text) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *text) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	if h.time {
		b.WriteString(r.Time.Format("2006-01-02T15:04:05.000 "))
	}
	if h.pid {
		fmt.Fprintf(&b, "%d ", os.Getpid())
	}
	fmt.Fprintf(&b, "%5s %s", r.Level, Printable(r.Message))
	attr := func(a slog.Attr) bool {
		if a.Key != "" { // else the message says it, see [authd.Event]
			fmt.Fprintf(&b, " %s=%s", a.Key, quoted(a.Value.String()))
		}
		return true
	}
	for _, a := range h.attrs {
		attr(a)
	}
	r.Attrs(attr)
	b.WriteByte('\n')
	_, err := h.w.Write(b.Bytes())
	return err
}

func (h *text) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	more.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return &more
}

// WithGroup is not used by this program.
func (h *text) WithGroup(string) slog.Handler { return h }

// quoted is a value that ends at the next blank.
func quoted(s string) string {
	if s == "" || strings.ContainsAny(s, " \"") || !printable(s) {
		return strconv.Quote(s)
	}
	return s
}

// Printable is s with what is not to be printed escaped as in Go: line breaks, what
// steers a terminal, what is no UTF-8.
func Printable(s string) string {
	if printable(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		_, n := utf8.DecodeRuneInString(s)
		if printable(s[:n]) {
			b.WriteString(s[:n])
		} else {
			q := strconv.Quote(s[:n])
			b.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return b.String()
}

func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) })
}
