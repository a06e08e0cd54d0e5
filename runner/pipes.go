package runner

import (
	"bytes"
	"math"
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

// pipes are those to a process's stdin, if it is fed, and from its stdout and stderr. They
// are served by who waits for it: os/exec has a goroutine for each, and to wake those costs
// a fifth of what a short command takes.
type pipes struct {
	ours   [3]unix.PollFd // by number; a negative fd is one that has ended, or has not been opened
	theirs [3]*os.File    // the process's
	text   [3]bytes.Buffer

	lines []byte // for stdin, not written yet
	taken func() // called when a line has been read
}

func newPipes() (*pipes, error) {
	p := &pipes{ours: [3]unix.PollFd{{Fd: -1}, {Fd: -1}, {Fd: -1}}}
	for i := 1; i <= 2; i++ {
		var ends [2]int
		if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
			p.close()
			return nil, os.NewSyscallError("pipe2", err)
		}
		p.ours[i] = unix.PollFd{Fd: int32(ends[0]), Events: unix.POLLIN}
		p.theirs[i] = os.NewFile(uintptr(ends[1]), "output")
	}
	return p, nil
}

// feed makes a stdin that is written line by line, each when the one before it has been
// read: so it is seen how far the process has come.
func (p *pipes) feed(lines []byte, taken func()) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	p.ours[0] = unix.PollFd{Fd: int32(ends[1]), Events: unix.POLLOUT}
	p.theirs[0] = os.NewFile(uintptr(ends[0]), "stdin")
	p.lines, p.taken = lines, taken
	if err := unix.SetNonblock(ends[1], true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	// A pipe of one page can be written to only while it is empty (pipe_full in
	// include/linux/pipe_fs_i.h).
	_, err := unix.FcntlInt(uintptr(ends[1]), unix.F_SETPIPE_SZ, pipePage)
	return os.NewSyscallError("fcntl", err)
}

// give writes the next line. After the last, or when nobody reads any more, it ends the
// input.
func (p *pipes) give() {
	p.taken()
	end := bytes.IndexByte(p.lines, '\n') + 1
	if end == 0 {
		end = len(p.lines)
	}
	n, err := 0, error(nil)
	if end > 0 {
		n, err = unix.Write(int(p.ours[0].Fd), p.lines[:end])
	}
	if n > 0 {
		p.lines = p.lines[n:]
	} else if err != unix.EINTR && err != unix.EAGAIN {
		p.shut(0)
	}
}

// handOver closes what only the process is to hold.
func (p *pipes) handOver() {
	for _, f := range p.theirs {
		f.Close() // no matter if it is nil, or closed
	}
}

func (p *pipes) close() {
	p.handOver()
	for i := range p.ours {
		p.shut(i)
	}
}

func (p *pipes) shut(i int) {
	if p.ours[i].Fd >= 0 {
		unix.Close(int(p.ours[i].Fd))
		p.ours[i].Fd = -1
	}
}

// lingering is how long a process that has ended is taken to run still, at most, when
// another holds its outputs.
const lingering = time.Second

// serve writes the input and reads until nobody holds the outputs any more, or the process
// has ended, which is looked at that often.
func (p *pipes) serve(of *os.Process, every time.Duration) {
	defer p.shut(0)
	part := make([]byte, 1<<14)
	look := time.Now().Add(every)
	for p.ours[1].Fd >= 0 || p.ours[2].Fd >= 0 {
		n, err := unix.Poll(p.ours[:], int(max(time.Until(look), 0)/time.Millisecond)+1)
		for i := range p.ours {
			switch {
			case n <= 0 || p.ours[i].Fd < 0 || p.ours[i].Revents == 0:
			case i == 0:
				p.give()
			default:
				p.take(i, part)
			}
		}
		if err != nil && err != unix.EINTR || time.Now().After(look) {
			if ended(of) {
				p.rest()
				return
			}
			look = time.Now().Add(every)
		}
	}
}

// rest reads what a process that has ended may have printed since the outputs were read
// last (TIOCINQ is the FIONREAD of pipe(7)), and waits for no more: another may print on.
func (p *pipes) rest() {
	for i := 1; i <= 2; i++ {
		if n, err := unix.IoctlGetInt(int(p.ours[i].Fd), unix.TIOCINQ); err == nil && n > 0 {
			p.take(i, make([]byte, n))
		}
	}
}

// take reads what is there.
func (p *pipes) take(i int, part []byte) {
	n, err := unix.Read(int(p.ours[i].Fd), part)
	if n > 0 {
		p.text[i].Write(part[:n])
	} else if err != unix.EINTR {
		p.shut(i)
	}
}

// ended reports whether the process has, and leaves it to be waited for.
func ended(p *os.Process) bool {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, p.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil && err != unix.EINTR || info.Signo != 0
}

// finish runs a process to its end, or kills it after the time limit; if it is fed lines,
// each of them has as long.
func finish(cmd *exec.Cmd, lines []byte, limit time.Duration) (stdout, stderr string, killed bool, err error) {
	p, err := newPipes()
	if err != nil {
		return "", "", false, err
	}
	defer p.close()
	cmd.Stdout, cmd.Stderr = p.theirs[1], p.theirs[2]
	kill := time.AfterFunc(math.MaxInt64, func() { cmd.Process.Kill() })
	defer kill.Stop()
	if len(lines) > 0 {
		more := func() {
			if kill.Stop() {
				kill.Reset(limit)
			}
		}
		if err := p.feed(lines, more); err != nil {
			return "", "", false, err
		}
		cmd.Stdin = p.theirs[0]
	}
	if err := cmd.Start(); err != nil {
		return "", "", false, err
	}
	kill.Reset(limit)
	p.handOver()
	p.serve(cmd.Process, lingering)
	err = cmd.Wait()
	return p.text[1].String(), p.text[2].String(), !kill.Stop(), err
}
