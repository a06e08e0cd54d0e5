package instance

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// watchFiles returns a channel that yields a value after files were written or replaced,
// one for any number of changes not yet received, until ctx ends (inotify(7)). They need
// not be there. Symbolic links are followed, as that of systemd-resolved.
func watchFiles(ctx context.Context, paths []string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w", err)
	}
	w := &fileWatch{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), paths: paths, names: map[int32][]string{}}
	w.add()
	changed := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { w.file.Close() })
	go func() {
		buf := make([]byte, 4096) // of 16 bytes and a name of 256 at most
		for {
			n, err := w.file.Read(buf)
			if err != nil {
				return
			}
			if w.concerns(buf[:n]) {
				w.add() // others may have taken their places
				signal(changed)
			}
		}
	}()
	return changed, nil
}

type fileWatch struct {
	fd    int
	file  *os.File
	paths []string
	names map[int32][]string // in a directory, by its watch; none: a file itself
}

// add watches the files where they are now: their directories, in which they may be
// replaced, and the files, which may be mounted from elsewhere. What is watched already
// stays so, with its number.
func (w *fileWatch) add() {
	for _, path := range w.paths {
		places := []string{path}
		if target, err := filepath.EvalSymlinks(path); err == nil && target != path {
			places = append(places, target)
		}
		for _, place := range places {
			dir, name := filepath.Split(place)
			if wd, err := unix.InotifyAddWatch(w.fd, dir, unix.IN_CLOSE_WRITE|unix.IN_MOVED_TO|unix.IN_CREATE|unix.IN_DELETE); err == nil {
				if !slices.Contains(w.names[int32(wd)], name) {
					w.names[int32(wd)] = append(w.names[int32(wd)], name)
				}
			}
		}
		if wd, err := unix.InotifyAddWatch(w.fd, path, unix.IN_CLOSE_WRITE); err == nil {
			w.names[int32(wd)] = nil
		}
	}
}

// concerns reports whether one of the events in b is of the files.
func (w *fileWatch) concerns(b []byte) bool {
	for len(b) > 0 {
		e, rest, err := parseEvent(b)
		if err != nil || e.mask&unix.IN_Q_OVERFLOW != 0 {
			return true
		}
		b = rest
		names, known := w.names[e.watch]
		switch {
		case e.mask&unix.IN_IGNORED != 0: // a file that is no more
			delete(w.names, e.watch)
		case known && (len(names) == 0 || slices.Contains(names, e.name)):
			return true
		}
	}
	return false
}

// An event is struct inotify_event of inotify(7), in host order:
//
//	0   watch descriptor (4)
//	4   mask (4)
//	8   cookie (4)
//	12  length of what follows (4)
//	16  name, with null bytes behind it
type event struct {
	watch int32
	mask  uint32
	name  string
}

var errEvent = errors.New("no inotify event")

func parseEvent(b []byte) (e event, rest []byte, err error) {
	if len(b) < unix.SizeofInotifyEvent {
		return e, nil, errEvent
	}
	e.watch = int32(binary.NativeEndian.Uint32(b))
	e.mask = binary.NativeEndian.Uint32(b[4:])
	n := binary.NativeEndian.Uint32(b[12:])
	b = b[unix.SizeofInotifyEvent:]
	if uint64(n) > uint64(len(b)) {
		return e, nil, errEvent
	}
	e.name, _, _ = strings.Cut(string(b[:n]), "\x00")
	return e, b[n:], nil
}
