package datapath

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// A State is what the maps say of an instance that runs.
type State struct {
	// Local are the outer addresses of TUN devices, by ifindex. Port 0: no UDP.
	Local map[int]netip.AddrPort
	// Peers are where peers are, by number: the zero value where nobody is bound,
	// port 0 without UDP.
	Peers map[int]netip.AddrPort
	// Counts are the peers' counters by number, 0 for nobody's.
	Counts map[int]Count
}

// A Count is what was counted for a peer on all processors, in the order of Counters.
type Count []uint64

// Decode reads a State from what `bpftool -j map dump` prints of three maps.
func Decode(devices, peers, counters []byte) (State, error) {
	s := State{Local: map[int]netip.AddrPort{}, Peers: map[int]netip.AddrPort{}, Counts: map[int]Count{}}
	err := cmp.Or(
		each("devices", devices, func(index int, values [][]byte) {
			s.Local[index] = endpoint(values[0][8:14])
		}),
		each("peers", peers, func(number int, values [][]byte) {
			s.Peers[number] = netip.AddrPort{}
			if at := endpoint(values[0][:6]); !at.Addr().IsUnspecified() {
				s.Peers[number] = at
			}
		}),
		each("counters", counters, func(number int, values [][]byte) {
			sum := make(Count, len(Counters))
			for _, v := range values {
				for i := range sum {
					sum[i] += binary.LittleEndian.Uint64(v[8*i:])
				}
			}
			s.Counts[number] = sum
		}),
	)
	return s, err
}

// endpoint is an IPv4 address and a port, both in network order.
func endpoint(b []byte) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.BigEndian.Uint16(b[4:]))
}

// each calls f with what a map's dump has under each key, which is a number in host
// order: one value or, of a percpu map, one for each processor. Their sizes are those
// of Maps: what another version's programs count would be given wrong names.
func each(name string, dump []byte, f func(key int, values [][]byte)) error {
	var entries []struct {
		Key, Value hexBytes
		Values     []struct{ Value hexBytes }
	}
	if err := json.Unmarshal(dump, &entries); err != nil {
		return fmt.Errorf("the dump of the map %s can't be read: %w", name, err)
	}
	size := 0
	for _, m := range Maps {
		if m.Name == name {
			size = m.Value
		}
	}
	for _, e := range entries {
		var values [][]byte
		if e.Value != nil {
			values = append(values, e.Value)
		}
		for _, v := range e.Values {
			values = append(values, v.Value)
		}
		if len(values) == 0 {
			continue // taken out while the map was dumped
		}
		if len(e.Key) != 4 {
			return fmt.Errorf("the map %s has keys of %d bytes, and this version of ipipou makes them of 4", name, len(e.Key))
		}
		for _, v := range values {
			if len(v) != size {
				return fmt.Errorf("the map %s has values of %d bytes, and this version of ipipou makes them of %d", name, len(v), size)
			}
		}
		f(int(binary.LittleEndian.Uint32(e.Key)), values)
	}
	return nil
}

// hexBytes are bytes as bpftool prints those that no BTF describes: ["0x0a","0x00"].
// In place of a value that is gone there is an object, with the error.
type hexBytes []byte

func (h *hexBytes) UnmarshalJSON(text []byte) error {
	if text[0] == '{' {
		return nil
	}
	var words []string
	if err := json.Unmarshal(text, &words); err != nil {
		return err
	}
	*h = make([]byte, len(words))
	for i, w := range words {
		n, err := strconv.ParseUint(strings.TrimPrefix(w, "0x"), 16, 8)
		if err != nil {
			return fmt.Errorf("%q is not a byte", w)
		}
		(*h)[i] = byte(n)
	}
	return nil
}
