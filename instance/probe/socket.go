package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// sendFor is how long a request waits for room in the socket's buffer.
const sendFor = time.Second

// icmpFilter is the option ICMP_FILTER of raw(7), at SOL_RAW: a mask of the types of
// messages that are not wanted, of 0 to 31.
const icmpFilter = 1

// open opens a raw ICMP socket for messages between the two addresses that go over the
// device, and calls got with each echo reply, from a goroutine of its own that ends with
// close. The socket is bound to the device's index: a device that was made anew wants
// another socket. It needs CAP_NET_RAW.
func open(device string, from, to netip.Addr, got func([]byte)) (_ sender, err error) {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	c, err := socket.Socket(family, unix.SOCK_RAW, proto, "icmp", nil)
	if err != nil {
		return nil, fmt.Errorf("ICMP socket: %w", err)
	}
	defer func() {
		if err != nil {
			c.Close()
			err = fmt.Errorf("ICMP socket on %s: %w", device, err)
		}
	}()
	if err := filter(c, to.Is6()); err != nil {
		return nil, err
	}
	if err := c.SetsockoptString(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, device); err != nil {
		return nil, err
	}
	// Else a flood of replies that nobody asked for would take memory.
	if err := c.SetsockoptInt(unix.SOL_SOCKET, unix.SO_RCVBUF, 4096); err != nil {
		return nil, err
	}
	if err := c.Bind(address(from)); err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	// The kernel hands over what comes from there only.
	ctx, cancel := context.WithTimeout(context.Background(), sendFor)
	defer cancel()
	if _, err := c.Connect(ctx, address(to)); err != nil {
		return nil, fmt.Errorf("%s: %w", to, err)
	}
	s := &icmp{c: c, to: address(to)}
	go s.receive(got)
	return s, nil
}

// filter leaves out all but echo replies.
func filter(c *socket.Conn, v6 bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		if !v6 {
			err = unix.SetsockoptInt(int(fd), unix.SOL_RAW, icmpFilter, ^(1 << reply4))
			return
		}
		var f unix.ICMPv6Filter
		for i := range f.Data {
			f.Data[i] = ^uint32(0)
		}
		f.Data[reply6/32] &^= 1 << (reply6 % 32)
		err = unix.SetsockoptICMPv6Filter(int(fd), unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &f)
	})
	return errors.Join(cerr, err)
}

func address(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}

type icmp struct {
	c      *socket.Conn
	to     unix.Sockaddr
	closed atomic.Bool
}

func (s *icmp) receive(got func([]byte)) {
	buf := make([]byte, 128) // an IP header with options, and more than an echo
	for {
		n, _, err := s.c.Recvfrom(context.Background(), buf, 0)
		switch {
		case s.closed.Load():
			return
		case err == nil:
			got(buf[:n])
		default:
			// That of a request, such as an ICMP error, which is told once.
			time.Sleep(retryAfter / 10)
		}
	}
}

func (s *icmp) send(b []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendFor)
	defer cancel()
	return s.c.Sendto(ctx, b, 0, s.to)
}

func (s *icmp) close() {
	s.closed.Store(true)
	s.c.Close()
}
