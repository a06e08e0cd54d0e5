package runner

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// DefaultTimeout is how long one command may take, be it one of a batch, beside lineTimeout.
const DefaultTimeout = 10 * time.Second

// lineTimeout is how much longer a program may take that reads all its input before it
// begins (nft, bpftool), for each line.
const lineTimeout = 100 * time.Millisecond

// Exec runs one command to its end and returns what it printed.
type Exec func(plans.Command) (stdout, stderr string, err error)

// Path is where programs are looked for, and the PATH that they are given: directories
// by their full names, in the order of root's on Debian. It is not the caller's, which may
// lead anywhere. Another system's is for the build to say, as for tests:
// -ldflags "-X ipipou/runner.Path=/bin".
var Path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// places are where programs have been found. As in a shell, one that is still there is
// not looked for again.
var places sync.Map

// LookPath finds a program in Path, as Command does. A name with a slash stays as it is.
func LookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		if _, err := exec.LookPath(name); err != nil {
			return "", fmt.Errorf("%s can't be run: %w", name, errors.Unwrap(err))
		}
		return name, nil
	}
	key := Path + " " + name
	if path, known := places.Load(key); known && unix.Access(path.(string), unix.X_OK) == nil {
		return path.(string), nil
	}
	for _, dir := range filepath.SplitList(Path) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			places.Store(key, path)
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed, or not in PATH (%s)", name, Path)
}

// Command is an Exec that starts real processes, without a shell, each killed after the
// time limit, and lineTimeout more for each line of its stdin. A batch of commands is only
// killed if one of them takes longer than the limit: to delete a FOU listener takes the
// kernel some 20 ms, in which it deletes no other (synchronize_rcu in
// udp_tunnel_sock_release, under genl_mutex), on a busy host many times that, and who
// waits for its turn is still at work.
//
// Their environment is Path and the C locale, because their errors are read, and nothing
// of ours: no LD_PRELOAD, and no secret for a hook to leak. They run in a process group of
// their own: the terminal's Ctrl-C is for us, and a command that is half done must get done
// before it is undone.
//
// If we are killed, so is the command (not what it started itself): the next
// start must not undo a step that is still being done. The kernel sends that signal
// when the thread ends that started the process (prctl(2), PR_SET_PDEATHSIG); threads
// of Go last as long as the process, except for those of goroutines that end locked
// to them (runtime.LockOSThread), and those wait here for what they have started.
func Command(limit time.Duration) Exec {
	return func(c plans.Command) (string, string, error) {
		path, err := LookPath(c.Argv[0])
		if err != nil {
			return "", "", err
		}
		cmd := &exec.Cmd{
			Path: path, Args: c.Argv,
			Env:         []string{"PATH=" + Path, "LC_ALL=C", "LANGUAGE="},
			SysProcAttr: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL},
			WaitDelay:   lingering,
		}
		stdin := c.Data
		if len(stdin) == 0 {
			stdin = []byte(c.Stdin)
		}
		var lines []byte
		limit := limit
		if readsLines(c) {
			lines, stdin = stdin, nil
		} else {
			limit += lineTimeout * time.Duration(strings.Count(c.Stdin, "\n"))
		}
		switch {
		case len(stdin) > pipePage:
			cmd.Stdin = bytes.NewReader(stdin)
		case len(stdin) > 0:
			in, err := filled(stdin)
			if err != nil {
				return "", "", err
			}
			defer in.Close()
			cmd.Stdin = in
		}
		stdout, stderr, killed, err := finish(cmd, lines, limit)
		if errors.Is(err, exec.ErrWaitDelay) {
			err = nil // it ended well, and left a child that holds its input
		}
		var exit *exec.ExitError
		switch {
		case killed:
			err = fmt.Errorf("%w after %s", ErrKilled, limit)
		case errors.As(err, &exit) && !exit.Exited():
			err = fmt.Errorf("%w (%w)", ErrKilled, err)
		}
		return stdout, stderr, err
	}
}

// ErrKilled is in the error of a command that took longer than it may, or that a signal
// ended (the kernel's, when memory is short): it may have done its work, or a part.
var ErrKilled = errors.New("killed")

// ErrInterrupted is the cause of a plan's failure when its context ended
// between two steps.
var ErrInterrupted = errors.New("interrupted")

// A StepError is a step that failed. What the plan had done before it has been
// undone by then.
type StepError struct {
	Command plans.Command
	Stderr  string
	Err     error
	More    int // commands after it, one of which it may have been instead
}

// Error is one line: the command, and what it said or how it ended.
func (e *StepError) Error() string {
	said := strings.Join(strings.FieldsFunc(e.Stderr, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
	switch {
	case said == "":
		said = e.Err.Error()
	case errors.Is(e.Err, ErrKilled):
		said = e.Err.Error() + ": " + said
	}
	command := strings.Join(e.Command.Argv, " ")
	if e.More > 0 {
		command += fmt.Sprintf(" (or one of %d after it)", e.More)
	}
	return command + ": " + said
}

func (e *StepError) Unwrap() error { return e.Err }

// ErrUndo is in the error of a clean-up of which a part failed.
var ErrUndo = errors.New("clean-up failed")
