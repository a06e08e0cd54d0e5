package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// A hostile host is on a cable with a tunnel's end, and sends it frames from the peer's address.
type hostile struct {
	*wire
	inlet
	from            sender
	inside, outside *tap
	marks           uint16
}

// A thrown is a frame, and what has to come out of the tunnel for it; nothing if that is nil.
type thrown struct {
	name  string
	frame []byte
	want  []byte
}

const hostilePort = 5555

// newHostile is a cable with a tunnel at b, whose peer a is made up of frames. The cable takes jumbo frames.
func newHostile(t testing.TB, udp bool) *hostile {
	t.Helper()
	h := newHostileWire(t)
	args := []string{"--static", "--backend", "bpf", "--mode", "any4", "--fou-dev", "b0", "--tunl-ip", "10.9.0.2/24,fd09::2/64"}
	if udp {
		args = append(args, "--encap", "fou", "--fou-local-port", fmt.Sprint(hostilePort), "--fou-remote", "192.0.2.1:6666")
		h.port, h.peerPort = hostilePort, 6666
	} else {
		args = append(args, "--encap", "none", "--fou-remote-ip", "192.0.2.1")
	}
	static(t, h.dir, end{h.b, args})
	h.listen(t)
	return h
}

func newHostileWire(t testing.TB) *hostile {
	t.Helper()
	seeded(t)
	h := &hostile{wire: newWire(t), inlet: inlet{mac: []byte{2, 0, 0, 0, 2, 1}, local: "192.0.2.2", peer: "192.0.2.1"}}
	h.a.batch(t, "link set a0 mtu 9000")
	// All strangers are there too: one whose hardware address is not known could not be answered.
	lines := []string{"link set b0 mtu 9000"}
	for i := 3; i < 255; i++ {
		lines = append(lines, fmt.Sprintf("neigh add 192.0.2.%d lladdr 02:00:00:00:01:01 dev b0", i))
	}
	h.b.batch(t, lines...)
	return h
}

func (h *hostile) listen(t testing.TB) {
	t.Helper()
	h.from, h.inside, h.outside = h.a.sender(t, "a0"), h.b.Tap(t, "ipipou0"), h.a.Tap(t, "a0")
}

// ethernet puts an IP packet into a frame for the end.
func (in inlet) ethernet(packet []byte) []byte {
	return slices.Concat(in.mac, []byte{2, 0, 0, 0, 1, 1, 8, 0}, packet)
}

// outer is a header as the peer sends it.
func (in inlet) outer() header {
	return header{src: in.peer, dst: in.local, proto: 17, flags: 0x4000}
}

// wrap puts an inner packet, or what is to be taken for one, into an outer header.
func (in inlet) wrap(h header, inner []byte) []byte {
	if in.port != 0 {
		return h.packet(bareUDP(in.peerPort, in.port, inner))
	}
	h.proto = 4
	if len(inner) > 0 && inner[0]>>4 == 6 {
		h.proto = 41
	}
	return h.packet(inner)
}

// good are valid inner packets, which nobody answers: they are for somebody else, and the end is no router.
func good(payload []byte) (inner4, inner6 []byte) {
	inner4 = header{src: "10.9.1.1", dst: "10.9.0.77", proto: 253, id: 7}.packet(payload)
	return inner4, header{src: "fd09:1::1", dst: "fd09::77", proto: 253}.packet(payload)
}

// mark is a good frame that there was not before, and what comes of it.
func (h *hostile) mark() (frame, inner []byte) {
	h.marks++
	inner, _ = good(binary.BigEndian.AppendUint16([]byte("mark "), h.marks))
	return h.ethernet(h.wrap(h.outer(), inner)), inner
}

// throw sends frames and then a good one, and returns what came out of the tunnel before that.
func (h *hostile) throw(t testing.TB, frames ...[]byte) [][]byte {
	t.Helper()
	mark, inner := h.mark()
	h.from.send(t, append(slices.Clone(frames), mark)...)
	return h.inside.take(t, inner)
}

// check throws all, each by itself.
func (h *hostile) check(t *testing.T, all []thrown) {
	t.Helper()
	for _, c := range all {
		var want [][]byte
		if c.want != nil {
			want = [][]byte{c.want}
		}
		if takes := h.takes(c.frame); !bytes.Equal(takes, c.want) {
			t.Errorf("%s: the test does not know itself what must come of it:\n% x or\n% x", c.name, c.want, takes)
		}
		if got := h.throw(t, c.frame); !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("%s: frame\n% x\ncame out as\n% x\nwant\n% x", c.name, c.frame, got, want)
		}
	}
	h.silent(t)
}

// silent checks that the end has told nobody of anything that was for the tunnel.
func (h *hostile) silent(t testing.TB) {
	t.Helper()
	h.marks++
	echo := icmpPacket(8, 0, uint32(h.marks), nil)
	h.from.send(t, h.ethernet(header{src: h.peer, dst: h.local, proto: 1}.packet(echo)))
	answer := icmpPacket(0, 0, uint32(h.marks), nil)
	before, _ := h.outside.takeUntil(t, "echo reply", func(f []byte) bool { return bytes.HasSuffix(f, answer) })
	if errors := unreachables(before, h.notOurs); errors != nil {
		t.Errorf("the end answered: %s", strings.Join(errors, "\n"))
	}
}

// notOurs reports whether a packet was not for the tunnel, but for the host: then that answers as it likes. Without UDP,
// it is the peer's address that makes a packet the tunnel's; others may have tunnels of the kernel's to this host.
func (in inlet) notOurs(packet []byte) bool {
	ours := packet[9] == 4 || packet[9] == 41
	if in.port == 0 {
		return !ours || netip.AddrFrom4([4]byte(packet[12:])).String() != in.peer
	}
	port := packet[int(packet[0]&15)*4+2:]
	return packet[9] != 17 || binary.BigEndian.Uint16(port) != in.port
}

// edited is a copy of an IPv4 packet with some octets changed, and its header's checksum right again.
func edited(packet []byte, at int, octets ...byte) []byte {
	b := bytes.Clone(packet)
	copy(b[at:], octets)
	return rightIPv4(b)
}

func be16(n int) []byte { return binary.BigEndian.AppendUint16(nil, uint16(n)) }

// bad are frames made from an inner packet that is right, with what has to come of each.
func (in inlet) bad(inner []byte) (all []thrown) {
	whole := in.wrap(in.outer(), inner)
	add := func(want []byte, packet []byte, format string, args ...any) {
		name := fmt.Sprintf("IPv%d: ", inner[0]>>4) + fmt.Sprintf(format, args...)
		all = append(all, thrown{name, in.ethernet(packet), want})
	}
	headers := len(whole) - len(inner)
	add(inner, whole, "whole")

	// Shorter than it says, and what it says shorter than it is.
	for n := range len(whole) {
		add(nil, whole[:n], "cut to %d octets", n)
		add(nil, edited(whole, 2, be16(n)...), "outer length %d", n)
	}
	for n := 20; n < len(whole); n++ {
		short := edited(whole, 2, be16(n)...)[:n]
		if in.port != 0 && n >= 28 {
			copy(short[24:], be16(n-20))
		}
		add(nil, short, "all but the inner length cut to %d", n)
	}
	for _, n := range []int{len(whole) + 1, len(whole) + 8, 65535} {
		add(nil, edited(whole, 2, be16(n)...), "outer length %d", n)
	}
	for words := range 16 {
		if words != 5 {
			add(nil, edited(whole, 0, 0x40|byte(words)), "outer header of %d words", words)
		}
	}
	for version := range 16 {
		if version != 4 {
			add(nil, edited(whole, 0, byte(version)<<4|5), "outer version %d", version)
		}
	}
	wrong := bytes.Clone(whole)
	wrong[10]++
	add(nil, wrong, "outer checksum wrong")
	for _, ttl := range []byte{0, 1, 255} {
		add(inner, edited(whole, 8, ttl), "outer TTL %d", ttl)
	}
	add(inner, edited(whole, 6, 0, 0), "no DF")
	add(inner, edited(whole, 6, 0xc0, 0), "the reserved flag")

	// Parts of a datagram; also ones that would be whole datagrams by themselves.
	for i, part := range cut3(whole) {
		add(nil, part, "part %d of 3", i+1)
	}
	for _, flags := range [][]byte{{0x20, 0}, {0x20, 1}, {0, 1}, {0x60, 0}, {0x1f, 0xff}} {
		add(nil, edited(whole, 6, flags...), "flags and offset % x", flags)
	}

	// Not the peer, or not for us.
	add(nil, edited(whole, 12, 192, 0, 2, 66), "a stranger's")
	add(nil, edited(whole, 12, 192, 0, 2, 2), "our own source")
	if in.port != 0 {
		add(nil, edited(whole, 20, be16(int(in.peerPort)+1)...), "another port of the peer's")
		add(nil, edited(whole, 20, 0, 0), "source port 0")
		for n := range 8 + len(inner) {
			add(nil, edited(whole, 24, be16(n)...), "UDP length %d", n)
		}
		for _, n := range []int{8 + len(inner) + 1, 65535} {
			add(nil, edited(whole, 24, be16(n)...), "UDP length %d", n)
		}
		add(inner, edited(append(bytes.Clone(whole), 1, 2, 3), 2, be16(len(whole)+3)...), "outer packet longer than the datagram")
		sum := checksum(append(append(append([]byte{}, whole[12:20]...), 0, 17), whole[24:26]...), whole[20:])
		add(inner, edited(whole, 26, be16(int(sum))...), "with a UDP checksum")
		add(nil, in.outer().packet(bareUDP(in.peerPort, in.port, nil)), "empty datagram")
		add(nil, in.wrap(in.outer(), append(bytes.Clone(inner), 0)), "an octet behind the inner packet")
	} else {
		longer := append(bytes.Clone(inner), 1, 2, 3)
		add(longer, in.wrap(in.outer(), longer), "octets behind the inner packet")
		add(nil, in.outer().packet(nil)[:20], "no inner packet")
		swapped := in.outer()
		swapped.proto = 4 + 41 - whole[9]
		add(nil, swapped.packet(inner), "protocol %d", swapped.proto)
	}

	// A switch pads what is short, and some add more.
	for _, n := range []int{1, 6, 100} {
		add(inner, append(bytes.Clone(whole), bytes.Repeat([]byte{0xaa}, n)...), "%d octets behind the packet", n)
	}
	for what, options := range map[string][]byte{
		"no-ops": {1, 1, 1, 0}, "the longest": append(bytes.Repeat([]byte{1}, 39), 0),
		"record route": {7, 7, 8, 192, 0, 2, 1, 0}, "time stamp": {68, 8, 9, 0, 1, 2, 3, 4}, "router alert": {148, 4, 0, 0},
	} {
		outer := in.outer()
		outer.options = options
		add(inner, in.wrap(outer, inner), "outer option %s", what)
		for n := 20; n < 20+len(options)+headers-20; n++ {
			add(nil, in.wrap(outer, inner)[:n], "outer option %s, cut to %d octets", what, n)
		}
	}

	// Inside.
	for version := range 16 {
		b := bytes.Clone(inner)
		b[0] = byte(version)<<4 | b[0]&15
		if version != int(inner[0]>>4) {
			packet := in.wrap(in.outer(), b)
			packet[9] = whole[9]
			add(nil, rightIPv4(packet), "inner version %d", version)
		}
	}
	if inner[0]>>4 == 4 {
		for words := range 16 {
			b := edited(inner, 0, 0x40|byte(words))
			want := b
			if words < 5 || words*4 > len(b) {
				want = nil
			}
			add(want, in.wrap(in.outer(), b), "inner header of %d words", words)
		}
	}
	at, base := 2, 0
	if inner[0]>>4 == 6 {
		at, base = 4, 40
	}
	for _, n := range []int{0, 1, 19, 20, 21, len(inner) - 1, len(inner) + 1, len(inner) + 8, 65535} {
		b := bytes.Clone(inner)
		copy(b[at:], be16(max(0, n-base)))
		if at == 2 {
			b = rightIPv4(b)
		}
		var want []byte
		if in.port == 0 && n >= max(20, base) && n <= len(b) {
			want = b // there is more behind it
		}
		if base > 0 && n < base {
			want = map[bool][]byte{true: b}[in.port == 0] // says that it has no payload
		}
		add(want, in.wrap(in.outer(), b), "inner length %d", n)
	}
	return all
}

// cut3 cuts an IPv4 packet into three parts.
func cut3(p []byte) (parts [][]byte) {
	const size = 16
	payload := p[20:]
	for at, flags := 0, byte(0x20); len(payload) > 0; at += size {
		n := min(size, len(payload))
		if at == 2*size {
			n, flags = len(payload), 0
		}
		part := append(bytes.Clone(p[:20]), payload[:n]...)
		copy(part[2:], be16(20+n))
		copy(part[4:], []byte{0x12, 0x34, flags, byte(at / 8)})
		parts, payload = append(parts, rightIPv4(part)), payload[n:]
	}
	return parts
}

// odd are right packets of uncommon kinds.
func (in inlet) odd() (all []thrown) {
	add := func(what string, inner []byte) {
		all = append(all, thrown{what, in.ethernet(in.wrap(in.outer(), inner)), inner})
	}
	headers := 20
	if in.port != 0 {
		headers = 28
	}
	for _, n := range []int{0, 1, 2, 3, 5, 7, 9, 11, 1431, 1432, 1433, 1451, 1452, 1453, 1471, 1473, 4001, 9000 - headers - 40} {
		inner4, inner6 := good(bytes.Repeat([]byte{0xa5}, n))
		add(fmt.Sprintf("IPv4 with %d octets", n), inner4)
		add(fmt.Sprintf("IPv6 with %d octets", n), inner6)
	}
	h4, h6 := header{src: "10.9.0.1", dst: "10.9.0.77", proto: 253}, header{src: "fd09::1", dst: "fd09::77", proto: 253}
	h4.options = []byte{7, 7, 4, 0, 0, 0, 0, 0}
	add("inner options", h4.packet([]byte("options")))
	h4.options = bytes.Repeat([]byte{1}, 40)
	add("the longest inner options", h4.packet(nil))
	h4.options = nil
	for _, flags := range []uint16{0x2000, 0x2001, 0x1fff, 0x8000} {
		h4.flags = flags
		add(fmt.Sprintf("inner flags and offset %x", flags), h4.packet([]byte("0123456789abcdef")))
	}
	h4.flags = 0
	for _, ttl := range []byte{1, 2, 255} {
		h4.ttl, h6.ttl = ttl, ttl
		add(fmt.Sprintf("inner TTL %d", ttl), h4.packet(nil))
		add(fmt.Sprintf("inner hop limit %d", ttl), h6.packet(nil))
	}
	b := h4.packet([]byte("checksum"))
	b[10] ^= 0x55
	add("inner checksum wrong", b)
	for what, extension := range map[string]struct {
		next    byte
		headers []byte
	}{
		"hop-by-hop":   {0, []byte{253, 0, 1, 4, 0, 0, 0, 0}},
		"destination":  {60, []byte{253, 0, 1, 4, 0, 0, 0, 0}},
		"fragment":     {44, []byte{253, 0, 0, 1, 0, 0, 0, 9}},
		"routing":      {43, []byte{253, 0, 4, 0, 0, 0, 0, 0}},
		"three":        {0, []byte{60, 0, 1, 4, 0, 0, 0, 0, 44, 0, 1, 4, 0, 0, 0, 0, 253, 0, 0, 0, 0, 0, 0, 9}},
		"none follows": {59, nil},
	} {
		h6.proto = extension.next
		add("IPv6 extension header "+what, h6.packet(append(bytes.Clone(extension.headers), "payload"...)))
	}
	return all
}

// What a peer sends, whoever it is and whatever that has become of on its way, comes out of the tunnel as it went in, or
// not at all; and nobody is told of it.
func TestBPFHostile(t *testing.T) {
	for name, udp := range map[string]bool{"fou": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostile(t, udp)
			inner4, inner6 := good([]byte("hostile"))
			t.Run("bad", func(t *testing.T) { h.check(t, append(h.bad(inner4), h.bad(inner6)...)) })
			t.Run("odd", func(t *testing.T) { h.check(t, h.odd()) })
			t.Run("mutated", h.mutated)
			for peer, counts := range bpfCounters(t, h.b, "b0") {
				if n := counts["failed"]; n > 0 {
					t.Errorf("peer %d: the kernel could not change %d packets", peer, n)
				}
			}
		})
	}
}

// mutated throws good frames of which some bits were changed at random, always the same ones.
func (h *hostile) mutated(t *testing.T) {
	n := 20000
	if InGuest() {
		n = 3000
	}
	rng := rand.New(rand.NewPCG(41, 4))
	inner4, inner6 := good([]byte("a payload that is long enough to be taken for headers, and more"))
	var bases [][]byte
	for _, inner := range [][]byte{inner4, inner6, inner4[:20:20]} {
		outer := h.outer()
		if len(inner) == 20 {
			inner = edited(inner, 2, 0, 20)
			outer.options = []byte{1, 1, 1, 0}
		}
		bases = append(bases, h.ethernet(h.wrap(outer, inner)))
	}
	var came, nothing int
	for done := 0; done < n; {
		var frames, want [][]byte
		for range 50 {
			f := mutate(rng, bases[rng.IntN(len(bases))])
			frames = append(frames, f)
			if inner := h.takes(f); inner != nil {
				want = append(want, inner)
			}
			done++
		}
		came, nothing = came+len(want), nothing+len(frames)-len(want)
		if got := h.throw(t, frames...); slices.EqualFunc(got, want, bytes.Equal) {
			continue
		}
		for _, f := range frames { // which one was it?
			var want [][]byte
			if inner := h.takes(f); inner != nil {
				want = [][]byte{inner}
			}
			if got := h.throw(t, f); !slices.EqualFunc(got, want, bytes.Equal) {
				t.Errorf("frame\n% x\ncame out as\n% x\nwant\n% x", f, got, want)
			}
		}
		if !t.Failed() {
			t.Errorf("50 frames came out otherwise together than each by itself")
		}
		return
	}
	t.Logf("%d came out, %d did not", came, nothing)
	if came < n/20 || nothing < n/20 {
		t.Errorf("of %d frames %d had to come out, and %d not: that tests little", n, came, nothing)
	}
	h.silent(t)
}

// mutate changes a few octets of a frame, or its length, and most often makes the outer checksum right again.
func mutate(rng *rand.Rand, base []byte) []byte {
	f := bytes.Clone(base)
	const ip = 14
	// What is behind the addresses decides more, and a stranger's is dropped whatever it says.
	spots := []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 19}
	for range 1 + rng.IntN(3) {
		at := ip + 20 + rng.IntN(len(f)-ip-20)
		if rng.IntN(2) == 0 {
			at = ip + spots[rng.IntN(len(spots))]
		}
		switch rng.IntN(3) {
		case 0:
			f[at] = byte(rng.UintN(256))
		case 1:
			f[at] ^= 1 << rng.UintN(8)
		default:
			f[at] += byte(rng.UintN(5)) - 2
		}
	}
	switch rng.IntN(8) {
	case 0:
		f = f[:ip+20+rng.IntN(len(f)-ip-20)]
	case 1:
		f = append(f, make([]byte, rng.IntN(30))...)
	}
	if rng.IntN(4) > 0 && len(f) >= ip+20 {
		rightIPv4(f[ip:])
	}
	return f
}

// To a server of which nobody is a peer yet, all are strangers: nothing comes out, and the port is silent.
func TestBPFHostileUnbound(t *testing.T) {
	t.Parallel()
	h := newHostileWire(t)
	h.port, h.peerPort = 10000, 6666
	server := startIPIPOU(t, h.dir, h.b, "-s", "--backend", "bpf", "--mode", "any4", "--fou-dev", "b0", "--auth-token", "a token of the lab's",
		"--tunl-ip", "10.9.0.2/24,fd09::2/64", "--verb", "3")
	server.WaitLog(t, `waiting for an authentication`, commandTimeout)
	h.listen(t)
	fence := h.b.ListenUDP(t, "192.0.2.2:2001")
	inner4, inner6 := good([]byte("hostile"))
	var frames [][]byte
	for _, c := range append(append(h.bad(inner4), h.bad(inner6)...), h.odd()...) {
		frames = append(frames, c.frame)
	}
	// From nobody's port, as the entry of a peer has it that is not bound.
	nobody := h.outer()
	nobody.src = "0.0.0.0"
	for _, inner := range [][]byte{inner4, inner6} {
		frames = append(frames, h.ethernet(nobody.packet(bareUDP(0, 10000, inner))))
	}
	frames = append(frames, h.ethernet(h.outer().packet(bareUDP(6666, 2001, []byte("all of them are there")))))
	h.from.send(t, frames...)
	fence.SetReadDeadline(time.Now().Add(commandTimeout))
	if _, err := fence.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if got := h.inside.all(); len(got) > 0 {
		t.Errorf("came out of the tunnel:\n% x", got)
	}
	h.silent(t)
	// Another port's answer would have been heard.
	h.from.send(t, h.ethernet(h.outer().packet(bareUDP(6666, 10001, []byte("nobody is there")))))
	h.outside.takeUntil(t, "port unreachable", func(b []byte) bool { return unreachables([][]byte{b}, nil) != nil })
	stop(t, server)
}
