package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"ipipou/instance"
	"ipipou/plans"
)

// ordinary are programs that every host has: a line only if they are missing.
func ordinary(name string) bool {
	p, known := programs[name]
	return !known || p.argv == nil
}

// instance is what the host lacks for the configuration.
func (c *checker) instance(ctx context.Context) (r Report) {
	r.Instance = c.config.Name
	needs, chosen := c.decide()
	r.add(chosen)
	for _, l := range c.needs(&r, needs) {
		if l.State != OK || !ordinary(l.Name) || drivers[l.Name].use != "" || l.Name == "kernel" || l.Name == "privileges" {
			r.add(l)
		}
	}
	all := c.interfaces(&r)
	r.add(c.outer(ctx, all)...)
	r.add(c.names(all)...)
	r.add(c.ports()...)
	r.add(c.sources()...)
	if c.reversed() {
		r.add(c.reverse())
	}
	r.add(c.forwarding()...)
	r.add(c.firewall(c.packets())...)
	if slices.ContainsFunc(c.config.Tunnels, timed) {
		r.add(c.clock())
	}
	r.add(c.mtu()...)
	lacks := r.missing()
	r.Works = len(lacks) == 0
	switch slices.Sort(lacks); {
	case r.Works:
		r.Summary = fmt.Sprintf("%s will come up, carried by %s", c.config.Name, carriers(*c.config))
	default:
		r.Summary = fmt.Sprintf("%s needs what is missing: %s", c.config.Name, strings.Join(slices.Compact(lacks), ", "))
	}
	return r
}

func carriers(config plans.Config) string {
	switch kernel, bpf := config.Backends(); {
	case kernel && bpf:
		return "the kernel's drivers and BPF programs"
	case bpf:
		return "BPF programs"
	}
	return "the kernel's drivers"
}

// timed reports whether authentication hangs on the clock: ed25519 without a challenge,
// unless the server takes any time.
func timed(t plans.Tunnel) bool {
	key := t.Auth.Key != nil || t.Auth.RemoteKey != nil
	return key && !t.Auth.Challenge && (t.Role == plans.Client || t.Role == plans.Server && t.Auth.MaxSkew > 0)
}

// reversed reports whether a tunnel has a default route.
func (c *checker) reversed() bool {
	return slices.ContainsFunc(c.config.Tunnels, func(t plans.Tunnel) bool {
		return slices.ContainsFunc(t.Routes, func(r plans.Route) bool { return r.To.Bits() == 0 })
	})
}

// decide is what the configuration takes, with what is left to the host decided as a
// start does (package instance), and the line that says so.
func (c *checker) decide() ([]need, Line) {
	if !c.config.Undecided() {
		return c.taken(*c.config), ok("backend", carriers(*c.config)+", as configured")
	}
	var lacking []string
	for _, name := range loadedBy(c.config.KernelDrivers()) {
		if l := c.look(name); l.State == Missing {
			lacking = append(lacking, name)
		}
	}
	kernel, bpf := c.config.Decided(plans.Kernel), c.config.Decided(plans.BPF)
	var why []string
	if fault := c.config.BPFFault(); fault != nil {
		why = append(why, fault.Error())
	}
	for _, name := range []string{"bpftool", "tc"} {
		if l := c.program(name); l.State == Missing {
			why = append(why, l.Found)
		}
	}
	switch {
	case len(lacking) == 0:
		c.config = &kernel
		return c.taken(kernel), ok("backend", carriers(kernel)+": all that it takes are there")
	case len(why) == 0:
		c.config = &bpf
		return c.taken(bpf), ok("backend", carriers(bpf)+", for the kernel lacks "+strings.Join(lacking, ", "))
	}
	c.config = &kernel
	needs := c.taken(kernel)
	return needs, missing("backend", "none: the kernel lacks "+strings.Join(lacking, ", ")+", and BPF can't stand in: "+strings.Join(why, "; "),
		"one of the two will do")
}

// taken is what a configuration takes, for each backend that it has.
func (c *checker) taken(config plans.Config) (all []need) {
	for _, b := range []plans.Backend{plans.Kernel, plans.BPF} {
		part := config
		part.Tunnels = slices.DeleteFunc(slices.Clone(config.Tunnels), func(t plans.Tunnel) bool { return (t.Backend == plans.BPF) != (b == plans.BPF) })
		if len(part.Tunnels) == 0 {
			continue
		}
		n := need{b, carriers(part), loadedBy(part.Up()), nil, programsOf(part), instance.Needed(part), forDrivers}
		if b == plans.BPF {
			n.oldest = forBPF
			n.called = append(n.called, "cls_bpf", "sch_ingress")
		}
		if slices.Contains(n.programs, "nft") {
			n.called = append(n.called, "nf_tables")
		}
		if slices.ContainsFunc(part.Tunnels, func(t plans.Tunnel) bool { return t.Role != plans.Static }) {
			n.called = append(n.called, "af_packet")
		}
		all = append(all, n)
	}
	return all
}

// loadedBy are the drivers that a plan loads.
func loadedBy(p plans.Plan) (names []string) {
	p.Walk(func(s plans.Step) {
		if argv := s.Do.Argv; len(argv) == 2 && argv[0] == "modprobe" && !slices.Contains(names, argv[1]) {
			names = append(names, argv[1])
		}
	})
	return names
}

// packets are those that must get in: what comes to the tunnels' outer ends. BPF takes
// them before any firewall.
func (c *checker) packets() (all []packet) {
	for i, t := range c.config.Tunnels {
		if t.Backend == plans.BPF {
			continue
		}
		o := c.outsides[i]
		p := packet{proto: 17, port: t.FOUPort, dev: o.dev, is6: t.OuterIPv6(), local: o.local, remote: o.remote, state: fresh}
		switch t.Role {
		case plans.Server:
			p.state = served
		case plans.Client:
			p.state = answered
		}
		if t.Encap == plans.None {
			p.proto, p.port = t.Protocol(), 0
			if p.proto == 0 {
				continue
			}
		}
		all = append(all, p)
	}
	return all
}
