// Package datapath is the tunnels' data path on kernels without ipip, sit and
// fou: two BPF programs for tc(8), and the layout of the maps that they read.
//
// The programs (ipipou.bpf.c) are compiled when they change, not when ipipou is
// built; `make bpf` does it, and CI compares the result with what is embedded.
// They are loaded, attached and told of peers by bpftool(8) and tc(8), which plans
// call like all else. So what is here only writes bytes for bpftool: decimal, with
// blanks between. Where a plan does not know a value yet, ${NAME.le32} and the like
// stand for its bytes (see plans.Command).
package datapath

import (
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Object is the compiled programs "egress" and "ingress", an ELF file for
// little-endian hosts with BTF (as bpftool 5.10 and later reads it).
//
//go:embed ipipou.bpf.o
var Object []byte

// MaxLengths is how many different prefix lengths of one family a device's peers
// can have: each costs a look-up for each packet.
const MaxLengths = 12

// A Map is one that is made as large as an instance needs it, before the programs
// are loaded. Key and Value are in bytes.
type Map struct {
	Name, Type string
	Key, Value int
}

// The maps by what finds an entry and what it says.
//
//	devices    TUN device's ifindex: its Device
//	endpoints  where packets arrive (Endpoint): the same
//	prefixes   inner network (Prefix): number of the peer that has it
//	peers      number, from 1: the Peer
//	seen       number: seconds of uptime at the last packet, with a lifetime
//	counters   number, 0 for nobody: Counters, for each processor
var Maps = []Map{
	{"devices", "hash", 4, 48},
	{"endpoints", "hash", 8, 48},
	{"prefixes", "hash", 20, 4},
	{"peers", "array", 4, 16},
	{"seen", "array", 4, 4},
	{"counters", "percpu_array", 4, 8 * len(Counters)},
}

// Counters are the names of a peer's counters, in their order; each is 64 bits.
// All after the first four are drops.
var Counters = []string{
	"rx-packets", "rx-bytes", "tx-packets", "tx-bytes",
	"stranger", "source", "expired", "no-data", "fragment", "congested", "no-route", "too-big", "failed",
}

// A Device is a tunnel interface with its outer end: the value of devices and
// endpoints.
//
//	0   ifindex of the TUN device, and of the outer one
//	8   outer address, in network order
//	12  UDP port, in network order; 0: no UDP
//	14  what it carries: 1 IPv4, 2 IPv6; TTL (0: the inner one); TOS; 1: the inner TOS
//	18  group of its prefixes, 16 bits
//	20  the only peer, 0: by prefix
//	24  prefix lengths of IPv4, longest first, 255 behind them
//	36  the same of IPv6
type Device struct {
	Index, Outer, Local string // bytes, or what stands for them
	Port                uint16
	Inner4, Inner6      bool
	TTL, TOS            uint8
	InnerTOS            bool
	Open                bool // who authenticates by address only does it with data, too
	Group               int
	Sole                int
	Prefixes            []netip.Prefix
}

// Bytes is the map's value.
func (d Device) Bytes() string {
	inner := bit(d.Inner4) + 2*bit(d.Inner6)
	return join(d.Index, d.Outer, d.Local, Port(d.Port),
		octets(inner, int(d.TTL), int(d.TOS), bit(d.InnerTOS)+2*bit(d.Open), d.Group&255, d.Group>>8),
		Number(d.Sole), d.lengths(false), d.lengths(true))
}

func (d Device) lengths(is6 bool) string {
	out := Lengths(d.Prefixes, is6)
	for len(out) < MaxLengths {
		out = append(out, 255)
	}
	return octets(out...)
}

// Lengths are the different prefix lengths of a family, longest first.
func Lengths(prefixes []netip.Prefix, is6 bool) []int {
	var out []int
	for _, p := range prefixes {
		if p.Addr().Is6() == is6 && !slices.Contains(out, p.Bits()) {
			out = append(out, p.Bits())
		}
	}
	slices.SortFunc(out, func(a, b int) int { return b - a })
	return out
}

// Endpoint is a key of endpoints: the peer's outer address where there is no UDP
// and it is known, else four zeros; our UDP port, in network order; the outer IP
// protocol (17, 4 or 41); 0.
func Endpoint(remote string, port uint16, proto int) string {
	return join(remote, Port(port), octets(proto, 0))
}

// Prefix is a key of prefixes: the group, 16 bits; 4 or 6; the length; the
// address, 16 bytes, of which IPv4 fills the first four.
func Prefix(group int, p netip.Prefix) string {
	family := 4
	if p.Addr().Is6() {
		family = 6
	}
	address := p.Addr().AsSlice()
	for len(address) < 16 {
		address = append(address, 0)
	}
	return join(octets(group&255, group>>8, family, p.Bits()), addressBytes(address))
}

// Peer is a value of peers: outer address and UDP port, in network order; 16 bits
// of nothing; seconds of uptime when it was bound; seconds that it may be silent, 0
// for any time.
func Peer(address, port, since string, lifetime int) string {
	return join(address, port, octets(0, 0), since, Number(lifetime))
}

// Nobody is the Peer that is not bound.
var Nobody = Peer(Number(0), octets(0, 0), Number(0), 0)

// Number is 32 bits in host order.
func Number(n int) string { return octets(n&255, n>>8&255, n>>16&255, n>>24&255) }

// Port is 16 bits in network order.
func Port(n uint16) string { return octets(int(n>>8), int(n&255)) }

// Address is an IPv4 address in network order.
func Address(a netip.Addr) string { return addressBytes(a.AsSlice()) }

func addressBytes(b []byte) string { return strings.Trim(fmt.Sprint(b), "[]") }

func octets(n ...int) string { return strings.Trim(fmt.Sprint(n), "[]") }

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

func join(parts ...string) string { return strings.Join(parts, " ") }
