package authd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// retryEvery is how long receiving pauses when the kernel is short of memory.
const retryEvery = time.Second

// readBuffer is what the kernel keeps for us while we don't receive, in bytes of
// its own counting, which are some 800 for a short packet and are twice these: a
// fifth of a second of 50,000 packets/s. It takes that memory only then.
const readBuffer = 4 << 20

// bufLen has room for the longest packet that a Filter passes: an IP header of
// 60 bytes, 8, and maxPayload.
const bufLen = 2048

// packetConn is a packet socket of IPv4 on all devices. It is bound to none,
// even where there is one to bind to: a handler of one device comes after the
// IP stack's (__netif_receive_skb_core, net/core/dev.c), so that the stack has
// to clone each packet of the host first, and the socket sees what the stack
// has made of it. One of all devices comes before it.
type packetConn struct {
	c   *socket.Conn
	log *slog.Logger

	// What recv, which is called from one goroutine at a time, hands to a
	// function that is made once: a flood would make garbage of each.
	in   inbox
	once func(fd uintptr) bool
	wait func(fd uintptr) bool
}

// inbox is one recvfrom(2).
type inbox struct {
	buf  []byte
	n    int
	from unix.Sockaddr
	err  error
}

func (b *inbox) recvfrom(fd uintptr) {
	for {
		b.n, b.from, b.err = unix.Recvfrom(int(fd), b.buf, 0)
		if b.err != unix.EINTR {
			return
		}
	}
}

// listenPacket opens a packet socket. Its protocol is 0 until the filter is
// there, so that it receives nothing before (packet(7)).
func listenPacket(filter []bpf.Instruction, log *slog.Logger) (_ *packetConn, err error) {
	c, err := socket.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0, "packet", nil)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	p := &packetConn{c: c, log: log}
	p.once = func(fd uintptr) bool {
		p.in.recvfrom(fd)
		return true
	}
	p.wait = func(fd uintptr) bool {
		p.in.recvfrom(fd)
		return p.in.err != unix.EAGAIN
	}
	// Beyond the system's limit, which leaves room for few packets. Without the
	// right to that it takes what is allowed.
	if err := c.SetReadBuffer(readBuffer); err != nil {
		return nil, fmt.Errorf("packet socket: receive buffer: %w", err)
	}
	if err := p.setFilter(filter); err != nil {
		return nil, err
	}
	// Link-layer addresses have the protocol in network byte order.
	if err := c.Bind(&unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP)}); err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return p, nil
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
func (p *packetConn) setFilter(filter []bpf.Instruction) error { return attach(p.c, filter) }

func attach(c *socket.Conn, filter []bpf.Instruction) error {
	raw, err := bpf.Assemble(filter)
	if err != nil {
		return fmt.Errorf("assembling the filter: %w", err)
	}
	if err := c.SetBPF(raw); err != nil {
		return fmt.Errorf("attaching the filter: %w", err)
	}
	return nil
}

// arrival is how a packet came in.
type arrival struct {
	index     int  // of the device
	otherHost bool // as if for another host, and not for this one
}

// expected reports whether packets of a tunnel come in like that. Those that the
// BPF data path diverts come as if for another host, so that the kernel's IP
// forgets them. Else these are what a promiscuous device sees of others' packets,
// which authenticate nobody.
func (a arrival) expected(diverted bool) bool { return diverted || !a.otherHost }

// recv waits for a packet to this host or, as it seems, to another, puts it into
// buf and returns its length. It returns ctx's error when ctx ends, else one after
// which the socket is of no use.
func (p *packetConn) recv(ctx context.Context, buf []byte) (n int, from arrival, err error) {
	p.in.buf = buf
	for {
		addr, err := p.recvfrom(ctx)
		switch {
		case ctx.Err() != nil:
			return 0, from, ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			// That of an earlier ctx.
			continue
		case errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			p.log.Warn("receiving failed, will go on", "error", err)
			if err := sleep(ctx, retryEvery); err != nil {
				return 0, from, err
			}
			continue
		case err != nil:
			return 0, from, fmt.Errorf("receiving: %w", err)
		}
		if ll, ok := addr.(*unix.SockaddrLinklayer); ok {
			switch ll.Pkttype {
			case unix.PACKET_HOST, unix.PACKET_OTHERHOST:
				return p.in.n, arrival{ll.Ifindex, ll.Pkttype == unix.PACKET_OTHERHOST}, nil
			}
		}
	}
}

// recvfrom waits for ctx only if there is no packet already: to be told of its end
// costs more than to receive.
func (p *packetConn) recvfrom(ctx context.Context) (unix.Sockaddr, error) {
	rc, err := p.c.SyscallConn()
	if err != nil {
		return nil, err
	}
	if err := rc.Read(p.once); err == nil && p.in.err != unix.EAGAIN {
		return p.in.from, p.in.err
	}
	if err := p.c.SetReadDeadline(time.Time{}); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { p.c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := rc.Read(p.wait); err != nil {
		return nil, err
	}
	return p.in.from, p.in.err
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
	if device == "" {
		return true
	}
	i, err := deviceIndex(p.c, device)
	return err == nil && i == index
}
