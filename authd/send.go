package authd

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"
)

const (
	ttlFile    = "/proc/sys/net/ipv4/ip_default_ttl"
	defaultTTL = 64 // RFC 1700, and the kernel's

	// sendFor is how long a send waits for room in the socket's buffer.
	sendFor = time.Second
)

// rawSender sends IPv4 packets whose headers are ours (raw(7), IPPROTO_RAW). The
// kernel routes them and passes them through netfilter's output chains.
type rawSender struct {
	c      *socket.Conn
	device string // "": as routed
}

func newRawSender(device string) (*rawSender, error) {
	c, err := socket.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, "raw", nil)
	if err != nil {
		return nil, fmt.Errorf("raw socket: %w", err)
	}
	s := &rawSender{c: c, device: device}
	if err := s.bindDevice(); err != nil {
		c.Close()
		return nil, err
	}
	return s, nil
}

func (s *rawSender) bindDevice() error {
	if s.device == "" {
		return nil
	}
	if err := s.c.SetsockoptString(unix.SOL_SOCKET, unix.SO_BINDTODEVICE, s.device); err != nil {
		return fmt.Errorf("raw socket on %q: %w", s.device, err)
	}
	return nil
}

// send sends a UDP datagram. The kernel remembers the device by its index; if
// the device was made anew, sending fails and the name is looked up again.
func (s *rawSender) send(src, dst netip.AddrPort, ttl uint8, payload []byte) error {
	pkt := BuildUDP(src, dst, ttl, payload)
	err := s.sendPacket(pkt, dst.Addr())
	if err != nil && s.device != "" {
		if berr := s.bindDevice(); berr != nil {
			return berr
		}
		err = s.sendPacket(pkt, dst.Addr())
	}
	if err != nil {
		return fmt.Errorf("sending from %s to %s: %w", src, dst, err)
	}
	return nil
}

func (s *rawSender) sendPacket(pkt []byte, dst netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), sendFor)
	defer cancel()
	return s.c.Sendto(ctx, pkt, 0, &unix.SockaddrInet4{Addr: dst.As4()})
}

func (s *rawSender) Close() error { return s.c.Close() }

// systemTTL returns ttl, or if that is 0 what the system gives its packets.
func systemTTL(ttl uint8) uint8 {
	if ttl != 0 {
		return ttl
	}
	b, err := os.ReadFile(ttlFile)
	if err != nil {
		return defaultTTL
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 8)
	if err != nil || n == 0 {
		return defaultTTL
	}
	return uint8(n)
}
