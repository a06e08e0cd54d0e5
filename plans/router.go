package plans

import (
	"fmt"
	"slices"
	"strings"
)

// A family of addresses that is forwarded, and what this host is known by to do
// so for tunnels alone: the group (ip-link(8)) of such tunnels. By it instances
// know each other's. A link has one group, so there is one for both families too.
type family struct {
	name    string // as nft calls it
	setting string
	fact    string // whether the host forwards
	group   string
	grouped string // fact: a tunnel in that group
	keeps   string // facts: what devices had of their own
}

var (
	family4 = family{"ipv4", "net/ipv4/ip_forward", "IP_FORWARD", "1728", "FORWARDS_FOR", "FORWARDING"}
	family6 = family{"ipv6", "net/ipv6/conf/all/forwarding", "IP6_FORWARD", "1729", "FORWARDS6_FOR", "FORWARDING6"}
)

const (
	bothGroup   = "1730"
	bothGrouped = "FORWARDS46_FOR"
)

func inGroup(group string) Command { return cmd("ip", "-o", "link", "show", "group", group) }

// others print the tunnels that this host forwards the family for, of every
// instance.
func (f family) others() []Command { return []Command{inGroup(f.group), inGroup(bothGroup)} }

// state is what the host was at the start: whether it forwarded, and for whom.
func (f family) state() string {
	return "${" + f.fact + "} ${" + f.grouped + "} ${" + bothGrouped + "}"
}

// made is a look that tells that this host forwards for tunnels alone, by one of
// another instance's or by ours.
func (f family) made() Command { return cmd("test", f.state(), "!=", "1 nobody nobody") }

// A kept setting is one that the kernel changes along with forwarding, and that
// it does not put back.
type kept struct{ variable, key, comment string }

// keeps are the settings of a family: whether redirects are accepted, and whether
// devices forward each for itself (inet_forward_change in net/ipv4/devinet.c,
// addrconf_fixup_forwarding in net/ipv6/addrconf.c).
func (c Config) keeps(f family) []kept {
	var devs []string
	for _, t := range c.forwarders() {
		devs = append(devs, t.ForwardDevs...)
		if t.FOUDev != "" {
			devs = append(devs, t.FOUDev)
		}
	}
	var out []kept
	if f == family4 {
		out = append(out, kept{"ACCEPT_REDIRECTS", "net/ipv4/conf/all/accept_redirects", "whether ICMP redirects are accepted"})
	}
	for i, dev := range devs {
		ours := slices.ContainsFunc(c.Tunnels, func(t Tunnel) bool { return t.Dev == dev || t.Bridge != nil && t.Bridge.Name == dev })
		if !ours && !slices.Contains(devs[:i], dev) {
			out = append(out, kept{numbered(f.keeps, i), "net/" + f.name + "/conf/" + dev + "/forwarding", "whether " + dev + " forwards by itself"})
		}
	}
	return out
}

// oldSettings are settings of the host that an undo has to know.
func (c Config) oldSettings() []Var {
	families := c.families()
	if len(families) == 0 {
		return nil
	}
	tunnel := func(name, group string) Var {
		return Var{Name: name, Comment: "a tunnel in group " + group + ", which this host forwards for though it is no router", Query: inGroup(group), Word: 2, Default: "nobody"}
	}
	vars := []Var{tunnel(bothGrouped, bothGroup)}
	var all []kept
	for _, f := range families {
		vars = append(vars, tunnel(f.grouped, f.group),
			Var{Name: f.fact, Comment: "whether this host forwards " + f.name, Query: cmd("cat", "/proc/sys/"+f.setting), Word: 1, Default: "0"})
		all = append(all, c.keeps(f)...)
	}
	for _, k := range all {
		vars = append(vars, Var{
			Name: k.variable, Comment: k.comment + ", which turning forwarding on and off changes",
			Query: cmd("cat", "/proc/sys/"+k.key), Word: 1, Default: "0",
		})
	}
	return vars
}

// families are those that the instance forwards.
func (c Config) families() []family {
	var out []family
	if slices.ContainsFunc(c.forwarders(), func(t Tunnel) bool { return t.how().inner4 }) {
		out = append(out, family4)
	}
	if slices.ContainsFunc(c.forwarders(), Tunnel.forwards6) {
		out = append(out, family6)
	}
	return out
}

// router makes a host forward that did not, for the tunnels alone. The last
// instance that has it so ends it.
func (c Config) router(table string, f family) []Step {
	var steps []Step
	for i, k := range c.keeps(f) {
		s := Step{
			Undo:       cmd("sysctl", "-e", "-q", "-w", k.key+"=${"+k.variable+"}"),
			UndoUnless: f.others(),
			If:         cmd("test", f.state(), "=", "0 nobody nobody"),
		}
		if i == 0 {
			s.Comment = "turning forwarding off changes more than turning it on did; this puts back what was"
		}
		steps = append(steps, s)
	}
	if f == family6 {
		steps = append(steps, c.advertisements()...)
	}
	groups := "{ " + f.group + ", " + bothGroup + " }"
	return append(steps, Step{
		Comment: "a host that was no router becomes one for tunnels alone",
		Do:      nft(fmt.Sprintf("add rule inet %s forward meta nfproto %s iifgroup != %s oifgroup != %s drop", table, f.name, groups, groups)),
		If:      f.made(),
	}, Step{
		Do:         cmd("sysctl", "-q", "-w", f.setting+"=1"),
		Undo:       cmd("sysctl", "-q", "-w", f.setting+"=0"),
		UndoUnless: f.others(),
		If:         f.made(),
	})
}

// advertisements keeps the default route that a router's advertisements gave.
func (c Config) advertisements() []Step {
	var steps []Step
	for _, k := range c.keeps(family6) {
		setting := strings.TrimSuffix(k.key, "forwarding") + "accept_ra"
		steps = append(steps, Step{
			Comment: "a router takes no default route from advertisements, unless told to",
			Do:      cmd("sysctl", "-q", "-w", setting+"=2"),
			Undo:    cmd("sysctl", "-e", "-q", "-w", setting+"=1"),
			If:      cmd("grep", "-qsx", "1", "/proc/sys/"+setting),
		})
	}
	return steps
}

// grouping marks a tunnel that the host forwards for, though it is no router.
func (t Tunnel) grouping() []Step {
	if !t.Forward {
		return nil
	}
	group := func(to string) Command { return cmd("ip", "link", "set", "dev", t.Dev, "group", to) }
	var steps []Step
	for _, f := range t.families {
		steps = append(steps, Step{
			Comment: "by their group instances know each other's tunnels, which they don't shut out",
			Do:      group(f.group),
			If:      f.made(),
		})
	}
	if len(t.families) == 2 {
		steps = append(steps, Step{
			Do:     group(bothGroup),
			If:     family4.made(),
			Unless: cmd("test", family6.state(), "=", "1 nobody nobody"),
		})
	}
	if t.Role != Server {
		return steps
	}
	// While nobody was bound, another instance may have been the last one.
	for _, f := range t.families {
		steps = append(steps, Step{Do: cmd("sysctl", "-q", "-w", f.setting+"=1"), If: f.made()})
	}
	return steps
}
