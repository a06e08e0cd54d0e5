package authd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

// WatchAddrs returns a channel of capacity 1 that yields a value after IPv4 or
// IPv6 addresses or links have changed, one for any number of changes not yet
// received (rtnetlink(7), groups RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR and
// RTMGRP_LINK). What has changed is for the receiver to look up; it may be
// nothing, as each router advertisement renews IPv6 addresses' lifetimes. The
// channel is not closed: after ctx has ended it yields no more.
func WatchAddrs(ctx context.Context) (<-chan struct{}, error) {
	c, err := socket.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE, "netlink", nil)
	if err != nil {
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	err = c.Bind(&unix.SockaddrNetlink{
		Family: unix.AF_NETLINK,
		Groups: unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_LINK,
	})
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("netlink socket: %w", err)
	}
	changed := make(chan struct{}, 1)
	go func() {
		defer c.Close()
		// Messages are cut off at this, as they are not read.
		buf := make([]byte, 1)
		for {
			_, _, err := c.Recvfrom(ctx, buf, 0)
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
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}
