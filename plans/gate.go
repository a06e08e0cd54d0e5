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
// Its keys are local address, local port, peer address and peer port, in that
// order. A peer's packets cost one lookup.
//
//	fou      the FOU endpoints that the gate is for, alternate ones included
//	peers    who has authenticated, and what becomes of its packets
//	alive    of peers whose admission runs out, those for whom it hasn't
//	alt_in   peers whose packets are rewritten to an alternate local address
//	alt_out  and back, on the way out
//	bare     peer and local address between which ipip or GRE must not come
//	         without its UDP: their drivers would take it, past the gate
//	key_N    of a GRE tunnel: its key and no other one's
func (c Config) gate() []Step {
	servers := c.gated()
	table := c.table()
	var fou, altOut []string
	for _, t := range servers {
		fou = append(fou, t.localIP()+" . "+t.port(), t.FOUIPAlt.String()+" . "+t.port())
		altOut = append(altOut, t.FOUIPAlt.String()+" . "+t.port()+" : "+t.localIP())
	}
	drop := servers[0].drop()
	var b ruleset
	b.create("ip " + table)
	b.set("set fou", "type ipv4_addr . inet_service", fou)
	// With a size, the kernel takes a hash table that is faster than one that can
	// grow; a peer has two elements while it moves.
	b.set("map peers", "type ipv4_addr . inet_service . ipv4_addr . inet_service : verdict", nil, fmt.Sprintf("size %d", 64+4*len(servers)))
	b.set("map alt_in", "type ipv4_addr . inet_service . ipv4_addr . inet_service : ipv4_addr", nil)
	b.set("map alt_out", "type ipv4_addr . inet_service : ipv4_addr", altOut)
	for _, set := range bareSets(servers) {
		b.set("set "+set, "type ipv4_addr . ipv4_addr", nil)
	}
	b.chain("pass", servers[0].counter())
	b.chain("alternate", "ip daddr set "+peerKey+" map @alt_in", "goto pass")
	if limits := lifetimes(servers); len(limits) > 0 {
		b.set("set alive", "type ipv4_addr . inet_service . ipv4_addr . inet_service", nil, "flags dynamic,timeout")
		rules := []string{peerKey + " != @alive " + drop}
		for _, l := range limits {
			rules = append(rules, fmt.Sprintf("ip daddr . udp dport { %s } update @alive { %s timeout %ds }", strings.Join(l.endpoints, ", "), peerKey, l.seconds))
		}
		b.chain("timed", append(rules, "goto alternate")...)
	}
	for _, t := range servers {
		if t.Mode == "gre" {
			b.chain(t.ownKey(), t.greHeader()+" goto "+t.beyondKey(), drop)
		}
	}
	rules := []string{
		"type filter hook prerouting priority raw; policy accept;",
		peerKey + " vmap @peers",
		"ip daddr . udp dport @fou " + drop,
	}
	for _, set := range bareSets(servers) {
		// By number: the name ipip is protocol 94 in /etc/protocols.
		proto := map[bool]string{true: "4", false: "47"}[set == "bare"]
		rules = append(rules, "ip protocol "+proto+" ip saddr . ip daddr @"+set+" "+drop)
	}
	b.chain("gate", rules...)
	b.line(0, "}")
	return []Step{{
		Comment: "the gate: closed to everybody until a peer has authenticated",
		Do:      nft(b...),
		Undo:    cmd("nft", "delete", "table", "ip", table),
		Key:     "gate",
		Taken:   cmd("nft", "list", "tables"),
		Lines:   []string{"table ip " + table},
	}, c.untracked(table)}
}

// bareSets are the sets of addresses between which a mode must not come without
// its UDP. Tunnels of GRE share two addresses, so each has a set of its own: what
// one leaves, the other still has.
func bareSets(servers []Tunnel) []string {
	var sets []string
	for _, t := range servers {
		if !slices.Contains(sets, t.bare()) {
			sets = append(sets, t.bare())
		}
	}
	return sets
}

func (t Tunnel) bare() string {
	if t.Mode == "gre" {
		return "bare_" + strconv.Itoa(t.Number)
	}
	return "bare"
}

// ownKey is the chain that takes from a peer no other tunnel's key: the kernel
// finds a GRE tunnel by its key, whatever port the packet came to.
func (t Tunnel) ownKey() string { return "key_" + strconv.Itoa(t.Number) }

// greHeader matches what is behind the UDP header: the flags of GRE as both ends
// send it and, two bytes on, the key (RFC 2784, 2890).
func (t Tunnel) greHeader() string {
	if t.Key == "" {
		return "@th,64,16 0x0000"
	}
	key, _ := strconv.ParseUint(t.Key, 10, 32) // validated
	return fmt.Sprintf("@th,64,16 0x2000 @th,96,32 0x%08x", key)
}

// beyondKey is where a packet with the right key goes on.
func (t Tunnel) beyondKey() string {
	if t.Auth.Lifetime > 0 {
		return "timed"
	}
	return "alternate" // rewrites what has an alternate address, and goes to pass
}

// peerKey is what a peer's packets are known by.
const peerKey = "ip daddr . udp dport . ip saddr . udp sport"

// way is the verdict on the tunnel's packets.
func (t Tunnel) way(alt bool) string {
	switch {
	case t.Mode == "gre":
		return "goto " + t.ownKey()
	case t.Auth.Lifetime > 0:
		return "goto timed"
	case alt:
		return "goto alternate"
	}
	return "goto pass"
}

// outward rewrites what leaves from alternate local addresses. The chain is made
// when the first of them is taken, and stays: it costs all that the host sends.
func (t Tunnel) outward() Step {
	return Step{
		Comment: "what leaves from alternate local addresses is rewritten",
		Do: nft(
			"add chain ip "+t.Table+" post { type filter hook postrouting priority srcnat; policy accept; }",
			"add rule ip "+t.Table+" post ip saddr set ip saddr . udp sport map @alt_out"),
		Undo: nft(
			"flush chain ip "+t.Table+" post",
			"delete chain ip "+t.Table+" post"),
		Key: "outward",
	}
}

// untracked keeps the tunnels' packets out of connection tracking, which costs
// time for each and remembers where a peer was. Where nothing is tracked nothing
// is done: the rules would load tracking, with all its sysctls, and cost time too.
func (c Config) untracked(table string) Step {
	var b ruleset
	b.line(0, "insert rule ip %s pass notrack", table)
	b.line(0, "table ip %s {", table)
	b.line(1, "chain out {")
	b.line(2, "type filter hook output priority raw; policy accept;")
	b.line(2, "ip saddr . udp sport @fou notrack")
	b.line(1, "}")
	b.line(0, "}")
	s := Step{
		Comment: "its packets are not for connection tracking, if anything here is tracked",
		Do:      nft(b...),
		If:      cmd("grep", "-qs", "[1-9]", "/proc/sys/net/netfilter/nf_conntrack_count"),
		MayFail: true, // a kernel without nft_ct: tracked, it works too
	}
	if len(c.forwarders()) > 0 {
		s.If = Command{} // tracking is what our own rules use
	}
	return s
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

// create begins a table, "ip NAME". `create`, unlike `add`, fails if somebody else
// has one of this name.
func (b *ruleset) create(table string) {
	b.line(0, "create table %s", table)
	b.line(0, "table %s {", table)
}

func (b *ruleset) chain(name string, rules ...string) {
	b.line(1, "chain %s {", name)
	for _, r := range rules {
		if r != "" {
			b.line(2, "%s", r)
		}
	}
	b.line(1, "}")
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

// counter counts what a rule matches, if that is wanted.
func (t Tunnel) counter() string {
	if t.Counters {
		return "counter"
	}
	return ""
}

func (t Tunnel) drop() string { return words(t.counter(), "drop") }

func words(w ...string) string {
	return strings.Join(slices.DeleteFunc(w, func(s string) bool { return s == "" }), " ")
}
