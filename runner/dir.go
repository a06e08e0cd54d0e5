package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunDir is where journals are kept.
const RunDir = "/run/ipipou"

// Dir finds a directory for journals: $IPIPOU_RUN_DIR, systemd's
// $RUNTIME_DIRECTORY, /run/ipipou. Where none can be written (the Python
// tool's unit has ProtectSystem=strict and no RuntimeDirectory), it is one of
// our own in the directory for temporary files, and fallback is the reason.
func Dir() (dir string, fallback error, err error) {
	choice := candidates()
	err = Ready(choice[0])
	if err == nil || len(choice) == 1 {
		return choice[0], nil, err
	}
	return choice[1], err, Ready(choice[1])
}

// Dirs are the directories that Dir would choose from, for who only looks: those that are
// there, and that nobody but root and this user can have written to.
func Dirs() (dirs []string) {
	for _, dir := range candidates() {
		if own(dir) == nil {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

// candidates are the one that is given or else, in this order, those that are taken for want of one.
func candidates() []string {
	for _, name := range []string{"IPIPOU_RUN_DIR", "RUNTIME_DIRECTORY"} {
		if dir := filepath.SplitList(os.Getenv(name) + ":")[0]; dir != "" {
			return []string{dir}
		}
	}
	return []string{RunDir, ownDir()}
}

// Ready makes the directory, and refuses one that others could write to: undos
// are commands that we run.
func Ready(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := own(dir); err != nil {
		return err
	}
	return unix.Access(dir, unix.W_OK|unix.X_OK)
}

// own refuses a directory that others can write to.
func own(dir string) error {
	// Not Lstat: what systemd preserves for a dynamic user is behind a link.
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || owner != 0 && int(owner) != os.Getuid() {
		return fmt.Errorf("%s: want a directory of our own that nobody else can write", dir)
	}
	return nil
}

// Left tells whether the instance of that name runs, and whether its journal is there,
// which a dead one leaves behind for the next start. Unlike OpenJournal it changes nothing.
func Left(name string) (runs, journal bool) {
	var dirs []string
	for _, variable := range []string{"IPIPOU_RUN_DIR", "RUNTIME_DIRECTORY"} {
		dirs = append(dirs, filepath.SplitList(os.Getenv(variable))...)
	}
	dirs = append(dirs, RunDir, ownDir())
	for _, dir := range dirs {
		for _, in := range []string{dir, filepath.Join(dir, name)} { // of a unit's RuntimeDirectory=ipipou/%i
			path := filepath.Join(in, name)
			runs = runs || locked(path+".lock")
			if info, err := os.Stat(path + ".journal"); err == nil && info.Size() > 0 {
				journal = true
			}
		}
	}
	return runs, journal
}

// locked reports whether somebody holds the lock, as its owner does. One that we may not
// look at is taken to be held.
func locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// ownDir is where journals are if nowhere else.
func ownDir() string { return filepath.Join(os.TempDir(), fmt.Sprintf("ipipou-%d", os.Getuid())) }
