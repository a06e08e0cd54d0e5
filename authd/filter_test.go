package authd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/bpf"

	"github.com/google/go-cmp/cmp"
)

// data returns what is an inner IPv4 datagram of n bytes by its looks.
func data(n int) []byte {
	b := make([]byte, n)
	b[0] = 0x45
	binary.BigEndian.PutUint16(b[2:], uint16(n))
	return b
}

// data6 returns what is an inner IPv6 datagram of n bytes, 40 or more, by its
// looks.
func data6(n int) []byte {
	b := make([]byte, n)
	b[0] = 0x60
	binary.BigEndian.PutUint16(b[4:], uint16(n-40))
	return b
}

func passes(t testing.TB, s FilterSpec, pkt []byte) bool {
	t.Helper()
	vm, err := bpf.NewVM(Filter(s))
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(pkt)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// passesOracle says in plain Go what Filter is to do.
func passesOracle(s FilterSpec, pkt []byte) bool {
	if len(pkt) < ipHeaderLen || pkt[0]>>4 != 4 || pkt[9] != 17 {
		return false
	}
	if !s.AnyPayload && len(pkt) > 60+8+1472 {
		return false
	}
	hl := int(pkt[0]&0xf) * 4
	if hl < ipHeaderLen || len(pkt) < hl+6 || binary.BigEndian.Uint16(pkt[6:])&0x3fff != 0 {
		return false
	}
	src := netip.AddrPortFrom(netip.AddrFrom4([4]byte(pkt[12:])), binary.BigEndian.Uint16(pkt[hl:]))
	dst := netip.AddrPortFrom(netip.AddrFrom4([4]byte(pkt[16:])), binary.BigEndian.Uint16(pkt[hl+2:]))

	ports := 0 // runs of them, by their first
	for _, p := range slices.Compact(slices.Sorted(slices.Values(s.Ports))) {
		if p == 0 || !slices.Contains(s.Ports, p-1) {
			ports++
		}
	}
	switch {
	case ports == 0:
		return false
	case ports > 32 && (dst.Port() < slices.Min(s.Ports) || dst.Port() > slices.Max(s.Ports)):
		return false
	case ports <= 32 && !slices.Contains(s.Ports, dst.Port()):
		return false
	}
	if len(s.Dst) > 0 && len(s.Dst) <= 8 && !slices.Contains(s.Dst, dst.Addr()) {
		return false
	}
	if s.Src.IsValid() && s.Src != src {
		return false
	}
	n := int(binary.BigEndian.Uint16(pkt[hl+4:])) - 8
	if n > 1472 {
		return false
	}
	if n < 20 {
		return true
	}
	if len(pkt) < hl+12 {
		return false
	}
	short, isData := oracleData(s, pkt[hl+8:], n)
	if short {
		return false
	}
	if !isData {
		return true
	}
	if s.AnyPayload {
		return (!s.Peer.IsValid() || s.Peer != src) &&
			(!s.RemoteIP.IsValid() || s.RemoteIP == src.Addr()) &&
			(s.RemotePort == 0 || s.RemotePort == src.Port())
	}
	if distinct := slices.Compact(slices.Sorted(slices.Values(s.InnerLens))); len(distinct) > 32 {
		return n >= distinct[0] && n <= distinct[len(distinct)-1]
	}
	return slices.Contains(s.InnerLens, n)
}

// oracleData says whether a payload of n bytes, of which b is there, is data, and
// whether b is too short to tell.
func oracleData(s FilterSpec, b []byte, n int) (short, isData bool) {
	at := func(i int) int { // the 16 bits at i
		if len(b) < i+2 {
			short = true
			return 0
		}
		return int(b[i])<<8 | int(b[i+1])
	}
	if s.Inner == 0 || s.Inner&InnerIPv4 != 0 {
		isData = b[0]>>4 == 4 && at(2) == n
	}
	if s.Inner&InnerIPv6 != 0 && b[0]>>4 == 6 {
		isData = 40+at(4) == n
	}
	if s.Inner&InnerGRE == 0 {
		return short, isData
	}
	switch binary.BigEndian.Uint32(b) {
	case 0x00000800:
		isData = 4+at(6) == n
	case 0x20000800:
		isData = 8+at(10) == n
	case 0x000086dd:
		isData = 4+40+at(8) == n
	case 0x200086dd:
		isData = 8+40+at(12) == n
	}
	return short, isData
}

func TestFilter(t *testing.T) {
	var (
		other  = netip.MustParseAddrPort("203.0.113.9:9")
		plain  = FilterSpec{Dst: []netip.Addr{serverAddr.Addr()}, Ports: []uint16{serverAddr.Port()}}
		client = FilterSpec{Dst: []netip.Addr{clientAddr.Addr()}, Ports: []uint16{clientAddr.Port()}, Src: serverAddr}
		token  = plain
		open   = plain
		bound  = plain
		strict = plain
		fixed  = plain
		gre    = plain
		both   = plain
	)
	gre.Inner = InnerGRE
	both.Inner = InnerIPv4 | InnerGRE
	ip6, dual, all := plain, plain, plain
	ip6.Inner, dual.Inner, all.Inner = InnerIPv6, InnerIPv4|InnerIPv6, innerAll
	dualToken, dualOpen, dualBound := dual, dual, dual
	dualToken.InnerLens = []int{60}
	dualOpen.AnyPayload = true
	dualBound.AnyPayload, dualBound.Peer = true, clientAddr
	greToken, bothToken, greOpen, greBound := gre, both, gre, gre
	greToken.InnerLens = []int{40}
	bothToken.InnerLens = []int{40}
	greOpen.AnyPayload = true
	greBound.AnyPayload, greBound.Peer = true, clientAddr
	token.InnerLens = []int{40, 24}
	open.AnyPayload = true
	bound.AnyPayload, bound.Peer = true, clientAddr
	strict.AnyPayload, strict.RemoteIP = true, clientAddr.Addr()
	fixed.AnyPayload, fixed.RemotePort = true, clientAddr.Port()

	// nine addresses are more than the kernel compares
	many := plain
	many.Dst = nil
	for i := range byte(9) {
		many.Dst = append(many.Dst, netip.AddrFrom4([4]byte{10, 0, 0, i}))
	}
	eight := many
	eight.Dst = many.Dst[:8]

	to := func(payload []byte) []byte { return BuildUDP(clientAddr, serverAddr, 64, payload) }
	from := func(src netip.AddrPort, payload []byte) []byte { return BuildUDP(src, serverAddr, 64, payload) }
	reply := func(payload []byte) []byte { return BuildUDP(serverAddr, clientAddr, 64, payload) }
	otherPort := netip.AddrPortFrom(clientAddr.Addr(), clientAddr.Port()+1)
	signed := to(make([]byte, SignedLen))

	for _, tt := range []struct {
		name string
		spec FilterSpec
		pkt  []byte
		want bool
	}{
		{"empty", plain, to(nil), true},
		{"one byte", plain, to([]byte{1}), true},
		{"signed", plain, signed, true},
		{"wrong length", plain, to(make([]byte, 72)), true},
		{"longest", plain, to(make([]byte, 1472)), true},
		{"too long", plain, to(make([]byte, 1473)), false},
		{"padded", plain, append(to(nil), make([]byte, 18)...), true},
		{"padded like data", plain, append(to(nil), data(20)...), true},
		{"padded beyond any authentication", plain, append(to(nil), make([]byte, 1513)...), false},
		{"options", plain, withOptions(signed, 4), true},
		{"all options", plain, withOptions(signed, 40), true},
		{"don't fragment", plain, edit(signed, 6, 0x40), true},
		{"first fragment", plain, edit(signed, 6, 0x20), false},
		{"later fragment", plain, edit(signed, 6, 0, 3), false},
		{"version 6", plain, edit(signed, 0, 0x65), false},
		{"short header", plain, edit(signed, 0, 0x44), false},
		{"TCP", plain, edit(signed, 9, 6), false},
		{"ICMP", plain, edit(signed, 9, 1), false},
		{"nothing", plain, nil, false},
		{"header only", plain, signed[:20], false},
		{"other address", plain, BuildUDP(clientAddr, other, 64, nil), false},
		{"other port", plain, BuildUDP(clientAddr, clientAddr, 64, nil), false},
		{"no ports", FilterSpec{}, signed, false},

		{"data", plain, to(data(20)), false},
		{"longer data", plain, to(data(1400)), false},
		{"data with options outside", plain, withOptions(to(data(84)), 8), false},
		{"data padded", plain, append(to(data(20)), make([]byte, 6)...), false},
		{"data with options inside", plain, to(edit(data(84), 0, 0x4f)), false},
		{"19 bytes", plain, to(data(19)), true},
		{"inner length less", plain, to(edit(data(84), 2, 0, 83)), true},
		{"inner length more", plain, to(edit(data(84), 2, 0, 85)), true},
		{"inner IPv6", plain, to(edit(data(84), 0, 0x60)), true},

		{"token of that length", token, to(data(40)), true},
		{"token of another length", token, to(data(41)), false},
		{"the shorter token", token, to(data(24)), true},

		{"open: data", open, to(data(84)), true},
		{"open: empty", open, to(nil), true},
		{"open: too long", open, to(data(1473)), false},
		{"open: fragment", open, edit(to(data(84)), 6, 0x20), false},
		{"bound: the peer's data", bound, to(data(84)), false},
		{"bound: the peer's data, options", bound, withOptions(to(data(84)), 12), false},
		{"bound: the peer again", bound, to(nil), true},
		{"bound: data of another port", bound, from(otherPort, data(84)), true},
		{"bound: data of another address", bound, from(other, data(84)), true},
		{"strict: data of it", strict, to(data(84)), true},
		{"strict: data of another", strict, from(other, data(84)), false},
		{"strict: auth of another, to be logged", strict, from(other, nil), true},
		{"fixed: data of it", fixed, to(data(84)), true},
		{"fixed: data of another", fixed, from(otherPort, data(84)), false},
		{"fixed: options", fixed, withOptions(to(data(84)), 16), true},

		{"GRE: IPv4 is not its data", gre, to(data(84)), true},
		{"GRE: empty", gre, to(nil), true},
		{"GRE: signed", gre, signed, true},
		{"GRE: wrong length", gre, to(greData(0x20000800, 84)[:83]), true},
		{"GRE: sequence number", gre, to(edit(greData(0x20000800, 84), 0, 0x30)), true},
		{"GRE: 19 bytes", gre, to(greData(0x00000800, 19)), true},
		{"GRE: 20 bytes", gre, to(greData(0x00000800, 20)), false},
		{"GRE: inner length not there", gre, to(greData(0x200086dd, 84))[:41], false},
		{"GRE: on an IPv4 tunnel", plain, to(greData(0x20000800, 84)), true},
		{"both: IPv4", both, to(data(84)), false},
		{"both: signed", both, signed, true},
		{"both: IPv4 of a wrong length", both, to(edit(data(84), 2, 0, 83)), true},
		{"GRE: token of that length", greToken, to(greData(0x20000800, 40)), true},
		{"GRE: token of another length", greToken, to(greData(0x20000800, 41)), false},
		{"both: token like IPv4", bothToken, to(data(40)), true},
		{"both: token like GRE", bothToken, to(greData(0x00000800, 40)), true},
		{"both: token of another length", bothToken, to(greData(0x00000800, 41)), false},
		{"GRE, open: data", greOpen, to(greData(0x200086dd, 84)), true},
		{"GRE, open: empty", greOpen, to(nil), true},
		{"GRE, bound: the peer's data", greBound, to(greData(0x200086dd, 84)), false},
		{"GRE, bound: the peer again", greBound, to(nil), true},
		{"GRE, bound: data of another", greBound, from(other, greData(0x20000800, 84)), true},

		{"IPv6: its data", ip6, to(data6(84)), false},
		{"IPv6: no next header", ip6, to(data6(40)), false},
		{"IPv6: 39 bytes", ip6, to(data6(40)[:39]), true},
		{"IPv6: 20 bytes", ip6, to(data6(40)[:20]), true},
		{"IPv6: longest", ip6, to(data6(1472)), false},
		{"IPv6: inner length less", ip6, to(edit(data6(84), 4, 0, 43)), true},
		{"IPv6: inner length more", ip6, to(edit(data6(84), 4, 0, 45)), true},
		{"IPv6: inner length of 17 bits", ip6, to(edit(data6(84), 4, 0xff, 0xff)), true},
		{"IPv6: inner length not there", ip6, to(data6(84))[:33], false},
		{"IPv6: flow label", ip6, to(edit(data6(84), 0, 0x6f, 0xff, 0xff, 0xff)), false},
		{"IPv6: version 5", ip6, to(edit(data6(84), 0, 0x5f)), true},
		{"IPv6: version 7", ip6, to(edit(data6(84), 0, 0x70)), true},
		{"IPv6: version 14", ip6, to(edit(data6(84), 0, 0xe0)), true},
		{"IPv6: data with options outside", ip6, withOptions(to(data6(84)), 8), false},
		{"IPv6: signed", ip6, signed, true},
		{"IPv6: empty", ip6, to(nil), true},
		{"IPv6: IPv4 is not its data", ip6, to(data(84)), true},
		{"IPv6: on an IPv4 tunnel", plain, to(data6(84)), true},
		{"IPv6: on a GRE tunnel", gre, to(data6(84)), true},
		{"IPv4 and IPv6: IPv4", dual, to(data(84)), false},
		{"IPv4 and IPv6: IPv6", dual, to(data6(84)), false},
		{"IPv4 and IPv6: IPv4 of a wrong length", dual, to(edit(data(84), 2, 0, 83)), true},
		{"IPv4 and IPv6: IPv6 of a wrong length", dual, to(edit(data6(84), 4, 0, 84)), true},
		{"IPv4 and IPv6: version 7", dual, to(edit(data6(84), 0, 0x70)), true},
		{"IPv4 and IPv6: signed", dual, signed, true},
		{"IPv4 and IPv6: GRE", dual, to(greData(0x200086dd, 84)), true},
		{"IPv4 and IPv6: token like IPv6", dualToken, to(data6(60)), true},
		{"IPv4 and IPv6: token like IPv4", dualToken, to(data(60)), true},
		{"IPv4 and IPv6: token of another length", dualToken, to(data6(61)), false},
		{"IPv4 and IPv6, open: data", dualOpen, to(data6(84)), true},
		{"IPv4 and IPv6, bound: the peer's IPv6", dualBound, to(data6(84)), false},
		{"IPv4 and IPv6, bound: the peer's IPv4", dualBound, to(data(84)), false},
		{"IPv4 and IPv6, bound: data of another", dualBound, from(other, data6(84)), true},
		{"all: IPv4", all, to(data(84)), false},
		{"all: IPv6", all, to(data6(84)), false},
		{"all: GRE", all, to(greData(0x20000800, 84)), false},
		{"all: signed", all, signed, true},

		{"client: reply", client, reply(make([]byte, 73)), true},
		{"client: reply, options", client, withOptions(reply(nil), 20), true},
		{"client: data", client, reply(data(84)), false},
		{"client: other address", client, BuildUDP(other, clientAddr, 64, nil), false},
		{"client: other port", client, BuildUDP(netip.AddrPortFrom(serverAddr.Addr(), 1), clientAddr, 64, nil), false},

		{"nine addresses: any", many, signed, true},
		{"eight addresses: none of them", eight, signed, false},
		{"eight addresses: the last", eight, BuildUDP(clientAddr, netip.MustParseAddrPort("10.0.0.7:10000"), 64, nil), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := passes(t, tt.spec, tt.pkt); got != tt.want {
				t.Errorf("passes %v", got)
			}
			if got := passesOracle(tt.spec, tt.pkt); got != tt.want {
				t.Errorf("the oracle says %v", got)
			}
		})
	}
}

func TestFilterGRE(t *testing.T) {
	for name, kinds := range map[string]Inner{
		"GRE":  InnerGRE,
		"both": InnerGRE | InnerIPv4,
		"all":  innerAll,
	} {
		s := FilterSpec{Ports: []uint16{serverAddr.Port()}, Inner: kinds}
		for _, h := range greWire {
			pkt := BuildUDP(clientAddr, serverAddr, 64, unhex(t, h))
			if passes(t, s, pkt) || passes(t, s, withOptions(pkt, 8)) {
				t.Errorf("%s: %s passes", name, h)
			}
		}
		for _, word := range greKinds {
			for n := 48; n <= maxPayload; n++ {
				good := greData(word, n)
				if passes(t, s, BuildUDP(clientAddr, serverAddr, 64, good)) {
					t.Errorf("%s: %08x of %d bytes passes", name, word, n)
				}
				if !passes(t, s, BuildUDP(clientAddr, serverAddr, 64, good[:n-1])) {
					t.Errorf("%s: %08x of %d bytes, cut, does not pass", name, word, n)
				}
			}
		}
	}
}

// On a server of IPv4 alone the filter is what it was before there were others.
func TestFilterIPv4Unchanged(t *testing.T) {
	want, err := os.ReadFile("testdata/filter-ipv4.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, kinds := range []Inner{0, InnerIPv4} {
		var got strings.Builder
		for i, s := range ipv4Specs() {
			s.Inner = kinds
			fmt.Fprintf(&got, "# %d\n", i)
			for _, in := range Filter(s) {
				fmt.Fprintln(&got, in)
			}
		}
		if diff := cmp.Diff(string(want), got.String()); diff != "" {
			t.Errorf("%v: %s", kinds, diff)
		}
	}
}

func TestFilterPorts(t *testing.T) {
	for name, ports := range map[string][]uint16{
		"one":       {10000},
		"run":       {10001, 10000, 10002, 10001},
		"two runs":  {10000, 10001, 20000, 20001},
		"ends":      {0, 65535},
		"32 ranges": everySecond(32),
		"33 ranges": everySecond(33),
	} {
		vm, err := bpf.NewVM(Filter(FilterSpec{Ports: ports}))
		if err != nil {
			t.Fatal(err)
		}
		lo, hi := slices.Min(ports), slices.Max(ports)
		for p := range 1 << 16 {
			pkt := BuildUDP(clientAddr, netip.AddrPortFrom(serverAddr.Addr(), uint16(p)), 64, nil)
			n, err := vm.Run(pkt)
			if err != nil {
				t.Fatal(err)
			}
			want := slices.Contains(ports, uint16(p))
			if name == "33 ranges" {
				want = uint16(p) >= lo && uint16(p) <= hi
			}
			if n > 0 != want {
				t.Errorf("%s: port %d passes: %v", name, p, n > 0)
			}
		}
	}
}

func everySecond(n int) []uint16 {
	var ps []uint16
	for i := range n {
		ps = append(ps, uint16(10000+2*i))
	}
	return ps
}

func TestMergePorts(t *testing.T) {
	for _, tt := range []struct {
		in   []uint16
		want []portRange
	}{
		{nil, nil},
		{[]uint16{5}, []portRange{{5, 5}}},
		{[]uint16{7, 5, 6, 6, 9}, []portRange{{5, 7}, {9, 9}}},
		{[]uint16{65535, 65534, 0}, []portRange{{0, 0}, {65534, 65535}}},
		{everySecond(33), []portRange{{10000, 10064}}},
	} {
		if diff := cmp.Diff(tt.want, mergePorts(tt.in), cmp.AllowUnexported(portRange{})); diff != "" {
			t.Error(diff)
		}
	}
}

// The largest filter must have jumps that its instructions can hold, and fit
// what the kernel takes (BPF_MAXINSNS).
func TestFilterLargest(t *testing.T) {
	s := FilterSpec{Src: clientAddr, Inner: innerAll}
	for i := range byte(maxDst) {
		s.Dst = append(s.Dst, netip.AddrFrom4([4]byte{10, 0, 0, i}))
	}
	for i := range maxRanges {
		s.Ports = append(s.Ports, uint16(4*i), uint16(4*i+1))
		s.InnerLens = append(s.InnerLens, 20+2*i)
	}
	raw, err := bpf.Assemble(Filter(s))
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4096 {
		t.Errorf("%d instructions", len(raw))
	}
	s.InnerLens = append(s.InnerLens, 400)
	if !passes(t, FilterSpec{Ports: []uint16{serverAddr.Port()}, InnerLens: s.InnerLens}, BuildUDP(clientAddr, serverAddr, 1, data(399))) {
		t.Error("more than 32 lengths: one between them does not pass")
	}
}

// Most of a host's packets are tunnel data or TCP. Their way through the filter
// is counted, so that a change that lengthens it is noticed.
func TestFilterCost(t *testing.T) {
	spec := FilterSpec{Dst: []netip.Addr{serverAddr.Addr()}, Ports: []uint16{serverAddr.Port()}}
	const (
		gre  = InnerGRE
		both = InnerIPv4 | InnerGRE
		dual = InnerIPv4 | InnerIPv6
	)
	to := func(payload []byte) []byte { return BuildUDP(clientAddr, serverAddr, 64, payload) }
	for _, tt := range []struct {
		name  string
		inner Inner
		pkt   []byte
		want  int
	}{
		{"TCP", 0, edit(to(nil), 9, 6), 5},
		{"other UDP", 0, BuildUDP(serverAddr, clientAddr, 64, data(84)), 8},
		{"data", 0, to(data(84)), 17},
		{"data put together", 0, to(data(15000)), 3},
		{"GRE, key, IPv4", gre, to(greData(0x20000800, 84)), 20},
		{"GRE, no key, IPv6", gre, to(greData(0x000086dd, 84)), 22},
		{"GRE put together", gre, to(greData(0x20000800, 15000)), 3},
		{"both: IPv4", both, to(data(84)), 22},
		{"both: GRE, key, IPv4", both, to(greData(0x20000800, 84)), 20},
		{"IPv6", InnerIPv6, to(data6(84)), 20},
		{"IPv4 and IPv6: IPv4", dual, to(data(84)), 19},
		{"IPv4 and IPv6: IPv6", dual, to(data6(84)), 20},
		{"IPv6 put together", dual, to(data6(15000)), 3},
	} {
		spec.Inner = tt.inner
		// The fewest instructions that a VM given just those returns from.
		if got := steps(Filter(spec), tt.pkt); got != tt.want {
			t.Errorf("%s: %d instructions, want %d", tt.name, got, tt.want)
		}
	}
}

// steps counts the instructions that run for pkt: those whose replacement by
// "accept" changes the verdict of a refused packet.
func steps(ins []bpf.Instruction, pkt []byte) int {
	n := 0
	for i := range ins {
		marked := slices.Clone(ins)
		marked[i] = bpf.RetConstant{Val: 7}
		// The VM wants the last instruction to be a return.
		vm, err := bpf.NewVM(marked)
		if err != nil {
			panic(err)
		}
		if v, err := vm.Run(pkt); err == nil && v == 7 {
			n++
		}
	}
	return n
}

// fuzzSpecs are what the oracle is compared for.
func fuzzSpecs() []FilterSpec {
	specs := ipv4Specs()
	for _, s := range specs {
		for kinds := InnerIPv4 + 1; kinds <= innerAll; kinds++ {
			s.Inner = kinds
			specs = append(specs, s)
		}
	}
	return specs
}

func ipv4Specs() []FilterSpec {
	base := FilterSpec{Dst: []netip.Addr{serverAddr.Addr()}, Ports: []uint16{10000, 10001, 10005}}
	client, token, open, bound, many := base, base, base, base, base
	client.Src = clientAddr
	token.InnerLens = []int{20, 84}
	open.AnyPayload, open.RemoteIP = true, clientAddr.Addr()
	bound.AnyPayload, bound.Peer, bound.RemotePort = true, clientAddr, clientAddr.Port()
	many.Dst, many.Ports = nil, everySecond(40)
	return []FilterSpec{base, client, token, open, bound, many}
}

func FuzzFilter(f *testing.F) {
	payloads := [][]byte{nil, data(20), data(84), make([]byte, 73), data(1473), data6(40), data6(84)}
	for _, word := range greKinds {
		payloads = append(payloads, greData(word, 84))
	}
	for _, p := range payloads {
		pkt := BuildUDP(clientAddr, serverAddr, 64, p)
		for i := range fuzzSpecs() {
			f.Add(byte(i), pkt)
		}
		f.Add(byte(0), withOptions(pkt, 8))
		f.Add(byte(0), edit(pkt, 6, 0x20))
		f.Add(byte(0), append(pkt, 0, 0))
	}
	specs := fuzzSpecs()
	f.Fuzz(func(t *testing.T, spec byte, pkt []byte) {
		s := specs[int(spec)%len(specs)]
		if got, want := passes(t, s, pkt), passesOracle(s, pkt); got != want {
			t.Fatalf("%+v: %x passes %v, want %v", s, pkt, got, want)
		}
	})
}

// Random packets near the borders, as random bytes hardly ever get past the
// protocol.
func TestFilterOracle(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	specs := fuzzSpecs()
	vms := make([]*bpf.VM, len(specs))
	for i, s := range specs {
		vm, err := bpf.NewVM(Filter(s))
		if err != nil {
			t.Fatal(err)
		}
		vms[i] = vm
	}
	pick := func(as ...netip.AddrPort) netip.AddrPort { return as[rnd.IntN(len(as))] }
	passed := 0
	const all = 60000
	for range all {
		dst := netip.AddrPortFrom(serverAddr.Addr(), 9999+uint16(rnd.IntN(8)))
		payload := data(20 + rnd.IntN(80))
		switch rnd.IntN(4) {
		case 0:
			payload = data6(40 + rnd.IntN(80))
		case 1, 2:
			payload = greData(greKinds[rnd.IntN(4)], 20+rnd.IntN(80))
		}
		if rnd.IntN(4) == 0 {
			payload = payload[:rnd.IntN(len(payload))]
		}
		pkt := BuildUDP(pick(clientAddr, clientAddr, serverAddr), pick(dst, dst, dst, clientAddr), 64, payload)
		if rnd.IntN(3) == 0 {
			pkt = withOptions(pkt, 4*rnd.IntN(11))
		}
		for range rnd.IntN(3) {
			i := rnd.IntN(min(len(pkt), 64))
			pkt[i] ^= 1 << rnd.IntN(8)
		}
		switch rnd.IntN(6) {
		case 0:
			pkt = pkt[:rnd.IntN(len(pkt)+1)]
		case 1:
			pkt = append(pkt, bytes.Repeat([]byte{0x45}, rnd.IntN(20))...)
		}
		i := rnd.IntN(len(specs))
		n, err := vms[i].Run(pkt)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := n > 0, passesOracle(specs[i], pkt); got != want {
			t.Fatalf("%+v: %x passes %v, want %v", specs[i], pkt, got, want)
		}
		if n > 0 {
			passed++
		}
	}
	if passed < all/20 || passed > all*19/20 {
		t.Errorf("%d of %d passed: the packets do not tell much", passed, all)
	}
}

func BenchmarkFilter(b *testing.B) {
	vm, err := bpf.NewVM(Filter(FilterSpec{Dst: []netip.Addr{serverAddr.Addr()}, Ports: []uint16{serverAddr.Port()}}))
	if err != nil {
		b.Fatal(err)
	}
	pkt := BuildUDP(clientAddr, serverAddr, 64, data(1400))
	for b.Loop() {
		vm.Run(pkt)
	}
}
