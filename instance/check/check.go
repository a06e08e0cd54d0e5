package check

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ipipou/instance"
	"ipipou/plans"
	"ipipou/runner"
)

// A checker looks at the host for one report.
type checker struct {
	*kernel
	config   *plans.Config // nil: for tunnels in general
	outsides []outside     // of each tunnel
	resolved map[string]resolution
}

// A need is what a backend takes.
type need struct {
	backend  plans.Backend
	title    string
	loaded   []string // drivers that a plan loads by modprobe
	called   []string // drivers that the kernel loads by itself
	programs []string
	caps     uint64
	oldest   version
}

// Look looks at the host: for the instance of a configuration or, where that is nil, for
// tunnels in general.
func Look(ctx context.Context, h Host, config *plans.Config) Report {
	c := &checker{kernel: h.kernel(), config: config, resolved: map[string]resolution{}}
	if config == nil {
		return c.general()
	}
	return c.instance(ctx)
}

// What tunnels take in general: the first mode, by each backend.
var inGeneral = []need{
	{
		plans.Kernel, "kernel drivers", []string{"fou", "ipip"}, []string{"nf_tables", "af_packet"},
		[]string{"ip", "nft"}, capSet(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_MODULE), forDrivers,
	},
	{
		plans.BPF, "BPF", []string{"tun"}, []string{"cls_bpf", "sch_ingress", "af_packet"},
		[]string{"ip", "tc", "bpftool"}, capSet(unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_SYS_MODULE, unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE), forBPF,
	},
}

// general is what the host can do.
func (c *checker) general() (r Report) {
	r.add(c.needs(&r, inGeneral)...)
	var others []Line
	for _, name := range []string{"sit", "ip_gre", "ip6_tunnel"} {
		others = append(others, c.look(name))
	}
	if l := c.program("conntrack"); l.State == OK {
		others = append(others, l)
	} else {
		others = append(others, warning(l.Name, l.Found+": nothing here needs it, but to look what is tracked", l.Advice))
	}
	r.add(others...)
	r.add(c.reverse())
	r.add(c.forwarding()...)
	r.add(c.firewall([]packet{{proto: 17, port: 10000, state: served}})...)
	r.add(c.clock())
	r.add(links(c.interfaces(&r))...)
	var said []string
	for i, b := range r.Backends {
		text := inGeneral[i].title + ": yes"
		if len(b.Lacks) > 0 {
			text = inGeneral[i].title + ": no (" + strings.Join(b.Lacks, ", ") + ")"
		}
		r.Works = r.Works || len(b.Lacks) == 0
		said = append(said, text)
	}
	r.Summary = strings.Join(said, "; ")
	return r
}

// interfaces are the host's; that they can't be listed is a line of the report.
func (c *checker) interfaces(r *Report) []Interface {
	all, err := c.Interfaces()
	if err != nil {
		r.add(missing("interfaces", "can't be listed: "+oneLine(err.Error()), ""))
	}
	return all
}

// needs are the lines of what the backends take, and what each of them lacks.
func (c *checker) needs(r *Report, all []need) []Line {
	var lines []Line
	done := map[string]bool{}
	put := func(l Line) bool {
		if !done[l.Name] {
			done[l.Name] = true
			lines = append(lines, l)
		}
		return l.State != Missing
	}
	put(c.version(all))
	put(c.privileges(all))
	for _, n := range all {
		b := Backend{Name: string(n.backend), Lacks: []string{}}
		note := func(is bool, name string) {
			if !is {
				b.Lacks = append(b.Lacks, name)
			}
		}
		note(!kernelVersion(c.release).before(n.oldest), "kernel")
		note(c.lackingCaps(n) == 0, "privileges")
		if n.backend == plans.BPF && c.BigEndian {
			note(put(missing("processor", "big-endian: the BPF programs are for little-endian ones", "take the kernel's drivers: backend = \"kernel\"")), "processor")
		}
		for _, name := range slices.Concat(n.loaded, n.called) {
			note(put(c.look(name)), name)
		}
		for _, name := range n.programs {
			note(put(c.program(name)), name)
		}
		if len(c.toLoad(n)) > 0 {
			note(put(c.program("modprobe")), "modprobe")
		}
		r.Backends = append(r.Backends, b)
	}
	return lines
}

// version is the line of the kernel: too old for all, or for some.
func (c *checker) version(all []need) Line {
	v := kernelVersion(c.release)
	var old []string
	for _, n := range all {
		if v.before(n.oldest) {
			old = append(old, n.title+" ("+n.oldest.String()+")")
		}
	}
	found, advice := c.release+": too old for "+strings.Join(old, " and "), "upgrade the kernel"
	switch {
	case len(old) == 0:
		return ok("kernel", c.release)
	case len(old) == len(all), c.config != nil: // what is configured takes all of them
		return missing("kernel", found, advice)
	}
	return warning("kernel", found, advice)
}

// toLoad are the drivers that a plan has to load.
func (c *checker) toLoad(n need) (names []string) {
	for _, name := range n.loaded {
		if p, _ := c.driver(name); p == loadable {
			names = append(names, name)
		}
	}
	return names
}

// lackingCaps are the capabilities that the backend takes and this process has not.
func (c *checker) lackingCaps(n need) uint64 {
	want := n.caps
	if len(c.toLoad(n)) == 0 {
		want &^= capSet(unix.CAP_SYS_MODULE)
	}
	if !kernelVersion(c.release).before(version{5, 11}) { // before, maps counted as locked memory
		want &^= capSet(unix.CAP_SYS_RESOURCE)
	}
	have, _ := c.capabilities()
	return want &^ have
}

// privileges is the line of what this process may do.
func (c *checker) privileges(all []need) Line {
	var lacking uint64
	var who []string
	var load []string
	for _, n := range all {
		if some := c.lackingCaps(n); some != 0 {
			lacking |= some
			who = append(who, n.title)
			if some&capSet(unix.CAP_SYS_MODULE) != 0 {
				load = append(load, c.toLoad(n)...)
			}
		}
	}
	if lacking == 0 {
		return ok("privileges", "all that it takes")
	}
	advice := "run as root, or give a unit AmbientCapabilities=" + strings.ReplaceAll(capList(lacking), ",", "")
	if _, contained := c.capabilities(); contained {
		advice = "this is a user namespace: run outside of it, or have the modules loaded there"
	}
	if lacking == capSet(unix.CAP_SYS_MODULE) {
		advice = "have them loaded at boot: name " + strings.Join(load, ", ") + " in /etc/modules-load.d/ipipou.conf"
	}
	if len(who) < len(all) && c.config == nil {
		return warning("privileges", "lacks "+capList(lacking)+" for "+strings.Join(who, " and "), advice)
	}
	return missing("privileges", "lacks "+capList(lacking), advice)
}

// programs are those that the plans of a configuration take.
func programsOf(config plans.Config) (names []string) {
	for cmd := range runner.Needs(instance.Plans(config)) {
		if name := cmd.Argv[0]; !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
