package plans

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Part is something small that hangs on a tunnel and that others can take away by
// itself: an address of its interface, a route, a rule, a FOU listener.
type Part struct {
	Name string // as the log calls it, and no other part
	Of   string // Title of its tunnel
	In   Listing
	Key  string // of Listing.Keys
	// Dev is the interface that it goes with, "" if it goes with none.
	Dev string
	// Undo is in the journal while the part is ours. Without one, it is ours while its
	// interface is.
	Undo Command
	Back []Step // make it once more
}

// A Listing is a look at all parts of a kind that a host has, whosever they are.
type Listing int

// What depends on another is behind it: routes want addresses.
const (
	Addresses Listing = iota
	Routes
	Routes6
	Rules
	Rules6
	Listeners
)

// Listings are all of them.
func Listings() []Listing { return []Listing{Addresses, Routes, Routes6, Rules, Rules6, Listeners} }

// Look is the command that prints what Keys reads. Of routes it prints only those that
// `ip route add` makes; the kernel itself leaves out the others, which may be a million.
func (l Listing) Look() Command {
	return [...]Command{
		cmd("ip", "-j", "address", "show"),
		cmd("ip", "-4", "-N", "-j", "route", "show", "table", "all", "proto", "boot"),
		cmd("ip", "-6", "-N", "-j", "route", "show", "table", "all", "proto", "boot"),
		cmd("ip", "-4", "-N", "-j", "rule", "show"),
		cmd("ip", "-6", "-N", "-j", "rule", "show"),
		cmd("ip", "fou", "show"),
	}[l]
}

// Keys reads what Look has printed: JSON in the words of iproute2, or for listeners a
// line each.
func (l Listing) Keys(stdout string) (keys map[string]bool, err error) {
	keys = map[string]bool{}
	var facts []struct {
		Dev      string
		Ifname   string
		Dst, Src string
		DstLen   *int
		SrcLen   *int
		Table    string
		Metric   int
		Priority int
		Infos    []struct{ Local, Address string } `json:"addr_info"`
	}
	if l == Listeners {
		for line := range strings.Lines(stdout) {
			keys[listenerKey(strings.Fields(line), false)] = true
		}
		return keys, nil
	}
	if strings.TrimSpace(stdout) == "" {
		return keys, nil
	}
	if err := json.Unmarshal([]byte(stdout), &facts); err != nil {
		return nil, fmt.Errorf("what `%s` prints can't be read: %w", l.Look(), err)
	}
	for _, f := range facts {
		switch l {
		case Addresses:
			for _, a := range f.Infos {
				keys[addressKey(f.Ifname, a.Local, a.Address)] = true
			}
		case Routes, Routes6:
			keys[routeKey(f.Table, f.Dst, strconv.Itoa(f.Metric), f.Dev)] = true
		default:
			keys[ruleKey(strconv.Itoa(f.Priority), withLength(f.Src, f.SrcLen), withLength(f.Dst, f.DstLen), f.Table)] = true
		}
	}
	return keys, nil
}

// withLength is an address with its prefix length, where ip(8) prints one.
func withLength(address string, bits *int) string {
	if bits != nil {
		address += "/" + strconv.Itoa(*bits)
	}
	return address
}

func addressKey(dev, own, peer string) string {
	return dev + " " + plain(own) + " peer " + plain(cmp.Or(peer, "none"))
}

// plain is an address or a network in Go's words, and one address as such: inet_ntop(3)
// has "::192.0.2.1" for ::c000:201. Other words stay.
func plain(word string) string {
	if p, err := netip.ParsePrefix(word); err == nil {
		if !p.IsSingleIP() {
			return p.String()
		}
		word = p.Addr().String()
	}
	if a, err := netip.ParseAddr(word); err == nil {
		return a.String()
	}
	return word
}

// routeKey leaves out what two routes can't differ by, as one is in the other's way.
func routeKey(table, to, metric, dev string) string {
	return cmp.Or(table, strconv.Itoa(mainTable)) + " " + plain(to) + " metric " + metric + " dev " + dev
}

func ruleKey(pref, from, to, table string) string {
	from, to = plain(cmp.Or(from, "all")), plain(cmp.Or(to, "all"))
	if table == "main" {
		table = strconv.Itoa(mainTable)
	}
	return pref + " from " + from + " to " + to + " lookup " + table
}

// listenerKey is what `ip fou show` prints, without the interface. In the words of
// `ip fou add` the family comes before them.
func listenerKey(words []string, is6 bool) string {
	if i := slices.Index(words, "dev"); i >= 0 {
		words = words[:i]
	}
	words = slices.Clone(words)
	for i, w := range words {
		words[i] = plain(w)
	}
	key := strings.Join(words, " ")
	if !is6 {
		return key
	}
	what, at, local := strings.Cut(key, " local ")
	if local {
		return what + " -6 local " + at
	}
	return what + " -6"
}

// Parts are those of a tunnel that the host should have, with the values of vars. Of a
// server's, bound is whether it has a peer. Those with an Undo it may never have had.
func (t Tunnel) Parts(bound bool, vars map[string]string) ([]Part, error) {
	bound = bound || t.Role != Server
	var steps []Step
	if bound || t.Backend == BPF {
		addresses, late := t.addresses()
		steps = append(addresses, late...)
	}
	if bound {
		steps = append(steps, t.routing()...)
	}
	walk(t.listeners(), func(s Step) { steps = append(steps, s) })
	var parts []Part
	var neighbours []Step
	for _, s := range steps {
		var err error
		if s.Do, err = s.Do.Expand(vars); err == nil {
			s.Undo, err = s.Undo.Expand(vars)
		}
		if err != nil {
			return nil, err
		}
		if s.Do.Argv[1] == "neighbour" { // a route's, behind it; both go with the link
			s.Do.Argv[2] = "replace"
			neighbours = append(neighbours, s)
			continue
		}
		parts = append(parts, t.part(s, neighbours))
	}
	return parts, nil
}

// part reads from its words what a step makes.
func (t Tunnel) part(s Step, neighbours []Step) Part {
	words, is6 := s.Do.Argv[1:], s.Do.Argv[1] == "-6"
	if strings.HasPrefix(words[0], "-") {
		words = words[1:]
	}
	of := func(name string) string {
		if i := slices.Index(words, name); i >= 0 {
			return words[i+1]
		}
		return ""
	}
	bare := func(address string) string {
		address, _, _ = strings.Cut(address, "/")
		return address
	}
	p := Part{Of: t.Title(), Dev: of("dev"), Undo: s.Undo, Back: noted([]Step{s})}
	switch words[0] {
	case "address":
		p.In, p.Name, p.Key = Addresses, "address "+words[2], addressKey(p.Dev, bare(words[2]), bare(of("peer")))
	case "route":
		p.In, p.Name = Routes, "route "+words[2]
		metric := "0"
		if is6 {
			p.In, p.Name, metric = Routes6, "IPv6 "+p.Name, "1024" // IP6_RT_PRIO_USER in linux/ipv6_route.h
		}
		for _, word := range []string{"metric", "table"} {
			if value := of(word); value != "" && value != t.table() {
				p.Name += " " + word + " " + value
			}
		}
		p.Key = routeKey(of("table"), words[2], cmp.Or(of("metric"), metric), p.Dev)
		via := func(n Step) bool { return !slices.Contains(n.Do.Argv, of("via")) }
		p.Back = append(slices.DeleteFunc(slices.Clone(neighbours), via), p.Back...)
	case "rule":
		p.In, p.Name = Rules, "rule "+strings.Join(words[2:], " ")
		if is6 {
			p.In, p.Name = Rules6, "IPv6 "+p.Name
		}
		p.Key = ruleKey(of("pref"), of("from"), of("to"), of("lookup"))
	default:
		p.In, p.Name, p.Dev = Listeners, "FOU listener", ""
		if local := of("local"); local != "" {
			p.Name += " at " + local
		}
		p.Key = listenerKey(words[2:], is6)
		for i := range p.Back {
			p.Back[i].Else = nil // it is ours: another one in its place is not
		}
	}
	p.Name = "the " + p.Name + " of " + p.Of
	return p
}

// Restore is the plan that puts parts back.
func Restore(parts []Part) Plan {
	p := Plan{Name: "mend"}
	for _, part := range parts {
		p.Steps = append(p.Steps, part.Back...)
	}
	return p
}

// Listens reports whether the tunnel has FOU listeners.
func (t Tunnel) Listens() bool { return len(t.listeners()) > 0 }

// listeners are all that the tunnel may have.
func (t Tunnel) listeners() []Step {
	switch {
	case t.Backend == BPF || t.Encap == None:
		return nil
	case t.Role != Server:
		return t.listener()
	}
	return []Step{t.listen(t.localIP(), "listener"), t.listen(t.FOUIPAlt.String(), "alternate_listener")}
}
