package instance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// A running instance can be asked at a unix socket, NAME.sock beside its journal: a client
// writes one line, a request, and reads one JSON document, a reply, to the end. The
// socket has mode 0600, so that only root and the instance's user can connect (unix(7)).

// A request is what an instance can be asked.
type request string

// The requests: its Report, and that what was started with --confirm is kept.
const (
	askStatus  request = "status"
	askConfirm request = "confirm"
)

// A reply is what an instance answers with.
type reply struct {
	Error     string  `json:"error,omitempty"`
	Status    *Report `json:"status,omitempty"`
	Confirmed string  `json:"confirmed,omitempty"` // in words
}

const (
	requestSize = 32              // bytes of a request, with its newline
	requestTime = 2 * time.Second // for it to come
	answerTime  = 30 * time.Second
	answerSize  = 64 << 20 // bytes of an answer; a thousand tunnels take one million
	maxAsking   = 4        // clients at once; the others wait
)

// parseRequest reads a request's line.
func parseRequest(from io.Reader) (request, error) {
	line, err := bufio.NewReaderSize(io.LimitReader(from, requestSize), requestSize).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no request: %w", err)
	}
	switch r := request(line[:len(line)-1]); r {
	case askStatus, askConfirm:
		return r, nil
	default:
		return "", fmt.Errorf("unknown request %q: is the client of another version?", r)
	}
}

// socketPath is where an instance is asked.
func socketPath(dir, name string) string { return filepath.Join(dir, name+".sock") }

// A control is an instance's own end of the socket.
type control struct {
	in       *Instance
	path     string
	listener *net.UnixListener
}

// listen makes the socket.
func (in *Instance) listen() (c *control, err error) {
	c = &control{in: in, path: socketPath(in.dir, in.Config.Name)}
	c.listener, err = listenUnix(c.path)
	return c, err
}

// listenUnix listens at a new socket that only our user can connect to, and that is not
// removed when it is closed.
func listenUnix(path string) (*net.UnixListener, error) {
	at, done, err := short(path)
	if err != nil {
		return nil, err
	}
	defer done()
	config := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		// bind(2) gives the file the mode of the socket, so that it is never another one
		// (unix_bind_bsd, net/unix/af_unix.c).
		err := conn.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	l, err := config.Listen(context.Background(), "unix", at)
	if err != nil {
		var call *os.SyscallError
		if errors.As(err, &call) {
			err = call
		}
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	unixListener := l.(*net.UnixListener)
	unixListener.SetUnlinkOnClose(false) // it would be by the name that it was made by
	return unixListener, nil
}

// short is a name for a socket that fits into its address of 108 bytes (unix(7)): where its
// directory's is too long, it goes by that, opened. It is good until done is called.
func short(path string) (name string, done func(), err error) {
	const room = len(unix.RawSockaddrUnix{}.Path)
	const base = room - len("/proc/self/fd/1234567890/") - 1
	if len(path) < room {
		return path, func() {}, nil
	}
	if len(filepath.Base(path)) > base {
		return "", nil, fmt.Errorf("socket %s: its name has more than %d bytes", path, base)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &fs.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	name = fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	return name, func() { unix.Close(dir) }, nil
}

// serve answers until the socket is closed.
func (c *control) serve() {
	asking := make(chan struct{}, maxAsking)
	for {
		asking <- struct{}{}
		conn, err := c.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no memory or file descriptors left: later, perhaps
			<-asking
			c.in.Log.Debug("control socket", "error", err)
			time.Sleep(requestTime)
			continue
		}
		go func() {
			defer func() { <-asking }()
			defer conn.Close()
			c.answer(conn)
		}()
	}
}

func (c *control) answer(conn *net.UnixConn) {
	conn.SetDeadline(time.Now().Add(requestTime))
	asked, err := parseRequest(conn)
	var a reply
	switch {
	case err != nil:
		a.Error = err.Error()
	case asked == askConfirm:
		a.Confirmed, err = c.in.confirm.confirm()
		if err != nil {
			a.Error = err.Error()
		}
	default:
		r := c.in.statuses.report(c.in.status)
		a.Status = &r
		defer r.forget()
	}
	conn.SetDeadline(time.Now().Add(answerTime))
	if err := json.NewEncoder(conn).Encode(a); err != nil {
		c.in.Log.Debug("control socket: a client did not wait for its answer", "error", err)
	}
}

// close removes the socket, and waits for nobody: what is asked for only looks.
func (c *control) close() error {
	return errors.Join(c.listener.Close(), removed(c.path))
}

// removed removes a file, which systemd may have done.
func removed(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ask asks the instance whose socket is at path. The error is one line.
func ask(path string, what request) (a reply, err error) {
	at, done, err := short(path)
	if err != nil {
		return a, err
	}
	conn, err := net.DialTimeout("unix", at, requestTime)
	done()
	if err != nil {
		return a, unwrapped(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(answerTime + requestTime))
	if _, err := fmt.Fprintln(conn, what); err != nil {
		return a, unwrapped(err)
	}
	data, err := io.ReadAll(io.LimitReader(conn, answerSize))
	if err != nil {
		return a, unwrapped(err)
	}
	err = a.read(data)
	return a, err
}

// unwrapped is what the system says, without the socket's name, which may be short's.
func unwrapped(err error) error {
	var call *os.SyscallError
	if errors.As(err, &call) {
		return call.Err
	}
	return err
}

// read takes an answer of a process that may be of another version.
func (a *reply) read(data []byte) error {
	const other = "its answer can't be read, is it of another version? "
	if len(data) == 0 {
		return errors.New("it ended without an answer")
	}
	if err := json.Unmarshal(data, a); err != nil {
		return fmt.Errorf(other+"(%w)", err)
	}
	switch {
	case a.Error != "":
		return errors.New(a.Error)
	case a.Status != nil && a.Status.Format != ReportFormat:
		return fmt.Errorf(other+"(format %d, want %d)", a.Status.Format, ReportFormat)
	case a.Status == nil && a.Confirmed == "":
		return errors.New(other + "(it says nothing)")
	}
	return nil
}

// answering runs f while those who ask how the instance stands are answered.
func (in *Instance) answering(m metrics, f func() error) error {
	in.started = time.Now()
	in.confirm.begin(in.ConfirmWithin)
	c, err := in.listen()
	switch {
	case err == nil:
		go c.serve()
		defer func() {
			if err := c.close(); err != nil {
				in.Log.Warn(err.Error())
			}
		}()
	case in.ConfirmWithin > 0:
		return &Error{plans.ExitGeneral, fmt.Errorf("nobody could confirm: %w", err)}
	default:
		in.Log.Warn(fmt.Sprintf("`ipipou status` can't ask this process: %v", err))
	}
	if m.listener != nil {
		go func() {
			if err := m.serve(in.Log, func() Report { return in.reports.report(in.report) }); err != nil {
				in.Log.Error(fmt.Sprintf("metrics are served no more: %v", err))
			}
		}()
	}
	if in.ConfirmWithin > 0 {
		in.Log.Warn(fmt.Sprintf("to be confirmed within %s, or all is undone: ipipou confirm %s", in.ConfirmWithin, in.Config.Name))
	}
	return f()
}
