package authd

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFolder(t *testing.T) {
	l, c := newTap(), newClock(1000)
	f := newFolder(l.logger(), c.now)
	// Details, and the port, do not make it another.
	warn := func(behind int64) {
		src := netip.AddrPortFrom(clientAddr.Addr(), uint16(behind))
		f.warn(warning{"%s: %s refused: %v", "a", src, olderError(behind)})
	}
	warn(1)
	warn(2)
	f.warn(warning{"%s: %s refused: %v", "a", clientAddr, ErrToken})
	f.warn(warning{"%s: %s not bound: %v", "a", clientAddr, ErrToken})
	c.add(foldFor - 1)
	warn(3)
	c.add(1)
	warn(4)
	c.add(foldFor)
	warn(5)
	warn(6)
	warn(7)
	f.flush()
	f.flush()
	want := []string{
		`a: 198.51.100.7:1 by 1 s`,
		`a: 198.51.100.7:4242 refused: wrong token`,
		`a: 198.51.100.7:4242 not bound: wrong token`,
		`a: 198.51.100.7:4 by 4 s repeated=2`,
		`a: 198.51.100.7:5 by 5 s`,
		`a: 198.51.100.7:7 by 7 s repeated=1`,
	}
	var got []string
	for _, s := range l.lines() {
		s = strings.TrimPrefix(s, "level=WARN msg=")
		head, rest, cut := strings.Cut(s, " refused: older than the newest accepted, ")
		if cut {
			by, _, _ := strings.Cut(rest, ": ")
			_, repeated, _ := strings.Cut(rest, `"`)
			s = head + " " + by + repeated
		}
		got = append(got, strings.Trim(s, `"`))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFolderBounded(t *testing.T) {
	l, c := newTap(), newClock(1000)
	f := newFolder(l.logger(), c.now)
	warn := func(src netip.Addr) {
		f.warn(warning{"%s: %s refused: %v", "a", netip.AddrPortFrom(src, 1), ErrToken})
	}
	for i := range 3 * maxFolds {
		warn(host(i))
	}
	if n := len(f.folds); n > maxFolds+1 {
		t.Errorf("%d kept", n)
	}
	if n := len(l.lines()); n != maxFolds+1 {
		t.Errorf("%d lines, want %d", n, maxFolds+1)
	}
	// Later there is room again, and what was folded is told.
	c.add(foldFor + time.Second)
	warn(clientAddr.Addr())
	if !l.has("198.51.100.7:1 refused") || !l.has(fmt.Sprintf("repeated=%d", 2*maxFolds-2)) {
		t.Errorf("%q", l.lines()[maxFolds:])
	}
	if n := len(f.folds); n != 1 {
		t.Errorf("%d kept", n)
	}
}
