package plans

import (
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// gate are the steps that close the server's FOU ports, before anything listens
// there: an nft table of this instance alone, at a priority before connection
// tracking. It stays as it is if the daemon dies.
//
// The table holds, by local address, local port, peer address and peer port:
//
//	fou      the FOU endpoints that the gate is for, alternate ones included
//	peers    who has authenticated
//	alt_in   peers whose packets are rewritten to an alternate local address
//	alt_out  and back, on the way out
//	bare     peer and local address between which ipip must not come without
//	         its UDP: the ipip driver would take it, past the gate
func (c Config) gate() []Step {
	var servers []Tunnel
	for _, t := range c.Tunnels {
		if t.Mode == Server {
			servers = append(servers, t)
		}
	}
	table := c.table()
	var fou, altOut []string
	for _, t := range servers {
		fou = append(fou, t.localIP()+" . "+t.port(), t.FOUIPAlt.String()+" . "+t.port())
		altOut = append(altOut, t.FOUIPAlt.String()+" . "+t.port()+" : "+t.localIP())
	}
	counter := ""
	if servers[0].Counters {
		counter = "counter"
	}
	var b ruleset
	// `create`, unlike `add`, fails if somebody else has a table of this name.
	b.line(0, "create table ip %s", table)
	b.line(0, "table ip %s {", table)
	b.set("set fou", "type ipv4_addr . inet_service", fou)
	flags := ""
	if len(lifetimes(servers)) > 0 {
		flags = "flags dynamic,timeout"
	}
	b.set("set peers", "type ipv4_addr . inet_service . ipv4_addr . inet_service", nil, flags)
	b.set("map alt_in", "type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr", nil)
	b.set("map alt_out", "type ipv4_addr . inet_service : ipv4_addr", altOut)
	b.set("set bare", "type ipv4_addr . ipv4_addr", nil)

	b.line(1, "chain gate {")
	b.line(2, "type filter hook prerouting priority raw; policy accept;")
	b.line(2, "ip daddr . udp dport @fou goto fou")
	// By number: the name ipip is protocol 94 in /etc/protocols.
	b.line(2, "ip protocol 4 ip saddr . ip daddr @bare %s", words(counter, "drop"))
	b.line(1, "}")
	b.line(1, "chain fou {")
	b.line(2, "ip daddr . udp dport . ip saddr . udp sport @peers goto pass")
	b.line(2, "%s", words(counter, "drop"))
	b.line(1, "}")
	b.line(1, "chain pass {")
	if counter != "" {
		b.line(2, "%s", counter)
	}
	for _, l := range lifetimes(servers) {
		b.line(2, "ip daddr . udp dport { %s } update @peers { ip daddr . udp dport . ip saddr . udp sport timeout %ds }", strings.Join(l.endpoints, ", "), l.seconds)
	}
	b.line(2, "ip daddr set ip daddr . udp dport . ip saddr . udp sport map @alt_in")
	b.line(1, "}")
	b.line(1, "chain post {")
	b.line(2, "type filter hook postrouting priority srcnat; policy accept;")
	b.line(2, "ip saddr set ip saddr . udp sport map @alt_out")
	b.line(1, "}")
	b.line(0, "}")
	return []Step{{
		Comment: "the gate: closed to everybody until a peer has authenticated",
		Do:      nft(b...),
		Undo:    cmd("nft", "delete", "table", "ip", table),
		Key:     "gate",
	}, untracked(table)}
}

// untracked keeps the tunnels' packets out of connection tracking, which costs
// time for each and remembers where a peer was. Where there is no tracking
// nothing is done: the rules would load it, with all its sysctls.
func untracked(table string) Step {
	var b ruleset
	b.line(0, "insert rule ip %s pass notrack", table)
	b.line(0, "table ip %s {", table)
	b.line(1, "chain out {")
	b.line(2, "type filter hook output priority raw; policy accept;")
	b.line(2, "ip saddr . udp sport @fou notrack")
	b.line(1, "}")
	b.line(0, "}")
	return Step{
		Comment: "its packets are not for connection tracking, where there is any",
		Do:      nft(b...),
		Unless:  cmd("test", "!", "-e", "/proc/sys/net/netfilter/nf_conntrack_count"),
		MayFail: true, // a kernel without nft_ct: tracked, it works too
	}
}

type lifetime struct {
	seconds   int
	endpoints []string
}

// lifetimes groups servers by their auth-lifetime, so that the number of rules
// is that of different lifetimes, not of tunnels.
func lifetimes(servers []Tunnel) []lifetime {
	by := map[int][]string{}
	for _, t := range servers {
		if s := t.Auth.Lifetime; s > 0 {
			by[s] = append(by[s], t.localIP()+" . "+strconv.Itoa(int(t.FOUPort)))
		}
	}
	var out []lifetime
	for s, endpoints := range by {
		out = append(out, lifetime{s, endpoints})
	}
	sort.Slice(out, func(i, j int) bool { return out[i].seconds < out[j].seconds })
	return out
}

// ruleset are lines; nft wants one statement a line inside braces.
type ruleset []string

func (b *ruleset) line(depth int, format string, args ...any) {
	*b = append(*b, strings.Repeat("\t", depth)+fmt.Sprintf(format, args...))
}

func (b *ruleset) set(name, kind string, elements []string, more ...string) {
	b.line(1, "%s {", name)
	b.line(2, "%s", kind)
	for _, m := range more {
		if m != "" {
			b.line(2, "%s", m)
		}
	}
	if len(elements) > 0 {
		b.line(2, "elements = {")
		for _, e := range elements {
			b.line(3, "%s,", e)
		}
		b.line(2, "}")
	}
	b.line(1, "}")
}

func words(w ...string) string {
	return strings.Join(slices.DeleteFunc(w, func(s string) bool { return s == "" }), " ")
}
