package lab

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"
)

// stall is how long a transfer may make no progress. TCP's backoff after losses is what takes long.
const stall = time.Minute

// TransferTCP sends n pseudo-random bytes from one namespace to an address of another, over TCP, and fails the test
// unless both ends have the same count and checksum. It returns the time from the connection to the last byte.
func TransferTCP(t T, from, to *NS, addr string, n int64) time.Duration {
	t.Helper()
	d, err := Transfer(from, to, addr, n)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Transfer is TransferTCP for several at once.
func Transfer(from, to *NS, addr string, n int64) (time.Duration, error) {
	what := fmt.Sprintf("TCP from %s to %s at %s, %d bytes", from.Name, to.Name, addr, n)
	conn, listener, err := dialTCP(from, to, addr)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	defer listener.Close()
	started := time.Now()
	received := make(chan sum, 1)
	go func() { received <- receive(listener) }()
	sent := send(conn, n)
	got := <-received
	switch {
	case sent.err != nil || got.err != nil:
		return 0, fmt.Errorf("%s: sent %d (%v), received %d (%v)", what, sent.n, sent.err, got.n, got.err)
	case sent.n != n || sent.n != got.n || sent.md5 != got.md5:
		return 0, fmt.Errorf("%s: sent %d, MD5 %x; received %d, MD5 %x", what, sent.n, sent.md5, got.n, got.md5)
	}
	return time.Since(started), nil
}

// dialTCP listens at an address of one namespace and connects to it from another. Without multipath TCP, Go's default
// for listeners: it would be something else that is tested and measured.
func dialTCP(from, to *NS, addr string) (conn net.Conn, listener net.Listener, err error) {
	err = to.Do(func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		listener, err = config.Listen(context.Background(), "tcp4", net.JoinHostPort(addr, "0"))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = from.Do(func() (err error) {
		dialer := net.Dialer{Timeout: stall}
		dialer.SetMultipathTCP(false)
		conn, err = dialer.Dial("tcp4", listener.Addr().String())
		return err
	})
	if err != nil {
		listener.Close()
		return nil, nil, err
	}
	return conn, listener, nil
}

// A sum is one end's view of a transfer. MD5, since the emulator does SHA-256 at a tenth of its speed and it is
// accidents that are looked for here.
type sum struct {
	n   int64
	md5 [md5.Size]byte
	err error
}

func send(conn net.Conn, n int64) (s sum) {
	defer conn.Close()
	// One random block and a counter: random enough for every misplaced segment to show, and cheap.
	block := make([]byte, 64<<10)
	rng := rand.NewPCG(1, uint64(n))
	for i := 0; i < len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], rng.Uint64())
	}
	hash := md5.New()
	for s.n < n && s.err == nil {
		for i := 0; i < len(block); i += 1 << 10 {
			binary.BigEndian.PutUint64(block[i:], uint64(s.n)+uint64(i))
		}
		part := block[:min(int64(len(block)), n-s.n)]
		conn.SetDeadline(time.Now().Add(stall))
		var wrote int
		wrote, s.err = conn.Write(part)
		s.n += int64(wrote)
		hash.Write(part[:wrote])
	}
	hash.Sum(s.md5[:0])
	return s
}

func receive(listener net.Listener) (s sum) {
	conn, err := listener.Accept()
	if err != nil {
		return sum{err: err}
	}
	defer conn.Close()
	hash, buf := md5.New(), make([]byte, 256<<10)
	for {
		conn.SetDeadline(time.Now().Add(stall))
		n, err := conn.Read(buf)
		hash.Write(buf[:n])
		s.n += int64(n)
		if err != nil {
			hash.Sum(s.md5[:0])
			if err != io.EOF {
				s.err = err
			}
			return s
		}
	}
}

// ListenUDP opens a socket in the namespace, for a test to receive with.
func (ns *NS) ListenUDP(t T, addr string) *net.UDPConn {
	t.Helper()
	var conn net.PacketConn
	err := ns.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", addr)
		return err
	})
	if err != nil {
		t.Fatalf("in %s: %v", ns.Name, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UDPConn)
}

// SendUDP sends one datagram whose source may be any address: a raw socket asks nobody.
func (ns *NS) SendUDP(t T, src, dst string, payload []byte) {
	t.Helper()
	packet := IPv4UDP(src, dst, payload)
	err := ns.Do(func() error {
		conn, err := rawSocket()
		if err != nil {
			return err
		}
		defer conn.Close()
		return conn.send(packet, netip.MustParseAddrPort(dst).Addr().As4())
	})
	if err != nil {
		t.Fatalf("in %s: send UDP from %s to %s: %v", ns.Name, src, dst, err)
	}
}

// IPv4UDP is a UDP packet with its IPv4 header. Sent as the payload of another to a FOU port, it comes out of the
// tunnel.
func IPv4UDP(src, dst string, payload []byte) []byte {
	from, to := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	udp := binary.BigEndian.AppendUint16(nil, from.Port())
	udp = binary.BigEndian.AppendUint16(udp, to.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(udp, 0, 0)
	udp = append(udp, payload...)
	pseudo := binary.BigEndian.AppendUint16([]byte{0, 17}, uint16(len(udp)))
	check := checksum(from.Addr().AsSlice(), to.Addr().AsSlice(), pseudo, udp)
	if check == 0 {
		check = 0xffff // 0 would say that there is none
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return ipv4(17, from.Addr(), to.Addr(), udp)
}

// IPv4Echo is an ICMP echo request with its IPv4 header.
func IPv4Echo(src, dst string, id, seq uint16) []byte {
	icmp := []byte{8, 0, 0, 0}
	icmp = binary.BigEndian.AppendUint16(icmp, id)
	icmp = binary.BigEndian.AppendUint16(icmp, seq)
	icmp = append(icmp, bytes.Repeat([]byte("lab "), 14)...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return ipv4(1, netip.MustParseAddr(src), netip.MustParseAddr(dst), icmp)
}

func ipv4(proto byte, src, dst netip.Addr, payload []byte) []byte {
	header := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(header[2:], uint16(20+len(payload)))
	header = append(append(header, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(header[10:], checksum(header))
	return append(header, payload...)
}

// checksum is the Internet's, over parts of which only the last may be odd in length.
func checksum(parts ...[]byte) uint16 {
	var total uint32
	for _, part := range parts {
		for i, b := range part {
			total += uint32(b) << (8 * (1 - i&1))
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return ^uint16(total)
}
