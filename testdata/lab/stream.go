package lab

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"time"
)

// A stream is the guest's output port: the command's output, byte for byte, between two lines of guest.sh's own. Those
// start with a mark that no command can know, and travel in the same stream as the output, so that the exit status
// can't overtake it.
type stream struct {
	mark     string
	out      io.Writer
	pending  []byte // not yet known to be output
	bootedAt time.Time
	exitedAt time.Time
	exited   bool
	exit     int
}

func newStream(out io.Writer) *stream { return &stream{mark: "\x1elab-" + rand.Text(), out: out} }

// readFrom takes the first connection and reads it to its end.
func (s *stream) readFrom(listener net.Listener) error {
	conn, err := listener.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buf)
		if n > 0 {
			if err := s.feed(buf[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return s.flush(len(s.pending))
		}
		if err != nil {
			return err
		}
	}
}

func (s *stream) feed(p []byte) error {
	s.pending = append(s.pending, p...)
	for {
		start := bytes.Index(s.pending, []byte(s.mark))
		if start < 0 {
			// Keep back only what may be the start of a mark.
			return s.flush(len(s.pending) - partial(s.pending, s.mark))
		}
		if err := s.flush(start); err != nil {
			return err
		}
		line, rest, whole := bytes.Cut(s.pending, []byte("\n"))
		if !whole {
			return nil
		}
		if err := s.note(string(line[len(s.mark):])); err != nil {
			return err
		}
		s.pending = rest
	}
}

func (s *stream) note(line string) error {
	if line == " boot" {
		s.bootedAt = time.Now()
		return nil
	}
	if _, err := fmt.Sscanf(line, " exit %d", &s.exit); err != nil {
		return fmt.Errorf("guest reported %q", line)
	}
	s.exited, s.exitedAt = true, time.Now()
	return nil
}

func (s *stream) flush(n int) error {
	_, err := s.out.Write(s.pending[:n])
	s.pending = s.pending[n:]
	return err
}

// partial is the length of the longest end of b that mark starts with.
func partial(b []byte, mark string) int {
	for n := min(len(b), len(mark)-1); n > 0; n-- {
		if string(b[len(b)-n:]) == mark[:n] {
			return n
		}
	}
	return 0
}
