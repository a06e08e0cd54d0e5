package lab

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Proc is a process in the background of a test. It is stopped with the test at the latest; what it wrote is put into
// the test's log if the test failed.
type Proc struct {
	ns   *NS
	argv []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and all its output is here

	mu      sync.Mutex
	output  []byte
	changed chan struct{} // closed and replaced on each write
}

// Start starts a command in the namespace.
func (ns *NS) Start(t T, argv ...string) *Proc {
	t.Helper()
	full := ns.exec(argv)
	p := &Proc{
		ns: ns, argv: argv, cmd: exec.Command(full[0], full[1:]...),
		done: make(chan struct{}), changed: make(chan struct{}),
	}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	// A child of its own that keeps the output open must not keep the test waiting.
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("%s: %v", p, err)
	}
	go func() {
		p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			t.Logf("%s: exit %d; its output:\n%s", p, p.cmd.ProcessState.ExitCode(), p.Logs())
		}
	})
	return p
}

func (p *Proc) String() string { return "in " + p.ns.Name + ": " + strings.Join(p.argv, " ") }

// Write takes the process's output; it is for os/exec.
func (p *Proc) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.output = append(p.output, b...)
	close(p.changed)
	p.changed = make(chan struct{})
	return len(b), nil
}

// Logs is all output so far, stdout and stderr.
func (p *Proc) Logs() string {
	logs, _ := p.state()
	return logs
}

func (p *Proc) state() (string, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.output), p.changed
}

// Len is how much output there is: WaitLogFrom then waits for what is new.
func (p *Proc) Len() int { return len(p.Logs()) }

// WaitLog waits until the output matches a regular expression, and returns the match and its groups. The test fails if
// it does not in time, or if the process ends before.
func (p *Proc) WaitLog(t T, expr string, timeout time.Duration) []string {
	t.Helper()
	return p.WaitLogFrom(t, 0, expr, timeout)
}

// WaitLogFrom is WaitLog, for output after the first n bytes.
func (p *Proc) WaitLogFrom(t T, n int, expr string, timeout time.Duration) []string {
	t.Helper()
	re, late := regexp.MustCompile(expr), time.After(timeout)
	for {
		// Asked before the output is read: once the process has ended nothing is added.
		ended := p.ended()
		logs, changed := p.state()
		if match := re.FindStringSubmatch(logs[min(n, len(logs)):]); match != nil {
			return match
		}
		if ended {
			t.Fatalf("%s: ended with exit %d, without %q in its output", p, p.cmd.ProcessState.ExitCode(), expr)
		}
		select {
		case <-changed:
		case <-p.done:
		case <-late:
			t.Fatalf("%s: no %q in its output after %v", p, expr, timeout)
		}
	}
}

func (p *Proc) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends the process a signal. That it has ended already fails the test.
func (p *Proc) Signal(t T, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("%s: %v: %v", p, sig, err)
	}
}

// Pid is the process's. Entering a namespace has not changed it.
func (p *Proc) Pid() int { return p.cmd.Process.Pid }

// Wait waits for the process to end and returns its exit code, -1 if a signal killed it.
func (p *Proc) Wait(t T, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(timeout):
		t.Fatalf("%s: still running after %v", p, timeout)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the process, gently at first: it may have something to clean up that the next test would stumble over.
func (p *Proc) stop(t T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("%s: %v: %v", p, sig, err)
		}
		select {
		case <-p.done:
			return
		case <-time.After(30 * time.Second):
			t.Errorf("%s: still running 30 s after %v", p, sig)
		}
	}
	<-p.done
}
