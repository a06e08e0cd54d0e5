package authd

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func refusedOf(src netip.AddrPort, err error) warning {
	return warning{event: "refused", format: "%s: %s refused: %v", name: "a", src: src, err: err}
}

func TestFolder(t *testing.T) {
	l, c := newTap(), newClock(1000)
	f := newFolder(l.logger(), c.now)
	// Details, and the port, do not make it another.
	warn := func(behind int64) {
		src := netip.AddrPortFrom(clientAddr.Addr(), uint16(behind))
		f.warn(refusedOf(src, olderError(behind)))
	}
	warn(1)
	warn(2)
	f.warn(refusedOf(clientAddr, ErrToken))
	f.warn(ServerTunnel{Name: "a"}.failed("%s: %s not bound: %v", clientAddr, ErrToken))
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
		f.warn(refusedOf(netip.AddrPortFrom(src, 1), ErrToken))
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

// What was folded is told once its time is over, though nobody is refused any more,
// and then no timer is left.
func TestFolderTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTap()
		f := newFolder(slog.New(l.handler()), time.Now)
		another := netip.AddrPortFrom(host(1), 7)
		f.warn(refusedOf(clientAddr, ErrToken))
		f.warn(refusedOf(another, ErrToken))
		if f.timer != nil {
			t.Error("a timer, and nothing is folded")
		}
		time.Sleep(foldFor / 2)
		f.warn(refusedOf(another, ErrToken))
		f.warn(refusedOf(clientAddr, ErrToken))
		f.warn(refusedOf(clientAddr, ErrToken))
		f.warn(refusedOf(clientAddr, ErrToken))
		time.Sleep(foldFor/2 - 1)
		synctest.Wait()
		if n := len(l.lines()); n != 2 {
			t.Errorf("%d lines before the time, want 2", n)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		want := []string{
			`level=WARN msg="a: 10.0.0.1:7 refused: wrong token" event=refused tunnel=a peer=10.0.0.1:7 reason=token`,
			`level=WARN msg="a: 10.0.0.1:7 refused: wrong token" event=refused tunnel=a peer=10.0.0.1:7 reason=token`,
			`level=WARN msg="a: 198.51.100.7:4242 refused: wrong token" event=refused tunnel=a peer=198.51.100.7:4242 reason=token`,
			`level=WARN msg="a: 198.51.100.7:4242 refused: wrong token" event=refused tunnel=a peer=198.51.100.7:4242 reason=token repeated=2`,
		}
		got := slices.Sorted(slices.Values(l.lines()))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if !f.due.IsZero() {
			t.Error("nothing is folded, and the timer goes on")
		}
		// One that goes on makes a line in foldFor.
		for range 30 {
			f.warn(refusedOf(clientAddr, ErrToken))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := len(l.lines()) - len(want); n != 3 {
			t.Errorf("%d more lines in 30 s", n)
		}
		f.flush()
		told := len(l.lines())
		if time.Sleep(time.Minute); len(l.lines()) != told {
			t.Error("told after the end")
		}
	})
}

// Each line has the fields of what it says, and a port where it is not known whose
// it is.
func TestFolderFields(t *testing.T) {
	l := newTap()
	f := newFolder(slog.New(l.handler()), time.Now)
	f.warn(warning{"refused", "%s: %s refused: %v", "port 10002", 10002, clientAddr, olderError(3)})
	f.warn(ServerTunnel{Name: "a"}.failed("%s: %s bound, but the reply failed: %v", clientAddr, errors.New("no route")))
	for _, s := range []string{
		` event=refused peer=198.51.100.7:4242 port=10002 reason=older`,
		` event=failed tunnel=a peer=198.51.100.7:4242 error="no route"`,
	} {
		if !l.has(s) {
			t.Errorf("no %s in %q", s, l.lines())
		}
	}
}
