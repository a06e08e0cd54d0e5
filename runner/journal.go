package runner

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// An Entry is a pending undo.
type Entry struct {
	ID      int             `json:"id"`
	Undo    plans.Command   `json:"undo"`
	Key     string          `json:"key,omitempty"`
	Passing bool            `json:"passing,omitempty"`
	Once    bool            `json:"once,omitempty"`   // forgotten even if it fails
	Unless  []plans.Command `json:"unless,omitempty"` // forgotten if one of these prints something
	If      plans.Command   `json:"if,omitzero"`      // forgotten if this fails
}

// record is a line of the journal: an entry, or the ids of entries that are
// not pending any more.
type record struct {
	*Entry
	Drop []int `json:"drop,omitempty"`
}

// A Journal is the list of pending undos of an instance, on disk before the
// steps are run. It holds a lock, so that an instance runs once. One JSON
// object a line; a line that was cut off by a crash is left out.
type Journal struct {
	path    string
	file    *os.File
	lock    *os.File
	entries []Entry // pending, in the order of their steps
	last    int     // id
	dead    int     // lines that don't count any more
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
	if err := j.read(); err != nil {
		j.release()
		return nil, err
	}
	if err := j.rewrite(); err != nil {
		j.release()
		return nil, err
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
	data, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	j.entries, j.last = parse(data)
	return nil
}

// parse reads the pending entries out of a journal. Lines that are damaged are
// left out.
func parse(data []byte) (entries []Entry, last int) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r record
		if json.Unmarshal(lines.Bytes(), &r) != nil {
			continue
		}
		if r.Entry != nil && r.ID > last && len(r.Undo.Argv) > 0 {
			entries = append(entries, *r.Entry)
			last = r.ID
		}
		entries = slices.DeleteFunc(entries, func(e Entry) bool { return slices.Contains(r.Drop, e.ID) })
	}
	return entries, last
}

// rewrite makes the file hold just the pending entries.
func (j *Journal) rewrite() error {
	var b bytes.Buffer
	for i := range j.entries {
		line, err := json.Marshal(record{Entry: &j.entries[i]})
		if err != nil {
			return err
		}
		b.Write(append(line, '\n'))
	}
	fresh := j.path + ".new"
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
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
	j.file, j.dead = f, 0
	return nil
}

func (j *Journal) write(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// Note adds a pending undo and returns its id; it is on disk then.
func (j *Journal) Note(e Entry) (int, error) {
	j.last++
	e.ID = j.last
	if err := j.write(record{Entry: &e}); err != nil {
		return 0, err
	}
	j.entries = append(j.entries, e)
	return e.ID, nil
}

// Drop forgets undos that have been run or are not needed.
func (j *Journal) Drop(ids ...int) error {
	if len(ids) == 0 {
		return nil
	}
	j.entries = slices.DeleteFunc(j.entries, func(e Entry) bool { return slices.Contains(ids, e.ID) })
	if j.dead += 1 + len(ids); j.dead > 256+4*len(j.entries) {
		return j.rewrite()
	}
	return j.write(record{Drop: ids})
}

// Mark is the place in the journal that Since and Keep count from.
func (j *Journal) Mark() int { return j.last }

// Since are the pending undos noted after the mark.
func (j *Journal) Since(mark int) []Entry {
	var out []Entry
	for _, e := range j.entries {
		if e.ID > mark {
			out = append(out, e)
		}
	}
	return out
}

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
	for i := range j.entries {
		if j.entries[i].Key == key {
			return &j.entries[i]
		}
	}
	return nil
}

// Close gives the instance up. A journal without pending undos is removed, one
// with some stays for the next start.
func (j *Journal) Close() error {
	var err error
	if len(j.entries) == 0 {
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
