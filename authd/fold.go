package authd

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"
)

const (
	// foldFor is how long a warning keeps its repeats out of the log.
	foldFor = 10 * time.Second

	// maxFolds bounds how many warnings are told apart. Beyond it, which
	// takes a flood from forged sources, all further ones are one.
	maxFolds = 1024
)

// foldKey is what makes two warnings the same.
type foldKey struct {
	name, reason string
	src          netip.Addr
}

type fold struct {
	since    time.Time
	msg      string
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

func (f *folder) warn(k foldKey, msg string) {
	f.mu.Lock()
	defer f.mu.Unlock()

	now := f.now()
	e, ok := f.folds[k]
	if !ok && len(f.folds) >= maxFolds {
		f.sweep(now)
	}
	if !ok && len(f.folds) >= maxFolds {
		k = foldKey{reason: "others"}
		e, ok = f.folds[k]
	}
	if !ok {
		f.folds[k] = &fold{since: now, msg: msg}
		f.log.Warn(msg)
		return
	}
	if d := now.Sub(e.since); d >= 0 && d < foldFor {
		e.msg = msg
		e.repeated++
		return
	}
	e.print(f.log, msg)
	*e = fold{since: now, msg: msg}
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
	e.print(log, e.msg)
}

func (e *fold) print(log *slog.Logger, msg string) {
	if e.repeated == 0 {
		log.Warn(msg)
		return
	}
	log.Warn(msg, "repeated", e.repeated)
}
