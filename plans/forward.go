package plans

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// forwardGroup is the group (ip-link(8)) of the tunnels that are forwarded for,
// by which instances know each other's.
const forwardGroup = "1728"

// oldRedirects is the fact that holds a setting which the kernel changes along
// with ip_forward (inet_forward_change, net/ipv4/devinet.c).
const oldRedirects = "ACCEPT_REDIRECTS"

func (c Config) forwarders() (all []Tunnel, v4, v6 bool) {
	for _, t := range c.Tunnels {
		if t.Forward {
			all = append(all, t)
			v4, v6 = v4 || t.how().inner4, v6 || t.forwards6()
		}
	}
	return all, v4, v6
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

// oldSettings are settings of the host that an undo has to know.
func (c Config) oldSettings() []Var {
	if _, v4, _ := c.forwarders(); !v4 {
		return nil
	}
	return []Var{{
		Name: oldRedirects, Comment: "whether ICMP redirects are accepted, which turning forwarding on and off changes",
		Query: cmd("cat", "/proc/sys/net/ipv4/conf/all/accept_redirects"), Word: 1,
		Missing: "/proc/sys/net/ipv4/conf/all/accept_redirects can't be read",
	}}
}

// forwarding are the steps that let packets pass between tunnels and what they
// are for, and nothing else: the rules first, then the system's settings.
func (c Config) forwarding() []Step {
	tunnels, v4, v6 := c.forwarders()
	if len(tunnels) == 0 {
		return nil
	}
	name := tunnels[0].Table
	counter := ""
	if tunnels[0].Counters {
		counter = "counter"
	}
	var b ruleset
	b.line(0, "create table inet %s", name)
	b.line(0, "table inet %s {", name)
	rules := []string{"type filter hook forward priority filter; policy accept;"}
	var masquerade []string
	for _, t := range tunnels {
		from, to := t.between()
		b.chain("from_"+strconv.Itoa(t.Number), append(from, words(counter, "drop"))...)
		b.chain("to_"+strconv.Itoa(t.Number), append(to, words(counter, "drop"))...)
		rules = append(rules, fmt.Sprintf("iifname %q jump from_%d", t.Dev, t.Number), fmt.Sprintf("oifname %q jump to_%d", t.Dev, t.Number))
		if t.Masquerade {
			masquerade = append(masquerade, t.disguise()...)
		}
	}
	b.chain("forward", rules...)
	if len(masquerade) > 0 {
		b.chain("masquerade", append([]string{"type nat hook postrouting priority srcnat; policy accept;"}, masquerade...)...)
	}
	b.line(0, "}")
	steps := []Step{{
		Comment: "what is forwarded passes between the tunnel and what it is for, in both directions, and nothing else comes in or out of it",
		Do:      nft(b...),
		Undo:    cmd("nft", "delete", "table", "inet", name),
		Key:     "forwarding",
	}}
	if v4 {
		steps = append(steps, c.router(name, "ipv4", "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward", Step{
			Comment: "turning forwarding off makes the kernel accept redirects; this puts back what was",
			Undo:    cmd("sysctl", "-q", "-w", "net.ipv4.conf.all.accept_redirects=${"+oldRedirects+"}"),
		})...)
	}
	if v6 {
		steps = append(steps, c.router(name, "ipv6", "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding")...)
	}
	return steps
}

// router makes a host forward that did not, for the tunnels alone.
func (c Config) router(table, family, file, setting string, first ...Step) []Step {
	off := cmd("grep", "-qx", "0", file)
	for i := range first {
		first[i].If = off
	}
	return append(first, Step{
		Comment: "a host that was no router becomes one for tunnels alone",
		Do:      nft(fmt.Sprintf("add rule inet %s forward meta nfproto %s iifgroup != %s oifgroup != %s drop", table, family, forwardGroup, forwardGroup)),
		If:      off,
	}, Step{
		Do:   cmd("sysctl", "-q", "-w", setting+"=1"),
		Undo: cmd("sysctl", "-q", "-w", setting+"=0"),
		If:   off,
	})
}

// between are the rules for what comes from the tunnel and for what goes to it;
// what returns is allowed.
func (t Tunnel) between() (from, to []string) {
	const known = "ct state established,related return"
	from, to = []string{known}, []string{known}
	if len(t.ForwardDevs)+len(t.ForwardNets) == 0 {
		return []string{"return"}, []string{"return"}
	}
	if devs := quoted(t.ForwardDevs); devs != "" {
		from, to = append(from, "oifname "+devs+" return"), append(to, "iifname "+devs+" return")
	}
	for _, family := range []struct {
		word string
		is6  bool
	}{{"ip", false}, {"ip6", true}} {
		if nets := networks(t.ForwardNets, family.is6); nets != "" {
			from, to = append(from, family.word+" daddr "+nets+" return"), append(to, family.word+" saddr "+nets+" return")
		}
	}
	return from, to
}

// disguise are the rules that give what is forwarded this host's address.
func (t Tunnel) disguise() []string {
	return []string{
		fmt.Sprintf("iifname %q oifname != %q masquerade", t.Dev, t.Dev),
		fmt.Sprintf("oifname %q masquerade", t.Dev),
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

// bridging makes the bridge for a network behind this end. One that is there
// already is somebody else's: it is used, and stays.
func (t Tunnel) bridging() []Step {
	if t.Bridge == nil {
		return nil
	}
	name := t.Bridge.Name
	steps := []Step{{
		Comment: "bridge for the network behind this end",
		Do:      cmd("ip", "link", "add", "name", name, "type", "bridge"),
		Undo:    cmd("ip", "link", "del", "dev", name),
		Else: []Else{{
			When: Exists,
			Say:  "the bridge " + name + " exists already: it is used, and will stay",
			Steps: []Step{{
				Comment: "it must be a bridge",
				Do:      cmd("test", "-d", "/sys/class/net/"+name+"/bridge"),
			}},
		}},
	}}
	for _, a := range t.Bridge.Addrs {
		words := []string{"ip", "address", "add", a.String(), "dev", name}
		if a.Addr().Is6() {
			words = append(words, "nodad")
		}
		steps = append(steps, Step{
			Do:   cmd(words...),
			Undo: cmd("ip", "address", "del", a.String(), "dev", name),
			Else: []Else{{
				When: Exists,
				Say:  name + " has the address " + a.String() + " already: it is used, and will stay",
			}},
		})
	}
	return append(steps, Step{Do: cmd("ip", "link", "set", "dev", name, "up")})
}
