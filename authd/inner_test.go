package authd

import (
	"encoding/binary"
	"encoding/hex"
	"slices"
	"testing"
)

// greKinds are the first words of data on a GRE tunnel.
var greKinds = []uint32{0x00000800, 0x000086dd, 0x20000800, 0x200086dd}

// greData returns what is GRE data of n bytes by its looks, with an inner header
// that is complete if n leaves room.
func greData(word uint32, n int) []byte {
	b := make([]byte, n+48)
	binary.BigEndian.PutUint32(b, word)
	inner := b[4:]
	if word>>28 == 2 {
		inner = b[8:]
	}
	left := n - (len(b) - len(inner))
	if word&0xffff == 0x86dd {
		inner[0] = 0x60
		binary.BigEndian.PutUint16(inner[4:], uint16(left-40))
	} else {
		inner[0] = 0x45
		binary.BigEndian.PutUint16(inner[2:], uint16(left))
	}
	return b[:n]
}

// greWire are UDP payloads that Linux 6.1 sent on GRE-over-FOU tunnels with key 42
// and without a key: echo requests of ping(8), router solicitations.
var greWire = []string{
	"200008000000002a4500005414a80000400151ed0a0900010a0900020000bcfb00a40001fce8016b00000000" +
		"8338020000000000101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637",
	"200086dd0000002a6000000000103afffe8000000000000002005efec6336407" +
		"ff0200000000000000000000000000028500c6b9000000000101c63364070000",
	"0000080045000054" +
		"4bb140004001dae30a0900020a0900010800a576010d000108e9016b00000000" +
		"8554030000000000101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f3031323334353637",
	"000086dd6000000000103afffe8000000000000002005efec6336407" +
		"ff0200000000000000000000000000028500c6b9000000000101c63364070000",
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestInnerLooks(t *testing.T) {
	for _, s := range greWire {
		if b := unhex(t, s); !InnerGRE.looks(b) || InnerIPv4.looks(b) {
			t.Errorf("%s: GRE %v, IPv4 %v", s, InnerGRE.looks(b), InnerIPv4.looks(b))
		}
	}
	for _, word := range greKinds {
		good := greData(word, 100)
		for name, b := range map[string][]byte{
			"checksum":        edit(good, 0, good[0]|0x80),
			"sequence number": edit(good, 0, good[0]|0x10),
			"version 1":       edit(good, 1, 1),
			"ARP":             edit(good, 2, 0x08, 0x06),
			"a byte less":     good[:99],
			"a byte more":     append(slices.Clone(good), 0),
			"19 bytes":        good[:19],
			"nothing":         nil,
		} {
			if InnerGRE.looks(b) || InnerIPv4.looks(b) {
				t.Errorf("%08x, %s: %x", word, name, b)
			}
		}
	}
	// An inner length and header that add up to more than 16 bits hold.
	if b := edit(greData(0x200086dd, 100), 12, 0xff, 0xff); InnerGRE.looks(b) {
		t.Errorf("%x", b)
	}
	// Each kind alone and in a set, and in none that lacks it.
	for kind, b := range map[Inner][]byte{InnerIPv4: data(84), InnerIPv6: data6(84), InnerGRE: greData(0x20000800, 84)} {
		for in := range innerAll + 1 {
			want := in&kind != 0 || in == 0 && kind == InnerIPv4
			if got := in.looks(b); got != want {
				t.Errorf("%x looks like %b: %v", b[:4], in, got)
			}
		}
	}
	for name, b := range map[string][]byte{
		"39 bytes":      data6(40)[:39],
		"20 bytes":      data6(40)[:20],
		"a byte less":   data6(84)[:83],
		"a byte more":   append(data6(84), 0),
		"version 7":     edit(data6(84), 0, 0x70),
		"IPv4's length": edit(data6(84), 2, 0, 84, 0, 0),
	} {
		if innerAll.looks(b) {
			t.Errorf("%s looks like data", name)
		}
	}
	if b := data6(40); !InnerIPv6.looks(b) {
		t.Error("a header alone does not look like data")
	}
}

func TestInnerValidate(t *testing.T) {
	for in, ok := range map[Inner]bool{0: true, innerAll: true, InnerIPv6: true, innerAll + 1: false, 0xff: false} {
		if err := in.validate(); (err == nil) != ok {
			t.Errorf("%#x: %v", in, err)
		}
	}
}
