package plans

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// forwardGroup is the group (ip-link(8)) of tunnels on a host that forwards for
// their sake alone, by which instances know each other's.
const forwardGroup = "1728"

// Facts about forwarding: whether the host does, and whether because of another
// instance.
const (
	forwards4 = "IP_FORWARD"
	forwards6 = "IP6_FORWARD"
	forOthers = "FORWARDS_FOR"
)

// others prints the tunnels that this host forwards for, of every instance.
var others = cmd("ip", "-o", "link", "show", "group", forwardGroup)

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

// A kept setting is one that the kernel changes along with forwarding, and that
// it does not put back.
type kept struct{ variable, key, comment string }

// keeps are the settings of a family: whether redirects are accepted, and whether
// devices forward each for itself (inet_forward_change in net/ipv4/devinet.c,
// addrconf_fixup_forwarding in net/ipv6/addrconf.c).
func (c Config) keeps(family string) []kept {
	tunnels, _, _ := c.forwarders()
	var devs []string
	for _, t := range tunnels {
		devs = append(devs, t.ForwardDevs...)
		if t.FOUDev != "" {
			devs = append(devs, t.FOUDev)
		}
	}
	var out []kept
	if family == "ipv4" {
		out = append(out, kept{"ACCEPT_REDIRECTS", "net/ipv4/conf/all/accept_redirects", "whether ICMP redirects are accepted"})
	}
	for i, dev := range devs {
		ours := slices.ContainsFunc(c.Tunnels, func(t Tunnel) bool { return t.Dev == dev || t.Bridge != nil && t.Bridge.Name == dev })
		if !ours && !slices.Contains(devs[:i], dev) {
			variable := map[string]string{"ipv4": "FORWARDING", "ipv6": "FORWARDING6"}[family]
			out = append(out, kept{numbered(variable, i), "net/" + family + "/conf/" + dev + "/forwarding", "whether " + dev + " forwards by itself"})
		}
	}
	return out
}

// oldSettings are settings of the host that an undo has to know.
func (c Config) oldSettings() []Var {
	tunnels, v4, v6 := c.forwarders()
	if len(tunnels) == 0 {
		return nil
	}
	vars := []Var{{Name: forOthers, Comment: "a tunnel that this host forwards for already, though it is no router", Query: others, Word: 2, Default: "nobody"}}
	var all []kept
	if v4 {
		vars = append(vars, Var{Name: forwards4, Comment: "whether this host forwards", Query: cmd("cat", "/proc/sys/net/ipv4/ip_forward"), Word: 1, Default: "0"})
		all = append(all, c.keeps("ipv4")...)
	}
	if v6 {
		vars = append(vars, Var{Name: forwards6, Comment: "whether this host forwards IPv6", Query: cmd("cat", "/proc/sys/net/ipv6/conf/all/forwarding"), Word: 1, Default: "0"})
		all = append(all, c.keeps("ipv6")...)
	}
	for _, k := range all {
		vars = append(vars, Var{
			Name: k.variable, Comment: k.comment + ", which turning forwarding on and off changes",
			Query: cmd("cat", "/proc/sys/"+k.key), Word: 1, Default: "0",
		})
	}
	return vars
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
		if len(t.ForwardDevs)+len(t.ForwardNets) > 0 {
			from, to := t.between()
			b.chain("from_"+strconv.Itoa(t.Number), append(from, words(counter, "drop"))...)
			b.chain("to_"+strconv.Itoa(t.Number), append(to, words(counter, "drop"))...)
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
	}}
	if v4 {
		steps = append(steps, c.router(name, "ipv4", "net/ipv4/ip_forward")...)
	}
	if v6 {
		steps = append(steps, c.router(name, "ipv6", "net/ipv6/conf/all/forwarding")...)
	}
	return steps
}

// router makes a host forward that did not, for the tunnels alone. The last
// instance that has it so ends it.
func (c Config) router(table, family, setting string) []Step {
	fact := map[string]string{"ipv4": forwards4, "ipv6": forwards6}[family]
	var steps []Step
	for i, k := range c.keeps(family) {
		s := Step{
			Undo:       cmd("sysctl", "-e", "-q", "-w", k.key+"=${"+k.variable+"}"),
			UndoUnless: others,
			If:         cmd("test", "${"+fact+"} ${"+forOthers+"}", "=", "0 nobody"),
		}
		if i == 0 {
			s.Comment = "turning forwarding off changes more than turning it on did; this puts back what was"
		}
		steps = append(steps, s)
	}
	return append(steps, Step{
		Comment: "a host that was no router becomes one for tunnels alone",
		Do:      nft(fmt.Sprintf("add rule inet %s forward meta nfproto %s iifgroup != %s oifgroup != %s drop", table, family, forwardGroup, forwardGroup)),
		If:      madeRouter(fact),
	}, Step{
		Do:         cmd("sysctl", "-q", "-w", setting+"=1"),
		Undo:       cmd("sysctl", "-q", "-w", setting+"=0"),
		UndoUnless: others,
		If:         madeRouter(fact),
	})
}

// madeRouter is a look that tells that this host forwards for tunnels alone.
func madeRouter(facts ...string) Command {
	have, router := "", ""
	for _, f := range facts {
		have, router = have+"${"+f+"} ", router+"1 "
	}
	return cmd("test", have+"${"+forOthers+"}", "!=", router+"nobody")
}

// grouping marks a tunnel that the host forwards for, though it is no router.
func (t Tunnel) grouping() []Step {
	if !t.Forward {
		return nil
	}
	steps := []Step{{
		Comment: "by this group instances know each other's tunnels, which they don't shut out",
		Do:      cmd("ip", "link", "set", "dev", t.Dev, "group", forwardGroup),
		If:      madeRouter(t.routerFacts...),
	}}
	if t.Role != Server {
		return steps
	}
	// While nobody was bound, another instance may have been the last one.
	for _, fact := range t.routerFacts {
		setting := map[string]string{forwards4: "net/ipv4/ip_forward", forwards6: "net/ipv6/conf/all/forwarding"}[fact]
		steps = append(steps, Step{Do: cmd("sysctl", "-q", "-w", setting+"=1"), If: madeRouter(fact)})
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
	for _, family := range []struct {
		word string
		is6  bool
	}{{"ip", false}, {"ip6", true}} {
		if nets := networks(t.ForwardNets, family.is6); nets != "" {
			// Who forges such an address comes from elsewhere than the way to it leads.
			from, to = append(from, family.word+" daddr "+nets+" return"), append(to, family.word+" saddr "+nets+" fib saddr . iif oif exists return")
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
