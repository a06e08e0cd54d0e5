package lab

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A followed process writes too much for Proc, whose waits read all of it again.
type followed struct {
	cmd   *exec.Cmd
	lines chan string  // closed when the process has ended
	stop  func() error // ends it by SIGTERM; nil if it ended well
}

// follow starts the program in a namespace.
func follow(t testing.TB, dir string, ns *NS, args ...string) *followed {
	t.Helper()
	host := filepath.Join(dir, ns.Name)
	argv := ns.exec(append([]string{"env", "IPIPOU_RUN_DIR=" + host + "/run", "STATE_DIRECTORY=" + host + "/state", Bin(t)}, args...))
	f := &followed{cmd: exec.Command(argv[0], argv[1:]...), lines: make(chan string, 1<<18)}
	out, err := f.cmd.StderrPipe()
	if err == nil {
		err = f.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	f.stop = sync.OnceValue(func() error {
		f.cmd.Process.Signal(syscall.SIGTERM)
		return <-ended
	})
	go func() {
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f.lines <- lines.Text()
		}
		close(f.lines)
		ended <- f.cmd.Wait()
	}()
	t.Cleanup(func() {
		if err := f.stop(); err != nil {
			t.Errorf("%s: %v", f.cmd, err)
		}
	})
	return f
}

// wait waits for a line that has the text, from where the last wait ended.
func (f *followed) wait(t testing.TB, text string) {
	t.Helper()
	if !f.until(t, 5*time.Minute, func(line string) bool { return strings.Contains(line, text) }) {
		t.Fatalf("%s: no %q in its output", f.cmd, text)
	}
}

// until reads lines until one is the last, and reports whether it was there in time.
func (f *followed) until(t testing.TB, limit time.Duration, last func(line string) bool) bool {
	t.Helper()
	late, before := time.After(limit), ""
	for {
		select {
		case line, ok := <-f.lines:
			if !ok {
				t.Fatalf("%s ended; its last line: %s", f.cmd, before)
			}
			if last(line) {
				return true
			}
			before = line
		case <-late:
			return false
		}
	}
}

// errors are the first lines of one that has ended by which it said what failed, of those not read yet.
func (f *followed) errors() string {
	var said []string
	for line := range f.lines {
		if strings.Contains(line, " ERROR ") && len(said) < 5 {
			said = append(said, line)
		}
	}
	return strings.Join(said, "; ")
}

// memory is the most that the process has had, in MB.
func (f *followed) memory(t testing.TB) float64 {
	t.Helper()
	return f.status(t, "VmHWM") / 1e3
}

// status is a number in the process's status file; memory is in kB.
func (f *followed) status(t testing.TB, name string) (n float64) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", f.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(status), name+":")
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatalf("%s of %s: %v", name, f.cmd, err)
	}
	return n
}
