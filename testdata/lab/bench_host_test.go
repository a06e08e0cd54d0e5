package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// wireguardGo is what BenchmarkHost compares with: WireGuard where the kernel has none.
const wireguardGo = "v0.0.0-20260522210424-ecfc5a8d5446"

// hostVariants are for the cable's two ends on this host's own kernel. Ratios are to the cable itself.
var hostVariants = []gateVariant{
	{"no tunnel (veth)", 1, func(t testing.TB, w benchWire) { w.plain(t) }},
	{"ipipou, backend bpf", 1, func(t testing.TB, w benchWire) { w.ours(t, "bpf") }},
	{"wireguard-go", 10, func(t testing.TB, w benchWire) { w.wireguardGo(t) }},
}

var hostMeasures = []gateMeasure{
	{"TCP, Gbit/s", 1, 6e9, func(b testing.TB, w benchWire, n int) float64 {
		return mbits(n, flowTCP(b, w.cli, w.srv, "172.28.0.0", int64(n))) / 1e3
	}},
	{"64-byte UDP, kpps", 0, 500_000, func(b testing.TB, w benchWire, n int) float64 {
		return float64(n) / 1e3 / flowUDP(b, w.cli, w.srv, "172.28.0.0", n, 64).Seconds()
	}},
}

// BenchmarkHost prints how fast the BPF data path is, and what is the choice without it, as a table for docs/costs.md. Time
// is this host's, so it runs there alone (IPIPOU_LAB_HOST=1, see `make bench-host`) and wants a machine that does nothing
// else. A sender and a receiver have a thread each.
func BenchmarkHost(b *testing.B) {
	onHost(b)
	benchGate(b, newBenchWire, hostVariants, hostMeasures)
}

func onHost(b *testing.B) {
	b.Helper()
	if InGuest() {
		b.Skip("an emulated machine's time says nothing: IPIPOU_LAB_HOST=1")
	}
}

// wireguardGo makes a tunnel of two processes. Their sockets for wg(8) are in one directory, whatever the namespace, so
// the interfaces have different names.
func (w benchWire) wireguardGo(t testing.TB) {
	t.Helper()
	bin := buildWireguardGo(t)
	w.wireguard(t, func(ns *NS, dev string) {
		ns.Start(t, "env", "LOG_LEVEL=error", bin, "--foreground", dev)
		Eventually(t, commandTimeout, func() error {
			_, err := ns.Try("wg", "show", dev)
			return err
		})
	})
}

// buildWireguardGo builds it once, by its version: it is no dependency of ours, and no distribution's is as new.
func buildWireguardGo(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(Cache(), "wireguard-go-"+wireguardGo)
	bin := filepath.Join(dir, "wireguard")
	if _, err := os.Stat(bin); err == nil {
		return bin
	}
	cmd := exec.Command("go", "install", "golang.zx2c4.com/wireguard@"+wireguardGo)
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build wireguard-go: %v\n%s", err, out)
	}
	return bin
}

// flowTCP sends n bytes over one connection and returns how long it took.
func flowTCP(t T, from, to *NS, addr string, n int64) time.Duration {
	t.Helper()
	listener := bound(t, to, unix.SOCK_STREAM, addr)
	defer unix.Close(listener)
	out := bound(t, from, unix.SOCK_STREAM, "")
	defer unix.Close(out)
	err := unix.Listen(listener, 1)
	if err == nil {
		err = connect(out, listener)
	}
	in := -1
	if err == nil {
		in, _, err = unix.Accept(listener)
	}
	if err != nil {
		t.Fatalf("TCP to %s: %v", addr, err)
	}
	defer unix.Close(in)
	patience(t, in)
	return threads(t, func() error {
		block := make([]byte, 128<<10)
		for left := n; left > 0; {
			k, err := again(unix.Write, out, block[:min(left, int64(len(block)))])
			if left -= int64(k); err != nil {
				return err
			}
		}
		return nil
	}, func() error {
		buf := make([]byte, 256<<10)
		for left := n; left > 0; {
			k, err := again(unix.Read, in, buf)
			if left -= int64(k); err != nil || k == 0 {
				return fmt.Errorf("%d bytes are missing: %w", left, err)
			}
		}
		return nil
	})
}

// flowUDP sends n datagrams of a size and returns how long it took until all were received.
func flowUDP(t T, from, to *NS, addr string, n, size int) time.Duration {
	t.Helper()
	in := bound(t, to, unix.SOCK_DGRAM, addr)
	defer unix.Close(in)
	out := bound(t, from, unix.SOCK_DGRAM, "")
	defer unix.Close(out)
	if err := connect(out, in); err != nil {
		t.Fatalf("UDP to %s: %v", addr, err)
	}
	return datagrams(t, []int{out}, []int{in}, [][]byte{make([]byte, size)}, n)
}

// A burst of datagrams is sent before the receiver is told, so that it need not be woken for each, and at most ahead
// bursts before it has read one: fewer than any queue on the way holds. So nothing is lost, and what is lost all the same
// fails the benchmark: the figure is what arrives, at no loss.
const (
	burst = 32
	ahead = 4
)

// datagrams sends n payloads by some sockets in turn, which some others receive in the same order, and returns how long
// it took.
func datagrams(t T, out, in []int, payloads [][]byte, n int) time.Duration {
	t.Helper()
	for _, fd := range in {
		patience(t, fd)
		// What a datagram takes of it depends on the way that it came.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<20); err != nil {
			t.Fatal(err)
		}
	}
	sent, read := newCount(t, 0), newCount(t, ahead)
	defer unix.Close(sent)
	defer unix.Close(read)
	all := func(before, after int, one func(i int) (int, error)) error {
		for i := range n {
			if i%burst == 0 {
				if _, err := again(unix.Read, before, make([]byte, 8)); err != nil {
					return err
				}
			}
			if _, err := one(i); err != nil {
				return fmt.Errorf("datagram %d of %d: %w", i, n, err)
			}
			if i%burst == burst-1 || i == n-1 {
				if _, err := again(unix.Write, after, []byte{1, 0, 0, 0, 0, 0, 0, 0}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	buf := make([]byte, 2048)
	return threads(t, func() error {
		return all(read, sent, func(i int) (int, error) { return again(unix.Write, out[i%len(out)], payloads[i%len(payloads)]) })
	}, func() error {
		return all(sent, read, func(i int) (int, error) { return again(unix.Read, in[i%len(in)], buf) })
	})
}

// newCount is a semaphore of the kernel's: unlike a channel it leaves Go's scheduler, which has threads of its own to
// wake, out of it.
func newCount(t T, n uint) int {
	t.Helper()
	fd, err := unix.Eventfd(n, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// again repeats a call that a signal of Go's scheduler interrupted.
func again(call func(int, []byte) (int, error), fd int, buf []byte) (int, error) {
	for {
		if n, err := call(fd, buf); err != unix.EINTR {
			return n, err
		}
	}
}

// threads runs a sender and a receiver, each on a thread, and takes the time until the receiver has all.
func threads(t T, send, receive func() error) time.Duration {
	t.Helper()
	sent, received := make(chan error, 1), make(chan error, 1)
	started := time.Now()
	go func() {
		runtime.LockOSThread()
		sent <- send()
	}()
	go func() {
		runtime.LockOSThread()
		received <- receive()
	}()
	err := <-received
	d := time.Since(started)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	return d
}

// bound is a socket in a namespace, at a port of addr if that is given. It is not Go's: those are watched by epoll, which
// is told of each datagram.
func bound(t T, ns *NS, kind int, addr string) (fd int) {
	t.Helper()
	err := ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0); err == nil && addr != "" {
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(addr).As4()})
		}
		return err
	})
	if err != nil {
		t.Fatalf("in %s: %v", ns.Name, err)
	}
	return fd
}

func connect(out, in int) error {
	at, err := unix.Getsockname(in)
	if err != nil {
		return err
	}
	return unix.Connect(out, at)
}

// patience bounds each wait of a receiver.
func patience(t T, fd int) {
	t.Helper()
	limit := unix.NsecToTimeval((5 * time.Second).Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
}
