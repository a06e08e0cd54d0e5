package instance

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
)

// NewLog makes a log in the format of the Python tool, so that what reads its
// logs can go on: `2026-11-21T15:32:01.123 4711  INFO text`, time and process
// number left out if asked. Verbosity 0 lets errors through, 1 warnings, 2
// information, 3 and more everything.
func NewLog(w io.Writer, verbosity int, time, pid bool) *slog.Logger {
	level := slog.LevelError - slog.Level(4*min(verbosity, 3))
	return slog.New(&handler{w: w, mu: new(sync.Mutex), level: level, time: time, pid: pid})
}

type handler struct {
	w         io.Writer
	mu        *sync.Mutex
	level     slog.Level
	time, pid bool
	attrs     []slog.Attr
}

func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level }

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	if h.time {
		b.WriteString(r.Time.Format("2006-01-02T15:04:05.000 "))
	}
	if h.pid {
		fmt.Fprintf(&b, "%d ", os.Getpid())
	}
	fmt.Fprintf(&b, "%5s %s", r.Level, r.Message)
	attr := func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%s", a.Key, quoted(a.Value.String()))
		return true
	}
	for _, a := range h.attrs {
		attr(a)
	}
	r.Attrs(attr)
	b.WriteByte('\n')
	h.mu.Lock()
	defer h.mu.Unlock()
	_, err := h.w.Write(b.Bytes())
	return err
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	more := *h
	more.attrs = append(h.attrs[:len(h.attrs):len(h.attrs)], attrs...)
	return &more
}

// WithGroup is not used by this program.
func (h *handler) WithGroup(string) slog.Handler { return h }

func quoted(s string) string {
	if bytes.ContainsAny([]byte(s), " \t\n\"") || s == "" {
		return fmt.Sprintf("%q", s)
	}
	return s
}
