package authd

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
)

const (
	// maxDst and maxRanges bound what the kernel compares; beyond them it
	// passes too much and the look-up in userspace decides.
	maxDst    = 8
	maxRanges = 32

	// snapLen is what an accepted packet is cut to: all of it.
	snapLen = 0xffff

	// looksBase plus the UDP length is what the first word of an inner IPv4
	// header, masked by looksMask (version and total length), is in a data
	// packet. Other kinds of data are brought to the same form.
	looksBase = 4<<28 - udpHeaderLen
	looksMask = 0xf000ffff

	// minInnerUDP is the least UDP length of data.
	minInnerUDP = udpHeaderLen + ipHeaderLen
)

// FilterSpec says which packets a packet socket lets through.
type FilterSpec struct {
	Dst   []netip.Addr   // destination addresses, IPv4; none or more than 8: any
	Ports []uint16       // destination ports; beyond 32 ranges: all from the lowest to the highest
	Src   netip.AddrPort // valid: only from here
	Inner Inner          // what is data, on all Ports

	// InnerLens are payload lengths in bytes at which what looks like data
	// passes nevertheless: those of tokens that look so.
	// Beyond 32: all from the shortest to the longest.
	InnerLens []int

	// AnyPayload lets what looks like data pass, if it comes from RemoteIP
	// (if valid) and RemotePort (if not 0) and not from Peer (if valid): on
	// an address-only tunnel data authenticates its sender, until that one
	// is the bound peer.
	AnyPayload bool
	Peer       netip.AddrPort
	RemoteIP   netip.Addr
	RemotePort uint16
}

// Filter compiles s to classic BPF for a packet socket of type SOCK_DGRAM, where
// offset 0 is the IPv4 header (packet(7), net/packet/af_packet.c). It passes
// unfragmented IPv4 UDP packets to s.Dst and s.Ports with at most 1472 bytes of
// payload, but for tunnel data as s.Inner tells it. Payloads of a wrong length
// pass, so that they are logged.
//
// It runs for every IPv4 packet that the host receives, so the order is that of
// what is frequent: not UDP, not our port, data, and then all the rest. Loads
// beyond the end of a packet drop it.
func Filter(s FilterSpec) []bpf.Instruction {
	var a asm

	if !s.AnyPayload {
		// Most of a tunnel's bytes come in packets that the kernel has put together
		// to be larger than any authentication.
		a.add(bpf.LoadExtension{Num: bpf.ExtLen})
		a.jump(bpf.JumpGreaterThan, 15*4+udpHeaderLen+maxPayload, "drop")
	}
	a.add(bpf.LoadAbsolute{Off: 9, Size: 1})
	a.jump(bpf.JumpNotEqual, protoUDP, "drop")
	a.add(bpf.LoadMemShift{Off: 0})
	a.add(bpf.LoadIndirect{Off: 2, Size: 2})
	a.ports(mergePorts(s.Ports), true)

	a.label("port")
	a.add(bpf.LoadIndirect{Off: 4, Size: 2})
	a.jump(bpf.JumpGreaterThan, udpHeaderLen+maxPayload, "drop")
	a.jump(bpf.JumpLessThan, minInnerUDP, "rest")
	a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: looksBase})
	a.add(bpf.StoreScratch{Src: bpf.RegA, N: 0})
	a.add(bpf.LoadIndirect{Off: udpHeaderLen, Size: 4})
	a.kinds(s.Inner)
	a.add(bpf.LoadScratch{Dst: bpf.RegX, N: 0})
	a.jumpX(bpf.JumpNotEqual, "rest")
	a.inner(s)

	a.label("rest")
	a.add(bpf.LoadAbsolute{Off: 6, Size: 2})
	a.jump(bpf.JumpBitsSet, 0x3fff, "drop") // more fragments, or an offset
	a.add(bpf.LoadAbsolute{Off: 0, Size: 1})
	a.jump(bpf.JumpLessThan, 0x45, "drop") // version 4, header of 20 bytes or more
	a.jump(bpf.JumpGreaterThan, 0x4f, "drop")
	if n := len(s.Dst); n > 0 && n <= maxDst {
		a.add(bpf.LoadAbsolute{Off: 16, Size: 4})
		for _, d := range s.Dst {
			a.jump(bpf.JumpEqual, ipv4(d), "dst")
		}
		a.add(bpf.RetConstant{Val: 0})
		a.label("dst")
	}
	if s.Src.IsValid() {
		a.add(bpf.LoadAbsolute{Off: 12, Size: 4})
		a.jump(bpf.JumpNotEqual, ipv4(s.Src.Addr()), "drop")
		a.add(bpf.LoadMemShift{Off: 0})
		a.add(bpf.LoadIndirect{Off: 0, Size: 2})
		a.jump(bpf.JumpNotEqual, uint32(s.Src.Port()), "drop")
	}
	a.add(bpf.RetConstant{Val: snapLen})
	a.label("drop")
	a.add(bpf.RetConstant{Val: 0})
	return a.link()
}

// kinds takes the payload's first word in A to what looksBase describes, if that
// may be data of one of kinds, else it goes to "rest". What is of no other kind
// falls through to IPv4, the likeliest.
func (a *asm) kinds(kinds Inner) {
	label := func(word uint32) string { return fmt.Sprintf("GRE %08x", word) }
	if kinds.has(InnerGRE) {
		for _, f := range greForms {
			a.jump(bpf.JumpEqual, f.word, label(f.word))
		}
	}
	if kinds.has(InnerIPv6) {
		a.jump(bpf.JumpGreaterOrEqual, 6<<28, "IPv6")
	}
	if kinds.has(InnerIPv4) {
		a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: looksMask})
	} else {
		a.jumpAlways("rest")
	}
	// length makes of an inner length what looksBase makes of the payload's.
	length := func(at, rest int) {
		a.add(bpf.LoadIndirect{Off: uint32(udpHeaderLen + at), Size: 2})
		a.add(bpf.ALUOpConstant{Op: bpf.ALUOpAdd, Val: 4<<28 + uint32(rest)})
	}
	before := kinds.has(InnerIPv4)
	begin := func(name string) {
		if before {
			a.jumpAlways("compare")
		}
		before = true
		a.label(name)
	}
	if kinds.has(InnerGRE) {
		for _, f := range greForms {
			begin(label(f.word))
			length(f.lenAt, f.rest)
		}
	}
	if kinds.has(InnerIPv6) {
		begin("IPv6")
		a.jump(bpf.JumpGreaterThan, 6<<28|0x0fffffff, "rest")
		length(4, ip6HeaderLen)
	}
	a.label("compare")
}

// inner decides what becomes of a packet that looks like data. A holds the
// masked word that looksBase describes.
func (a *asm) inner(s FilterSpec) {
	if !s.AnyPayload {
		lens := slices.Clone(s.InnerLens)
		slices.Sort(lens)
		lens = slices.Compact(lens)
		if n := len(lens); n > maxRanges {
			a.jump(bpf.JumpLessThan, 4<<28+uint32(lens[0]), "data")
			a.jump(bpf.JumpLessOrEqual, 4<<28+uint32(lens[n-1]), "rest")
		} else {
			for _, l := range lens {
				a.jump(bpf.JumpEqual, 4<<28+uint32(l), "rest")
			}
		}
		a.label("data")
		a.add(bpf.RetConstant{Val: 0})
		return
	}
	if s.Peer.IsValid() {
		a.add(bpf.LoadAbsolute{Off: 12, Size: 4})
		a.jump(bpf.JumpNotEqual, ipv4(s.Peer.Addr()), "other")
		a.add(bpf.LoadMemShift{Off: 0})
		a.add(bpf.LoadIndirect{Off: 0, Size: 2})
		a.jump(bpf.JumpEqual, uint32(s.Peer.Port()), "drop")
		a.label("other")
	}
	if s.RemoteIP.IsValid() {
		a.add(bpf.LoadAbsolute{Off: 12, Size: 4})
		a.jump(bpf.JumpNotEqual, ipv4(s.RemoteIP), "drop")
	}
	if s.RemotePort != 0 {
		a.add(bpf.LoadMemShift{Off: 0})
		a.add(bpf.LoadIndirect{Off: 0, Size: 2})
		a.jump(bpf.JumpNotEqual, uint32(s.RemotePort), "drop")
	}
}

// portRange is lo to hi, both included.
type portRange struct{ lo, hi uint16 }

// mergePorts returns the fewest ranges that hold just ports, in order; if they
// are more than maxRanges, one that holds them all.
func mergePorts(ports []uint16) []portRange {
	ports = slices.Clone(ports)
	slices.Sort(ports)
	var rs []portRange
	for _, p := range ports {
		if n := len(rs); n > 0 && int(p) <= int(rs[n-1].hi)+1 {
			rs[n-1].hi = p
			continue
		}
		rs = append(rs, portRange{p, p})
	}
	if n := len(rs); n > maxRanges {
		return []portRange{{rs[0].lo, rs[n-1].hi}}
	}
	return rs
}

// ports goes to "port" if A is in one of rs, else to "drop". It is a binary
// search, as foreign UDP traffic passes here too. The last leaf falls through
// to "port".
func (a *asm) ports(rs []portRange, last bool) {
	if len(rs) == 0 {
		a.add(bpf.RetConstant{Val: 0})
		return
	}
	if len(rs) > 1 {
		mid := len(rs) / 2
		right := fmt.Sprintf("ports %d", rs[mid].lo)
		a.jump(bpf.JumpGreaterOrEqual, uint32(rs[mid].lo), right)
		a.ports(rs[:mid], false)
		a.label(right)
		a.ports(rs[mid:], last)
		return
	}
	if r := rs[0]; r.lo == r.hi {
		a.jump(bpf.JumpNotEqual, uint32(r.lo), "drop")
	} else {
		a.jump(bpf.JumpLessThan, uint32(r.lo), "drop")
		a.jump(bpf.JumpGreaterThan, uint32(r.hi), "drop")
	}
	if !last {
		a.jumpAlways("port")
	}
}

func ipv4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// asm gathers instructions whose jumps name labels instead of distances.
type asm struct {
	ins    []bpf.Instruction
	target []string // of each jump, else ""
	labels map[string]int
}

func (a *asm) add(i bpf.Instruction) {
	a.ins = append(a.ins, i)
	a.target = append(a.target, "")
}

func (a *asm) label(name string) {
	if a.labels == nil {
		a.labels = make(map[string]int)
	}
	a.labels[name] = len(a.ins)
}

func (a *asm) jump(cond bpf.JumpTest, val uint32, label string) {
	a.ins = append(a.ins, bpf.JumpIf{Cond: cond, Val: val})
	a.target = append(a.target, label)
}

func (a *asm) jumpX(cond bpf.JumpTest, label string) {
	a.ins = append(a.ins, bpf.JumpIfX{Cond: cond})
	a.target = append(a.target, label)
}

func (a *asm) jumpAlways(label string) {
	a.ins = append(a.ins, bpf.Jump{})
	a.target = append(a.target, label)
}

// link resolves the labels. The bounds maxDst and maxRanges keep every distance
// under the 255 that a conditional jump has room for.
func (a *asm) link() []bpf.Instruction {
	for i, l := range a.target {
		if l == "" {
			continue
		}
		to, ok := a.labels[l]
		skip := to - i - 1
		if !ok || skip < 0 || skip > 255 {
			panic(fmt.Sprintf("authd: BPF jump from %d to %q at %d", i, l, to))
		}
		switch j := a.ins[i].(type) {
		case bpf.JumpIf:
			j.SkipTrue = uint8(skip)
			a.ins[i] = j
		case bpf.JumpIfX:
			j.SkipTrue = uint8(skip)
			a.ins[i] = j
		case bpf.Jump:
			j.Skip = uint32(skip)
			a.ins[i] = j
		}
	}
	return a.ins
}
