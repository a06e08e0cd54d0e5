package authd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var (
	clientAddr = netip.MustParseAddrPort("198.51.100.7:4242")
	serverAddr = netip.MustParseAddrPort("198.51.100.1:10000")

	addrs = cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{})
)

// withOptions puts n bytes of no-operation options into an IPv4 header.
func withOptions(pkt []byte, n int) []byte {
	pkt = slices.Insert(slices.Clone(pkt), ipHeaderLen, bytes.Repeat([]byte{1}, n)...)
	pkt[0] += byte(n / 4)
	binary.BigEndian.PutUint16(pkt[2:], binary.BigEndian.Uint16(pkt[2:])+uint16(n))
	return pkt
}

// edit returns a copy of pkt with bytes from off on replaced.
func edit(pkt []byte, off int, b ...byte) []byte {
	pkt = slices.Clone(pkt)
	copy(pkt[off:], b)
	return pkt
}

// Made by hand after RFC 791 and RFC 768, and the words added up on paper:
//
//	4500+001f+4011+c633+6407+c633+6401 = 2d99e, d9a0 folded, 265f inverted
//	c633+6407+c633+6401+0011+000b + 1092+2710+000b+6162+6300
//	  = 35099, 509c folded, af63 inverted
func TestBuildUDPBytes(t *testing.T) {
	want := []byte{
		0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 198, 51, 100, 7, 198, 51, 100, 1,
		0x10, 0x92, 0x27, 0x10, 0, 11, 0, 0, 'a', 'b', 'c',
	}
	got := BuildUDP(clientAddr, serverAddr, 64, []byte("abc"))
	ipSum, udpSum := slices.Clone(got[10:12]), slices.Clone(got[26:28])
	copy(got[10:], []byte{0, 0})
	copy(got[26:], []byte{0, 0})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !bytes.Equal(ipSum, []byte{0x26, 0x5f}) {
		t.Errorf("IP checksum %x", ipSum)
	}
	if !bytes.Equal(udpSum, []byte{0xaf, 0x63}) {
		t.Errorf("UDP checksum %x", udpSum)
	}
}

// checksumsHold verifies as a receiver does: over all, the sum is 0xffff.
func checksumsHold(t *testing.T, pkt []byte) {
	t.Helper()
	hl := int(pkt[0]&0xf) * 4
	if s := fold16(sum16(0, pkt[:hl])); s != 0xffff {
		t.Errorf("IP checksum: sum %#x", s)
	}
	udp := pkt[hl:]
	if udp[6] == 0 && udp[7] == 0 {
		t.Error("no UDP checksum")
	}
	pseudo := append(slices.Clone(pkt[12:20]), 0, protoUDP, udp[4], udp[5])
	if s := fold16(sum16(sum16(0, pseudo), udp)); s != 0xffff {
		t.Errorf("UDP checksum: sum %#x", s)
	}
}

func TestBuildParseUDP(t *testing.T) {
	for _, n := range []int{0, 1, 2, 19, 20, 73, 77, maxPayload, 65507} {
		payload := bytes.Repeat([]byte{0xa5, 1, 0xff}, n/3+1)[:n]
		pkt := BuildUDP(clientAddr, serverAddr, 3, payload)
		checksumsHold(t, pkt)
		if pkt[8] != 3 {
			t.Errorf("TTL %d", pkt[8])
		}
		want := Datagram{clientAddr, serverAddr, payload}
		forms := map[string][]byte{"plain": pkt, "padded": append(slices.Clone(pkt), 1, 2, 3)}
		if n < 60000 {
			forms["options"] = withOptions(pkt, 40)
		}
		for name, pkt := range forms {
			got, err := ParseUDP(pkt)
			if err != nil {
				t.Errorf("%d bytes, %s: %v", n, name, err)
			}
			if diff := cmp.Diff(want, got, addrs, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%d bytes, %s: %s", n, name, diff)
			}
		}
	}
}

// RFC 768: a checksum that comes out as 0 is sent as 0xffff.
func TestBuildUDPZeroChecksum(t *testing.T) {
	// The sum without payload, put in as payload, makes the whole 0xffff; its
	// own two bytes are counted in both lengths.
	pkt := BuildUDP(clientAddr, serverAddr, 64, []byte{0, 0})
	pkt = BuildUDP(clientAddr, serverAddr, 64, pkt[26:28])
	if got := binary.BigEndian.Uint16(pkt[26:]); got != 0xffff {
		t.Errorf("checksum %#x, want 0xffff", got)
	}
	checksumsHold(t, pkt)
}

func TestParseUDPRefuses(t *testing.T) {
	pkt := BuildUDP(clientAddr, serverAddr, 64, []byte("payload"))
	for name, p := range map[string][]byte{
		"nothing":         {},
		"IPv6":            edit(pkt, 0, 0x65),
		"short header":    edit(pkt, 0, 0x44),
		"long header":     edit(pkt, 0, 0x4f),
		"TCP":             edit(pkt, 9, 6),
		"more fragments":  edit(pkt, 6, 0x20),
		"later fragment":  edit(pkt, 6, 0, 1),
		"IP length short": edit(pkt, 2, 0, byte(len(pkt)-udpHeaderLen-1)),
		"IP length long":  edit(pkt, 2, 0, byte(len(pkt)+1)),
		"IP length 0":     edit(pkt, 2, 0, 0),
		"UDP length 7":    edit(pkt, 24, 0, 7),
		"UDP length long": edit(pkt, 24, 0, 16),
	} {
		if _, err := ParseUDP(p); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range pkt {
		if _, err := ParseUDP(pkt[:n]); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes of it: %v", n, err)
		}
	}
	if d, err := ParseUDP(edit(pkt, 6, 0x40)); err != nil || string(d.Payload) != "payload" {
		t.Errorf("don't fragment: %v, %v", d, err)
	}
	// As a FOU listener leaves it in the bytes that it shares with us.
	if d, err := ParseUDP(edit(pkt, 2, 0, byte(len(pkt)-udpHeaderLen))); err != nil || string(d.Payload) != "payload" {
		t.Errorf("taken by FOU: %v, %v", d, err)
	}
	// Who sent what is broken can be said.
	if d, _ := ParseUDP(pkt[:len(pkt)-1]); d.Src != clientAddr || d.Dst != serverAddr || d.Payload != nil {
		t.Errorf("truncated: %v", d)
	}
}

func FuzzParseUDP(f *testing.F) {
	pkt := BuildUDP(clientAddr, serverAddr, 64, []byte("payload"))
	f.Add(pkt)
	f.Add(withOptions(pkt, 8))
	f.Add(pkt[:len(pkt)-1])
	f.Add(append(slices.Clone(pkt), make([]byte, 20)...))
	f.Add(edit(pkt, 6, 0x20))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := ParseUDP(b)
		if err != nil {
			if !errors.Is(err, ErrMalformed) || d.Payload != nil {
				t.Fatalf("%v, %v", d, err)
			}
			return
		}
		// What it says must be what a packet built of it says.
		again, err := ParseUDP(BuildUDP(d.Src, d.Dst, 1, d.Payload))
		if diff := cmp.Diff(d, again, addrs, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Fatalf("%v %s", err, diff)
		}
	})
}
