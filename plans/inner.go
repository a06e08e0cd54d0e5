package plans

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// inner reads the tunnel's interface and its addresses.
func (r *reader) inner(t *Tunnel, m linkMode) {
	t.Dev = r.device("tunl-dev")
	if !r.has("tunl-dev") {
		t.Dev = "ipipou" + strconv.Itoa(t.Number)
	}
	if t.Dev == t.FOUDev && t.Dev != "" {
		r.fail("tunl-dev", "is the outer interface itself")
	}
	for _, text := range r.list("tunl-ip") {
		a := r.innerAddress("tunl-ip", text, m)
		if slices.ContainsFunc(t.Addrs, func(other Address) bool { return other.IP == a.IP }) {
			r.fail("tunl-ip", "%s is given twice", a.IP)
		}
		t.Addrs = append(t.Addrs, a)
	}
	if t.Role != Static && !slices.ContainsFunc(t.Addrs, func(a Address) bool { return a.IP.Is4() }) {
		if t.Role == Client && len(t.Addrs) == 0 {
			r.fail("tunl-ip", "a client needs its tunnel address: the peer address that its server has, 172.28.0.1 for number 0")
		}
		if len(t.Addrs) == 0 {
			t.Addrs = []Address{{IP: plus(tunnelBase, 2*t.Number), Bits: -1}}
		}
	}
	r.peers(t, m)
}

func (r *reader) innerAddress(name, text string, m linkMode) Address {
	a := Address{Bits: -1}
	var err error
	if strings.Contains(text, "/") {
		var p netip.Prefix
		p, err = netip.ParsePrefix(text)
		a.IP, a.Bits = p.Addr(), p.Bits()
	} else {
		a.IP, err = netip.ParseAddr(text)
	}
	switch {
	case err != nil || a.IP.Zone() != "" || a.IP.Is4In6() || a.IP.IsUnspecified() || a.IP.IsMulticast():
		r.fail(name, "%q is not an address, want one such as 10.9.0.1, 10.9.0.1/24 or fd00::1/64", text)
		return Address{IP: netip.IPv4Unspecified(), Bits: -1}
	case !m.carries(a.IP.Is6()):
		r.notCarried(name, a.IP, m)
	}
	return a
}

// notCarried says which mode carries the address's family over the same outer one.
func (r *reader) notCarried(name string, a netip.Addr, m linkMode) {
	r.fail(name, "mode %s carries %s only, and %s is none; want mode %s", m.name, m.inner(), a,
		modeNames(func(other linkMode) bool { return other.outer6 == m.outer6 && !other.bare && other.carries(a.Is6()) }))
}

// peers gives the other end's addresses to those of ours that have no prefix.
func (r *reader) peers(t *Tunnel, m linkMode) {
	for _, text := range r.list("tunl-peer-ip") {
		peer := r.innerAddress("tunl-peer-ip", text, m)
		i := slices.IndexFunc(t.Addrs, func(a Address) bool {
			return a.Bits < 0 && !a.Peer.IsValid() && a.IP.Is4() == peer.IP.Is4()
		})
		switch {
		case peer.Bits >= 0:
			r.fail("tunl-peer-ip", "%q: want an address without a prefix length", text)
		case i < 0:
			r.fail("tunl-peer-ip", "%s goes with no address of this end's: there is no further one of its family without a prefix length in tunl-ip", peer.IP)
		case t.Addrs[i].IP == peer.IP:
			r.fail("tunl-peer-ip", "want an address other than %s", peer.IP)
		default:
			t.Addrs[i].Peer = peer.IP
		}
	}
	if t.Role == Static {
		return
	}
	// The Python tool's rule.
	i := slices.IndexFunc(t.Addrs, func(a Address) bool { return a.IP.Is4() })
	if i < 0 || t.Addrs[i].Bits >= 0 || t.Addrs[i].Peer.IsValid() {
		return
	}
	a := &t.Addrs[i]
	a.Peer = a.IP.Next()
	if t.Role == Client {
		a.Peer = a.IP.Prev()
	}
	if !a.Peer.IsValid() {
		r.fail("tunl-peer-ip", "there is no address beside %s: give one", a.IP)
	}
}

// routes reads the networks behind the other end.
func (r *reader) routes(t *Tunnel, m linkMode) {
	for _, text := range r.list("routes") {
		t.Routes = append(t.Routes, r.route(text, t, m)...)
	}
	if t.OneToMany() && !slices.ContainsFunc(t.Routes, func(r Route) bool { return r.Via.IsValid() }) {
		r.fail("fou-remote", "a static tunnel needs the other end's address, or routes with via and onlink that choose it")
	}
	for i, a := range t.Routes {
		for _, b := range t.Routes[:i] {
			if a.To == b.To && a.Metric == b.Metric && a.Table == b.Table {
				r.fail("routes", "%s is given twice", a.To)
			}
		}
	}
}

// route reads routes in the words of ip-route(8), one or several.
func (r *reader) route(text string, t *Tunnel, m linkMode) []Route {
	var out []Route
	words := strings.Fields(text)
	for i := 0; i < len(words); i++ {
		word, next := words[i], ""
		if i+1 < len(words) {
			next = words[i+1]
		}
		var last *Route
		if len(out) > 0 {
			last = &out[len(out)-1]
		}
		switch {
		case last != nil && word == "onlink":
			last.Onlink = true
		case last != nil && (word == "via" || word == "metric" || word == "table"):
			if i++; next == "" {
				r.fail("routes", "%q: %s wants a value", text, word)
				return nil
			}
			r.routeOption(last, word, next)
		default:
			out = append(out, Route{To: r.destination(word, m)})
		}
	}
	if len(out) == 0 {
		r.fail("routes", "an empty route; want a network such as 10.1.0.0/24, or default")
	}
	for i := range out {
		r.checkRoute(&out[i], t, m)
	}
	return out
}

func (r *reader) destination(word string, m linkMode) netip.Prefix {
	if word == "default" {
		if m.inner4 {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	p, err := netip.ParsePrefix(word)
	if a, fault := netip.ParseAddr(word); fault == nil && a.Zone() == "" {
		p, err = netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case err != nil || p.Addr().Is4In6():
		r.fail("routes", "%q is not a network such as 10.1.0.0/24, nor one of via, onlink, metric, table", word)
		return netip.PrefixFrom(netip.IPv4Unspecified(), 32)
	case p != p.Masked():
		r.fail("routes", "%q is not a network, it has bits behind its prefix; want %s", word, p.Masked())
	case !m.carries(p.Addr().Is6()):
		r.notCarried("routes", p.Addr(), m)
	}
	return p
}

func (r *reader) routeOption(to *Route, word, value string) {
	if word == "via" {
		a, err := netip.ParseAddr(value)
		if err != nil || a.Zone() != "" || a.Is4In6() {
			r.fail("routes", "%s via %q: want an address", to.To, value)
		}
		to.Via = a
		return
	}
	n, err := strconv.ParseUint(value, 0, 32)
	if err != nil || n == 0 {
		r.fail("routes", "%s %s %q is out of range, want 1 to 4294967295", to.To, word, value)
	}
	if word == "metric" {
		to.Metric = int(n)
	} else {
		to.Table = int(n)
	}
}

const mainTable = 254 // rt_tables of iproute2

func (r *reader) checkRoute(to *Route, t *Tunnel, m linkMode) {
	if t.OneToMany() && to.To.Addr().Is6() && to.Via.Is4() {
		// What sit takes the outer destination from (RFC 4213, ipip6_tunnel_xmit).
		b := to.Via.As4()
		to.Via = netip.AddrFrom16([16]byte{12: b[0], b[1], b[2], b[3]})
	}
	switch {
	case !to.Via.IsValid() && to.Onlink:
		r.fail("routes", "%s: onlink goes with via", to.To)
	case !to.Via.IsValid() && t.OneToMany() && r.err == nil:
		r.fail("routes", "%s: without a remote each route needs the outer address of its node: give via and onlink", to.To)
	case to.Via.IsValid() && to.Via.Is6() != to.To.Addr().Is6():
		r.fail("routes", "%s via %s: the families differ", to.To, to.Via)
	case t.OneToMany() && t.Mode == "gre" && to.To.Addr().Is6():
		r.fail("routes", "%s: without a remote, mode gre takes IPv4 routes only; want mode any4 for IPv6", to.To)
	case to.To.Bits() == 0 && t.OneToMany():
		r.fail("routes", "a default route wants a tunnel of its own, with one remote")
	case to.To.Bits() == 0 && to.Table == mainTable:
		r.fail("routes", "a default route in the main table would carry the tunnel's own packets too: leave the table out")
	}
	if to.Table == mainTable {
		to.Table = 0
	}
}
