package instance

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Files are noticed to be written, replaced, made and removed, also by a link; their neighbours are not.
func TestWatchFiles(t *testing.T) {
	dir, far := t.TempDir(), t.TempDir()
	hosts, conf, target := filepath.Join(dir, "hosts"), filepath.Join(dir, "resolv.conf"), filepath.Join(far, "stub.conf")
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(path string) { t.Helper(); do(os.WriteFile(path, []byte("x"), 0o644)) }
	write(target)
	do(os.Symlink(target, conf))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changed, err := watchFiles(ctx, []string{hosts, conf})
	do(err)
	noticed := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("not noticed: %s", what)
		}
		for quiet := false; !quiet; { // one change may be several events
			select {
			case <-changed:
			case <-time.After(50 * time.Millisecond):
				quiet = true
			}
		}
	}
	write(filepath.Join(dir, "passwd"))
	write(filepath.Join(far, "other.conf"))
	select {
	case <-changed:
		t.Error("a neighbour was noticed")
	default:
	}
	write(hosts)
	noticed("a file was made")
	write(hosts)
	noticed("it was written")
	write(hosts + ".new")
	do(os.Rename(hosts+".new", hosts))
	noticed("it was replaced")
	write(target)
	noticed("what a link leads to was written")
	write(target + ".new")
	do(os.Rename(target+".new", target))
	noticed("what a link leads to was replaced")
	do(os.Remove(hosts))
	noticed("it was removed")
}

func FuzzEvents(f *testing.F) {
	one := binary.NativeEndian.AppendUint32(nil, 1)
	one = binary.NativeEndian.AppendUint32(one, unix.IN_CLOSE_WRITE)
	one = append(one, 0, 0, 0, 0)
	one = binary.NativeEndian.AppendUint32(one, 16)
	one = append(one, "hosts\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	w := &fileWatch{names: map[int32][]string{1: {"hosts"}}}
	f.Add([]byte(nil))
	f.Add(one)
	f.Fuzz(func(t *testing.T, before []byte) {
		// Whatever comes before, an event of ours is not missed; what can't be read counts.
		w.names = map[int32][]string{1: {"hosts"}}
		for rest := before; len(rest) > 0; {
			e, more, err := parseEvent(rest)
			if err != nil {
				return
			}
			if len(more) >= len(rest) {
				t.Fatal("no progress")
			}
			if e.mask&unix.IN_IGNORED != 0 && e.watch == 1 {
				return // it is watched no more
			}
			rest = more
		}
		if !w.concerns(append(before[:len(before):len(before)], one...)) {
			t.Error("an event was missed")
		}
	})
}
