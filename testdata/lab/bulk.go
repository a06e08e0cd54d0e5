package lab

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is here is for benchmarks: traffic that costs as little as can be outside the kernel, for under icount the cost
// of a checksum would count like that of the datapath. One thread sends and receives in turn, without Go's scheduler
// between: otherwise figures vary by a tenth. See Transfer for traffic that is checked.

// BulkTCP sends n bytes over TCP and returns how long it took.
func BulkTCP(t T, from, to *NS, addr string, n int64) time.Duration {
	t.Helper()
	conn, listener, err := dialTCP(from, to, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	defer conn.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	return timed(t, conn, accepted, func(out, in int) (done int64, err error) {
		block, buf := make([]byte, 128<<10), make([]byte, 256<<10)
		for left := n; done < n; {
			sent, received := 0, 0
			if left > 0 {
				sent, err = transfer(unix.SYS_SENDTO, out, block[:min(left, int64(len(block)))], unix.MSG_DONTWAIT)
				if left -= int64(sent); err != nil {
					return done, err
				}
			}
			received, err = transfer(unix.SYS_RECVFROM, in, buf, unix.MSG_DONTWAIT)
			if done += int64(received); err != nil {
				return done, err
			}
			if sent == 0 && received == 0 {
				// Both ends wait, for a timer or for what another thread of the kernel does.
				ready, err := unix.Poll([]unix.PollFd{{Fd: int32(in), Events: unix.POLLIN}}, int(stall.Milliseconds()))
				if ready == 0 {
					return done, errors.New("no progress")
				}
				if err != nil && err != unix.EINTR {
					return done, err
				}
			}
		}
		return done, nil
	})
}

// BulkUDP sends n datagrams of a size and returns how long it took. They go in bursts that fit the receiver's buffer,
// each received before the next: nothing is lost, so the figure is the cost and not the luck.
func BulkUDP(t T, from, to *NS, addr string, n, size int) time.Duration {
	t.Helper()
	receiver := to.ListenUDP(t, net.JoinHostPort(addr, "0"))
	var sender net.Conn
	err := from.Do(func() (err error) {
		sender, err = net.Dial("udp4", receiver.LocalAddr().String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	return timed(t, sender, receiver, func(out, in int) (done int64, err error) {
		const burst = 32
		payload, buf := make([]byte, size), make([]byte, size+1)
		for done < int64(n) {
			k := min(burst, n-int(done))
			for range k {
				if err := whole(unix.SYS_SENDTO, out, payload); err != nil {
					return done, err
				}
			}
			for range k {
				if err := whole(unix.SYS_RECVFROM, in, buf); err != nil {
					return done, fmt.Errorf("receive: %w", err)
				}
				done++
			}
		}
		return done, nil
	})
}

// timed takes the time of f on the two sockets, made blocking, with no garbage collection meanwhile.
func timed(t T, out, in net.Conn, f func(out, in int) (int64, error)) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	outFD, inFD := blocking(t, out), blocking(t, in)
	started := time.Now()
	if done, err := f(outFD, inFD); err != nil {
		t.Fatalf("%s from %v to %v, after %d: %v", out.LocalAddr().Network(), out.LocalAddr(), in.LocalAddr(), done, err)
	}
	return time.Since(started)
}

func blocking(t T, conn net.Conn) (number int) {
	t.Helper()
	access, err := conn.(syscall.Conn).SyscallConn()
	if err == nil {
		err = access.Control(func(fd uintptr) {
			number = int(fd)
			limit := unix.NsecToTimeval(stall.Nanoseconds())
			if err = unix.SetNonblock(number, false); err == nil {
				err = unix.SetsockoptTimeval(number, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return number
}

// transfer sends or receives without telling Go's scheduler, which would count the time and wake threads that take over.
// A call that would have waited comes to nothing.
func transfer(call uintptr, fd int, buf []byte, flags uintptr) (int, error) {
	n, _, errno := unix.RawSyscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), flags, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	}
	return 0, errno
}

// whole sends or receives one datagram, and waits if it must; the socket's time limit and signals end each wait.
func whole(call uintptr, fd int, buf []byte) error {
	var deadline time.Time
	for {
		n, err := transfer(call, fd, buf, 0)
		if n > 0 || err != nil {
			return err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(stall)
		} else if time.Now().After(deadline) {
			return errors.New("no progress")
		}
	}
}
