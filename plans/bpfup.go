package plans

import (
	"slices"
	"strconv"

	"ipipou/datapath"
)

// bpfFacts are what the BPF programs must know of the host.
func (c Config) bpfFacts() []Var {
	var vars []Var
	for _, t := range c.on(BPF) {
		look := cmd("ip", "-o", "link", "show", "dev", t.outerDev())
		vars = append(vars, Var{
			Name: t.bpf.outer, Comment: "index of " + t.outerDev(), Query: look, Word: 1, Number: true,
			Missing: t.outerDev() + " does not exist: give another --fou-dev",
		})
		if t.MTU == 0 {
			vars = append(vars, Var{
				Name: t.bpf.mtu, Comment: "MTU that fits " + t.outerDev() + "'s", Query: look, Word: 5, Number: true, Less: t.Overhead(),
				Missing: t.outerDev() + " does not exist: give another --fou-dev",
			})
		}
	}
	return vars
}

// bpfUp loads the programs, makes the tunnels' interfaces and attaches the programs
// to them and, last, to the outer interfaces. Nobody but a bound peer gets in from
// then on.
func (c Config) bpfUp() []Step {
	tunnels := c.on(BPF)
	if len(tunnels) == 0 {
		return nil
	}
	steps := c.bpfLoad(tunnels[0].bpf.dir)
	done := map[string]bool{}
	once := func(what string) bool {
		first := !done[what]
		done[what] = true
		return first
	}
	var devices [][]Step
	for _, t := range tunnels {
		if t.Role != Server {
			steps = append(steps, t.before()...)
		}
		if once(t.Dev) {
			steps = append(steps, t.bridging()...)
			devices = append(devices, t.tunDevice())
		}
	}
	steps = append(steps, abreast(devices)...)
	var lines []string
	for _, t := range tunnels {
		if once("device " + t.Dev) {
			lines = append(lines, t.deviceLines()...)
		}
		lines = append(append(lines, t.entries()...), t.peerLines()...)
	}
	for _, t := range tunnels {
		if t.Auth.Lifetime > 0 && t.Role != Server && once(uptime) {
			steps = append(steps, t.now())
		}
	}
	steps = append(steps, tunnels[0].update(Step{Comment: "what the programs must know: interfaces, where their packets arrive, networks and peers"}, lines))
	for _, t := range tunnels {
		addresses, late := t.addresses()
		steps = append(steps, slices.DeleteFunc(addresses, func(s Step) bool { return !once(t.Dev + " " + s.Do.line()) })...)
		if once("up " + t.Dev) {
			steps = append(steps, t.bpfLinkUp())
		}
		steps = append(steps, slices.DeleteFunc(late, func(s Step) bool { return !once(t.Dev + " " + s.Do.line()) })...)
		if t.Role != Server {
			steps = append(steps, t.routing()...)
		}
	}
	for _, t := range tunnels {
		steps = append(steps, t.remembered()...)
	}
	for _, t := range tunnels {
		if once("outer " + t.outerDev()) {
			steps = append(steps, t.attach()...)
		}
	}
	for _, t := range tunnels {
		if t.Role != Server {
			steps = append(steps, t.after()...)
		}
	}
	return steps
}

// abreast are the first steps of all lists, then the second ones, and so on: what is
// next to its like can be done by one process.
func abreast(lists [][]Step) (steps []Step) {
	for i, more := 0, true; more; i++ {
		more = false
		for _, l := range lists {
			if i < len(l) {
				steps, more = append(steps, l[i]), true
			}
		}
	}
	return steps
}

// bpfLoad makes the maps and loads the programs.
func (c Config) bpfLoad(dir string) []Step {
	object := "${" + RunDir + "}/" + c.Name + ".bpf.o"
	steps := []Step{
		{Comment: "the kernel's TUN devices", Do: cmd("modprobe", "tun"), Unless: cmd("test", "-c", "/dev/net/tun")},
		{Comment: "a BPF file system of the instance's own", Do: cmd("mkdir", "-p", dir), Undo: cmd("rmdir", dir)},
		{
			Do:     cmd("mount", "-t", "bpf", "-o", "nosuid,nodev,noexec,mode=700", "ipipou", dir),
			Undo:   cmd("umount", dir),
			UndoIf: cmd("mountpoint", "-q", dir), // not in every mount namespace
		},
	}
	load := []string{"bpftool", "prog", "loadall", object, dir + "/programs"}
	for i, m := range datapath.Maps {
		comment := ""
		if i == 0 {
			comment = "the programs' maps, as large as they have to be"
		}
		pin := dir + "/" + m.Name
		steps = append(steps, Step{Comment: comment, Do: cmd("bpftool", "map", "create", pin, "type", m.Type,
			"key", strconv.Itoa(m.Key), "value", strconv.Itoa(m.Value), "entries", strconv.Itoa(c.entries(m.Name)), "name", m.Name)})
		load = append(load, "map", "name", m.Name, "pinned", pin)
	}
	steps = append(steps,
		Step{
			Comment: "the programs",
			Do:      Command{Argv: []string{"dd", "of=" + object}, Data: datapath.Object},
			Undo:    cmd("rm", "-f", object),
			Key:     "object",
		},
		Step{
			Do: cmd(load...),
			Else: []Else{{
				When:  NoHelper,
				Error: "the BPF of this kernel lacks a function that the data path calls (125 is bpf_ktime_get_boot_ns, 152 bpf_redirect_neigh): it takes Linux 5.10 or later, or else the modules ipip and fou, with --backend kernel",
			}},
		},
		Step{TakeBack: "object"},
		Step{
			Comment: "bpftool's batches fail at boot as long as there is no randomness, which they don't need",
			Do:      cmd("dd", "if=/dev/random", "of=/dev/null", "bs=1", "count=1"),
		},
	)
	for _, id := range [][2]string{{devicesMap, "devices"}, {endpointsMap, "endpoints"}, {peersMap, "peers"}, {countersMap, "counters"}} {
		steps = append(steps, Step{Ask: Var{
			Name: id[0], Query: cmd("bpftool", "map", "show", "pinned", dir+"/"+id[1]), Word: 1, Number: true,
			Missing: "bpftool does not show the map " + id[1],
		}})
	}
	return steps
}

// entries is how large a map must be.
func (c Config) entries(name string) int {
	n := 0
	for _, t := range c.on(BPF) {
		switch name {
		case "devices":
			n++
		case "endpoints":
			n += 4 * len(t.endpoints()) // more than one while it moves
		case "prefixes":
			n += len(t.behind())
		default:
			n = max(n, t.bpf.first+t.bpf.peers)
		}
	}
	return max(n, 1)
}

// tunDevice is the tunnel's interface: a TUN device that no process reads, for its
// egress program takes every packet before it is queued.
func (t Tunnel) tunDevice() []Step {
	steps := []Step{
		{
			Comment: t.Dev + ": a TUN device, whose packets the program takes; no process reads it",
			Do:      cmd("ip", "tuntap", "add", "dev", t.Dev, "mode", "tun"),
			Undo:    t.linkDel(),
		},
		{Ask: Var{
			Name: t.bpf.index, Query: cmd("ip", "-o", "link", "show", "dev", t.Dev), Word: 1, Number: true,
			Missing: t.Dev + " has no index",
		}},
		{Do: cmd("tc", "qdisc", "add", "dev", t.Dev, "clsact")},
		{Do: cmd("tc", "filter", "add", "dev", t.Dev, "egress", "pref", filterPref, "handle", t.bpf.handle,
			"bpf", "direct-action", "object-pinned", t.bpf.dir+"/programs/egress")},
	}
	return append(steps, t.grouping()...)
}

func (t Tunnel) bpfLinkUp() Step {
	mtu := "${" + t.bpf.mtu + "}"
	if t.MTU > 0 {
		mtu = strconv.Itoa(t.MTU)
	}
	return Step{Do: cmd("ip", "link", "set", "dev", t.Dev, "mtu", mtu, "up")}
}

// attach puts the ingress program before all that comes in by the outer interface.
func (t Tunnel) attach() []Step {
	dev, lead, filter := t.outerDev(), strconv.Itoa(t.bpf.lead), t.filter()
	return []Step{
		{
			Comment: "where " + dev + "'s filters are, if there are none yet",
			Do:      cmd("tc", "qdisc", "add", "dev", dev, "clsact"),
			Undo:    cmd("tc", "qdisc", "del", "dev", dev, "clsact"),
			UndoIf:  cmd("ip", "link", "show", "dev", dev),
			UndoUnless: []Command{
				cmd("tc", "filter", "show", "dev", dev, "ingress"), cmd("tc", "filter", "show", "dev", dev, "egress"),
			},
			Key:   "clsact_" + lead,
			Taken: cmd("tc", "qdisc", "show", "dev", dev),
			Lines: []string{"qdisc clsact *"},
			Else: []Else{{
				When: Exists,
				Say:  dev + " has a queueing discipline for filters already: it is used, and will stay",
			}},
		},
		{
			Comment: "the gate, and the way in: what bound peers send goes to the tunnel, what else comes to the port is dropped",
			Do:      cmd(append(append([]string{"tc", "filter", "add"}, filter...), "direct-action", "object-pinned", t.bpf.dir+"/programs/ingress")...),
			Undo:    cmd(append([]string{"tc", "filter", "del"}, filter...)...),
			UndoIf:  cmd(append([]string{"tc", "filter", "get"}, filter...)...), // it goes with its interface
			Key:     "ingress_" + lead,
		},
	}
}

// remembered notes, for the day that it moves, by what a tunnel without UDP is found:
// its peer's address.
func (t Tunnel) remembered() []Step {
	if t.Encap != None || !t.hasRemote() {
		return nil
	}
	var lines []string
	for _, key := range t.endpoints() {
		lines = append(lines, "map delete @endpoints key "+key)
	}
	_, undo := t.batches(lines) // wherever the pins can be seen
	return []Step{{Undo: undo, Key: t.key("endpoints")}}
}

// filter is the instance's on the outer interface, in the words of tc(8).
func (t Tunnel) filter() []string {
	return []string{"dev", t.outerDev(), "ingress", "protocol", "all", "pref", filterPref, "handle", t.bpf.handle, "bpf"}
}

// now asks for the time from which a peer's silence counts.
func (t Tunnel) now() Step {
	return Step{Ask: Var{
		Name: uptime, Query: cmd("cat", "/proc/uptime"), Word: 1, Number: true, Missing: "/proc/uptime can't be read",
	}}
}

// bpfBind is the plan for a peer that authenticated; all else is there already.
func (t Tunnel) bpfBind() Plan {
	steps := t.before()
	steps = append(steps, t.admitted(Step{Comment: "the peer's packets come in, and the tunnel's go there"}, datapath.Nobody)...)
	for _, s := range t.routing() {
		// The interface stays if the bind fails, and with it a route that would be in
		// the way of the next one.
		if s.Undo.IsZero() {
			s.Undo, s.Passing = Command{Argv: slices.Clone(s.Do.Argv)}, true
			s.Undo.Argv[slices.Index(s.Undo.Argv, "add")] = "del"
		}
		steps = append(steps, s)
	}
	return Plan{Name: "bind", Steps: append(steps, t.after()...)}
}

// bpfRebind is the plan for a bound peer that authenticated from elsewhere.
func (t Tunnel) bpfRebind() Plan {
	old := datapath.Peer("${"+OldIP+".ip4}", "${"+OldPort+".be16}", t.since(), t.Auth.Lifetime)
	steps := t.admitted(Step{Comment: "the peer is at its new address, and no more at the old one"}, old)
	return Plan{Name: "rebind", Steps: append(steps, t.movedRules()...)}
}

// bpfReadmit is the plan for a peer that authenticated from where it is bound.
func (t Tunnel) bpfReadmit() Plan {
	return Plan{Name: "readmit", Steps: t.admitted(Step{Comment: "renew the peer's admission"}, "")}
}

// admitted makes the peer the one at ${PEER_IP}:${PEER_PORT}; before is the value to
// go back to if the plan fails.
func (t Tunnel) admitted(s Step, before string) []Step {
	var steps []Step
	if t.Auth.Lifetime > 0 {
		steps = append(steps, t.now())
	}
	var undo []string
	if before != "" {
		undo = []string{t.peerEntry(t.bpf.first, before)}
		s.Passing = true
	}
	return append(steps, t.later(s, []string{t.peerLine(t.peerIP(), t.peerPort())}, undo))
}

// bpfMove is the plan for a tunnel of which an end has another address, or whose
// outer interface was made anew.
func (t Tunnel) bpfMove() Plan {
	lead := strconv.Itoa(t.bpf.lead)
	there := cmd(append([]string{"tc", "filter", "get"}, t.filter()...)...)
	steps := []Step{
		{Comment: "the outer interface is another one if the program is not there", TakeBack: "ingress_" + lead, MayFail: true, Unless: there},
		{TakeBack: "clsact_" + lead, MayFail: true, Unless: there},
	}
	if t.Auth.Lifetime > 0 {
		steps = append(steps, t.now())
	}
	if len(t.remembered()) > 0 {
		steps = append(steps, Step{Comment: "where packets arrived from the old address", TakeBack: t.key("endpoints"), MayFail: true})
	}
	steps = append(steps, t.later(Step{Comment: t.Dev + ": the tunnel from the new address"}, append(t.deviceLines(), t.peerLines()...), nil))
	steps = append(steps, t.remembered()...)
	steps = append(steps, t.attach()...)
	return Plan{Name: "rebind", Steps: append(steps, t.movedRules()...)}
}
