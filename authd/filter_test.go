package authd

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
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
	if pkt[hl+8]>>4 != 4 || int(binary.BigEndian.Uint16(pkt[hl+10:])) != n {
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
	)
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
	s := FilterSpec{Src: clientAddr}
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
	ins := Filter(FilterSpec{Dst: []netip.Addr{serverAddr.Addr()}, Ports: []uint16{serverAddr.Port()}})
	for _, tt := range []struct {
		name string
		pkt  []byte
		want int
	}{
		{"TCP", edit(BuildUDP(clientAddr, serverAddr, 64, nil), 9, 6), 5},
		{"other UDP", BuildUDP(serverAddr, clientAddr, 64, data(84)), 8},
		{"data", BuildUDP(clientAddr, serverAddr, 64, data(84)), 17},
		{"data put together", BuildUDP(clientAddr, serverAddr, 64, data(15000)), 3},
	} {
		// The fewest instructions that a VM given just those returns from.
		if got := steps(ins, tt.pkt); got != tt.want {
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
	for _, p := range [][]byte{nil, data(20), data(84), make([]byte, 73), data(1473)} {
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
	const all = 20000
	for range all {
		dst := netip.AddrPortFrom(serverAddr.Addr(), 9999+uint16(rnd.IntN(8)))
		payload := data(20 + rnd.IntN(80))
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
