package lab

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// commandTimeout is for one command in the emulated machine, where each takes ten times what it should.
var commandTimeout = 2 * time.Minute

// NS is a network namespace: one host of a test's network.
type NS struct{ Name string }

var nsCount atomic.Int64

// NewNS makes a namespace with lo up and no filter on source addresses. Its name starts with role.
func NewNS(t T, role string) *NS {
	t.Helper()
	ns := &NS{fmt.Sprintf("%s-%d", role, nsCount.Add(1))}
	if !InGuest() { // where others may be at work too
		ns.Name += fmt.Sprintf("-%d", os.Getpid())
	}
	if _, err := run("", "ip", "netns", "add", ns.Name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := run("", "ip", "netns", "del", ns.Name); err != nil {
			t.Error(err)
		}
	})
	ns.Sysctl(t, map[string]string{
		"net/ipv4/conf/all/rp_filter":     "0",
		"net/ipv4/conf/default/rp_filter": "0",
		// No duplicate address detection: addresses are usable, and Snapshot is steady, at once.
		"net/ipv6/conf/all/accept_dad":     "0",
		"net/ipv6/conf/default/accept_dad": "0",
	})
	ns.batch(t, "link set lo up")
	return ns
}

// Run runs a command in the namespace and returns its stdout. If the command fails, so does the test.
func (ns *NS) Run(t T, argv ...string) string {
	t.Helper()
	return ns.RunInput(t, "", argv...)
}

// RunInput is Run with a stdin.
func (ns *NS) RunInput(t T, stdin string, argv ...string) string {
	t.Helper()
	out, err := ns.TryInput(stdin, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Try runs a command in the namespace and returns its stdout. The error holds the command, how it ended and all it
// wrote; errors.As finds the *exec.ExitError in it.
func (ns *NS) Try(argv ...string) (string, error) { return ns.TryInput("", argv...) }

// TryInput is Try with a stdin.
func (ns *NS) TryInput(stdin string, argv ...string) (string, error) {
	return run(stdin, ns.exec(argv)...)
}

// exec enters the namespace with ip, not with setns alone: it gives the command the namespace's /sys too.
// ip itself needs none of that, and starts in half the time.
func (ns *NS) exec(argv []string) []string {
	switch argv[0] {
	case "ip":
		return append([]string{"ip", "-n", ns.Name}, argv[1:]...)
	case "nsenter": // with all of the host's but its network
		return append([]string{"nsenter", "--net=/run/netns/" + ns.Name}, argv[1:]...)
	}
	return append([]string{"ip", "netns", "exec", ns.Name}, argv...)
}

func run(stdin string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), commandTimeout,
		fmt.Errorf("no end after %v", commandTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return stdout.String(), &commandError{argv, stdin, stdout.String(), stderr.String(), err}
}

type commandError struct {
	argv                  []string
	stdin, stdout, stderr string
	err                   error
}

func (e *commandError) Unwrap() error { return e.err }

func (e *commandError) Error() string {
	s := fmt.Sprintf("%s: %v", strings.Join(e.argv, " "), e.err)
	for _, part := range []struct{ name, text string }{
		{"stdin", e.stdin}, {"stdout", e.stdout}, {"stderr", e.stderr},
	} {
		if part.text != "" {
			s += fmt.Sprintf("\n--- %s:\n%s", part.name, strings.TrimRight(part.text, "\n"))
		}
	}
	return s
}

// batch runs several ip commands in one process: starting one is what takes long under emulation.
func (ns *NS) batch(t T, commands ...string) {
	t.Helper()
	if _, err := run(strings.Join(commands, "\n")+"\n", "ip", "-n", ns.Name, "-batch", "-"); err != nil {
		t.Fatal(err)
	}
}

// Do runs f on a thread in the namespace. Sockets that f makes stay in it; goroutines that f starts are not in it.
func (ns *NS) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Not unlocked, so the thread ends with the goroutine and no other ever finds itself in the namespace.
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+ns.Name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			unix.Close(fd)
		}
		if err != nil {
			done <- fmt.Errorf("enter namespace %s: %w", ns.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// Ping sends echo requests until addr answers one, and fails the test if it does not in time. The first may be lost: an
// IPv6 address is not one of the host's until a while after it was added, also without duplicate address detection (the
// work of addrconf_dad_start in net/ipv6/addrconf.c).
func (ns *NS) Ping(t T, addr string, options ...string) {
	t.Helper()
	ns.Run(t, append(append([]string{"ping", "-n", "-c", "1", "-i", "0.2", "-w", "10"}, options...), addr)...)
}

// NoPing fails the test if addr answers.
func (ns *NS) NoPing(t T, addr string, options ...string) {
	t.Helper()
	argv := append(append([]string{"ping", "-n", "-c", "3", "-i", "0.2", "-W", "2"}, options...), addr)
	if out, err := ns.Try(argv...); err == nil {
		t.Fatalf("in %s: %s is answered, and should not be:\n%s", ns.Name, strings.Join(argv, " "), out)
	}
}

// Counters are a device's.
type Counters struct {
	RX, TX struct{ Packets, Bytes, Errors, Dropped uint64 }
}

// Counters reads what a device has received and sent.
func (ns *NS) Counters(t T, dev string) Counters {
	t.Helper()
	out := ns.Run(t, "ip", "-s", "-j", "link", "show", "dev", dev)
	var links []struct{ Stats64 Counters }
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("in %s: counters of %s: %v: %s", ns.Name, dev, err, out)
	}
	return links[0].Stats64
}

// waitRunning waits until each device has its carrier, and the kernel sends by it: what is sent before is lost.
func (ns *NS) waitRunning(t T) {
	t.Helper()
	Eventually(t, commandTimeout, func() error {
		return ns.Do(func() error {
			links, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
			if err != nil {
				return err
			}
			messages, err := syscall.ParseNetlinkMessage(links)
			for _, m := range messages {
				if m.Header.Type == unix.RTM_NEWLINK && err == nil {
					err = running(m)
				}
			}
			if err != nil {
				return fmt.Errorf("in %s: %w", ns.Name, err)
			}
			return nil
		})
	})
}

// running is nil if a link that is up can send. That a cable's other end is up is told in the background, which may take
// a second and more when many links change (net/core/link_watch.c); until then a new device claims to be running, but its
// queue is "noop", which drops all.
func running(link syscall.NetlinkMessage) error {
	attrs, err := syscall.ParseNetlinkRouteAttr(&link)
	if err != nil {
		return err
	}
	var name, queue string
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_IFNAME:
			name = unix.ByteSliceToString(a.Value)
		case unix.IFLA_QDISC:
			queue = unix.ByteSliceToString(a.Value)
		}
	}
	// struct ifinfomsg (rtnetlink(7)): the flags are its third word.
	flags := binary.NativeEndian.Uint32(link.Data[8:])
	// A BPF tunnel's device has no reader, which is its carrier.
	if flags&unix.IFF_UP == 0 || flags&unix.IFF_POINTOPOINT != 0 || flags&unix.IFF_RUNNING != 0 && queue != "noop" {
		return nil
	}
	return fmt.Errorf("%s has no carrier, or no queue yet (%s)", name, queue)
}

// Eventually calls f until it returns nil; if it does not within the time, the test fails with f's last error.
func Eventually(t T, timeout time.Duration, f func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not so after %v: %v", timeout, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
