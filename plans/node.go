package plans

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A Node is one [[node]] of a file that all nodes of a network share: the
// settings of its own end, and what the others find behind it.
type Node struct {
	Name     string
	Networks []string
	Settings Settings
	Where    string // "mesh.toml:7"
}

func parseNode(table map[string]any, file string, lines map[string]int) (Node, error) {
	n := Node{Where: at(file, lines, "name")}
	name, ok := table["name"].(string)
	if !ok || !nftName(name) {
		return n, fmt.Errorf("%s: name: each [[node]] wants one: a letter, then letters, digits and one of . _ - in it", n.Where)
	}
	n.Name = name
	delete(table, "name")
	if v, given := table["networks"]; given {
		list, ok := typed(List, v)
		if !ok {
			return n, fmt.Errorf("%s: networks: want a list of strings", at(file, lines, "networks"))
		}
		n.Networks = list.([]string)
		delete(table, "networks")
	}
	var err error
	n.Settings, err = settingsOf(table, file, lines)
	return n, err
}

// common are the flags that hold for all nodes alike; the others are this one's.
var common = []string{"mode", "encap", "key", "number", "backend"}

// nodeLayer are the settings of the node that this host is: its own, and what
// follows from the others'. Of two nodes each is the other's remote; of more, a
// node has no remote, and routes choose the outer destination.
func nodeLayer(given Settings, files []File, flags Settings, read Files) (Settings, error) {
	var nodes []Node
	for _, f := range files {
		nodes = append(nodes, f.Nodes...)
	}
	names := make([]string, len(nodes))
	for i, n := range nodes {
		if slices.Contains(names[:i], n.Name) {
			return nil, fmt.Errorf("%s: name: %q is another node's too", n.Where, n.Name)
		}
		names[i] = n.Name
	}
	r := newReader(given, read)
	me := slices.Index(names, r.text("node"))
	switch {
	case len(nodes) == 0:
		return nil, fmt.Errorf("%s: no file has a [[node]]", r.where("node"))
	case !r.has("node"):
		return nil, fmt.Errorf("--node: say which node this host is: %s", strings.Join(names, ", "))
	case me < 0:
		return nil, fmt.Errorf("%s: %q is none of the nodes: %s", r.where("node"), r.text("node"), strings.Join(names, ", "))
	case len(nodes) < 2:
		return nil, fmt.Errorf("%s: a node needs another one: give a second [[node]]", nodes[0].Where)
	}
	shared := Settings{}
	for _, name := range common {
		if set, ok := flags[name]; ok {
			shared[name] = set
		}
	}
	top := merged(files, Settings{"node": r.s["node"]})
	layer := top.over(nodes[me].Settings).over(flags)
	all := make([]Tunnel, len(nodes))
	for i, n := range nodes {
		l := layer
		if i != me {
			l = top.over(n.Settings).over(shared)
		}
		var err error
		if all[i], err = readNode(n, l, read); err != nil {
			return nil, err
		}
	}
	if err := alike(nodes, all); err != nil {
		return nil, err
	}
	return joined(layer, nodes, all, me, read), nil
}

// alike refuses nodes that could not talk to each other.
func alike(nodes []Node, all []Tunnel) error {
	many := len(nodes) > 2
	if m := all[0].how(); many && !m.oneToMany {
		return fmt.Errorf("%s: mode %s takes two nodes; for %d, where routes choose the destination, want mode %s",
			nodes[2].Where, m.name, len(nodes), modeNames(func(m linkMode) bool { return m.oneToMany }))
	}
	for i, t := range all {
		for j, other := range all[:i] {
			differs := func(what, a, b string) error {
				return fmt.Errorf("%s: node %s has %s %s, and node %s has %s (%s): they must be the same", nodes[i].Where, nodes[i].Name, what, a, nodes[j].Name, b, nodes[j].Where)
			}
			switch {
			case t.Mode != other.Mode:
				return differs("mode", string(t.Mode), string(other.Mode))
			case t.Encap != other.Encap:
				return differs("encap", string(t.Encap), string(other.Encap))
			case t.Key != other.Key:
				return differs("key", cmp.Or(t.Key, "none"), cmp.Or(other.Key, "none"))
			case many && t.FOUPort != other.FOUPort:
				return differs("the UDP port", t.port(), other.port())
			case t.FOUIP == other.FOUIP:
				return fmt.Errorf("%s: node %s has the outer address %s, which is node %s's too", nodes[i].Where, nodes[i].Name, t.FOUIP, nodes[j].Name)
			}
			for _, a := range t.Addrs {
				if slices.ContainsFunc(other.Addrs, func(b Address) bool { return a.IP == b.IP }) {
					return fmt.Errorf("%s: node %s has the tunl-ip %s, which is node %s's too", nodes[i].Where, nodes[i].Name, a.IP, nodes[j].Name)
				}
			}
		}
	}
	for _, n := range nodes {
		for _, text := range n.Networks {
			p, err := netip.ParsePrefix(text)
			if err != nil || p != p.Masked() {
				return fmt.Errorf("%s: networks: node %s: %q is not a network such as 10.1.0.0/24", n.Where, n.Name, text)
			}
			for j, t := range all {
				if many && p.Contains(t.FOUIP) {
					return fmt.Errorf("%s: networks: node %s: %s holds %s, the outer address of node %s: it would be sought through the tunnel", n.Where, n.Name, p, t.FOUIP, nodes[j].Name)
				}
			}
		}
	}
	return nil
}

// joined adds to a node's settings what follows from the others'.
func joined(layer Settings, nodes []Node, all []Tunnel, me int, read Files) Settings {
	own, direct := all[me], len(nodes) == 2
	routes := slices.Clone(newReader(layer, read).list("routes"))
	where := nodes[me].Where + ": node " + nodes[me].Name
	if set, ok := layer["routes"]; ok {
		where = set.Where
	}
	for i, n := range nodes {
		if i == me {
			continue
		}
		other := all[i]
		if direct {
			remote := Settings{"fou-remote-ip": {other.FOUIP.String(), n.Where}, "tunl-peer-ip": {peersOf(own, other), n.Where}}
			if other.Encap != None {
				remote["fou-remote-port"] = Setting{int(other.FOUPort), n.Where}
			}
			layer = remote.over(layer)
		}
		routes = append(routes, routesTo(n, own, other, direct)...)
	}
	layer["routes"] = Setting{routes, where}
	return layer
}

// readNode reads what the other nodes must know of one.
func readNode(n Node, layer Settings, read Files) (Tunnel, error) {
	r := newReader(layer, read)
	if r.role() != Static {
		name := r.authenticated()
		return Tunnel{}, fmt.Errorf("%s: nodes are static tunnels: leave %s out", r.where(name), name)
	}
	t := Tunnel{Role: Static}
	r.number(&t)
	r.backend(&t)
	m := r.shape(&t)
	t.FOUIP = r.outer("fou-local-ip", m)
	if !t.FOUIP.IsValid() && r.err == nil {
		return t, fmt.Errorf("%s: node %s has no fou-local-ip, its outer address", n.Where, n.Name)
	}
	if t.Encap != None {
		r.localPort(&t)
	}
	for _, text := range r.list("tunl-ip") {
		t.Addrs = append(t.Addrs, r.innerAddress("tunl-ip", text, m))
	}
	if r.has("bridge") {
		t.Bridge = r.bridge(&t)
	}
	return t, r.err
}

// authenticated is the setting by which a tunnel is not a static one.
func (r *reader) authenticated() string {
	if name := r.authentication(); name != "" {
		return name
	}
	return map[bool]string{true: "server", false: "client"}[r.flag("server")]
}

// peersOf are the other node's addresses for those of ours without a prefix.
func peersOf(own, other Tunnel) []string {
	var out []string
	taken := map[int]bool{}
	for _, a := range own.Addrs {
		if a.Bits >= 0 {
			continue
		}
		for i, b := range other.Addrs {
			if !taken[i] && b.IP.Is4() == a.IP.Is4() {
				taken[i] = true
				out = append(out, b.IP.String())
				break
			}
		}
	}
	return out
}

// routesTo are the routes to a node and to what is behind it.
func routesTo(n Node, own, other Tunnel, direct bool) []string {
	var out []string
	add := func(to string) {
		if !direct {
			to += " via " + other.FOUIP.String() + " onlink"
		}
		if !slices.Contains(out, to) {
			out = append(out, to)
		}
	}
	peers := peersOf(own, other)
	for _, a := range other.Addrs {
		near := slices.Contains(peers, a.IP.String()) || slices.ContainsFunc(own.Addrs, func(b Address) bool {
			return b.Bits >= 0 && netip.PrefixFrom(b.IP, b.Bits).Contains(a.IP)
		})
		if !direct || !near {
			add(netip.PrefixFrom(a.IP, a.IP.BitLen()).String())
		}
	}
	for _, network := range n.Networks {
		add(network)
	}
	if other.Bridge != nil {
		for _, p := range other.Bridge.Addrs {
			if own.how().carries(p.Addr().Is6()) {
				add(p.Masked().String())
			}
		}
	}
	return out
}
