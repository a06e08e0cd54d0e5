package authd

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestFolder(t *testing.T) {
	l, c := newTap(), newClock(1000)
	f := newFolder(l.logger(), c.now)
	k := foldKey{name: "a", reason: "r", src: clientAddr.Addr()}
	f.warn(k, "one")
	f.warn(k, "two")
	f.warn(foldKey{name: "a", reason: "other", src: clientAddr.Addr()}, "another reason")
	c.add(foldFor - 1)
	f.warn(k, "three")
	c.add(1)
	f.warn(k, "four")
	c.add(foldFor)
	f.warn(k, "five")
	f.warn(k, "six")
	f.warn(k, "seven")
	f.flush()
	f.flush()
	want := []string{
		`level=WARN msg=one`,
		`level=WARN msg="another reason"`,
		`level=WARN msg=four repeated=2`,
		`level=WARN msg=five`,
		`level=WARN msg=seven repeated=1`,
	}
	if diff := cmp.Diff(want, l.lines()); diff != "" {
		t.Error(diff)
	}
}

func TestFolderBounded(t *testing.T) {
	l, c := newTap(), newClock(1000)
	f := newFolder(l.logger(), c.now)
	flood := func() {
		for i := range 3 * maxFolds {
			f.warn(foldKey{src: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, fmt.Sprint(i))
		}
	}
	flood()
	if n := len(f.folds); n > maxFolds+1 {
		t.Errorf("%d kept", n)
	}
	if n := len(l.lines()); n != maxFolds+1 {
		t.Errorf("%d lines, want %d", n, maxFolds+1)
	}
	// Later there is room again, and what was folded is told.
	c.add(foldFor + time.Second)
	f.warn(foldKey{name: "new"}, "new")
	if !l.has("msg=new") || !l.has(fmt.Sprintf("repeated=%d", 2*maxFolds-2)) {
		t.Errorf("%q", l.lines()[maxFolds:])
	}
	if n := len(f.folds); n != 1 {
		t.Errorf("%d kept", n)
	}
}
