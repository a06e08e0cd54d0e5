package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"ipipou/plans"
)

// listenNotify is a socket such as systemd's.
func listenNotify(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// receive is the next datagram.
func receive(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// Each change of a tunnel's state is told, and that nobody is up.
func TestTell(t *testing.T) {
	name := t.TempDir() + "/notify"
	c := listenNotify(t, name)
	t.Setenv("NOTIFY_SOCKET", name)
	in := &Instance{Log: NewLog(os.Stderr, LogSettings{Format: "text"}), news: make(chan struct{}, 1)}
	in.Config.Tunnels = []plans.Tunnel{{Dev: "ipipou0"}, {Dev: "ipipou1"}}
	in.board = newBoard(in.Config, time.Now, in.changed)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- in.tell(ctx) }()
	for i, want := range []string{"1 of 2 tunnels up", "2 of 2 tunnels up", "1 of 2 tunnels up"} {
		in.board.set(in.Config.Tunnels[i%2].Title(), []State{Up, Up, Lost}[i], netip.AddrPort{})
		if got := receive(t, c); got != "STATUS="+want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNotify(t *testing.T) {
	for what, name := range map[string]string{
		"a path": t.TempDir() + "/notify", "an abstract name": fmt.Sprintf("@ipipou-test-%d", os.Getpid()),
	} {
		t.Run(what, func(t *testing.T) {
			c := listenNotify(t, name)
			if err := notify(name, notifyReady, "STATUS=1 of 2 tunnels up"); err != nil {
				t.Fatal(err)
			}
			if got, want := receive(t, c), "READY=1\nSTATUS=1 of 2 tunnels up"; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	if err := notify("", notifyReady); err != nil {
		t.Errorf("without a socket: %v", err)
	}
	if err := notify("vsock:2:1234", notifyReady); err == nil || !strings.Contains(err.Error(), "want a path or @NAME") {
		t.Errorf("of another family: %v", err)
	}
	if err := notify(t.TempDir()+"/nobody", notifyReady); err == nil {
		t.Error("nobody is there, and that is no error")
	}
	full := t.TempDir() + "/full"
	listenNotify(t, full)
	var err error
	for n := 0; err == nil && n < 1e6; n++ { // the sender's buffer, or the queue
		err = notify(full, notifyReady)
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("nobody reads: %v", err)
	}
}
