package plans

import (
	"net/netip"
	"strconv"
)

// Rules of a tunnel that takes a default route, in their order: to the other end
// as if there were no tunnel; then whatever has a route of its own; then the
// tunnel. They come before the main table's (ip-rule(8), 32766).
const (
	outerRule = "32000"
	ownRule   = "32001"
	innerRule = "32002"
)

// captures reports whether a route would carry the tunnel's own packets into the
// tunnel, were it in the main table. A peer whose address is not known yet can be
// anywhere, so half of the Internet counts.
func (t Tunnel) captures(r Route) bool {
	switch {
	case r.Table != 0:
		return false
	case r.To.Bits() == 0:
		return r.Metric == 0 || r.To.Addr().Is6() == t.how().outer6
	case r.To.Addr().Is6() != t.how().outer6 || t.OneToMany():
		return false
	case t.RemoteIP.IsValid():
		return r.To.Contains(t.RemoteIP)
	}
	return r.To.Bits() < 8
}

// table is the routing table for what the main one must not have.
func (t Tunnel) table() string { return strconv.Itoa(fouPortBase + t.Number) }

// routing are the routes to networks behind the other end. Those in a table go
// with the link; rules do not, and have an undo.
func (t Tunnel) routing() []Step {
	var steps, captured []Step
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
			steps = append(steps, t.neighbour(r.Via, steps)...)
		}
		steps = append(steps, Step{Comment: comment, Do: cmd(words...)})
	}
	steps = append(steps, captured...)
	for _, is6 := range []bool{false, true} {
		if n, any := shortest[is6]; any {
			if is6 == t.how().outer6 {
				steps = append(steps, t.aroundTunnel())
			}
			steps = append(steps,
				rule(is6, "what has a route of its own, longer than the tunnel's, keeps it", "lookup", "main", "suppress_prefixlength", strconv.Itoa(n), "pref", ownRule),
				rule(is6, "all the rest goes through the tunnel", "lookup", t.table(), "pref", innerRule))
		}
	}
	return steps
}

// neighbour tells gre, which asks the link layer, that a nexthop is its own
// outer address.
func (t Tunnel) neighbour(via netip.Addr, before []Step) []Step {
	do := cmd("ip", "neighbour", "add", via.String(), "lladdr", via.String(), "dev", t.Dev, "nud", "permanent")
	for _, s := range before {
		if s.Do.String() == do.String() {
			return nil
		}
	}
	return []Step{{Comment: "gre's outer address of a node is its link-layer address", Do: do}}
}

// aroundTunnel keeps the tunnel's own packets out of it.
func (t Tunnel) aroundTunnel() Step {
	s := rule(t.how().outer6, "the tunnel's own packets don't go through the tunnel", "to", t.peerIP(), "lookup", "main", "pref", outerRule)
	s.Key = t.key("outer_rule")
	return s
}

// moved are the steps for the rule about the peer when that has another address.
func (t Tunnel) movedRule() []Step {
	for _, r := range t.Routes {
		if t.captures(r) && r.To.Addr().Is6() == t.how().outer6 {
			return []Step{{TakeBack: t.key("outer_rule"), MayFail: true}, t.aroundTunnel()}
		}
	}
	return nil
}

func rule(is6 bool, comment string, words ...string) Step {
	family := "-4"
	if is6 {
		family = "-6"
	}
	return Step{
		Comment: comment,
		Do:      cmd(append([]string{"ip", family, "rule", "add"}, words...)...),
		Undo:    cmd(append([]string{"ip", family, "rule", "del"}, words...)...),
	}
}

func destination(p netip.Prefix) string {
	if p.Bits() == 0 {
		return "default"
	}
	return p.String()
}
