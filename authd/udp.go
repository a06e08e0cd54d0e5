package authd

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

const (
	ipHeaderLen  = 20
	ip6HeaderLen = 40
	udpHeaderLen = 8
	protoUDP     = 17
)

// Datagram is a UDP datagram over IPv4.
type Datagram struct {
	Src, Dst netip.AddrPort
	Payload  []byte
}

// BuildUDP returns an IPv4 packet of a UDP datagram: a 20 byte header without
// options (RFC 791), an 8 byte UDP header (RFC 768) and payload, lengths and
// checksums filled in. A UDP checksum that comes out as 0 is sent as 0xffff,
// as 0 means none. The identification is 0, which raw(7) replaces. src and dst
// must be IPv4, else it panics; payload has at most 65507 bytes.
func BuildUDP(src, dst netip.AddrPort, ttl uint8, payload []byte) []byte {
	n := ipHeaderLen + udpHeaderLen + len(payload)
	pkt := make([]byte, n)
	s, d := src.Addr().As4(), dst.Addr().As4()

	ip := pkt[:ipHeaderLen]
	ip[0] = 4<<4 | ipHeaderLen/4
	binary.BigEndian.PutUint16(ip[2:], uint16(n))
	ip[8] = ttl
	ip[9] = protoUDP
	copy(ip[12:], s[:])
	copy(ip[16:], d[:])
	binary.BigEndian.PutUint16(ip[10:], ^fold16(sum16(0, ip)))

	udp := pkt[ipHeaderLen:]
	binary.BigEndian.PutUint16(udp[0:], src.Port())
	binary.BigEndian.PutUint16(udp[2:], dst.Port())
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	copy(udp[udpHeaderLen:], payload)

	// The pseudo header of RFC 768.
	sum := sum16(0, s[:])
	sum = sum16(sum, d[:])
	sum += protoUDP + uint32(len(udp))
	check := ^fold16(sum16(sum, udp))
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return pkt
}

// ParseUDP takes apart an IPv4 packet as a packet socket of type SOCK_DGRAM
// gives it, IP options included; what the link padded is cut off by the UDP
// length. It returns [ErrMalformed] for a packet that is not IPv4 and UDP, is
// a fragment or ends early; then Src and Dst are set if they could be read.
// Payload is a part of pkt. Checksums are not verified: a sender on the same
// host leaves them to the network card, and the handshake notices damage.
func ParseUDP(pkt []byte) (Datagram, error) {
	var d Datagram
	if len(pkt) < ipHeaderLen {
		return d, fmt.Errorf("%w: %d bytes are no IPv4 header", ErrMalformed, len(pkt))
	}
	if v := pkt[0] >> 4; v != 4 {
		return d, fmt.Errorf("%w: IP version %d", ErrMalformed, v)
	}
	hl := int(pkt[0]&0xf) * 4
	if hl < ipHeaderLen {
		return d, fmt.Errorf("%w: IP header of %d bytes", ErrMalformed, hl)
	}
	if p := pkt[9]; p != protoUDP {
		return d, fmt.Errorf("%w: protocol %d is not UDP", ErrMalformed, p)
	}
	if binary.BigEndian.Uint16(pkt[6:])&0x3fff != 0 {
		return d, fmt.Errorf("%w: a fragment", ErrMalformed)
	}
	if len(pkt) < hl+udpHeaderLen {
		return d, fmt.Errorf("%w: truncated header", ErrMalformed)
	}
	udp := pkt[hl:]
	d.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(pkt[12:])), binary.BigEndian.Uint16(udp[0:]))
	d.Dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(pkt[16:])), binary.BigEndian.Uint16(udp[2:]))

	total, ul := int(binary.BigEndian.Uint16(pkt[2:])), int(binary.BigEndian.Uint16(udp[4:]))
	// The packet's bytes are shared with its way through the stack. Where that
	// ends at a FOU listener, fou_recv_pull (net/ipv4/fou_core.c) takes the UDP
	// header's length off the IP length under our eyes.
	if total > len(pkt) || ul < udpHeaderLen || hl+ul > min(total+udpHeaderLen, len(pkt)) {
		return d, fmt.Errorf("%w: UDP length %d, IP length %d, %d bytes there", ErrMalformed, ul, total, len(pkt))
	}
	d.Payload = udp[udpHeaderLen:ul:ul]
	return d, nil
}

// sum16 adds b to an Internet checksum (RFC 1071). b begins on an even offset.
func sum16(sum uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold16(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
