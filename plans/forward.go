package plans

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// forwarders are the tunnels that are forwarded for.
func (c Config) forwarders() []Tunnel {
	var all []Tunnel
	for _, t := range c.Tunnels {
		if t.Forward {
			all = append(all, t)
		}
	}
	return all
}

// forwards6 reports whether the tunnel has anything to do with IPv6 inside:
// IPv6 forwarding changes more on a host than it is worth where nobody has any.
func (t Tunnel) forwards6() bool {
	if !t.how().inner4 {
		return true
	}
	return slices.ContainsFunc(t.Addrs, func(a Address) bool { return a.IP.Is6() }) ||
		slices.ContainsFunc(t.Routes, func(r Route) bool { return r.To.Addr().Is6() })
}

// forwarding are the steps that let packets pass between tunnels and what they
// are for, and nothing else: the rules first, then the system's settings.
func (c Config) forwarding() []Step {
	tunnels := c.forwarders()
	if len(tunnels) == 0 {
		return nil
	}
	name, drop := tunnels[0].Table, tunnels[0].drop()
	var b ruleset
	b.create("inet " + name)
	rules := []string{"type filter hook forward priority filter; policy accept;"}
	var masquerade []string
	for _, t := range tunnels {
		if len(t.ForwardDevs)+len(t.ForwardNets) > 0 {
			from, to := t.between()
			b.chain("from_"+strconv.Itoa(t.Number), append(from, drop)...)
			b.chain("to_"+strconv.Itoa(t.Number), append(to, drop)...)
			rules = append(rules, fmt.Sprintf("iifname %q jump from_%d", t.Dev, t.Number), fmt.Sprintf("oifname %q jump to_%d", t.Dev, t.Number))
		}
		if t.Masquerade {
			masquerade = append(masquerade, t.disguise()...)
		}
	}
	b.chain("forward", rules...)
	if len(masquerade) > 0 {
		b.chain("disguise", append([]string{"type nat hook postrouting priority srcnat; policy accept;"}, masquerade...)...)
	}
	b.line(0, "}")
	steps := []Step{{
		Comment: "what is forwarded passes between the tunnel and what it is for, in both directions, and nothing else comes in or out of it",
		Do:      nft(b...),
		Undo:    cmd("nft", "delete", "table", "inet", name),
		Key:     "forwarding",
		Taken:   cmd("nft", "list", "tables"),
		Lines:   []string{"table inet " + name},
	}}
	for _, f := range c.families() {
		steps = append(steps, c.router(name, f)...)
	}
	return steps
}

// between are the rules for what comes from the tunnel and for what goes to it;
// what returns is allowed.
func (t Tunnel) between() (from, to []string) {
	const known = "ct state established,related return"
	from, to = []string{known}, []string{known}
	if devs := quoted(t.ForwardDevs); devs != "" {
		from, to = append(from, "oifname "+devs+" return"), append(to, "iifname "+devs+" return")
	}
	for _, is6 := range []bool{false, true} {
		word := map[bool]string{false: "ip", true: "ip6"}[is6]
		if nets := networks(t.ForwardNets, is6); nets != "" {
			// Who forges such an address comes from elsewhere than the way to it leads.
			from, to = append(from, word+" daddr "+nets+" return"), append(to, word+" saddr "+nets+" fib saddr . iif oif exists return")
		}
	}
	return from, to
}

// disguise are the rules that give what is forwarded this host's address.
func (t Tunnel) disguise() []string {
	return []string{
		fmt.Sprintf("iifname %q oifname != %q masquerade", t.Dev, t.Dev),
		fmt.Sprintf("oifname %q fib saddr type != local masquerade", t.Dev),
	}
}

func quoted(names []string) string {
	var out []string
	for _, n := range names {
		if q := strconv.Quote(n); !slices.Contains(out, q) {
			out = append(out, q)
		}
	}
	return braces(out)
}

func networks(nets []netip.Prefix, is6 bool) string {
	var out []string
	for _, n := range nets {
		if n.Addr().Is6() == is6 && !slices.Contains(out, n.String()) {
			out = append(out, n.String())
		}
	}
	return braces(out)
}

func braces(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return "{ " + strings.Join(list, ", ") + " }"
}
