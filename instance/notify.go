package instance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// notifyTime is how long systemd may take to make room for a line; the end of an instance
// waits for nobody who reads no more.
const notifyTime = 2 * time.Second

// What systemd is told of a unit with Type=notify (sd_notify(3)).
const (
	notifyReady     = "READY=1"
	notifyReloading = "RELOADING=1"
	notifyStopping  = "STOPPING=1"
)

// notify tells systemd what is so now, where it started us; else it does nothing. That it
// can't be told is a warning: the tunnels carry packets all the same.
func (in *Instance) notify(lines ...string) {
	if err := notify(os.Getenv("NOTIFY_SOCKET"), lines...); err != nil {
		in.Log.Warn(fmt.Sprintf("systemd is not told %s: %v", strings.Join(lines, ", "), err))
	}
}

// tell tells systemd how the tunnels stand, until ctx ends. What changes while it is told is
// told in one.
func (in *Instance) tell(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-in.news:
			in.notify(in.summary())
		}
	}
}

// summary is the line that systemctl status shows.
func (in *Instance) summary() string {
	up := 0
	for _, s := range in.board.standings() {
		if s.State == Up {
			up++
		}
	}
	return fmt.Sprintf("STATUS=%d of %d tunnels up", up, len(in.Config.Tunnels))
}

// notify sends lines such as READY=1 as one datagram to the socket, a path or, with @ for
// its first byte, a name of the abstract namespace (unix(7)). Nothing is sent to "".
func notify(socket string, lines ...string) error {
	if socket == "" {
		return nil
	}
	if socket[0] != '/' && socket[0] != '@' {
		return fmt.Errorf("NOTIFY_SOCKET=%s: want a path or @NAME", socket)
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}) // Go has @ for the zero byte, too
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Now().Add(notifyTime))
	_, err = conn.Write([]byte(strings.Join(lines, "\n")))
	return errors.Join(err, conn.Close())
}
