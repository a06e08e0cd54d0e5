package authd

import (
	"encoding/binary"
	"slices"
)

// Inner is what a tunnel's data is: the UDP payload that the kernel's FOU
// receiver hands to the tunnel. Data is told from authentications by its looks
// alone, in userspace as by a [Filter].
type Inner uint8

const (
	// InnerIPv4 (mode ipip) is a payload of 20 bytes or more that begins with
	// the nibble 4 and whose bytes 2 and 3 hold its length (RFC 791).
	InnerIPv4 Inner = iota

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
	{0x200086dd, 8 + 4, 8 + 40},
	{0x000086dd, 4 + 4, 4 + 40},
}

// looks reports whether a UDP payload is tunnel data by its looks: the test that
// [Filter] does in the kernel.
func (in Inner) looks(p []byte) bool {
	if len(p) < ipHeaderLen {
		return false
	}
	if in == InnerIPv4 {
		return p[0]>>4 == 4 && int(binary.BigEndian.Uint16(p[2:])) == len(p)
	}
	for _, f := range greForms {
		if binary.BigEndian.Uint32(p) == f.word {
			return int(binary.BigEndian.Uint16(p[f.lenAt:]))+f.rest == len(p)
		}
	}
	return false
}

// looksLike reports whether p is data of one of kinds.
func looksLike(p []byte, kinds ...Inner) bool {
	return slices.ContainsFunc(kinds, func(in Inner) bool { return in.looks(p) })
}
