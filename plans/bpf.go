package plans

import (
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ipipou/datapath"
)

// filterPref is the place of our filters among a device's (tc(8), pref).
const filterPref = "17280"

// Names of what is asked while the BPF programs are loaded.
const (
	uptime       = "UPTIME" // seconds
	devicesMap   = "DEVICES_MAP"
	endpointsMap = "ENDPOINTS_MAP"
	peersMap     = "PEERS_MAP"
	countersMap  = "COUNTERS_MAP"
)

// A place is a tunnel's in the maps of its instance. Tunnels of one interface are
// a group.
type place struct {
	// dir is of the instance's pins: a BPF file system of its own, for /sys/fs/bpf is
	// not mounted everywhere, and `ip netns exec` hides it.
	dir      string
	handle   string // of the instance's filter on an outer interface
	group    int    // from 1
	first    int    // number of its first peer, from 1
	peers    int    // how many it has
	shared   bool   // others have the interface too
	prefixes []netip.Prefix
	// lead is the first tunnel on the outer interface, whose undos it shares.
	lead int
	// index, outer and mtu are ${NAME}s: of the ifindex of the TUN device and the
	// outer one, and of the former's MTU.
	index, outer, mtu string
}

// place gives every tunnel that BPF can carry its place. The maps must hold all of
// them, whatever is decided later.
func (c *Config) place() {
	name := fnv.New32a()
	name.Write([]byte(c.Name))
	groups, outers, mtus := map[string]int{}, map[string]string{}, map[string]string{}
	leads := map[string]int{}
	number := 1
	for i := range c.Tunnels {
		t := &c.Tunnels[i]
		if option, _ := t.beyondBPF(); option != "" {
			continue
		}
		if groups[t.Dev] == 0 {
			groups[t.Dev] = len(groups) + 1
		}
		if _, led := leads[t.outerDev()]; !led {
			leads[t.outerDev()] = t.Number
		}
		if outers[t.outerDev()] == "" {
			outers[t.outerDev()] = numbered("OUTER_INDEX", len(outers))
		}
		room := t.outerDev() + " " + string(t.Encap)
		if mtus[room] == "" {
			mtus[room] = numbered("TUNL_MTU", len(mtus))
		}
		t.bpf = place{
			dir:    "${" + RunDir + "}/" + c.Name + ".bpf",
			handle: fmt.Sprintf("0x%x", name.Sum32()>>1|1),
			group:  groups[t.Dev],
			first:  number,
			peers:  max(1, len(t.nodes())),
			shared: t.bpf.shared,
			lead:   leads[t.outerDev()],
			index:  numbered("TUN_INDEX", groups[t.Dev]-1),
			outer:  outers[t.outerDev()],
			mtu:    mtus[room],
		}
		number += t.bpf.peers
	}
	prefixes := map[string][]netip.Prefix{}
	for _, t := range c.Tunnels {
		prefixes[t.Dev] = append(prefixes[t.Dev], t.behind()...)
	}
	for i := range c.Tunnels {
		c.Tunnels[i].bpf.prefixes = prefixes[c.Tunnels[i].Dev]
	}
}

// sole reports whether the interface has one peer, to which all goes that is routed
// there. A server's peer has only what is said to be behind it.
func (t Tunnel) sole() bool { return t.Role != Server && t.bpf.peers == 1 && !t.OneToMany() }

// behind are the networks of the tunnel's peers: what may be sent to them, and what
// they may send from.
func (t Tunnel) behind() []netip.Prefix {
	var out []netip.Prefix
	add := func(p netip.Prefix) {
		if p = p.Masked(); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	for _, a := range t.Addrs {
		if a.Peer.IsValid() {
			add(netip.PrefixFrom(a.Peer, a.Peer.BitLen()))
		} else if a.Bits >= 0 && !t.bpf.shared && !t.OneToMany() {
			add(netip.PrefixFrom(a.IP, a.Bits))
		}
	}
	for _, r := range t.Routes {
		add(r.To)
	}
	return out
}

// entries are the keys of the tunnel's prefixes with the number of the peer.
func (t Tunnel) entries() (lines []string) {
	nodes := t.nodes()
	of := func(p netip.Prefix) int {
		for _, r := range t.Routes {
			if t.OneToMany() && r.To == p {
				via := Tunnel{Routes: []Route{r}}.nodes()
				return t.bpf.first + slices.Index(nodes, via[0])
			}
		}
		return t.bpf.first
	}
	for _, p := range t.behind() {
		lines = append(lines, fmt.Sprintf("map update @prefixes key %s value %s", datapath.Prefix(t.bpf.group, p), datapath.Number(of(p))))
	}
	return lines
}

// device is the entry for the tunnel's interface, as it is now.
func (t Tunnel) device() datapath.Device {
	d := datapath.Device{
		Index: "${" + t.bpf.index + ".le32}", Outer: "${" + t.bpf.outer + ".le32}", Local: form(t.localIP(), "ip4"),
		Inner4: t.how().inner4, Inner6: t.how().inner6,
		InnerTOS: t.TOS == "inherit",
		Open:     t.Role == Server && t.Auth.Token == nil && t.Auth.RemoteKey == nil,
		Group:    t.bpf.group,
		Prefixes: t.bpf.prefixes,
	}
	if t.Encap == FOU {
		d.Port = t.FOUPort
	}
	if n, err := strconv.ParseUint(t.TTL, 10, 8); err == nil {
		d.TTL = uint8(n)
	}
	if n, err := strconv.ParseUint(t.TOS, 0, 8); err == nil {
		d.TOS = uint8(n) &^ 3 // the rest is ECN's
	}
	if t.sole() {
		d.Sole = t.bpf.first
	}
	return d
}

// form are the bytes of a value or of a ${NAME}.
func form(value, as string) string {
	if name, ok := strings.CutPrefix(value, "${"); ok {
		return "${" + strings.TrimSuffix(name, "}") + "." + as + "}"
	}
	b, err := bytesOf(value, as)
	if err != nil {
		panic(err) // validated
	}
	return b
}

// deviceLines tell the programs of the interface, and of where its packets arrive.
func (t Tunnel) deviceLines() []string {
	d := t.device()
	lines := []string{fmt.Sprintf("map update @devices key %s value %s", d.Index, d.Bytes())}
	for _, key := range t.endpoints() {
		lines = append(lines, fmt.Sprintf("map update @endpoints key %s value %s", key, d.Bytes()))
	}
	return lines
}

// endpoints are where packets for the tunnel arrive: at its port or, without UDP,
// by the protocol and from whom.
func (t Tunnel) endpoints() (keys []string) {
	if t.Encap == FOU {
		return []string{datapath.Endpoint(datapath.Number(0), t.FOUPort, 17)}
	}
	remote := datapath.Number(0)
	if t.hasRemote() {
		remote = form(t.peerIP(), "ip4")
	}
	if t.how().inner4 {
		keys = append(keys, datapath.Endpoint(remote, 0, 4))
	}
	if t.how().inner6 {
		keys = append(keys, datapath.Endpoint(remote, 0, 41))
	}
	return keys
}

// peerLine binds the tunnel's peer, wherever it is.
func (t Tunnel) peerLine(ip, port string) string {
	return t.peerEntry(t.bpf.first, datapath.Peer(form(ip, "ip4"), t.peerPortBytes(port), t.since(), t.Auth.Lifetime))
}

// since is when the peer's silence began to count, if it does.
func (t Tunnel) since() string {
	if t.Auth.Lifetime > 0 {
		return "${" + uptime + ".le32}"
	}
	return datapath.Number(0)
}

func (t Tunnel) peerEntry(number int, value string) string {
	return fmt.Sprintf("map update @peers key %s value %s", datapath.Number(number), value)
}

func (t Tunnel) peerPortBytes(port string) string {
	if t.Encap == None {
		return datapath.Port(0)
	}
	return form(port, "be16")
}

// peerLines bind the peers that are known beforehand.
func (t Tunnel) peerLines() (lines []string) {
	switch {
	case t.Role == Server:
	case t.OneToMany():
		port := uint16(0)
		if t.Encap == FOU {
			port = t.RemotePort
		}
		for i, node := range t.nodes() {
			value := datapath.Peer(form(node, "ip4"), datapath.Port(port), datapath.Number(0), 0)
			lines = append(lines, t.peerEntry(t.bpf.first+i, value))
		}
	default:
		lines = append(lines, t.peerLine(t.peerIP(), t.peerPort()))
	}
	return lines
}

// update is a step of lines for bpftool in which @NAME is a map.
func (t Tunnel) update(s Step, lines []string) Step {
	s.Do, _ = t.batches(lines)
	return s
}

// later is update for plans after `up`, and can be undone. Where the pins can't be
// seen (a script's next call under `ip netns exec` has a mount table of its own),
// maps are known by their ids.
func (t Tunnel) later(s Step, lines, undo []string) Step {
	byID := Step{Passing: s.Passing, Key: s.Key, MayFail: s.MayFail}
	s.Do, byID.Do = t.batches(lines)
	s.Undo, byID.Undo = t.batches(undo)
	s.Else = []Else{{
		When:  Gone,
		Say:   "the pinned maps are in another mount namespace: they are known by their ids",
		Steps: []Step{byID},
	}}
	return s
}

// batches are the lines with pinned maps, and with ids.
func (t Tunnel) batches(lines []string) (pinned, byID Command) {
	if len(lines) == 0 {
		return Command{}, Command{}
	}
	ids := map[string]string{"devices": devicesMap, "endpoints": endpointsMap, "peers": peersMap}
	var toPins, toIDs strings.Builder
	for _, l := range lines {
		what, rest, _ := strings.Cut(l, "@")
		name, rest, _ := strings.Cut(rest, " ")
		toPins.WriteString(what + "pinned " + t.bpf.dir + "/" + name + " " + rest + "\n")
		toIDs.WriteString(what + "id ${" + ids[name] + "} " + rest + "\n")
	}
	batch := func(text *strings.Builder) Command {
		return Command{Argv: []string{"bpftool", "batch", "file", "-"}, Stdin: text.String()}
	}
	return batch(&toPins), batch(&toIDs)
}
