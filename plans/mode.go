package plans

import "strings"

// Mode is what is carried in what: "ipip", "sit", "gre6", …
type Mode string

// Encap is what is between the outer IP header and what the mode puts there.
type Encap string

// The wrappings: none, FOU (the bare packet in UDP), GUE (UDP with a header that
// tells the protocol; draft-ietf-intarea-gue).
const (
	None Encap = "none"
	FOU  Encap = "fou"
	GUE  Encap = "gue"
)

// A linkMode is how the kernel's drivers make a mode.
type linkMode struct {
	name   Mode
	kind   string   // `type` of ip-link(8)
	words  []string // that choose the mode within the type
	module string
	outer6 bool // the outer header is IPv6's
	inner4 bool
	inner6 bool
	proto  int // IP protocol in FOU, which has room for one; 0: it would be two
	bare   bool
	key    bool // RFC 2890
	// oneToMany: without a remote the driver takes a route's nexthop for it.
	oneToMany bool
	// pmtudisc: whether the outer header's DF bit can be chosen.
	pmtudisc bool
}

var modes = []linkMode{
	{name: "ipip", kind: "ipip", words: []string{"mode", "ipip"}, module: "ipip", inner4: true, proto: 4, oneToMany: true, pmtudisc: true},
	{name: "sit", kind: "sit", words: []string{"mode", "ip6ip"}, module: "sit", inner6: true, proto: 41, oneToMany: true, pmtudisc: true},
	{name: "any4", kind: "sit", words: []string{"mode", "any"}, module: "sit", inner4: true, inner6: true, oneToMany: true, pmtudisc: true},
	{name: "ip6ip6", kind: "ip6tnl", words: []string{"mode", "ip6ip6"}, module: "ip6_tunnel", outer6: true, inner6: true, proto: 41},
	{name: "ipip6", kind: "ip6tnl", words: []string{"mode", "ipip6"}, module: "ip6_tunnel", outer6: true, inner4: true, proto: 4},
	{name: "any6", kind: "ip6tnl", words: []string{"mode", "any"}, module: "ip6_tunnel", outer6: true, inner4: true, inner6: true},
	{name: "gre", kind: "gre", module: "ip_gre", inner4: true, inner6: true, proto: 47, key: true, oneToMany: true, pmtudisc: true},
	{name: "gre6", kind: "ip6gre", module: "ip6_gre", outer6: true, inner4: true, inner6: true, proto: 47, key: true},
	{name: "isatap", kind: "sit", words: []string{"isatap"}, module: "sit", inner6: true, bare: true, pmtudisc: true},
	{name: "vti", kind: "vti", module: "ip_vti", inner4: true, inner6: true, bare: true, key: true},
}

func modeByName(name Mode) (linkMode, bool) {
	for _, m := range modes {
		if m.name == name {
			return m, true
		}
	}
	return linkMode{}, false
}

func modeList() []string {
	names := make([]string, len(modes))
	for i, m := range modes {
		names[i] = string(m.name)
	}
	return names
}

// modeNames are the names of the modes that f accepts, for an error message.
func modeNames(f func(linkMode) bool) string {
	var names []string
	for _, m := range modes {
		if f(m) {
			names = append(names, string(m.name))
		}
	}
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " or " + names[n-1]
	}
	return strings.Join(names, "")
}

// how is the tunnel's mode in the kernel's terms.
func (t Tunnel) how() linkMode {
	m, _ := modeByName(t.Mode)
	return m
}

func (m linkMode) outer() string {
	if m.outer6 {
		return "IPv6"
	}
	return "IPv4"
}

func (m linkMode) inner() string {
	switch {
	case m.inner4 && m.inner6:
		return "IPv4 and IPv6"
	case m.inner6:
		return "IPv6"
	}
	return "IPv4"
}

// carries reports whether packets of the address family go through the tunnel.
func (m linkMode) carries(is6 bool) bool { return is6 && m.inner6 || !is6 && m.inner4 }

// Overhead is how much smaller than an outer packet the packet inside is, in bytes: the
// headers of IP (RFC 791, 8200), of UDP, of GUE (draft-ietf-intarea-gue, without
// extensions), and of GRE with its key (RFC 2784, 2890).
func (t Tunnel) Overhead() int {
	size := map[bool]int{false: 20, true: 40}[t.how().outer6] + map[Encap]int{FOU: 8, GUE: 8 + 4}[t.Encap]
	if t.how().key && !t.how().bare {
		size += 4
		if t.Key != "" {
			size += 4
		}
	}
	return size
}
