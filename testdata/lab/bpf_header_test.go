package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// A headerKind is a tunnel with what it is told of its outer headers.
type headerKind struct {
	mode, encap string
	version     int // of the inner packets
	ttl, tos    string
}

func (k headerKind) String() string {
	return fmt.Sprintf("%s %s, IPv%d, ttl %q, tos %q", k.mode, k.encap, k.version, k.ttl, k.tos)
}

// headerKinds are all of them that the kernel's drivers know too.
func headerKinds() (kinds []headerKind) {
	for mode, version := range map[string]int{"ipip": 4, "sit": 6} {
		for _, encap := range []string{"fou", "none"} {
			for _, told := range [][2]string{{"", ""}, {"77", ""}, {"inherit", "0x4a"}, {"", "inherit"}, {"5", "inherit"}} {
				kinds = append(kinds, headerKind{mode, encap, version, told[0], told[1]})
			}
		}
	}
	slices.SortFunc(kinds, func(a, b headerKind) int { return strings.Compare(a.String(), b.String()) })
	return kinds
}

// outer is what the packet has to go out as, but for its identification: a datagram that must not be cut needs none
// (RFC 6864). ECN is RFC 6040's normal mode, and INET_ECN_encapsulate's: CE goes on as ECT(0).
func (k headerKind) outer(in inlet, inner []byte) []byte {
	h := header{src: in.local, dst: in.peer, flags: 0x4000}
	switch {
	case k.ttl == "77":
		h.ttl = 77
	case k.ttl == "5":
		h.ttl = 5
	case k.version == 4:
		h.ttl = inner[8]
	default:
		h.ttl = inner[7]
	}
	switch k.tos {
	case "0x4a":
		h.tos = 0x48 // ECN is no part of it
	case "inherit":
		h.tos = tos(inner) &^ 3
	}
	h.tos |= [4]byte{0, 1, 2, 2}[tos(inner)&3]
	if in.port != 0 {
		h.proto = 17
		return h.packet(bareUDP(in.port, in.peerPort, inner))
	}
	h.proto = map[int]byte{4: 4, 6: 41}[k.version]
	return h.packet(inner)
}

// A headerWire has a tunnel of each kind at b.
type headerWire struct {
	*hostile
	kinds []headerKind
	procs []*Proc
}

// inletOf is the ith tunnel's.
func (w *headerWire) inletOf(i int) inlet {
	in := w.inlet
	in.peer = fmt.Sprintf("192.0.2.%d", 100+i) // a does not know that this is its own, and answers nothing
	if w.kinds[i].encap == "fou" {
		in.port, in.peerPort = uint16(5000+i), uint16(6000+i)
	}
	return in
}

func newHeaderWire(t testing.TB, backend string, kinds []headerKind) *headerWire {
	t.Helper()
	w := &headerWire{hostile: newHostileWire(t), kinds: kinds}
	lines := []string{"static = true", "backend = \"" + backend + "\"", "fou-dev = \"b0\""}
	for i, k := range kinds {
		in := w.inletOf(i)
		addr := fmt.Sprintf("10.9.%d.1/24", i)
		if k.version == 6 {
			addr = fmt.Sprintf("fd09:%d::1/64", i)
		}
		lines = append(lines, "[[tunnel]]", fmt.Sprint("number = ", i), "mode = \""+k.mode+"\"", "encap = \""+k.encap+"\"",
			"tunl-ip = \""+addr+"\"", "fou-remote-ip = \""+in.peer+"\"")
		if in.port != 0 {
			lines = append(lines, fmt.Sprint("fou-local-port = ", in.port), fmt.Sprint("fou-remote-port = ", in.peerPort))
		}
		if k.ttl != "" {
			lines = append(lines, "ttl = \""+k.ttl+"\"")
		}
		if k.tos != "" {
			lines = append(lines, "tos = \""+k.tos+"\"")
		}
	}
	w.procs = static(t, w.dir, end{w.b, []string{"--config", tomlFile(t, w.dir, backend, lines...)}})
	w.procs[0].WaitLog(t, fmt.Sprintf("ipipou%d: up", len(kinds)-1), commandTimeout)
	w.from, w.outside = w.a.sender(t, "a0"), w.a.Tap(t, "a0")
	return w
}

// inners are packets of a kind's version, each with its own payload, in all that matters to the outer header.
func (k headerKind) inners() (all [][]byte) {
	for i, tos := range []byte{0, 1, 2, 3, 0x48, 0xb9, 0xfe, 0xff} {
		h := header{src: "10.9.0.2", dst: "10.9.0.77", proto: 253, tos: tos, ttl: []byte{64, 1, 2, 255}[i%4], id: uint16(i), flags: uint16(i%2) << 14}
		if k.version == 6 {
			h.src, h.dst = "fd09::2", "fd09::77"
		}
		all = append(all, h.packet([]byte(fmt.Sprint("header ", i))))
	}
	return all
}

// sent is what becomes of inner packets on the wire, one for one.
func (w *headerWire) sent(t testing.TB, i int, inners [][]byte) (outers [][]byte) {
	t.Helper()
	out := w.b.sender(t, fmt.Sprint("ipipou", i))
	for _, inner := range inners {
		out.send(t, inner)
		_, frame := w.outside.takeUntil(t, fmt.Sprintf("with % x in it", inner), func(f []byte) bool { return bytes.HasSuffix(f, inner) })
		outers = append(outers, frame[14:])
	}
	return outers
}

// received is what comes out of a tunnel for each pair of an inner and an outer ECN, with no DSCP in common; nil where
// nothing does.
func (w *headerWire) received(t testing.TB, i int) (names []string, outers, inners [][]byte) {
	t.Helper()
	in, ear := w.inletOf(i), w.b.Tap(t, fmt.Sprint("ipipou", i))
	for outerTOS := range byte(4) {
		for innerTOS := range byte(4) {
			inner := w.kinds[i].inners()[0]
			inner = withTOS(inner, 0xb8|innerTOS)
			h := in.outer()
			h.tos, h.ttl = 0x44|outerTOS, 33
			outer := in.wrap(h, inner)
			w.marks++
			last := bytes.Clone(w.kinds[i].inners()[1])
			binary.BigEndian.PutUint16(last[len(last)-2:], w.marks)
			w.from.send(t, in.ethernet(outer), in.ethernet(in.wrap(in.outer(), last)))
			var got []byte
			switch all := ear.take(t, last); len(all) {
			case 0:
			case 1:
				got = all[0]
			default:
				t.Errorf("%s: several packets for one: % x", w.kinds[i], all)
			}
			names = append(names, fmt.Sprintf("outer ECN %d, inner ECN %d", outerTOS, innerTOS))
			outers, inners = append(outers, in.ethernet(outer)), append(inners, got)
		}
	}
	return names, outers, inners
}

// withoutID is an outer packet with an identification of zero: what the drivers give it is as good as any.
func withoutID(outer []byte) []byte { return edited(outer, 4, 0, 0) }

// checkOut compares the outer headers with what they have to be.
func (w *headerWire) checkOut(t *testing.T, i int, outers [][]byte) {
	t.Helper()
	k := w.kinds[i]
	for n, inner := range k.inners() {
		got, want := outers[n], k.outer(w.inletOf(i), inner)
		if checksum(got[:20]) != 0 {
			t.Errorf("%s: outer checksum of % x is not right", k, got[:20])
		}
		if !bytes.Equal(withoutID(got), want) {
			t.Errorf("%s: inner % x: went out as\n% x\nwant\n% x", k, inner, got, want)
		}
	}
}

// checkIn compares what came out of a tunnel with what had to.
func (w *headerWire) checkIn(t *testing.T, i int, names []string, outers, inners [][]byte) {
	t.Helper()
	for n, name := range names {
		if want := w.inletOf(i).takes(outers[n]); !bytes.Equal(inners[n], want) {
			t.Errorf("%s: %s: came out as\n% x\nwant\n% x", w.kinds[i], name, inners[n], want)
		}
		if got := inners[n]; got != nil && got[0]>>4 == 4 && checksum(got[:20]) != 0 {
			t.Errorf("%s: %s: the inner checksum is not right: % x", w.kinds[i], name, got)
		}
	}
}

// Outer headers are the drivers': TTL, TOS and ECN on the way out; and on the way in what the inner header is told of the
// outer one's ECN.
func TestBPFHeaders(t *testing.T) {
	t.Parallel()
	kinds := headerKinds()
	if InGuest() {
		kinds = nil // TestHeadersLikeKernel has those
	}
	for _, version := range []int{4, 6} {
		kinds = append(kinds, headerKind{"any4", "fou", version, "", ""}, headerKind{"any4", "none", version, "", "inherit"})
	}
	w := newHeaderWire(t, "bpf", kinds)
	for i := range kinds {
		outers := w.sent(t, i, kinds[i].inners())
		w.checkOut(t, i, outers)
		for _, outer := range outers {
			if id := binary.BigEndian.Uint16(outer[4:]); id != 0 {
				t.Errorf("%s: identification %d", kinds[i], id)
			}
		}
		names, frames, inners := w.received(t, i)
		w.checkIn(t, i, names, frames, inners)
	}
	stop(t, w.procs...)
}

// The same with the kernel's drivers: what this test takes for right is what they do.
func TestHeadersLikeKernel(t *testing.T) {
	t.Parallel()
	kinds := headerKinds()
	var outers, inners [2][][]byte
	for n, backend := range []string{"kernel", "bpf"} {
		w := newHeaderWire(t, backend, kinds)
		for i := range kinds {
			out := w.sent(t, i, kinds[i].inners())
			w.checkOut(t, i, out)
			for _, o := range out {
				outers[n] = append(outers[n], withoutID(o))
			}
			if kinds[i].ttl+kinds[i].tos != "" {
				continue // nothing to what comes in
			}
			names, frames, in := w.received(t, i)
			w.checkIn(t, i, names, frames, in)
			inners[n] = append(inners[n], in...)
		}
		stop(t, w.procs...)
	}
	if !slices.EqualFunc(outers[0], outers[1], bytes.Equal) || !slices.EqualFunc(inners[0], inners[1], bytes.Equal) {
		t.Errorf("outer headers differ, or inner ones:\n% x\n% x\n% x\n% x", outers[0], outers[1], inners[0], inners[1])
	}
}

// Where a large packet of TCP's is cut into several, each has right headers of its own.
func TestBPFSegmentHeaders(t *testing.T) {
	for _, encap := range []string{"fou", "none"} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			seeded(t)
			w := newWire(t)
			w.a.noOffload(t, "a0")
			static(t, w.dir, w.ends("any4", encap, "bpf", "bpf", true, true)...)
			in := inlet{mac: []byte{2, 0, 0, 0, 2, 1}, local: "192.0.2.2", peer: "192.0.2.1"}
			if encap == "fou" {
				in.port, in.peerPort = 10000, 10000
			}
			wire := w.b.Tap(t, "b0")
			const size = 300_000
			for _, to := range []string{"10.9.0.2", "fd09::2"} {
				if err := tcp(w.a, w.b, to, size); err != nil {
					t.Error(err)
				}
			}
			var data, largest [7]int
			wire.takeUntil(t, "the rest", func(f []byte) bool {
				if f[12] != 8 || f[13] != 0 || f[23] == 1 {
					return false // ARP, and ICMP
				}
				inner := in.takes(f)
				if inner == nil || len(f) > 1514 || binary.BigEndian.Uint16(f[20:]) != 0x4000 || in.port != 0 && binary.BigEndian.Uint16(f[40:]) != 0 {
					t.Errorf("not as it should be on the wire: % x", f[:min(len(f), 80)])
					return false
				}
				version := inner[0] >> 4
				data[version] += rightTCP(t, inner)
				largest[version] = max(largest[version], len(f)-14)
				return data[4] >= size && data[6] >= size
			})
			if largest[4] != 1500 || largest[6] != 1500 {
				t.Errorf("the largest packets have %d and %d octets", largest[4], largest[6])
			}
		})
	}
}

// rightTCP checks the sums of a whole packet with TCP in it, and returns how much that carries.
func rightTCP(t testing.TB, b []byte) int {
	t.Helper()
	var pseudo, segment []byte
	if b[0]>>4 == 4 {
		segment = b[20:]
		pseudo = b[12:20]
		if checksum(b[:20]) != 0 || int(binary.BigEndian.Uint16(b[2:])) != len(b) || b[9] != 6 {
			t.Errorf("inner header % x", b[:20])
		}
	} else {
		segment = b[40:]
		pseudo = b[8:40]
		if int(binary.BigEndian.Uint16(b[4:])) != len(segment) {
			t.Errorf("inner header % x", b[:40])
		}
		if b[6] != 6 {
			return 0 // what IPv6 does by itself
		}
	}
	if checksum(pseudo, []byte{0, 6}, be16(len(segment)), segment) != 0 {
		t.Errorf("TCP checksum: % x", b[:60])
	}
	return len(segment) - int(segment[12]>>4)*4
}
