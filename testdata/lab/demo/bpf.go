package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"ipipou/datapath"
	"ipipou/testdata/lab"
)

// bpf is the BPF data path, on this host's kernel. The server is a hub: one interface and one port for all.
var bpf = dataPath{
	server: "backend = \"bpf\"\nfou-local-port = 10000\ntunl-dev = \"ipipou0\"\ntunl-ip = \"172.28.0.0\"\n",
	peer: [2]string{
		"tunl-peer-ip = \"" + clientInner[0] + "\"\n",
		"tunl-peer-ip = \"" + clientInner[1] + "\"\n",
	},
	client:      [2]string{"backend = \"bpf\"\n", "backend = \"bpf\"\ntunl-peer-ip = \"172.28.0.0\"\n"},
	remote:      [2]string{lab.SrvAddr + ":10000", lab.SrvAddr + ":10000"},
	serverInner: [2]string{"172.28.0.0", "172.28.0.0"},
	tunnel:      func(i int) string { return fmt.Sprintf("ipipou0/%d", i) },
	together: []string{
		"Both clients come from one public address to one port and one interface of the server's. Which of",
		"them authenticates is told by its key; whose data it is by the inner address, which is taken from",
		"that client's port only. No address is rewritten.",
	},
	skip: [3]string{
		"  # the programs' maps, as large as they have to be",
		"  # ipipou0: a TUN device, whose packets the program takes; no process reads it",
		"maps are made and programs loaded",
	},
	size: 100_000_000,
	rate: "There is no wire: the rate is what processors do.",
	also: "tc's qdiscs, ",
	run: func(ctx context.Context) (int, error) {
		release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
		fmt.Println("In namespaces that nobody else sees, on this host's kernel,", strings.TrimSpace(string(release)))
		return lab.Apart(ctx)
	},
	settle: func() error {
		err := lab.SettleApart()
		if err != nil {
			err = fmt.Errorf("%w; `make demo-kernel` boots a kernel that has all", err)
		}
		return err
	},
	at:       (*demo).entryAt,
	counters: (*demo).programCounters,
}

// entryAt is where the map of peers has the first one.
func (d *demo) entryAt() (shown, peer string) {
	var entry struct{ Value octets }
	d.bpftool(&entry, "lookup", "peers", "key", "1", "0", "0", "0")
	address, ok := netip.AddrFromSlice(entry.Value[:4])
	if !ok {
		d.Fatalf("the map of peers has %v", entry)
	}
	at := netip.AddrPortFrom(address, binary.BigEndian.Uint16(entry.Value[4:]))
	return fmt.Sprintf("bpftool map lookup pinned …/peers key 1 0 0 0:  %v, which is %v", []byte(entry.Value[:6]), at), at.String()
}

// programCounters are summed over all peers and processors.
func (d *demo) programCounters() (drops map[string]int, received int) {
	var entries []struct{ Values []struct{ Value octets } }
	d.bpftool(&entries, "dump", "counters")
	all := map[string]int{}
	for _, entry := range entries {
		for _, processor := range entry.Values {
			for i, name := range datapath.Counters {
				all[name] += int(binary.NativeEndian.Uint64(processor.Value[8*i:]))
			}
		}
	}
	received = all["rx-packets"]
	for _, name := range append(datapath.Counters[:4:4], "no-data") { // which authentications are, too
		delete(all, name)
	}
	return all, received
}

// bpftool reads one of the server's maps. Its file system is in the server's own mount namespace.
func (d *demo) bpftool(to any, how, name string, more ...string) {
	pin := fmt.Sprintf("/proc/%d/root%s/run/server.bpf/%s", d.server.Pid(), filepath.Join(d.dir, d.net.Srv.Name), name)
	out := d.net.Srv.Run(d, append([]string{"bpftool", "-j", "map", how, "pinned", pin}, more...)...)
	if err := json.Unmarshal([]byte(out), to); err != nil {
		d.Fatalf("bpftool: %v: %s", err, out)
	}
}

// octets are bytes as bpftool's JSON has them: in hexadecimal, each a string.
type octets []byte

func (o *octets) UnmarshalJSON(text []byte) error {
	var words []string
	err := json.Unmarshal(text, &words)
	for _, word := range words {
		n, bad := strconv.ParseUint(word, 0, 8)
		if bad != nil {
			return bad
		}
		*o = append(*o, byte(n))
	}
	return err
}
