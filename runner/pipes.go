package runner

import (
	"bytes"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"
)

// pipePage is what fits into any pipe while nobody reads, in bytes: one page, where a
// user has many pipes already (pipe(7), pipe-user-pages-soft).
const pipePage = 4096

// filled is a pipe's end from which a short text is read.
func filled(text []byte) (*os.File, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	defer unix.Close(ends[1])
	read := os.NewFile(uintptr(ends[0]), "stdin")
	if _, err := unix.Write(ends[1], text); err != nil {
		read.Close()
		return nil, os.NewSyscallError("write", err)
	}
	return read, nil
}

// outputs are what a process prints to its stdout and its stderr. They are read by who
// waits for it: os/exec has a goroutine for each, and to wake those costs a fifth of
// what a short command takes.
type outputs struct {
	read [2]unix.PollFd // a negative fd is one that has ended, or has not been opened
	ends [2]*os.File    // the process's
	text [2]bytes.Buffer
}

func newOutputs() (*outputs, error) {
	o := &outputs{read: [2]unix.PollFd{{Fd: -1}, {Fd: -1}}}
	for i := range o.read {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			o.close()
			return nil, os.NewSyscallError("pipe2", err)
		}
		o.read[i] = unix.PollFd{Fd: int32(ends[0]), Events: unix.POLLIN}
		o.ends[i] = os.NewFile(uintptr(ends[1]), "output")
	}
	return o, nil
}

// handOver closes what only the process is to hold.
func (o *outputs) handOver() {
	for i := range o.ends {
		o.ends[i].Close() // no matter if it is nil, or closed
	}
}

func (o *outputs) close() {
	o.handOver()
	for i := range o.read {
		o.shut(i)
	}
}

func (o *outputs) shut(i int) {
	if o.read[i].Fd >= 0 {
		unix.Close(int(o.read[i].Fd))
		o.read[i].Fd = -1
	}
}

// lingering is how long a process that has ended is taken to run still, at most, when
// another holds its outputs.
const lingering = time.Second

// gather reads until nobody holds the outputs any more, or the process has ended, which is
// looked at that often.
func (o *outputs) gather(p *os.Process, every time.Duration) {
	part := make([]byte, 1<<14)
	look := time.Now().Add(every)
	for o.read[0].Fd >= 0 || o.read[1].Fd >= 0 {
		n, err := unix.Poll(o.read[:], int(max(time.Until(look), 0)/time.Millisecond)+1)
		for i := range o.read {
			if n > 0 && o.read[i].Fd >= 0 && o.read[i].Revents != 0 {
				o.take(i, part)
			}
		}
		if err != nil && err != unix.EINTR || time.Now().After(look) {
			if ended(p) {
				o.rest()
				return
			}
			look = time.Now().Add(every)
		}
	}
}

// rest reads what a process that has ended may have printed since the outputs were read
// last (TIOCINQ is the FIONREAD of pipe(7)), and waits for no more: another may print on.
func (o *outputs) rest() {
	for i := range o.read {
		if n, err := unix.IoctlGetInt(int(o.read[i].Fd), unix.TIOCINQ); err == nil && n > 0 {
			o.take(i, make([]byte, n))
		}
	}
}

// take reads what is there.
func (o *outputs) take(i int, part []byte) {
	n, err := unix.Read(int(o.read[i].Fd), part)
	if n > 0 {
		o.text[i].Write(part[:n])
	} else if err != unix.EINTR {
		o.shut(i)
	}
}

// ended reports whether the process has, and leaves it to be waited for.
func ended(p *os.Process) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil && err != unix.EINTR || info.Signo != 0
}

// finish runs a process to its end, or kills it after the time limit.
func finish(cmd *exec.Cmd, limit time.Duration) (stdout, stderr string, killed bool, err error) {
	o, err := newOutputs()
	if err != nil {
		return "", "", false, err
	}
	defer o.close()
	cmd.Stdout, cmd.Stderr = o.ends[0], o.ends[1]
	if err := cmd.Start(); err != nil {
		return "", "", false, err
	}
	kill := time.AfterFunc(limit, func() { cmd.Process.Kill() })
	o.handOver()
	o.gather(cmd.Process, lingering)
	err = cmd.Wait()
	return o.text[0].String(), o.text[1].String(), !kill.Stop(), err
}
