package authd

import (
	"encoding/binary"
	"fmt"
)

// Inner is what a tunnel's data is: the UDP payload that the receiver of the FOU
// port hands to the tunnel. It is a set, as one port may carry several kinds:
// InnerIPv4|InnerIPv6. Data is told from authentications by its looks alone, in
// userspace as by a [Filter].
type Inner uint8

// The kinds of data. The zero Inner is InnerIPv4.
const (
	// InnerIPv4 (mode ipip) is a payload of 20 bytes or more that begins with
	// the nibble 4 and whose bytes 2 and 3 hold its length (RFC 791).
	InnerIPv4 Inner = 1 << iota

	// InnerGRE (mode gre) is a payload of 20 bytes or more that begins with one
	// of these GRE headers (RFC 2784, RFC 2890):
	//
	//	00 00 | 08 00 or 86 dd             4 bytes: flags and version, protocol type
	//	20 00 | 08 00 or 86 dd | key (4)   8 bytes
	//
	// and whose inner IPv4 total length (bytes 2 and 3 of what follows), or
	// inner IPv6 payload length (bytes 4 and 5, RFC 8200) and 40, plus the GRE
	// header is the payload's length. GRE checksums and sequence numbers are
	// not known: data with them looks like a wrong authentication.
	InnerGRE

	// InnerIPv6 is a payload of 40 bytes or more that begins with the nibble 6
	// and whose bytes 4 and 5 hold its length less 40 (RFC 8200).
	InnerIPv6

	innerAll = InnerIPv4 | InnerGRE | InnerIPv6
)

// greForms are the headers of InnerGRE. What is most likely comes first, as a
// filter looks for one after the other.
var greForms = []struct {
	word  uint32 // the first 4 bytes
	lenAt int    // offset of the inner length in the payload
	rest  int    // bytes of the payload that the inner length does not count
}{
	{0x20000800, 8 + 2, 8},
	{0x00000800, 4 + 2, 4},
	{0x200086dd, 8 + 4, 8 + ip6HeaderLen},
	{0x000086dd, 4 + 4, 4 + ip6HeaderLen},
}

// kinds is in, less the zero Inner.
func (in Inner) kinds() Inner {
	if in == 0 {
		return InnerIPv4
	}
	return in
}

// has reports whether in holds kind.
func (in Inner) has(kind Inner) bool { return in.kinds()&kind != 0 }

func (in Inner) validate() error {
	if in&^innerAll != 0 {
		return fmt.Errorf("%#x is no kind of data", uint8(in&^innerAll))
	}
	return nil
}

// looks reports whether a UDP payload is tunnel data by its looks: the test that
// [Filter] does in the kernel.
func (in Inner) looks(p []byte) bool {
	if len(p) < ipHeaderLen {
		return false
	}
	switch v := p[0] >> 4; {
	case v == 4 && in.has(InnerIPv4):
		return int(binary.BigEndian.Uint16(p[2:])) == len(p)
	case v == 6 && in.has(InnerIPv6):
		return int(binary.BigEndian.Uint16(p[4:]))+ip6HeaderLen == len(p)
	case !in.has(InnerGRE):
		return false
	}
	for _, f := range greForms {
		if binary.BigEndian.Uint32(p) == f.word {
			return int(binary.BigEndian.Uint16(p[f.lenAt:]))+f.rest == len(p)
		}
	}
	return false
}
