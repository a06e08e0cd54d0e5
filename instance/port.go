package instance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"ipipou/plans"
)

// A reservation holds the UDP ports that BPF carries. Its programs take the packets
// before any socket, so this one hears nothing; but whoever else wants the port, another
// instance too, is told so, as the kernel's own FOU listener would tell him.
type reservation []net.PacketConn

func (in *Instance) reserve() (held reservation, err error) {
	seen := map[netip.AddrPort]bool{}
	for _, t := range in.Config.Tunnels {
		if t.Backend != plans.BPF || t.Encap != plans.FOU {
			continue
		}
		at, err := local(t, in.vars)
		if err != nil {
			return nil, errors.Join(err, held.Close())
		}
		if seen[at] {
			continue
		}
		seen[at] = true
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return nil, errors.Join(&Error{plans.ExitBPF, fmt.Errorf("%s: UDP port: %w", t.Title(), err)}, held.Close())
		}
		held = append(held, conn)
	}
	return held, nil
}

func (r reservation) Close() error {
	var errs []error
	for _, conn := range r {
		errs = append(errs, conn.Close())
	}
	return errors.Join(errs...)
}
