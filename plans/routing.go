package plans

import (
	"net/netip"
	"strconv"
)

// prefs are the places (ip-rule(8)) of a tunnel's rules, one after the other and
// before the main table's, which is at 32766: what goes by the outer path as if
// there were no tunnel; then whatever has a route of its own; then the tunnel.
// They are a tunnel's own, so that several can have such rules.
func (t Tunnel) prefs() (outer, own, inner string) {
	first := 29000 + 3*(t.Number%1000)
	return strconv.Itoa(first), strconv.Itoa(first + 1), strconv.Itoa(first + 2)
}

// captures reports whether a route would carry the tunnel's own packets into the
// tunnel, were it in the main table. Where the peer's address is not known yet or
// may change, it can be anywhere outside of private networks, and in large ones.
func (t Tunnel) captures(r Route) bool {
	switch {
	case r.Table != 0:
		return false
	case r.To.Bits() == 0:
		return r.Metric == 0 || r.To.Addr().Is6() == t.how().outer6
	case r.To.Addr().Is6() != t.how().outer6 || t.OneToMany():
		return false
	case t.RemoteHost == "" && t.RemoteIP.IsValid() && t.Role != Server:
		return r.To.Contains(t.RemoteIP)
	}
	for _, block := range privateBlocks {
		if block.Overlaps(r.To) && r.To.Bits() > block.Bits() {
			return false
		}
	}
	return true
}

// privateBlocks are those of RFC 1918, 6598 and 4193.
var privateBlocks = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("fc00::/7"),
}

// table is the routing table for what the main one must not have.
func (t Tunnel) table() string { return strconv.Itoa(fouPortBase + t.Number) }

// routing are the routes to networks behind the other end. Those in a table go
// with the link; rules do not, and have an undo.
func (t Tunnel) routing() []Step {
	var steps, captured []Step
	told := map[netip.Addr]bool{}
	shortest := map[bool]int{} // by family: prefix length of the widest captured route
	for _, r := range t.Routes {
		words := []string{"ip", "route", "add", destination(r.To)}
		if r.To.Addr().Is6() {
			words = []string{"ip", "-6", "route", "add", destination(r.To)}
		}
		if r.Via.IsValid() {
			words = append(words, "via", r.Via.String())
		}
		words = append(words, "dev", t.Dev)
		if r.Onlink {
			words = append(words, "onlink")
		}
		if r.Metric != 0 {
			words = append(words, "metric", strconv.Itoa(r.Metric))
		}
		is6 := r.To.Addr().Is6()
		comment := "network behind the other end"
		if r.To.Bits() == r.To.Addr().BitLen() {
			comment = "address behind the other end"
		}
		switch {
		case t.captures(r):
			captured = append(captured, Step{Comment: "what would carry the tunnel's own packets has a table of its own", Do: cmd(append(words, "table", t.table())...)})
			if n, seen := shortest[is6]; !seen || r.To.Bits() < n {
				shortest[is6] = r.To.Bits()
			}
			continue
		case r.Table != 0:
			words = append(words, "table", strconv.Itoa(r.Table))
		}
		if r.Onlink && t.Mode == "gre" && t.OneToMany() {
			if !told[r.Via] {
				steps = append(steps, t.neighbour(r.Via))
			}
			told[r.Via] = true
		}
		steps = append(steps, Step{Comment: comment, Do: cmd(words...)})
	}
	steps = append(steps, captured...)
	_, own, inner := t.prefs()
	for _, is6 := range []bool{false, true} {
		if n, any := shortest[is6]; any {
			if is6 == t.how().outer6 {
				steps = append(steps, t.aroundTunnel()...)
			}
			steps = append(steps,
				rule(is6, "what has a route of its own, longer than the tunnel's, keeps it", "lookup", "main", "suppress_prefixlength", strconv.Itoa(n), "pref", own),
				rule(is6, "all the rest goes through the tunnel", "lookup", t.table(), "pref", inner))
		}
	}
	return steps
}

// neighbour tells gre, which asks the link layer, that a nexthop is its own
// outer address.
func (t Tunnel) neighbour(via netip.Addr) Step {
	return Step{
		Comment: "gre's outer address of a node is its link-layer address",
		Do:      cmd("ip", "neighbour", "add", via.String(), "lladdr", via.String(), "dev", t.Dev, "nud", "permanent"),
	}
}

// aroundTunnel keeps out of the tunnel its own packets, and those that belong to
// the outer address: other tunnels', and answers to who reached the host there.
func (t Tunnel) aroundTunnel() []Step {
	outer, _, _ := t.prefs()
	to := rule(t.how().outer6, "the tunnel's own packets don't go through the tunnel", "to", t.peerIP(), "lookup", "main", "pref", outer)
	to.Key = t.key("outer_rule_to")
	from := rule(t.how().outer6, "nor what is sent from the outer address", "from", t.localIP(), "lookup", "main", "pref", outer)
	from.Key = t.key("outer_rule_from")
	return []Step{to, from}
}

// movedRules are the steps for those rules when an end has another address.
func (t Tunnel) movedRules() []Step {
	for _, r := range t.Routes {
		if t.captures(r) && r.To.Addr().Is6() == t.how().outer6 {
			return append([]Step{
				{TakeBack: t.key("outer_rule_to"), MayFail: true},
				{TakeBack: t.key("outer_rule_from"), MayFail: true},
			}, t.aroundTunnel()...)
		}
	}
	return nil
}

func rule(is6 bool, comment string, words ...string) Step {
	family := familyFlag(is6)
	return Step{
		Comment: comment,
		Do:      cmd(append([]string{"ip", family, "rule", "add"}, words...)...),
		Undo:    cmd(append([]string{"ip", family, "rule", "del"}, words...)...),
	}
}

// familyFlag is by which ip(8) knows the family.
func familyFlag(is6 bool) string {
	if is6 {
		return "-6"
	}
	return "-4"
}

func destination(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "default"
	}
	return p.String()
}
