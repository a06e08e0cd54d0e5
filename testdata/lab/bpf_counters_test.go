package lab

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"testing"

	"ipipou/datapath"
)

// bpfCounters are the counters of the programs at a device, the outer one or the tunnel's, by peer (0 is nobody) and
// name.
func bpfCounters(t testing.TB, ns *NS, dev string) map[int]map[string]uint64 {
	t.Helper()
	return ns.counted(t, ns.bpfMap(t, dev, "counters"))
}

// bpfMap is the id of a map of the programs at a device, for its path can't be seen from another mount namespace.
func (ns *NS) bpfMap(t testing.TB, dev, name string) string {
	t.Helper()
	for _, way := range []string{"ingress", "egress"} {
		var filters []struct {
			Options struct{ Prog struct{ ID int } }
		}
		ask(t, ns, &filters, "tc", "-j", "filter", "show", "dev", dev, way)
		for _, f := range filters {
			if f.Options.Prog.ID == 0 {
				continue
			}
			var prog struct {
				Maps []int `json:"map_ids"`
			}
			ask(t, ns, &prog, "bpftool", "-j", "prog", "show", "id", strconv.Itoa(f.Options.Prog.ID))
			for _, id := range prog.Maps {
				var m struct{ Name string }
				if ask(t, ns, &m, "bpftool", "-j", "map", "show", "id", strconv.Itoa(id)); m.Name == name {
					return strconv.Itoa(id)
				}
			}
		}
	}
	t.Fatalf("in %s: %s has no filter with a map %s", ns.Name, dev, name)
	return ""
}

func (ns *NS) counted(t testing.TB, id string) map[int]map[string]uint64 {
	t.Helper()
	state, err := datapath.Decode([]byte("[]"), []byte("[]"), []byte(ns.Run(t, "bpftool", "-j", "map", "dump", "id", id)))
	if err != nil {
		t.Fatal(err)
	}
	counters := map[int]map[string]uint64{}
	for peer, count := range state.Counts {
		counters[peer] = map[string]uint64{}
		for i, name := range datapath.Counters {
			counters[peer][name] = count[i]
		}
	}
	return counters
}

// added are the counters that changed, as "peer name +n" in the order of the names.
func added(before, after map[int]map[string]uint64) (changes []string) {
	for peer := range len(after) {
		for _, name := range datapath.Counters {
			if d := after[peer][name] - before[peer][name]; d > 0 {
				changes = append(changes, fmt.Sprintf("%d %s +%d", peer, name, d))
			}
		}
	}
	return changes
}

// Of several peers each sends from what is behind it, and from nowhere else; and the counters say what was dropped why.
func TestBPFCounters(t *testing.T) {
	t.Parallel()
	for name, udp := range map[string]bool{"fou": true, "plain": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHostileWire(t)
			args := []string{"--static", "--backend", "bpf", "--mode", "any4", "--fou-local", "192.0.2.2@b0",
				"--tunl-ip", "10.9.0.2/24,fd09::2/64", "--routes",
				"10.9.1.0/24 via 192.0.2.1 onlink,fd09:1::/64 via ::192.0.2.1 onlink," +
					"10.9.3.0/24 via 192.0.2.3 onlink,fd09:3::/64 via ::192.0.2.3 onlink"}
			if udp {
				h.port, h.peerPort = hostilePort, 6666
				args = append(args, "--encap", "fou", "--fou-local-port", "5555", "--fou-remote-port", "6666")
			} else {
				args = append(args, "--encap", "none")
			}
			static(t, h.dir, end{h.b, args})
			h.listen(t)
			h.counters(t)
		})
	}
}

func (h *hostile) counters(t *testing.T) {
	id := h.b.bpfMap(t, "b0", "counters")
	was := h.b.counted(t, id)
	_, mark := h.mark()
	// changes are since the last call, but for some marks that came in.
	changes := func(marks int) []string {
		t.Helper()
		now := h.b.counted(t, id)
		before := was
		was = maps.Clone(now)
		was[1] = maps.Clone(now[1])
		now[1]["rx-packets"] -= uint64(marks)
		now[1]["rx-bytes"] -= uint64(marks * len(mark))
		return added(before, now)
	}
	third := h.inlet
	third.peer = "192.0.2.3"
	from := func(peer, version int) []byte {
		b := header{src: fmt.Sprintf("10.9.%d.1", peer), dst: "10.9.0.77", proto: 253}
		if version == 6 {
			b.src, b.dst = fmt.Sprintf("fd09:%d::1", peer), "fd09::77"
		}
		return b.packet(nil)
	}
	own, stranger := h.outer(), h.outer()
	stranger.src = "192.0.2.66"
	ce, part := own, own
	ce.tos, part.flags = 3, 0x2000
	frame := func(outer header, inner []byte) []byte { return h.ethernet(h.wrap(outer, inner)) }
	for _, version := range []int{4, 6} {
		ours, theirs, nobodys := from(1, version), from(3, version), from(7, version)
		for _, c := range []struct {
			name  string
			frame []byte
			want  []byte
			added []string
		}{
			{"good", frame(own, ours), ours, []string{"1 rx-packets +1", fmt.Sprintf("1 rx-bytes +%d", len(ours))}},
			{"another's", frame(third.outer(), theirs), theirs, []string{"2 rx-packets +1", fmt.Sprintf("2 rx-bytes +%d", len(theirs))}},
			{"a stranger's", frame(stranger, ours), nil, []string{"1 stranger +1"}},
			{"from another peer's source", frame(own, theirs), nil, []string{"2 stranger +1"}},
			{"from nobody's source", frame(own, nobodys), nil, []string{"0 source +1"}},
			{"no packet", frame(own, ours[:19]), nil, []string{"0 no-data +1"}},
			{"a part", frame(part, ours), nil, []string{"0 fragment +1"}},
			{"congested", frame(ce, ours), nil, []string{"1 congested +1"}},
		} {
			got := h.throw(t, c.frame)
			if c.want == nil && len(got) != 0 || c.want != nil && (len(got) != 1 || !bytes.Equal(got[0], c.want)) {
				t.Errorf("IPv%d: %s: came out as % x, want % x", version, c.name, got, c.want)
			}
			if changes := changes(1); !slices.Equal(changes, c.added) {
				t.Errorf("IPv%d: %s: counted %q, want %q", version, c.name, changes, c.added)
			}
		}
	}

	out := h.b.sender(t, "ipipou0")
	counted := func(name string, packet []byte, want ...string) {
		t.Helper()
		out.send(t, packet)
		if changes := changes(0); !slices.Equal(changes, want) {
			t.Errorf("%s: counted %q, want %q", name, changes, want)
		}
	}
	to := header{src: "10.9.0.2", dst: "10.9.3.1", proto: 253}
	small, large := to.packet(nil), to.packet(make([]byte, 1400))
	nowhere := to
	nowhere.dst = "10.9.7.1"
	counted("sent", small, "2 tx-packets +1", fmt.Sprintf("2 tx-bytes +%d", len(small)))
	counted("for nobody", nowhere.packet(nil), "0 no-route +1")
	counted("large", large, "2 tx-packets +1", fmt.Sprintf("2 tx-bytes +%d", len(large)))
	quote := header{src: h.local, dst: third.peer, proto: 4, flags: 0x4000}.packet(large)
	if h.port != 0 {
		quote = header{src: h.local, dst: third.peer, proto: 17, flags: 0x4000}.packet(bareUDP(h.port, h.peerPort, large))
	}
	router := header{src: "192.0.2.9", dst: h.local, proto: 1}
	told := icmpPacket(3, 4, 1400, quote[:28])
	h.from.send(t, h.ethernet(router.packet(told)))
	counted("too large for the path", large, "2 too-big +1")
	counted("small for the path", small, "2 tx-packets +1", fmt.Sprintf("2 tx-bytes +%d", len(small)))
}
