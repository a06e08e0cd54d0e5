package authd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// WatchAddrs returns a channel of capacity 1 that yields a value after IPv4 or
// IPv6 addresses, links or their filters have changed, one for any number of changes
// not yet received (rtnetlink(7), groups RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR,
// RTMGRP_LINK and that of tc). What has changed is for the receiver to look up; it may
// be nothing, as each router advertisement renews IPv6 addresses' lifetimes. The
// channel is not closed: after ctx has ended it yields no more.
func WatchAddrs(ctx context.Context) (<-chan struct{}, error) {
	groups := uint32(unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_LINK | 1<<(unix.RTNLGRP_TC-1))
	return watch(ctx, unix.NETLINK_ROUTE, groups, nil, anything)
}

// WatchLost returns a channel like that of WatchAddrs, for what takes something off an
// interface, or may have: routes deleted that `ip route add` had made (RTPROT_BOOT;
// not those of routing daemons, of which there may be thousands a second), rules and
// addresses deleted, and interfaces set up or down, with which the kernel drops IPv4
// routes without a word (fib_sync_down_dev in net/ipv4/fib_semantics.c). The kernel
// tells nothing else: to hear of it and to throw it away would take time.
func WatchLost(ctx context.Context) (<-chan struct{}, error) {
	groups := uint32(unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE | unix.RTMGRP_IPV4_RULE | 1<<(unix.RTNLGRP_IPV6_RULE-1) |
		unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_LINK)
	return watch(ctx, unix.NETLINK_ROUTE, groups, lossFilter(), anything)
}

// lossFilter passes the messages that WatchLost is about, each of which comes alone
// (rtnl_notify). A message is a header (16 bytes; netlink(7)) with the type at 4, and
// of a route struct rtmsg with the protocol at 5, of an interface struct ifinfomsg with
// the flags that changed at 12 (rtnetlink(7)). The kernel's are in host order, and a
// filter loads in network order.
func lossFilter() []bpf.Instruction {
	var a asm
	a.add(bpf.LoadAbsolute{Off: 4, Size: 2})
	a.jump(bpf.JumpEqual, swapped(unix.RTM_DELRULE), "pass")
	a.jump(bpf.JumpEqual, swapped(unix.RTM_DELADDR), "pass")
	a.jump(bpf.JumpEqual, swapped(unix.RTM_NEWLINK), "link")
	a.jump(bpf.JumpNotEqual, swapped(unix.RTM_DELROUTE), "drop")
	a.add(bpf.LoadAbsolute{Off: 16 + 5, Size: 1})
	a.jump(bpf.JumpEqual, unix.RTPROT_BOOT, "pass")
	a.jumpAlways("drop")
	a.label("link")
	a.add(bpf.LoadAbsolute{Off: 16 + 12, Size: 4})
	a.jump(bpf.JumpBitsSet, binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, unix.IFF_UP)), "pass")
	a.label("drop")
	a.add(bpf.RetConstant{Val: 0})
	a.label("pass")
	a.add(bpf.RetConstant{Val: 1 << 16})
	return a.link()
}

// swapped is a 16-bit number of the kernel's, in host order, as a filter loads it.
func swapped(n uint16) uint32 {
	return uint32(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, n)))
}

// WatchTables returns a channel like that of WatchAddrs, for deletions in nftables:
// of a table with one of these names in any family, or of rules, chains and sets in
// one. Elements that come and go are none. It takes CAP_NET_ADMIN.
func WatchTables(ctx context.Context, names []string) (<-chan struct{}, error) {
	return watch(ctx, unix.NETLINK_NETFILTER, 1<<(unix.NFNLGRP_NFTABLES-1), nil, func(b []byte) bool { return deletes(b, names) })
}

// deletes reports whether one of the messages in b says that something of those tables
// is gone. A message is a header (16 bytes; netlink(7)), struct nfgenmsg (4 bytes) and
// attributes, of which the first of all these kinds is the table's name
// (linux/netfilter/nf_tables.h). One that can't be read counts.
func deletes(b []byte, names []string) bool {
	const head, nfgen, attr = 16, 4, 4
	for len(b) >= head {
		n := int(binary.NativeEndian.Uint32(b))
		if n < head || n > len(b) {
			return true
		}
		kind := int(binary.NativeEndian.Uint16(b[4:]))
		msg := b[head:n]
		b = b[min((n+3)&^3, len(b)):]
		if kind>>8 != unix.NFNL_SUBSYS_NFTABLES {
			continue
		}
		switch kind & 0xff {
		case unix.NFT_MSG_DELTABLE, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET:
		default:
			continue
		}
		if len(msg) < nfgen+attr {
			return true
		}
		msg = msg[nfgen:]
		length, first := int(binary.NativeEndian.Uint16(msg)), binary.NativeEndian.Uint16(msg[2:])
		if first != unix.NFTA_TABLE_NAME || length < attr || length > len(msg) {
			return true
		}
		name := string(bytes.TrimRight(msg[attr:length], "\x00"))
		if slices.Contains(names, name) {
			return true
		}
	}
	return false
}

// anything counts.
func anything([]byte) bool { return true }

// watch subscribes to groups of netlink messages, as a mask; of these to what passes
// the filter, if there is one.
func watch(ctx context.Context, family int, groups uint32, filter []bpf.Instruction, counts func([]byte) bool) (<-chan struct{}, error) {
	_, changed, err := subscribe(ctx, family, groups, filter, counts)
	return changed, err
}

// subscribe is watch, and the socket, to be given another filter.
func subscribe(ctx context.Context, family int, groups uint32, filter []bpf.Instruction, counts func([]byte) bool) (*socket.Conn, <-chan struct{}, error) {
	c, err := socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, family, "netlink", nil)
	if err != nil {
		return nil, nil, fmt.Errorf("netlink socket: %w", err)
	}
	if filter != nil {
		err = attach(c, filter)
	}
	if err == nil {
		err = c.Bind(&unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})
	}
	if err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("netlink socket: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer c.Close()
		// As the kernel's: NLMSG_GOODSIZE is a page, or 8 KiB.
		buf := make([]byte, 8<<10)
		for {
			n, _, err := c.Recvfrom(ctx, buf, 0)
			if ctx.Err() != nil {
				return
			}
			// ENOBUFS says that messages were lost, so there were some.
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				if sleep(ctx, time.Second) != nil {
					return
				}
				continue
			}
			if err == nil && !counts(buf[:n]) {
				continue
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return c, changed, nil
}
