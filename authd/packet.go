package authd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// reopenEvery is how often a vanished device is looked for.
const reopenEvery = time.Second

// bufLen has room for the longest packet that a Filter passes: an IP header of
// 60 bytes, 8, and maxPayload.
const bufLen = 2048

// packetConn is a packet socket of IPv4 on one device, or on all.
type packetConn struct {
	c      *socket.Conn
	device string // "": all
	index  int
	log    *slog.Logger
}

// listenPacket opens a packet socket. Its protocol is 0 until the filter is
// there, so that it receives nothing before (packet(7)).
func listenPacket(device string, filter []bpf.Instruction, log *slog.Logger) (_ *packetConn, err error) {
	c, err := socket.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0, "packet", nil)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	p := &packetConn{c: c, device: device, log: log}
	if err := p.setFilter(filter); err != nil {
		return nil, err
	}
	if device != "" {
		if p.index, err = deviceIndex(c, device); err != nil {
			return nil, err
		}
	}
	if err := p.bind(); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *packetConn) bind() error {
	// Link-layer addresses have the protocol in network byte order.
	err := p.c.Bind(&unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: p.index})
	if err != nil {
		return fmt.Errorf("packet socket on %q: %w", p.device, err)
	}
	return nil
}

// lookUp returns the index that the device has now, and whether it is up. It
// asks by the socket, and so in the socket's namespace, wherever the thread is
// (netdevice(7)).
func (p *packetConn) lookUp() (index int, up bool, err error) {
	index, err = deviceIndex(p.c, p.device)
	if err != nil {
		return 0, false, err
	}
	ifr, err := deviceIoctl(p.c, p.device, unix.SIOCGIFFLAGS)
	if err != nil {
		return 0, false, err
	}
	return index, ifr.Uint16()&unix.IFF_UP != 0, nil
}

func deviceIndex(c *socket.Conn, device string) (int, error) {
	ifr, err := deviceIoctl(c, device, unix.SIOCGIFINDEX)
	if err != nil {
		return 0, err
	}
	return int(ifr.Uint32()), nil
}

func deviceIoctl(c *socket.Conn, device string, req uint) (*unix.Ifreq, error) {
	ifr, err := unix.NewIfreq(device)
	if err != nil {
		return nil, fmt.Errorf("device %q: %w", device, err)
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) { err = unix.IoctlIfreq(int(fd), req, ifr) })
	if err := errors.Join(cerr, err); err != nil {
		return nil, fmt.Errorf("device %q: %w", device, err)
	}
	return ifr, nil
}

// setFilter replaces the filter at once: no packet is seen by none or by both
// (SO_ATTACH_FILTER, socket(7)). Packets that an earlier one passed may still
// be in the receive queue.
func (p *packetConn) setFilter(filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assembling the filter: %w", err)
	}
	if err := p.c.SetBPF(raw); err != nil {
		return fmt.Errorf("attaching the filter: %w", err)
	}
	return nil
}

// recv waits for a packet to this host, puts it into buf and returns its length
// and the index of the device it came in on. A device that goes down or away is
// waited for. It returns ctx's error when ctx ends, else one after which the
// socket is of no use.
func (p *packetConn) recv(ctx context.Context, buf []byte) (n, index int, err error) {
	for {
		n, from, err := p.c.Recvfrom(ctx, buf, 0)
		if ctx.Err() != nil {
			return 0, 0, ctx.Err()
		}
		if err != nil {
			if err := p.survive(ctx, err); err != nil {
				return 0, 0, err
			}
			continue
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if !ok || ll.Pkttype != unix.PACKET_HOST {
			continue
		}
		return n, ll.Ifindex, nil
	}
}

// survive returns nil when after err it makes sense to receive again.
func (p *packetConn) survive(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return p.rebind(ctx, err)
	case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
		p.log.Warn("receiving failed, will go on", "error", err)
		return sleep(ctx, reopenEvery)
	default:
		return fmt.Errorf("receiving: %w", err)
	}
}

// rebind waits until the device is there and up, and binds to it. The kernel by
// itself takes a socket up again with its device; but if the device was deleted
// a new one of the same name has another index. As a deletion begins with
// ENETDOWN and the rest of it is not told (packet_notifier, net/packet/af_packet.c),
// the device must be watched until it is up: from then on its going down is told.
func (p *packetConn) rebind(ctx context.Context, cause error) error {
	if p.device == "" {
		p.log.Warn("receiving failed, will go on", "error", cause)
		return sleep(ctx, reopenEvery)
	}
	last := ""
	for {
		index, up, err := p.lookUp()
		if err == nil && up {
			p.index = index
			if err = p.bind(); err == nil {
				p.log.Info("device is back", "device", p.device)
				return nil
			}
		}
		level, msg := slog.LevelError, "device is gone, looking for it each second"
		if err == nil {
			level, msg, err = slog.LevelWarn, "device is down, waiting for it", cause
		}
		if s := msg + err.Error(); s != last {
			p.log.Log(ctx, level, msg, "device", p.device, "error", err)
			last = s
		}
		if err := sleep(ctx, reopenEvery); err != nil {
			return err
		}
	}
}

func (p *packetConn) Close() error { return p.c.Close() }

// sleep waits for d, or returns the error of ctx if that ends before.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// htons puts v's bytes in network order, whatever the host's.
func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// arrivedOn reports whether index is that of device. Device names move, so it
// asks each time; few packets get here.
func (p *packetConn) arrivedOn(index int, device string) bool {
	if device == "" || device == p.device {
		return true
	}
	i, err := deviceIndex(p.c, device)
	return err == nil && i == index
}
