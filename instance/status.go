package instance

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// A trace is what an instance has in a directory: its lock or its journal.
type trace struct{ dir, name string }

func (t trace) path(ending string) string { return filepath.Join(t.dir, t.name+ending) }
func (t trace) socket() string            { return socketPath(t.dir, t.name) }

// endings are those of the files that tell of an instance. A socket alone is another one,
// such as that of metrics.
var endings = []string{".lock", ".journal"}

// find looks for an instance where our own would be or, in there, what a unit's
// RuntimeDirectory=ipipou/%i has made. Of several of one name it is one that lives, or else
// the first. One that we may not look for is taken to be there.
func find(dirs []string, name string) (t trace, found bool) {
	hidden := false
	for _, dir := range dirs {
		for _, place := range []trace{{dir, name}, {filepath.Join(dir, name), name}} {
			there, err := place.there()
			if pid, alive := holder(place.path(".lock")); there && alive && pid != 0 {
				return place, true
			}
			switch {
			case there && (!found || hidden):
				t, found, hidden = place, true, false
			case !found && errors.Is(err, fs.ErrPermission):
				t, found, hidden = place, true, true
			}
		}
	}
	return t, found
}

// there reports whether any of the instance's files is.
func (t trace) there() (is bool, err error) {
	for _, ending := range endings {
		if _, err = os.Lstat(t.path(ending)); err == nil {
			return true, nil
		}
	}
	return false, err
}

// traces are those of all instances, by their names: of a unit with DynamicUser= it takes
// root to look further than its directory.
func traces(dirs []string) (all []trace) {
	for _, dir := range dirs {
		for _, ending := range endings {
			for _, pattern := range []string{"*" + ending, "*/*" + ending} {
				found, _ := filepath.Glob(filepath.Join(dir, pattern)) // only a bad pattern is an error
				for _, path := range found {
					all = append(all, trace{filepath.Dir(path), strings.TrimSuffix(filepath.Base(path), ending)})
				}
			}
		}
		inside, _ := os.ReadDir(dir) // an error is hidden's
		for _, e := range inside {
			t := trace{filepath.Join(dir, e.Name()), e.Name()}
			// A file system with pins is root's alone, too.
			if _, err := os.Lstat(t.path(".lock")); errors.Is(err, fs.ErrPermission) && filepath.Ext(t.name) != ".bpf" {
				all = append(all, t)
			}
		}
	}
	slices.SortFunc(all, func(a, b trace) int { return strings.Compare(a.name+"\n"+a.dir, b.name+"\n"+b.dir) })
	return slices.Compact(all)
}

// noInstance is that there is no instance of a name, and which there are.
func noInstance(dirs []string, more error) error {
	there := "no others either"
	var names []string
	for _, t := range traces(dirs) {
		names = append(names, t.name)
	}
	if len(names) > 0 {
		there = "but " + strings.Join(slices.Compact(names), ", ")
	}
	if more != nil {
		there += "; " + more.Error()
	}
	return fmt.Errorf("no such instance in %s (%s)", strings.Join(dirs, ", "), there)
}

// Ask is what the process of the instance of that name reports. Where it does not answer,
// the report says why and has no tunnels: see Look.
func Ask(name string) Report {
	t, found := find(runner.Dirs(), name)
	if !found {
		return Report{Format: ReportFormat, Name: name, Daemon: Absent, Tunnels: []TunnelReport{}}
	}
	return t.report()
}

// AskAll are the reports of all instances that run, and of those that died and left
// something behind. It is an error if there are none because we may not look for them.
func AskAll() (reports []Report, err error) {
	dirs := runner.Dirs()
	for _, t := range traces(dirs) {
		if r := t.report(); r.Daemon != Absent {
			reports = append(reports, r)
		}
	}
	if len(reports) == 0 {
		err = hidden(dirs)
	}
	return reports, err
}

// hidden is that we may not list what is in one of the directories.
func hidden(dirs []string) error {
	for _, dir := range dirs {
		if _, err := os.ReadDir(dir); errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("not permitted to look into %s: run as root", dir)
		}
	}
	return nil
}

// Look adds to a report what the configuration and the host tell: all but what only the
// process would know.
func (r *Report) Look(c plans.Config) {
	r.Name = c.Name
	r.look(newHost(), c, nil)
	if r.Fault == "" && r.Daemon != Absent {
		r.drifted(c)
	}
}

func (t trace) report() Report {
	a, err := ask(t.socket(), askStatus)
	if err == nil && a.Status != nil {
		a.Status.Name, a.Status.Daemon = t.name, Running // and not what another user's says of itself
		return *a.Status
	}
	r := Report{Format: ReportFormat, Name: t.name, Tunnels: []TunnelReport{}}
	pid, alive := holder(t.path(".lock"))
	_, missing := os.Lstat(t.path(".journal"))
	switch {
	case alive, held(t.path(".lock")): // also by one whose number here is another, as in a container
		r.Daemon, r.PID, r.Why = Silent, pid, silence(err)
	case missing == nil:
		r.Daemon = Dead
	default:
		r.Daemon = Absent
	}
	return r
}

// silence is why a living process gives no answer.
func silence(err error) string {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return "it is starting or ending just now, or could not make its socket"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "not permitted: run as root, or as its user"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Sprintf("it did not answer within %s", requestTime+answerTime)
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// holder is the process that has the lock, if there is one. Who may not know is told that
// there is, with number 0.
func holder(path string) (pid int, alive bool) {
	lock, err := openLock(path)
	if err != nil {
		return 0, errors.Is(err, fs.ErrPermission)
	}
	defer lock.Close()
	if pid, err = pidIn(lock); err != nil {
		return 0, false
	}
	if err = holds(pid, lock); err == nil || errors.Is(err, fs.ErrPermission) {
		return pid, true
	}
	return 0, false
}

// openLock opens what is a file: in a directory of another user's it may be a pipe, which
// would be waited for.
func openLock(path string) (*os.File, error) {
	lock, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := lock.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a file", path)
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// pidIn is the number in a lock.
func pidIn(lock *os.File) (int, error) {
	text, err := io.ReadAll(io.LimitReader(lock, 20))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s names no process: it is starting or ending just now, try again", lock.Name())
	}
	return pid, nil
}
