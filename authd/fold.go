package authd

import (
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
	format string // of the others
	name   string // of a tunnel, say
	src    netip.AddrPort
	err    error
}

func (w warning) String() string { return fmt.Sprintf(w.format, w.name, w.src, w.err) }

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

// folder logs warnings, of equal ones just the first in foldFor; the next that
// is logged says how many were not.
type folder struct {
	log *slog.Logger
	now func() time.Time

	mu    sync.Mutex
	folds map[foldKey]*fold
	swept time.Time
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
		f.log.Warn(w.String())
		return
	}
	if d := now.Sub(e.since); d >= 0 && d < foldFor {
		e.last = w
		e.repeated++
		return
	}
	e.print(f.log, w)
	*e = fold{since: now, last: w}
}

// sweep forgets what is over, at most once a second, as it walks the map.
func (f *folder) sweep(now time.Time) {
	if d := now.Sub(f.swept); d >= 0 && d < time.Second {
		return
	}
	f.swept = now
	for k, e := range f.folds {
		if d := now.Sub(e.since); d < 0 || d >= foldFor {
			e.flush(f.log)
			delete(f.folds, k)
		}
	}
}

// flush logs the counts that still wait for a next warning.
func (f *folder) flush() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.folds {
		e.flush(f.log)
	}
	clear(f.folds)
}

func (e *fold) flush(log *slog.Logger) {
	if e.repeated == 0 {
		return
	}
	// This line is one of the repeats itself.
	e.repeated--
	e.print(log, e.last)
}

func (e *fold) print(log *slog.Logger, w warning) {
	if e.repeated == 0 {
		log.Warn(w.String())
		return
	}
	log.Warn(w.String(), "repeated", e.repeated)
}
