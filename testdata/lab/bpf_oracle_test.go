package lab

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// An inlet is where a tunnel's packets arrive, and takes what has to become of a frame there: written again from the
// RFCs, for the programs to be compared with.
type inlet struct {
	mac            []byte
	local, peer    string
	port, peerPort uint16 // 0: no UDP
}

// takes is the packet that comes out of the tunnel for a frame, nil if none must.
func (in inlet) takes(frame []byte) []byte {
	if len(frame) < 14 || !bytes.Equal(frame[:6], in.mac) || frame[12] != 8 || frame[13] != 0 {
		return nil
	}
	outer, payload := takeIPv4(frame[14:])
	if outer == nil || checksum(outer) != 0 || binary.BigEndian.Uint16(outer[6:])&0x3fff != 0 {
		return nil
	}
	local, peer := netip.MustParseAddr(in.local).As4(), netip.MustParseAddr(in.peer).As4()
	if [4]byte(outer[12:]) != peer || [4]byte(outer[16:]) != local {
		return nil
	}
	proto, whole := outer[9], false
	if in.port != 0 {
		if proto != 17 || len(payload) < 8 {
			return nil
		}
		size := int(binary.BigEndian.Uint16(payload[4:]))
		if binary.BigEndian.Uint16(payload) != in.peerPort || binary.BigEndian.Uint16(payload[2:]) != in.port ||
			size < 8 || size > len(payload) {
			return nil
		}
		payload, whole = payload[8:size], true
	} else if proto != 4 && proto != 41 {
		return nil
	}
	size := 0
	switch inner := payload; {
	case len(inner) >= 20 && inner[0]>>4 == 4 && proto != 41:
		if header, _ := takeIPv4(inner); header == nil {
			return nil
		}
		size = int(binary.BigEndian.Uint16(inner[2:]))
	case len(inner) >= 40 && inner[0]>>4 == 6 && proto != 4:
		size = 40 + int(binary.BigEndian.Uint16(inner[4:]))
	}
	// In UDP there is data that is longer than its header says: an authentication may look like that.
	if size == 0 || size > len(payload) || whole && size != len(payload) {
		return nil
	}
	return decapsulated(outer[1], payload)
}

// takeIPv4 is a packet's header, nil if that is wrong (RFC 791), and what follows; what follows the packet is not.
func takeIPv4(b []byte) (header, payload []byte) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return nil, nil
	}
	words, total := int(b[0]&15), int(binary.BigEndian.Uint16(b[2:]))
	if words < 5 || total < words*4 || total > len(b) {
		return nil, nil
	}
	return b[:words*4], b[words*4 : total]
}

// decapsulated is a packet with the ECN that it has to have behind a tunnel, nil if it must be dropped: figure 4 of
// RFC 6040, which is the kernel's __INET_ECN_decapsulate too. Rows are the inner ECN, columns the outer one: not ECT,
// ECT(1), ECT(0), CE.
func decapsulated(outerTOS byte, inner []byte) []byte {
	const drop = 4
	table := [4][4]byte{{0, 0, 0, drop}, {1, 1, 1, 3}, {2, 1, 2, 3}, {3, 3, 3, 3}}
	to := table[tos(inner)&3][outerTOS&3]
	if to == drop {
		return nil
	}
	return withTOS(inner, tos(inner)&^3|to)
}

// tos is either version's.
func tos(packet []byte) byte {
	if packet[0]>>4 == 6 {
		return byte(binary.BigEndian.Uint16(packet) >> 4)
	}
	return packet[1]
}

// withTOS changes a packet's TOS, and what follows from it: a checksum that was wrong stays wrong.
func withTOS(packet []byte, to byte) []byte {
	b := bytes.Clone(packet)
	if b[0]>>4 == 6 {
		binary.BigEndian.PutUint16(b, binary.BigEndian.Uint16(b)&0xf00f|uint16(to)<<4)
		return b
	}
	if b[1] == to {
		return b
	}
	// RFC 1624: HC' = ~(~HC + ~m + m')
	sum := uint32(^binary.BigEndian.Uint16(b[10:])) + uint32(^binary.BigEndian.Uint16(b))
	b[1] = to
	sum += uint32(binary.BigEndian.Uint16(b))
	sum = sum>>16 + sum&0xffff
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}
