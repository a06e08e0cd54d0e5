package instance

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A host that has no inotify instance left has its tunnels all the same.
func TestFilesThatCantBeWatched(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	w := watcher{in: &Instance{Log: NewLog(&said, LogSettings{Verbosity: 1})}, named: []*mover{{}}}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	err := w.open(t.Context())
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err != nil || !strings.Contains(said.String(), " WARN /etc/hosts and /etc/resolv.conf are not watched: inotify: ") {
		t.Errorf("%v; it said %q", err, said.String())
	}
}

// A change is looked at soon, and a storm of changes once a second.
func TestLooksOfAStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := watcher{clients: []*client{}, named: []*mover{{look: make(chan struct{}, 1)}}}
		looks := 0
		var settled <-chan time.Time
		start := time.Now()
		for time.Since(start) < 10*time.Second {
			settled = w.unsettled(settled)
			select {
			case <-settled:
				settled = nil
				w.look()
				if looks++; looks == 1 && time.Since(start) > settle {
					t.Errorf("the first look is after %v", time.Since(start))
				}
			case <-time.After(time.Millisecond):
			}
		}
		if looks < 9 || looks > 11 {
			t.Errorf("%d looks in ten seconds", looks)
		}
	})
}
