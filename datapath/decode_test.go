package datapath

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// dump is a map's as bpftool prints it, of keys and values as plans write them. Several
// values are those of as many processors.
func dump(t testing.TB, entries ...[]string) []byte {
	t.Helper()
	hex := func(decimal string) (out []string) {
		for _, w := range strings.Fields(decimal) {
			var n byte
			if _, err := fmt.Sscan(w, &n); err != nil {
				t.Fatalf("%q: %v", decimal, err)
			}
			out = append(out, fmt.Sprintf("0x%02x", n))
		}
		return out
	}
	list := []map[string]any{}
	for _, e := range entries {
		one := map[string]any{"key": hex(e[0])}
		if len(e) == 2 {
			one["value"] = hex(e[1])
		} else {
			var values []map[string]any
			for cpu, v := range e[1:] {
				values = append(values, map[string]any{"cpu": cpu, "value": hex(v)})
			}
			one["values"] = values
		}
		list = append(list, one)
	}
	text, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// count is a value of counters in which the named ones are not zero.
func count(n map[string]uint64) string {
	var words []string
	for _, name := range Counters {
		words = append(words, Number(int(n[name]&0xffffffff)), Number(int(n[name]>>32)))
	}
	return strings.Join(words, " ")
}

// example is the dumps of devices, peers and counters of an instance with two devices.
func example(t testing.TB) (devices, peers, counters []byte) {
	device := func(index int, local string, port uint16) []string {
		d := Device{
			Index: Number(index), Outer: Number(2), Local: Address(netip.MustParseAddr(local)), Port: port,
			Inner4: true, TTL: 64, Group: 1, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		}
		return []string{Number(index), d.Bytes()}
	}
	devices = dump(t, device(7, "203.0.113.1", 10000), device(300, "192.0.2.1", 0))
	peers = dump(t,
		[]string{Number(0), Nobody},
		[]string{Number(1), Peer(Address(netip.MustParseAddr("198.51.100.7")), Port(4000), Number(90), 60)},
		[]string{Number(2), Nobody},
		[]string{Number(3), Peer(Address(netip.MustParseAddr("192.0.2.2")), Port(0), Number(0), 0)},
	)
	counters = dump(t,
		[]string{Number(0), count(map[string]uint64{"stranger": 1}), count(map[string]uint64{"no-data": 2, "stranger": 1 << 40})},
		[]string{Number(1), count(map[string]uint64{"rx-packets": 1 << 33, "tx-bytes": 5}), count(map[string]uint64{"rx-packets": 1})},
	)
	return devices, peers, counters
}

func TestDecode(t *testing.T) {
	got, err := Decode(example(t))
	if err != nil {
		t.Fatal(err)
	}
	sum := func(n map[string]uint64) Count {
		c := make(Count, len(Counters))
		for i, name := range Counters {
			c[i] = n[name]
		}
		return c
	}
	want := State{
		Local: map[int]netip.AddrPort{7: netip.MustParseAddrPort("203.0.113.1:10000"), 300: netip.MustParseAddrPort("192.0.2.1:0")},
		Peers: map[int]netip.AddrPort{
			0: {}, 1: netip.MustParseAddrPort("198.51.100.7:4000"), 2: {}, 3: netip.MustParseAddrPort("192.0.2.2:0"),
		},
		Counts: map[int]Count{
			0: sum(map[string]uint64{"stranger": 1<<40 + 1, "no-data": 2}),
			1: sum(map[string]uint64{"rx-packets": 1<<33 + 1, "tx-bytes": 5}),
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

// What bpftool 7.1 printed: a hash's entry, one that was gone when its turn came, and a
// percpu array's.
func TestDecodeBpftool(t *testing.T) {
	devices := `[{"key":["0x03","0x00","0x00","0x00"],"value":["0x03","0x00","0x00","0x00","0x02","0x00","0x00","0x00","0xc0","0x00","0x02","0x01","0x27","0x10","0x03","0x00","0x00","0x00","0x01","0x00","0x01","0x00","0x00","0x00","0x18","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0x40","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff","0xff"]}` +
		`,{"key":["0x04","0x00","0x00","0x00"],"value":{"error":"No such file or directory"}}]` + "\n"
	got, err := Decode([]byte(devices), []byte("[]"), []byte("[]"))
	want := map[int]netip.AddrPort{3: netip.MustParseAddrPort("192.0.2.1:10000")}
	if err != nil || !maps.Equal(got.Local, want) {
		t.Errorf("devices %v, want %v (%v)", got.Local, want, err)
	}
	value := "[" + strings.TrimSuffix(strings.Repeat(`"0x01",`, 8*len(Counters)), ",") + "]"
	counters := `[{"key":["0x00","0x00","0x00","0x00"],"values":[{"cpu":0,"value":` + value + `},{"cpu":1,"value":` + value + `}]}]`
	got, err = Decode([]byte("[]"), []byte("[]"), []byte(counters))
	if err != nil || !slices.Equal(got.Counts[0], slices.Repeat(Count{0x0202020202020202}, len(Counters))) {
		t.Errorf("counters %v (%v)", got.Counts[0], err)
	}
}

func TestDecodeRefused(t *testing.T) {
	for _, c := range []struct{ peers, want string }{
		{``, "the dump of the map peers can't be read: unexpected end of JSON input"},
		{`{"error":"no"}`, "the dump of the map peers can't be read: "},
		{`[{"key":["0x01","0x00","0x00"],"value":["0x00"]}]`, "the map peers has keys of 3 bytes, and this version of ipipou makes them of 4"},
		{`[{"key":["0x01","0x00","0x00","0x00"],"value":["0x00"]}]`, "the map peers has values of 1 bytes, and this version of ipipou makes them of 16"},
		{`[{"key":["0x01","0x00","0x00","0x00"],"values":[{"cpu":0}]}]`, "the map peers has values of 0 bytes, and this version of ipipou makes them of 16"},
		{`[{"key":["0x01","0x100","0x00","0x00"],"value":[]}]`, `the dump of the map peers can't be read: "0x100" is not a byte`},
		{`[{"key":["0x01","","0x00","0x00"],"value":[]}]`, `the dump of the map peers can't be read: "" is not a byte`},
	} {
		_, err := Decode([]byte("[]"), []byte(c.peers), []byte("[]"))
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %s", c.peers, err, c.want)
		}
	}
}

// Whatever a command prints, it is a state or an error of one line; every count has all
// its counters, every address is IPv4.
func FuzzDecode(f *testing.F) {
	devices, peers, counters := example(f)
	for i, text := range [][]byte{devices, peers, counters} {
		f.Add(byte(i), text)
	}
	f.Add(byte(0), []byte(`[{"key":["0x04","0x00","0x00","0x00"],"value":{"error":"gone"}}]`))
	f.Add(byte(2), []byte(`[{"key":[],"values":[{}]},null]`))
	f.Fuzz(func(t *testing.T, which byte, text []byte) {
		dumps := [][]byte{[]byte("[]"), []byte("[]"), []byte("[]")}
		dumps[which%3] = text
		s, err := Decode(dumps[0], dumps[1], dumps[2])
		if err != nil {
			if text := err.Error(); text == "" || strings.Contains(text, "\n") {
				t.Errorf("error %q", text)
			}
			return
		}
		for n, c := range s.Counts {
			if len(c) != len(Counters) {
				t.Errorf("%d has %d counters", n, len(c))
			}
		}
		for n, a := range s.Local {
			if !a.Addr().Is4() {
				t.Errorf("device %d is at %v", n, a)
			}
		}
		for n, a := range s.Peers {
			if a.IsValid() && !a.Addr().Is4() {
				t.Errorf("peer %d is at %v", n, a)
			}
		}
	})
}
