package authd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A RouteWatch notices that the way to one of some IPv4 addresses may have changed.
type RouteWatch struct {
	// Changed yields a value after a change, one for any number not yet received.
	Changed <-chan struct{}

	conn *socket.Conn
}

// WatchRoutes subscribes to routes and rules of IPv4 (rtnetlink(7), groups
// RTMGRP_IPV4_ROUTE and RTMGRP_IPV4_RULE), until ctx ends. Of the routes that come and go
// only those count that lead to one of the addresses, so that the thousands of a routing
// daemon's cost nothing.
func WatchRoutes(ctx context.Context, to []netip.Addr) (*RouteWatch, error) {
	conn, changed, err := subscribe(ctx, unix.NETLINK_ROUTE, unix.RTMGRP_IPV4_ROUTE|unix.RTMGRP_IPV4_RULE, routeFilter(to), anything)
	if err != nil {
		return nil, err
	}
	return &RouteWatch{changed, conn}, nil
}

// To is what WatchRoutes was given, from now on.
func (w *RouteWatch) To(addrs []netip.Addr) error { return attach(w.conn, routeFilter(addrs)) }

// maxRoutesTo is how many addresses a filter tells apart; with more, all routes count. It
// keeps conditional jumps under the 255 that they have room for.
const maxRoutesTo = 60

// routeFilter passes rules, and routes whose network has one of the addresses. A message is
// a header (16 bytes; netlink(7)) with the type at 4, and of a route struct rtmsg with the
// length of the prefix at 1 (12 bytes; rtnetlink(7)), the attribute RTA_TABLE (8 bytes) and,
// if that length is not 0, RTA_DST (fib_dump_info in net/ipv4/fib_semantics.c). What is not
// like that counts.
func routeFilter(to []netip.Addr) []bpf.Instruction {
	const prefixLen, dst = 16 + 1, 16 + 12 + 8
	var a asm
	a.add(bpf.LoadAbsolute{Off: 4, Size: 2})
	a.jump(bpf.JumpEqual, swapped(unix.RTM_NEWROUTE), "route")
	a.jump(bpf.JumpEqual, swapped(unix.RTM_DELROUTE), "route")
	a.jumpAlways("pass")
	a.label("route")
	if len(to) <= maxRoutesTo {
		a.add(bpf.LoadAbsolute{Off: prefixLen, Size: 1})
		a.jump(bpf.JumpEqual, 0, "pass")
		a.add(bpf.LoadAbsolute{Off: dst + 2, Size: 2})
		a.jump(bpf.JumpNotEqual, swapped(unix.RTA_DST), "pass")
		a.add(bpf.LoadAbsolute{Off: prefixLen, Size: 1})
		a.add(bpf.TAX{})
		a.add(bpf.LoadConstant{Dst: bpf.RegA, Val: 32})
		a.add(bpf.ALUOpX{Op: bpf.ALUOpSub})
		a.add(bpf.TAX{}) // how many bits of an address are not the network's
		for _, addr := range to {
			a.add(bpf.LoadAbsolute{Off: dst + 4, Size: 4})
			a.add(bpf.ALUOpConstant{Op: bpf.ALUOpXor, Val: ipv4(addr)})
			a.add(bpf.ALUOpX{Op: bpf.ALUOpShiftRight})
			a.jump(bpf.JumpEqual, 0, "pass")
		}
		a.add(bpf.RetConstant{Val: 0})
	}
	a.label("pass")
	a.add(bpf.RetConstant{Val: 1 << 16})
	return a.link()
}

// A Way is how the kernel would send to an address.
type Way struct {
	Device  int        // index of the interface
	Gateway netip.Addr // IPv4 or IPv6; invalid: none
}

// WayTo asks the kernel (rtnetlink(7), RTM_GETROUTE) how it would send from an IPv4 address
// to another, by the interface with that index, 0: any. Its error wraps that of the kernel,
// such as ENETUNREACH.
func WayTo(from, to netip.Addr, device int) (Way, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return Way{}, fmt.Errorf("netlink socket: %w", err)
	}
	defer unix.Close(fd)
	// The kernel answers at once, but who knows.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return Way{}, fmt.Errorf("netlink socket: %w", err)
	}
	if err := unix.Sendto(fd, askWay(from, to, device), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return Way{}, fmt.Errorf("asking for the route to %s: %w", to, err)
	}
	buf := make([]byte, 8<<10)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return Way{}, fmt.Errorf("asking for the route to %s: %w", to, err)
	}
	way, err := parseWay(buf[:n])
	if err != nil {
		return Way{}, fmt.Errorf("the route to %s: %w", to, err)
	}
	return way, nil
}

// askWay is a request: the header, struct rtmsg and attributes of 4 bytes.
func askWay(from, to netip.Addr, device int) []byte {
	const head, rtmsg = unix.SizeofNlMsghdr, unix.SizeofRtMsg
	b := make([]byte, head+rtmsg)
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_GETROUTE)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST)
	b[head], b[head+1], b[head+2] = unix.AF_INET, 32, 32 // of RTA_DST and RTA_SRC
	attr := func(kind uint16, value []byte) {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	}
	attr(unix.RTA_DST, to.AsSlice())
	attr(unix.RTA_SRC, from.AsSlice())
	if device != 0 {
		attr(unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(device)))
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

var errNoWay = errors.New("the kernel's answer can't be read")

// parseWay reads the answer: a header, and struct rtmsg with attributes or the number of an
// error, negative.
func parseWay(b []byte) (way Way, err error) {
	const head = unix.SizeofNlMsghdr
	if len(b) < head+4 {
		return way, errNoWay
	}
	switch binary.NativeEndian.Uint16(b[4:]) {
	case unix.NLMSG_ERROR:
		if errno := -int32(binary.NativeEndian.Uint32(b[head:])); errno > 0 {
			return way, syscall.Errno(errno)
		}
		return way, errNoWay
	case unix.RTM_NEWROUTE:
	default:
		return way, errNoWay
	}
	length := int(binary.NativeEndian.Uint32(b))
	if length < head+unix.SizeofRtMsg || length > len(b) {
		return way, errNoWay
	}
	for b = b[head+unix.SizeofRtMsg : length]; len(b) >= unix.SizeofRtAttr; {
		n, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if n < unix.SizeofRtAttr || n > len(b) {
			return Way{}, errNoWay
		}
		value := b[unix.SizeofRtAttr:n]
		switch {
		case kind == unix.RTA_OIF && len(value) == 4:
			way.Device = int(int32(binary.NativeEndian.Uint32(value)))
		case kind == unix.RTA_GATEWAY:
			way.Gateway, _ = netip.AddrFromSlice(value)
		case kind == unix.RTA_VIA && len(value) >= 2: // of another family: struct rtvia, behind its number
			way.Gateway, _ = netip.AddrFromSlice(value[2:])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	if way.Device <= 0 {
		return Way{}, errNoWay
	}
	return way, nil
}
