package authd

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// foldFor is how long a warning keeps its repeats out of the log.
	foldFor = 10 * time.Second

	// maxFolds bounds how many warnings are told apart, and so how many lines
	// a flood from forged sources makes in foldFor. Beyond it all further ones
	// are one.
	maxFolds = 128
)

// warning is one about what a source sent. It is put into words only if it is
// logged: in a flood few are.
type warning struct {
	event  string // see [Event]
	format string // of name, src and err
	name   string // of a tunnel, or of a port that several share
	port   uint16 // that port, or 0
	src    netip.AddrPort
	err    error
}

// failed is a warning about what this host did not let us do for a peer.
func (t ServerTunnel) failed(format string, peer netip.AddrPort, err error) warning {
	return warning{event: "failed", format: format, name: t.Name, src: peer, err: err}
}

func (w warning) String() string { return fmt.Sprintf(w.format, w.name, w.src, w.err) }

// fields are those of the event, with the reason of a refusal or the error of a failure.
func (w warning) fields() slog.Attr {
	tunnel := w.name
	var more []slog.Attr
	if w.port != 0 {
		tunnel = ""
		more = append(more, slog.Int("port", int(w.port)))
	}
	if w.event == "failed" {
		more = append(more, slog.String("error", w.err.Error()))
	} else {
		more = append(more, slog.String("reason", Reason(w.err)))
	}
	return Event(w.event, tunnel, w.src, more...)
}

// foldKey is what makes two warnings the same.
type foldKey struct {
	format, name string
	why          error // one of refusals: details make every repeat look new
	src          netip.Addr
}

func (w warning) key() foldKey { return foldKey{w.format, w.name, refusal(w.err), w.src.Addr()} }

type fold struct {
	since    time.Time
	last     warning
	repeated int
}

// folder logs warnings, of equal ones just the first in foldFor. How many were
// not is said by the next that is logged, or once foldFor has passed by the last
// of them, so that the count of a flood that ends does not wait for another.
type folder struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	folds map[foldKey]*fold
	swept time.Time
	timer *time.Timer // of tell; nil until something is folded
	due   time.Time   // when it fires; zero: it doesn't, as nothing is folded
}

func newFolder(log *slog.Logger, now func() time.Time) *folder {
	return &folder{log: log, now: now, folds: make(map[foldKey]*fold)}
}

func (f *folder) warn(w warning) {
	k := w.key()
	f.mu.Lock()
	defer f.mu.Unlock()

	now := f.now()
	e, ok := f.folds[k]
	if !ok && len(f.folds) >= maxFolds {
		f.sweep(now)
	}
	if !ok && len(f.folds) >= maxFolds {
		k = foldKey{}
		e, ok = f.folds[k]
	}
	if !ok {
		f.folds[k] = &fold{since: now, last: w}
		w.log(f.log, 0)
		return
	}
	if !e.over(now) {
		e.last = w
		e.repeated++
		f.wake(e, now)
		return
	}
	w.log(f.log, e.repeated)
	*e = fold{since: now, last: w}
}

// wake has e's repeats told when it is over, if nothing else is due before.
func (f *folder) wake(e *fold, now time.Time) {
	at := e.since.Add(foldFor)
	if !f.due.IsZero() && !at.Before(f.due) {
		return
	}
	f.due = at
	if f.timer == nil {
		f.timer = time.AfterFunc(at.Sub(now), f.tell)
	} else {
		f.timer.Reset(at.Sub(now))
	}
}

// tell logs the repeats of what is over. What goes on is folded anew.
func (f *folder) tell() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.due = time.Time{}
	now := f.now()
	for _, e := range f.folds {
		switch {
		case e.repeated == 0:
		case e.over(now):
			e.flush(f.log)
			*e = fold{since: now, last: e.last}
		default:
			f.wake(e, now)
		}
	}
}

// sweep forgets what is over, at most once a second, as it walks the map.
func (f *folder) sweep(now time.Time) {
	if d := now.Sub(f.swept); d >= 0 && d < time.Second {
		return
	}
	f.swept = now
	for k, e := range f.folds {
		if e.over(now) {
			e.flush(f.log)
			delete(f.folds, k)
		}
	}
}

// flush logs all repeats, at the end.
func (f *folder) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.folds {
		e.flush(f.log)
	}
	clear(f.folds)
	f.due = time.Time{}
	if f.timer != nil {
		f.timer.Stop()
	}
}

// over reports whether repeats are not kept out any more. A clock that was set
// back says so too.
func (e *fold) over(now time.Time) bool {
	d := now.Sub(e.since)
	return d < 0 || d >= foldFor
}

func (e *fold) flush(log *slog.Logger) {
	if e.repeated > 0 {
		e.last.log(log, e.repeated-1) // this line is one of the repeats itself
	}
}

// log logs w, and how many like it were not.
func (w warning) log(log *slog.Logger, repeated int) {
	if !log.Enabled(context.Background(), slog.LevelWarn) {
		return // as it is by default: no words are made for nobody
	}
	attrs := []slog.Attr{w.fields()}
	if repeated > 0 {
		attrs = append(attrs, slog.Int("repeated", repeated))
	}
	log.LogAttrs(context.Background(), slog.LevelWarn, w.String(), attrs...)
}
