package plans

import (
	"net/netip"
	"slices"
	"strconv"
)

// members are the steps that shut out of tunnels without a remote whoever is no
// node of theirs: the drivers take packets for such a tunnel from everybody. The
// nodes are those that the routes lead to. It is so for any local address, for
// the host's own may change.
func (c Config) members() []Step {
	var tunnels []Tunnel
	for _, t := range c.Tunnels {
		if t.OneToMany() && t.Backend != BPF {
			tunnels = append(tunnels, t)
		}
	}
	if len(tunnels) == 0 {
		return nil
	}
	var b ruleset
	b.create("ip " + c.membersTable())
	rules := []string{"type filter hook prerouting priority raw; policy accept;"}
	for _, t := range tunnels {
		refuse := " ip saddr != " + braces(c.senders(t)) + " fib daddr type local " + t.drop()
		if t.Encap != None {
			rules = append(rules, "udp dport "+t.port()+refuse)
		}
		rules = append(rules, "ip protocol "+t.how().bareProtocols()+refuse)
	}
	b.chain("members", rules...)
	b.line(0, "}")
	return []Step{{
		Comment: "a tunnel without a remote takes packets from everybody: its nodes alone may send any",
		Do:      nft(b...),
		Undo:    cmd("nft", "delete", "table", "ip", c.membersTable()),
		Key:     "members",
		Taken:   cmd("nft", "list", "tables"),
		Lines:   []string{"table ip " + c.membersTable()},
	}}
}

// membersTable is the name of the table of nodes, beside the gate's.
func (c Config) membersTable() string {
	for _, t := range c.Tunnels {
		if t.OneToMany() && t.Backend != BPF {
			return t.Table + "-nodes"
		}
	}
	return ""
}

// senders are the tunnel's nodes, and the other ends of plain tunnels beside it.
func (c Config) senders(t Tunnel) []string {
	out := t.nodes()
	for _, other := range c.Tunnels {
		if ip := other.RemoteIP.String(); other.Role == Static && other.RemoteIP.Is4() && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	slices.Sort(out)
	return out
}

// nodes are the outer addresses that the tunnel's routes lead to.
func (t Tunnel) nodes() []string {
	var out []string
	for _, r := range t.Routes {
		via := r.Via
		if via.Is6() { // as sit has it
			b := via.As16()
			via = netip.AddrFrom4([4]byte(b[12:]))
		}
		if via.IsValid() && !slices.Contains(out, via.String()) {
			out = append(out, via.String())
		}
	}
	return out
}

// bareProtocols are what the mode's drivers take without UDP, by number (ipip in
// /etc/protocols is another one).
func (m linkMode) bareProtocols() string {
	if m.proto != 0 {
		return strconv.Itoa(m.proto)
	}
	return "{ 4, 41 }"
}
