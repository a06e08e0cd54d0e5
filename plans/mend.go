package plans

import (
	"regexp"
	"slices"
	"strings"
)

// What others may take away from an instance that is up (a firewall that is loaded
// anew, somebody's `ip link del`), and the plans that put it back. What is put back
// has its undo in the journal since it was first made, so these plans have none.

// A Guard is a look at something of the instance's, and what makes it anew.
type Guard struct {
	// Look fails or prints something else when the thing is not what it was; see Same.
	Look Command
	Mend Plan
	// Gate: who is bound was in it too, and is let in again by Reopen.
	Gate bool

	what, on string // may be variables; see Names
}

// Same reports whether a Look prints what it printed before.
func (g Guard) Same(before, now string) bool { return lasting(before) == lasting(now) }

// Names are what the thing is called and the name of the interface that it is on and goes
// with, "" if there is none. The error is that of Command.Expand.
func (g Guard) Names(vars map[string]string) (thing, dev string, err error) {
	if dev, err = expand(g.on, vars); err != nil {
		return g.what, "", err
	}
	thing, err = expand(g.what, vars)
	return thing, dev, err
}

// lasting is a table without the chain that comes with the first alternate address.
func lasting(listing string) string { return postChain.ReplaceAllString(listing, "") }

var postChain = regexp.MustCompile(`\n\tchain post \{\n(?s:.*?)\n\t\}\n`)

// Tables are the names of the nft tables that the instance may have.
func (c Config) Tables() []string {
	var names []string
	for _, name := range []string{c.table(), c.membersTable()} {
		if name != "" {
			names = append(names, name)
		}
	}
	return names
}

// Guards are the looks at the instance's nft tables and at its BPF programs on outer
// interfaces.
func (c Config) Guards() []Guard {
	var guards []Guard
	table := func(family, name string, steps []Step, gate bool) {
		guards = append(guards, Guard{
			what: "the nft table " + family + " " + name,
			// Without what changes by itself: counters and elements.
			Look: cmd("nft", "-s", "-t", "list", "table", family, name),
			Mend: Plan{Name: "mend", Steps: steps},
			Gate: gate,
		})
	}
	if len(c.gated()) > 0 {
		steps := c.gate()
		table("ip", c.table(), append([]Step{renewed(steps[0])}, noted(steps[1:])...), true)
	}
	if len(c.forwarders()) > 0 {
		steps := slices.DeleteFunc(c.forwarding(), func(s Step) bool { return s.Do.IsZero() || s.Do.Argv[0] != "nft" })
		table("inet", c.table(), append([]Step{renewed(steps[0])}, noted(steps[1:])...), false)
	}
	if name := c.membersTable(); name != "" {
		table("ip", name, []Step{renewed(c.members()[0])}, false)
	}
	seen := map[string]bool{}
	for _, t := range c.on(BPF) {
		if seen[t.outerDev()] {
			continue
		}
		seen[t.outerDev()] = true
		steps := noted(t.attach())
		steps[0].Else, steps[0].MayFail = nil, true // only the filter may be missing
		guards = append(guards, Guard{
			what: "the BPF program on " + t.outerDev(),
			Look: cmd(append([]string{"tc", "filter", "get"}, t.filter()...)...),
			Mend: Plan{Name: "mend", Steps: steps},
			on:   t.outerDev(),
		})
	}
	return guards
}

// noted are steps whose undos are in the journal already.
func noted(steps []Step) []Step {
	out := slices.Clone(steps)
	for i := range out {
		out[i].Undo, out[i].UndoIf, out[i].UndoUnless, out[i].Key = Command{}, Command{}, nil, ""
		out[i].Taken, out[i].Lines = Command{}, nil
	}
	return out
}

// renewed makes a table anew whatever is left of it, in the same transaction.
func renewed(s Step) Step {
	s = noted([]Step{s})[0]
	name, _, _ := strings.Cut(strings.TrimPrefix(s.Do.Stdin, "create "), "\n")
	s.Do.Stdin = "add " + name + "\ndelete " + name + "\n" + s.Do.Stdin
	return s
}

// within are those of the steps that are lost with an interface: they have no undos
// of their own.
func within(steps []Step) []Step {
	return slices.DeleteFunc(slices.Clone(steps), func(s Step) bool { return !s.Undo.IsZero() || s.TakeBack != "" })
}

// Reopen is the plan that lets a bound peer through a gate that was made anew. Where
// its admission runs out it has to authenticate first: nobody knows any more whether
// it had.
func (t Tunnel) Reopen(alt bool) Plan {
	local := t.localIP()
	var steps []Step
	if alt {
		local = t.FOUIPAlt.String()
		outward := noted([]Step{t.outward()})[0]
		outward.Do.Stdin = strings.Replace(outward.Do.Stdin, "add chain", "create chain", 1)
		outward.MayFail = true // another tunnel's peer was let in again before
		steps = append(steps, outward)
	}
	return Plan{Name: "mend", Steps: append(steps, Step{Comment: "open the gate to the peer", Do: nft(t.elements(local, alt)...)})}
}

// Relink is the plan that makes the interface anew of a tunnel with an other end: the
// variables hold its address. alt is whether it goes by the alternate local address.
func (t Tunnel) Relink(alt bool) Plan {
	local := t.localIP()
	if alt {
		local = t.FOUIPAlt.String()
	}
	steps := []Step{t.anew(Step{Comment: t.Dev + ": the tunnel, once more", Do: t.linkAdd(local)})}
	return Plan{Name: "mend", Steps: append(append(steps, within(t.interior())...), within(t.after())...)}
}

// anew is a step that makes the tunnel's interface once more: away with it if the plan
// fails, or nobody would see that it is not whole.
func (t Tunnel) anew(s Step) Step {
	s.Undo, s.Passing = t.linkDel(), true
	return s
}

// Own is the plan that notes nothing but that the tunnel's interface is ours, to be
// deleted in the end.
func (t Tunnel) Own() Plan { return Plan{Name: "own", Steps: []Step{{Undo: t.linkDel()}}} }

// Retake is the plan that puts the alternate local address back.
func (t Tunnel) Retake() Plan { return Plan{Name: "mend", Steps: noted(t.alternate()[:1])} }

// OldDevice is the variable of Leave: an interface that is no more, by the name that
// iproute2 gives its index, "if7" (ll_idx_n2a in lib/ll_map.c).
const OldDevice = "OLD_DEV"

// Leave is the plan that takes the tunnel's listeners off an outer interface that is
// no more. They go on without one, and by the name of a new one they are not found.
func (t Tunnel) Leave() Plan {
	if t.FOUDev == "" {
		return Plan{Name: "leave"}
	}
	var steps []Step
	for _, l := range t.listeners() {
		gone := slices.Clone(l.Undo.Argv)
		gone[len(gone)-1] = "${" + OldDevice + "}"
		steps = append(steps, Step{Do: Command{Argv: gone}, MayFail: true})
	}
	return Plan{Name: "leave", Steps: steps}
}

// Rehome is the plan for a server whose outer interface was made anew: what hung on
// the old one hangs on the new one. bound is whether it has a peer, whose address the
// variables hold.
func (t Tunnel) Rehome(bound, alt bool) Plan {
	steps := []Step{{Comment: "the listener on the old interface", TakeBack: t.key("listener"), MayFail: true}}
	steps = append(steps, t.listen(t.localIP(), "listener"))
	local := t.localIP()
	if alt {
		local = t.FOUIPAlt.String()
		steps = append(steps,
			Step{TakeBack: t.key("alternate_listener"), MayFail: true},
			Step{TakeBack: t.key("alternate_address"), MayFail: true})
		steps = append(steps, t.alternate()[:2]...)
	}
	if bound {
		steps = append(steps, Step{Comment: t.Dev + ": by the new interface", Do: t.linkSet(local, t.peerIP(), t.peerPort())})
	}
	return Plan{Name: "mend", Steps: steps}
}

// Remake is the plan that makes a TUN device anew that tunnels of BPF have, with the
// addresses of all of them. The variables tell the old one's index, and then the new.
func (c Config) Remake(dev string) Plan {
	tunnels := slices.DeleteFunc(c.on(BPF), func(t Tunnel) bool { return t.Dev != dev })
	lead := tunnels[0]
	forget := []string{"map delete @devices key ${" + lead.bpf.index + ".le32}"}
	steps := []Step{lead.later(Step{Comment: dev + ": the programs forget the old interface", MayFail: true}, forget, nil)}
	device := noted(lead.tunDevice())
	device[0] = lead.anew(device[0])
	steps = append(steps, device...)
	steps = append(steps, lead.later(Step{Comment: "and learn of the new one"}, lead.deviceLines(), nil))
	var late []Step
	seen := map[string]bool{}
	for _, t := range tunnels {
		addresses, after := t.addresses()
		for _, s := range addresses {
			if !seen[s.Do.line()] {
				steps = append(steps, s)
			}
			seen[s.Do.line()] = true
		}
		late = append(late, after...)
	}
	steps = append(append(steps, lead.bpfLinkUp()), late...)
	for _, t := range tunnels {
		if t.Role != Server {
			steps = append(steps, t.Reroute().Steps...)
		}
	}
	return Plan{Name: "mend", Steps: steps}
}

// Reroute is the plan that puts back what a tunnel has on an interface that others may
// have too: its routes, and what the operator adds.
func (t Tunnel) Reroute() Plan {
	return Plan{Name: "mend", Steps: append(within(t.routing()), within(t.after())...)}
}
