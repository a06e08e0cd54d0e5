package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// stopTime is how long Down waits for an instance that cleans up, from the last that it has
// undone: of a thousand tunnels a slow host has enough for minutes.
const stopTime = 60 * time.Second

// Down ends the instance of that name, and says in a few words what was done. A living
// one is asked to stop, and waited for; after a dead one, what its journal has is undone.
// It starts nothing and needs no configuration. The error is for ExitCode.
func Down(name string, log *slog.Logger, echo func(plans.Command)) (done string, err error) {
	dir, err := place(name)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	if owner, another := anothers(dir); another {
		return downAnothers(dir, name, owner)
	}
	if err := runner.Ready(dir); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	in := &Instance{Config: plans.Config{Name: name}, Log: log, Echo: echo, dir: dir}
	journal, err := runner.OpenJournal(dir, name)
	stopped := 0
	if errors.Is(err, runner.ErrRunning) {
		if stopped, err = stop(filepath.Join(dir, name+".lock")); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		log.Info(fmt.Sprintf("%s: process %d has ended", name, stopped))
		// What it could not undo is tried once more.
		journal, err = runner.OpenJournal(dir, name)
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	if err := removed(socketPath(dir, name)); err != nil {
		return "", err
	}
	in.damaged(journal)
	left := len(journal.Since(0))
	if left > 0 {
		if err := privileged(unix.CAP_NET_ADMIN); err != nil {
			return "", fmt.Errorf("%s: %d things are left to be undone: %w", name, left, err)
		}
		in.prepare(journal)
		if err := in.recover(journal); err != nil {
			return "", err
		}
	}
	switch {
	case stopped == 0 && left == 0:
		return "was dead, and had left nothing behind", nil
	case stopped == 0:
		return fmt.Sprintf("was dead; undone what it had left behind (%d)", left), nil
	case left > 0:
		return fmt.Sprintf("stopped (process %d); undone what it had left behind (%d)", stopped, left), nil
	}
	return fmt.Sprintf("stopped (process %d)", stopped), nil
}

// anothers reports whether root looks at a directory of another user's, as of a unit with
// DynamicUser=.
func anothers(dir string) (owner uint32, another bool) {
	info, err := os.Stat(dir)
	if err != nil || os.Geteuid() != 0 {
		return 0, false
	}
	owner = info.Sys().(*syscall.Stat_t).Uid
	return owner, owner != 0
}

// downAnothers ends an instance of another user's. What is in his journal root does not run,
// for those would be his commands: his own next start does.
func downAnothers(dir, name string, owner uint32) (done string, err error) {
	lock := filepath.Join(dir, name+".lock")
	pid := 0
	if held(lock) {
		if pid, err = stop(lock); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	journal := filepath.Join(dir, name+".journal")
	switch _, err := os.Lstat(journal); {
	case err == nil:
		return "", fmt.Errorf("%s: %w: what is left is in %s, whose commands are user %d's and not for root: start it again the way it was (systemctl start ipipou@%[1]s), which undoes that first",
			name, runner.ErrUndo, journal, owner)
	case pid == 0:
		return "was dead, and had left nothing behind", nil
	}
	return fmt.Sprintf("stopped (process %d)", pid), nil
}

// held reports whether somebody has the lock.
func held(path string) bool {
	f, err := openLock(path)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// recover undoes what a dead owner of the journal left behind.
func (in *Instance) recover(j *runner.Journal) error {
	err := in.run.Recover()
	if err == nil {
		return nil
	}
	var left []string
	for _, e := range j.Since(0) {
		left = append(left, strings.Join(e.Undo.Argv, " "))
	}
	still := "nothing is left to be tried again"
	if len(left) > 0 {
		still = "still to be undone, by " + j.Path() + ": " + strings.Join(left, ", ")
	}
	return fmt.Errorf("what an earlier %s left behind: %w (%s)", in.Config.Name, err, still)
}

// place is the directory with the journal or the lock of the instance: where our own
// would be or, in there, what a unit's RuntimeDirectory=ipipou/%i has made.
func place(name string) (string, error) {
	dir, fallback, err := runner.Dir()
	if err != nil {
		return "", err
	}
	if t, found := find([]string{dir}, name); found {
		return t.dir, nil
	}
	return "", noInstance([]string{dir}, fallback)
}

// stop asks the process that holds the lock to end, and waits for that. It returns its
// number.
func stop(path string) (pid int, err error) {
	lock, err := openLock(path)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	if pid, err = pidIn(lock); err != nil {
		return 0, err
	}
	process, err := unix.PidfdOpen(pid, 0) // from here on the number can't become another's
	if err != nil {
		return 0, fmt.Errorf("process %d of %s: %w (is it in a container?)", pid, path, err)
	}
	defer unix.Close(process)
	if err := holds(pid, lock); err != nil {
		return 0, err
	}
	switch err := unix.PidfdSendSignal(process, unix.SIGTERM, nil, 0); {
	case errors.Is(err, unix.ESRCH):
		return pid, nil
	case errors.Is(err, unix.EPERM):
		return 0, fmt.Errorf("not permitted: process %d is another user's, run as root", pid)
	case err != nil:
		return 0, fmt.Errorf("process %d: %w", pid, err)
	}
	journal := strings.TrimSuffix(path, ".lock") + ".journal"
	if err := ended(process, journal, stopTime); err != nil {
		return 0, fmt.Errorf("process %d was asked to stop, and %w", pid, err)
	}
	return pid, nil
}

// ended waits for the end of a process, as long as its journal changes again and again.
func ended(process int, journal string, patience time.Duration) error {
	seen := changed(journal)
	for end := time.Now().Add(patience); ; {
		ready := []unix.PollFd{{Fd: int32(process), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, int(max(0, time.Until(end)).Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return err
		case time.Now().Before(end):
			continue
		}
		now := changed(journal)
		if now.Equal(seen) {
			return fmt.Errorf("has undone nothing for %s; it goes on", patience)
		}
		seen, end = now, time.Now().Add(patience)
	}
}

// changed is when a file was changed last, 0 if there is none.
func changed(path string) (at time.Time) {
	if info, err := os.Stat(path); err == nil {
		at = info.ModTime()
	}
	return at
}

// holds reports whether the process has just this file open: else its number is from
// another PID namespace, or was given to another process.
func holds(pid int, lock *os.File) error {
	want, err := lock.Stat()
	if err != nil {
		return err
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	open, err := os.ReadDir(dir)
	for _, f := range open {
		info, failed := os.Stat(filepath.Join(dir, f.Name()))
		if failed == nil && os.SameFile(info, want) {
			return nil
		}
		if errors.Is(failed, fs.ErrPermission) { // it has privileges that we have not
			err = failed
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("not permitted: process %d is another user's, run as root (%w)", pid, err)
	}
	return fmt.Errorf("process %d does not hold %s, though somebody does: it is left alone (was it started in a container?)", pid, lock.Name())
}
