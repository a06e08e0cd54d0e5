package datapath

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sizes reads the sizes of the object's structs from its BTF (Documentation/bpf/btf.rst).
func sizes(t *testing.T) map[string]uint32 {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(Object))
	if err != nil {
		t.Fatal(err)
	}
	btf, err := f.Section(".BTF").Data()
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	header := le.Uint32(btf[4:])
	types := btf[header+le.Uint32(btf[8:]):][:le.Uint32(btf[12:])]
	names := btf[header+le.Uint32(btf[16:]):]
	// What follows the 12 bytes of each kind's type, for each of its members and once.
	each := map[uint32]int{4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
	once := map[uint32]int{1: 4, 3: 12, 14: 4, 17: 4}
	out := map[string]uint32{}
	for len(types) > 0 {
		name, info := names[le.Uint32(types):], le.Uint32(types[4:])
		kind, members := info>>24&0x1f, int(info&0xffff)
		if kind == 4 {
			name, _, _ := bytes.Cut(name, []byte{0})
			out[string(name)] = le.Uint32(types[8:])
		}
		types = types[12+members*each[kind]+once[kind]:]
	}
	return out
}

// What Go lays out is as large as what the programs read.
func TestLayout(t *testing.T) {
	have := sizes(t)
	if have["__sk_buff"] == 0 {
		t.Fatalf("the BTF was not understood: %v", have)
	}
	structs := map[string][2]string{
		"devices": {"", "device"}, "endpoints": {"endpoint", "device"}, "prefixes": {"prefix", ""},
		"peers": {"", "peer"}, "seen": {"", ""}, "counters": {"", "counters"},
	}
	for _, m := range Maps {
		for i, size := range []int{m.Key, m.Value} {
			want := uint32(4)
			if s := structs[m.Name][i]; s != "" {
				want = have[s]
			}
			if uint32(size) != want {
				t.Errorf("%s: %d bytes, want %d", m.Name, size, want)
			}
		}
	}
	words := func(text string) int { return len(strings.Fields(text)) }
	d := Device{Index: Number(3), Outer: Number(2), Local: Address(netip.MustParseAddr("192.0.2.1")), Port: 10000, Inner4: true, Inner6: true,
		TTL: 64, TOS: 16, InnerTOS: true, Open: true, Group: 258, Sole: 7,
		Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.9.0.1/32"), netip.MustParsePrefix("fd00::/64")}}
	if got, want := d.Bytes(), "3 0 0 0 2 0 0 0 192 0 2 1 39 16 3 64 16 3 2 1 7 0 0 0 "+
		"32 8 255 255 255 255 255 255 255 255 255 255 64 255 255 255 255 255 255 255 255 255 255 255"; got != want {
		t.Errorf("device\n%s, want\n%s", got, want)
	}
	for name, c := range map[string]struct {
		text string
		want uint32
	}{
		"device":   {d.Bytes(), have["device"]},
		"endpoint": {Endpoint(Number(0), 10000, 17), have["endpoint"]},
		"prefix":   {Prefix(1, netip.MustParsePrefix("10.0.0.0/8")), have["prefix"]},
		"prefix 6": {Prefix(1, netip.MustParsePrefix("fd00::/64")), have["prefix"]},
		"peer":     {Peer("192 0 2 1", Port(10000), Number(99), 60), have["peer"]},
		"nobody":   {Nobody, have["peer"]},
	} {
		if words(c.text) != int(c.want) {
			t.Errorf("%s: %d bytes, want %d: %s", name, words(c.text), c.want, c.text)
		}
	}
}

// The names of the counters and the number of prefix lengths are the source's.
func TestSource(t *testing.T) {
	source, err := os.ReadFile("ipipou.bpf.c")
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(source), "enum counter {")
	body, _, _ = strings.Cut(body, "COUNTERS\n")
	for _, name := range Counters {
		constant := strings.ReplaceAll(strings.ToUpper(name), "-", "_") + ","
		_, after, found := strings.Cut(body, constant)
		if !found {
			t.Errorf("the source has no counter %s after those before it", constant)
		}
		body = after
	}
	if !strings.Contains(string(source), "#define LENGTHS 12 ") || MaxLengths != 12 {
		t.Errorf("MaxLengths is %d, and not the source's LENGTHS", MaxLengths)
	}
}

// The object is what the source compiles to.
func TestObject(t *testing.T) {
	if _, err := exec.LookPath("clang-14"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	object := filepath.Join(t.TempDir(), "object")
	if out, err := exec.Command("./build.sh", object).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	fresh, err := os.ReadFile(object)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(fresh, Object) {
		t.Error("ipipou.bpf.o is not what ipipou.bpf.c compiles to: run `make bpf`")
	}
}
