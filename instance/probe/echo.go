package probe

import (
	"encoding/binary"
	"errors"
)

// An echo is an ICMP echo request, and what its reply has to repeat.
type echo struct {
	id, seq uint16
	nonce   [8]byte // known to who saw the request, and to nobody else
}

// echoLen is the length of an echo message, in bytes, as RFC 792 and RFC 4443 have it:
//
//	0    type: 8 and 0, request and reply; ICMPv6: 128 and 129
//	1    code: 0
//	2-3  checksum
//	4-5  identifier
//	6-7  sequence number
//	8-15 data: the nonce
const echoLen = 16

const (
	request4, reply4 = 8, 0
	request6, reply6 = 128, 129
)

// request is the message; ICMPv6's checksum is the kernel's to fill in (RFC 3542, 3.1).
func (e echo) request(v6 bool) []byte {
	b := make([]byte, echoLen)
	b[0] = request4
	if v6 {
		b[0] = request6
	}
	binary.BigEndian.PutUint16(b[4:], e.id)
	binary.BigEndian.PutUint16(b[6:], e.seq)
	copy(b[8:], e.nonce[:])
	if !v6 {
		binary.BigEndian.PutUint16(b[2:], ^sum(b))
	}
	return b
}

var errNoReply = errors.New("no echo reply")

// parseReply reads what a raw socket receives: with IPv4 the whole packet, with IPv6 the
// message alone, whose checksum the kernel has verified (raw(7), ipv6(7)).
func parseReply(b []byte, v6 bool) (e echo, err error) {
	kind := byte(reply6)
	if !v6 {
		kind = reply4
		if len(b) < 20 || b[0]>>4 != 4 {
			return e, errNoReply
		}
		head := int(b[0]&0xf) * 4
		if head < 20 || head > len(b) {
			return e, errNoReply
		}
		b = b[head:]
	}
	if len(b) != echoLen || b[0] != kind || b[1] != 0 || !v6 && sum(b) != 0xffff {
		return e, errNoReply
	}
	e.id, e.seq = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:])
	copy(e.nonce[:], b[8:])
	return e, nil
}

// sum is the ones' complement sum of RFC 1071. b has an even length.
func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}
