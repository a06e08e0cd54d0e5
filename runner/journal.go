package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A Journal is the list of pending undos of an instance, on disk before the
// steps are run. It holds a lock, so that an instance runs once. A line each: the
// checksum of a JSON object, and the object.
type Journal struct {
	path    string
	file    *os.File
	size    int64 // of the file
	lock    *os.File
	pending *pending
	dead    int // records that don't count any more
	damaged []Damage
}

// ErrRunning is in the error when another process has the instance.
var ErrRunning = errors.New("is running already")

// OpenJournal takes the lock of the instance and reads what an earlier process
// of that name may have left: Pending undos of a dead owner are in Since(0).
func OpenJournal(dir, name string) (*Journal, error) {
	j := &Journal{path: filepath.Join(dir, name+".journal")}
	var err error
	if j.lock, err = lock(filepath.Join(dir, name+".lock"), name); err != nil {
		return nil, err
	}
	if err = j.read(); err == nil {
		err = j.rewrite()
	}
	if err != nil {
		return nil, errors.Join(err, j.release())
	}
	return j, nil
}

// lock takes the lock file. It is removed on release, so what was locked must
// still be what the name stands for.
func lock(path, name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			pid := make([]byte, 20)
			n, _ := f.ReadAt(pid, 0)
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("instance %s %w, as process %s", name, ErrRunning, bytes.TrimSpace(pid[:n]))
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		held, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		named, err := os.Stat(path)
		if err == nil && os.SameFile(held, named) {
			if err = f.Truncate(0); err == nil {
				_, err = fmt.Fprintln(f, os.Getpid())
			}
			if err != nil {
				f.Close()
				return nil, err
			}
			return f, nil
		}
		f.Close()
	}
}

func (j *Journal) read() error {
	var data []byte
	info, err := os.Lstat(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: want the journal, a plain file: move away what is there (%s)", j.path, info.Mode())
	default:
		if data, err = os.ReadFile(j.path); err != nil {
			return err
		}
	}
	j.pending, j.damaged = parse(data)
	if slices.ContainsFunc(j.damaged, func(d Damage) bool { return !d.Cut }) {
		return j.keepDamaged()
	}
	return nil
}

// keepDamaged gives the file a second name, which it keeps when a new one takes its
// place: that wants no room on a disk that may be full.
func (j *Journal) keepDamaged() error {
	err := remove(j.DamagedPath())
	if err == nil {
		err = os.Link(j.path, j.DamagedPath())
	}
	if err == nil {
		err = os.Chmod(j.DamagedPath(), 0o600)
	}
	if err != nil {
		return fmt.Errorf("%s is damaged and can't be kept: %w", j.path, err)
	}
	return nil
}

// rewrite makes the file hold just the pending entries.
func (j *Journal) rewrite() error {
	entries := j.Since(0)
	records := make([]record, len(entries))
	for i := range entries {
		records[i].Entry = &entries[i]
	}
	data, err := encode(records...)
	if err != nil {
		return err
	}
	fresh := j.path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = os.Rename(fresh, j.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	if j.file != nil {
		j.file.Close()
	}
	j.file, j.size, j.dead = f, int64(len(data)), 0
	return nil
}

// write adds records, all or none.
func (j *Journal) write(records ...record) error {
	data, err := encode(records...)
	if err != nil {
		return err
	}
	_, err = j.file.Write(data)
	if err == nil {
		err = j.file.Sync()
	}
	if err != nil {
		// Undos whose steps are not going to be run must not stay.
		return fmt.Errorf("journal: %w", errors.Join(err, j.file.Truncate(j.size)))
	}
	j.size += int64(len(data))
	return nil
}

// NoteAll adds pending undos, in the order of their steps, and returns their ids; all
// are on disk then, or none.
func (j *Journal) NoteAll(entries []Entry) ([]int, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	ids := make([]int, len(entries))
	records := make([]record, len(entries))
	for i, e := range entries {
		j.pending.last++ // for good: no id is used twice, even if this fails
		e.ID = j.pending.last
		ids[i], records[i].Entry = e.ID, &e
	}
	if err := j.write(records...); err != nil {
		return nil, err
	}
	for _, r := range records {
		j.pending.add(*r.Entry)
	}
	return ids, nil
}

// Drop forgets undos that have been run or are not needed.
func (j *Journal) Drop(ids ...int) error {
	if len(ids) == 0 {
		return nil
	}
	j.pending.drop(ids)
	if j.dead += 2 + len(ids); j.dead > 256+4*j.pending.order.Len() {
		return j.rewrite()
	}
	r := record{Drop: ids}
	return j.write(r, r) // see parse
}

// Mark is the place in the journal that Since and Keep count from.
func (j *Journal) Mark() int { return j.pending.last }

// Since are the pending undos noted after the mark.
func (j *Journal) Since(mark int) []Entry { return j.pending.since(mark) }

// Keep ends a plan that succeeded: undos that only counted until then go.
func (j *Journal) Keep(mark int) error {
	var ids []int
	for _, e := range j.Since(mark) {
		if e.Passing {
			ids = append(ids, e.ID)
		}
	}
	return j.Drop(ids...)
}

// Pending is the pending undo of that key, nil if there is none.
func (j *Journal) Pending(key string) *Entry {
	if at := j.pending.byKey[key]; at != nil {
		return at.Value.(*Entry)
	}
	return nil
}

// Damaged are the parts of the journal that could not be read when it was opened.
func (j *Journal) Damaged() []Damage { return j.damaged }

// DamagedPath is where the last journal that was damaged is kept as it was found, if
// it was so by more than its being cut.
func (j *Journal) DamagedPath() string { return j.path + ".damaged" }

// Close gives the instance up. A journal without pending undos is removed, one
// with some stays for the next start.
func (j *Journal) Close() error {
	var err error
	if j.pending.order.Len() == 0 {
		err = remove(j.path)
	}
	return errors.Join(err, j.file.Close(), j.release())
}

// release removes the lock file while the lock is still held.
func (j *Journal) release() error {
	return errors.Join(remove(j.lock.Name()), j.lock.Close())
}

// remove is os.Remove for a file that systemd may have removed, with the
// directory of another unit.
func remove(name string) error {
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Path is the journal's file.
func (j *Journal) Path() string { return j.path }
