package check

import (
	"context"
	"fmt"
	"io/fs"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"ipipou/plans"
)

// lookupTime is how long a name may take to be resolved.
const lookupTime = 10 * time.Second

// largest is the most that an IP packet can be, in bytes; the loopback's MTU is more.
const largest = 65535

// An outside is where a tunnel's packets leave and arrive on this host.
type outside struct {
	dev    string // "" if not known
	mtu    int    // of dev; 0 if not known
	local  netip.Addr
	remote netip.Addr // invalid if not known
}

// outer finds out where the tunnels' outer ends are, and says what is wrong there.
func (c *checker) outer(ctx context.Context, all []Interface) []Line {
	var lines []Line
	once := func(l Line) {
		if !slices.Contains(lines, l) { // tunnels share interfaces and names
			lines = append(lines, l)
		}
	}
	for _, t := range c.config.Tunnels {
		o, l := outerOf(t, all)
		once(l)
		if t.RemoteHost != "" && !o.remote.IsValid() {
			o.remote, l = c.resolve(ctx, t)
			once(l)
		}
		c.outsides = append(c.outsides, o)
	}
	return lines
}

// outerOf is where a tunnel's packets leave and arrive, as far as its settings and the
// host's interfaces tell it.
func outerOf(t plans.Tunnel, all []Interface) (outside, Line) {
	o := outside{dev: t.FOUDev, local: t.FOUIP, remote: t.RemoteIP}
	i := slices.IndexFunc(all, func(i Interface) bool { return i.Name == t.FOUDev || t.FOUDev == "" && i.has(t.FOUIP) })
	if i < 0 && t.FOUDev != "" {
		return o, missing("outer interface", t.FOUDev+" does not exist", "give another fou-dev: there are "+names(all))
	}
	if i >= 0 {
		o.dev, o.mtu = all[i].Name, min(all[i].MTU, largest)
		if !o.local.IsValid() {
			o.local = all[i].first(t.OuterIPv6())
		}
		if !o.local.IsValid() {
			family := map[bool]string{false: "IPv4", true: "IPv6"}[t.OuterIPv6()]
			return o, missing("outer interface", o.dev+" has no "+family+" address", "give it one, or give fou-local-ip or another fou-dev")
		}
	}
	if !slices.ContainsFunc(all, func(i Interface) bool { return i.has(o.local) }) {
		return o, missing("outer address", "no interface has "+o.local.String(), "give another fou-local-ip")
	}
	return o, ok("outer interface", fmt.Sprintf("%s, %s", o.dev, o.local))
}

func (i Interface) has(a netip.Addr) bool {
	return slices.ContainsFunc(i.Addrs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// first is the address that a tunnel takes where none is given.
func (i Interface) first(is6 bool) netip.Addr {
	for _, p := range i.Addrs {
		if a := p.Addr(); a.Is6() == is6 && !(is6 && a.IsLinkLocalUnicast()) {
			return a
		}
	}
	return netip.Addr{}
}

func names(all []Interface) string {
	var list []string
	for _, i := range all {
		list = append(list, i.Name)
	}
	return strings.Join(list, ", ")
}

// resolve asks for the address of a tunnel's other end, once for each name.
func (c *checker) resolve(ctx context.Context, t plans.Tunnel) (netip.Addr, Line) {
	network := map[bool]string{false: "ip4", true: "ip6"}[t.OuterIPv6()]
	key := network + " " + t.RemoteHost
	if _, asked := c.resolved[key]; !asked {
		ctx, cancel := context.WithTimeout(ctx, lookupTime)
		defer cancel()
		addrs, err := c.Lookup(ctx, network, t.RemoteHost)
		if err == nil && len(addrs) == 0 {
			err = fmt.Errorf("%s has no such address", t.RemoteHost)
		}
		if err != nil {
			c.resolved[key] = resolution{line: missing("other end", oneLine(err.Error()), "correct fou-remote, or the host's resolver (/etc/resolv.conf)")}
		} else {
			a := addrs[0].Unmap()
			c.resolved[key] = resolution{a, ok("other end", fmt.Sprintf("%s is %s", t.RemoteHost, a))}
		}
	}
	return c.resolved[key].addr, c.resolved[key].line
}

type resolution struct {
	addr netip.Addr
	line Line
}

// mtu says how large packets the tunnels take, and whether that fits the way.
func (c *checker) mtu() []Line {
	var lines []Line
	seen := map[string]bool{}
	for i, t := range c.config.Tunnels {
		o := c.outsides[i]
		if o.mtu == 0 {
			continue
		}
		way, where := o.mtu, o.dev
		if o.remote.IsValid() {
			// Without a route the interface is all that is known.
			if mtu, err := c.PathMTU(o.local, o.remote); err == nil && mtu < way {
				way, where = mtu, "the way to "+o.remote.String()
			}
		}
		inside := t.MTU
		if inside == 0 {
			inside = o.mtu - t.Overhead()
		}
		l := ok("mtu", fmt.Sprintf("%d inside %s, of %d on %s", inside, t.Dev, way, where))
		best := way - t.Overhead()
		switch {
		case inside > best:
			l = warning("mtu", fmt.Sprintf("%d inside %s is too much for %s, which takes %d with the headers of the tunnel: large packets are cut, or wait for ICMP errors", inside, t.Dev, where, way),
				fmt.Sprintf("set mtu = %d on both ends", best))
		case inside < 1280 && slices.ContainsFunc(t.Addrs, func(a plans.Address) bool { return a.IP.Is6() }):
			l = warning("mtu", fmt.Sprintf("%d inside %s, and IPv6 takes no less than 1280", inside, t.Dev), "take an outer path of more, or IPv4 alone")
		}
		if key := fmt.Sprint(l.State, o, t.Overhead(), t.MTU); !seen[key] { // of a thousand alike, the first
			seen[key] = true
			lines = append(lines, l)
		}
	}
	return lines
}

// reverse is the line of the check that the way to a packet's source leads back where it
// came from. Strict, it drops the ICMP errors of routers between the outer ends of a
// tunnel that has the default route. The larger value of an interface's and that of all
// counts (rp_filter in ip-sysctl.rst).
func (h Host) reverse() Line {
	const dir = "proc/sys/net/ipv4/conf"
	files, _ := fs.Glob(h.Root, dir+"/*/rp_filter")
	var strict []string
	for _, f := range files {
		if name := path.Base(path.Dir(f)); h.read(f) == "1" && (name == "all" || h.read(dir+"/all/rp_filter") != "2") {
			strict = append(strict, name)
		}
	}
	if len(strict) == 0 {
		return ok("rp_filter", "nowhere strict")
	}
	return warning("rp_filter", "strict ("+strings.Join(strict, ", ")+"): beside a tunnel with a default route, ICMP errors of routers between its ends are dropped",
		"sysctl -w net.ipv4.conf.all.rp_filter=2 (loose), and in a file in /etc/sysctl.d")
}

// The settings that make the host a router.
var forwarding = []struct{ family, path string }{
	{"IPv4", "/proc/sys/net/ipv4/ip_forward"},
	{"IPv6", "/proc/sys/net/ipv6/conf/all/forwarding"},
}

// forwarding are the lines of what the host forwards.
func (c *checker) forwarding() []Line {
	var lines []Line
	wanted := map[string]bool{}
	if c.config != nil {
		for _, v := range c.config.Facts() {
			if argv := v.Query.Argv; len(argv) == 2 && argv[0] == "cat" {
				wanted[argv[1]] = true
			}
		}
	}
	for _, f := range forwarding {
		name := "forwarding " + f.family
		switch on := c.read(f.path[1:]) == "1"; {
		case on && (c.config == nil || wanted[f.path]):
			lines = append(lines, ok(name, "on"))
		case c.config == nil && !on:
			lines = append(lines, ok(name, "off (with forward = true, ipipou turns it on as long as it runs)"))
		case !wanted[f.path]:
		case !c.Writable(f.path):
			lines = append(lines, missing(name, "off, and "+f.path+" can't be written from here", "turn it on outside of the container (docker run --sysctl net.ipv4.ip_forward=1), or run as root"))
		default:
			lines = append(lines, ok(name, "off; ipipou turns it on as long as it runs"))
		}
	}
	return lines
}

// links is the line of the interfaces' sizes, and of what they leave inside a tunnel.
func links(all []Interface) []Line {
	var said []string
	least := plans.Tunnel{Mode: "ipip", Encap: plans.FOU}.Overhead()
	for _, i := range all {
		if i.Name != "lo" && i.first(false).IsValid() {
			said = append(said, fmt.Sprintf("%s %d (%d inside ipip over FOU)", i.Name, i.MTU, i.MTU-least))
		}
	}
	if len(said) == 0 {
		return []Line{warning("mtu", "no interface has an IPv4 address", "bring one up")}
	}
	return []Line{ok("mtu", strings.Join(said, ", "))}
}
