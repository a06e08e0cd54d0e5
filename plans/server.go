package plans

import (
	"fmt"
	"slices"
)

// Bind is the plan for a peer that authenticated for the first time.
func (t Tunnel) Bind() Plan {
	if t.Backend == BPF {
		return t.bpfBind()
	}
	if t.ForceAlt {
		return Plan{Name: "bind", Steps: append(t.before(), t.bindAlternate()...)}
	}
	link := Step{
		Comment: t.Dev + ": the tunnel to the peer",
		Do:      t.linkAdd(t.localIP()),
		Undo:    t.linkDel(),
		Else: []Else{{
			When:  Exists,
			Say:   "another tunnel has these two outer addresses already: using the alternate local address " + t.FOUIPAlt.String(),
			Name:  TookAlt,
			Steps: t.bindAlternate(),
			Final: true,
		}},
	}
	steps := append(t.before(), link)
	steps = append(steps, t.interior(Step{
		Comment: "open the gate to the peer",
		Do:      nft(t.admit(t.localIP(), false)...),
		Undo:    nft(t.dismiss(t.localIP(), t.peerIP(), t.peerPort())...),
		Passing: true,
	})...)
	return Plan{Name: "bind", Steps: append(steps, t.after()...)}
}

func (t Tunnel) bindAlternate() []Step {
	alt := t.FOUIPAlt.String()
	steps := t.alternate()
	steps = append(steps, Step{
		Comment: t.Dev + ": the tunnel to the peer, from the alternate local address",
		Do:      t.linkAdd(alt),
		Undo:    t.linkDel(),
	})
	steps = append(steps, t.interior(Step{
		Comment: "open the gate to the peer, and rewrite its packets to the alternate address",
		Do:      nft(t.admit(alt, true)...),
		Undo:    nft(t.dismiss(alt, t.peerIP(), t.peerPort())...),
		Passing: true,
	})...)
	return append(steps, t.after()...)
}

// alternate are the address, the listener and the rewriting behind the alternate
// local address.
func (t Tunnel) alternate() []Step {
	alt := t.FOUIPAlt.String()
	return []Step{
		{
			Comment: "alternate local address; nft rewrites it, it is never seen outside",
			Do:      cmd("ip", "address", "add", alt+"/32", "scope", "global", "dev", t.outerDev()),
			Undo:    cmd("ip", "address", "del", alt+"/32", "dev", t.outerDev()),
			Key:     t.key("alternate_address"),
			Taken:   cmd("ip", "-4", "-o", "address", "show", "to", alt+"/32"),
			Lines:   []string{"*"},
			Else: []Else{{
				When: Exists,
				Say:  "the alternate local address " + alt + " exists already: it is used, and will stay",
			}},
		},
		t.listen(alt, "alternate_listener"),
		t.outward(),
	}
}

// Rebind is the plan for a bound peer that authenticated from another address
// or port. The interface stays, and with it all that hangs on it.
func (t Tunnel) Rebind() Plan {
	if t.Backend == BPF {
		return t.bpfRebind()
	}
	swap := func(local string, alt bool) Step {
		in, maybe := t.entered("${"+OldLocal+"}", "${"+OldIP+"}", "${"+OldPort+"}")
		rest := append(maybe, t.admit(local, alt)...)
		// Somebody may have flushed a set, or an nft that was killed had done its work.
		var anyway []Step
		for _, line := range in {
			anyway = append(anyway, Step{Do: nft(line), MayFail: true})
		}
		return Step{
			Comment: "shut the gate to the old address and open it to the new one",
			Do:      nft(slices.Concat(in, rest)...),
			Else: []Else{{
				When:  Gone,
				Say:   t.Dev + ": the gate did not have the peer's old address any more",
				Steps: append(anyway, Step{Do: nft(rest...)}),
			}},
		}
	}
	set := func(local string) Step {
		return Step{
			Comment: t.Dev + ": the tunnel to the peer's new address",
			Do:      t.linkSet(local, t.peerIP(), t.peerPort()),
			Undo:    t.linkSet("${"+OldLocal+"}", "${"+OldIP+"}", "${"+OldPort+"}"),
			Passing: true,
		}
	}
	moved := append(t.alternate(), set(t.FOUIPAlt.String()), swap(t.FOUIPAlt.String(), true))
	moved = append(moved, t.movedRules()...)
	if t.ForceAlt {
		return Plan{Name: "rebind", Steps: moved}
	}
	direct := set(t.localIP())
	direct.Else = []Else{{
		When:  Exists,
		Say:   "another tunnel has these two outer addresses already: using the alternate local address " + t.FOUIPAlt.String(),
		Name:  TookAlt,
		Steps: moved,
		Final: true,
	}}
	steps := []Step{direct, swap(t.localIP(), false)}
	steps = append(steps, t.movedRules()...)
	return Plan{Name: "rebind", Steps: append(steps, []Step{
		{Comment: "the alternate address, if it was in use, is not needed any more", TakeBack: t.key("alternate_listener"), MayFail: true},
		{TakeBack: t.key("alternate_address"), MayFail: true},
	}...)}
}

// Readmit is the plan for a peer that authenticated from where it is bound: if
// its admission had run out, it is renewed.
func (t Tunnel) Readmit() Plan {
	if t.Backend == BPF {
		return t.bpfReadmit()
	}
	return Plan{Name: "readmit", Steps: []Step{{
		Comment: "renew the peer's admission",
		Do:      nft(t.admission(t.peerIP(), t.peerPort())...),
	}}}
}

// element is the peer as the gate knows it.
func (t Tunnel) element(peerIP, peerPort string) string {
	return fmt.Sprintf("%s . %d . %s . %s", t.localIP(), t.FOUPort, peerIP, peerPort)
}

// admission starts the time of the peer's admission anew. An element's time is
// only set when it is new, and one that is not there can't be deleted: so it is
// added, deleted and added.
func (t Tunnel) admission(peerIP, peerPort string) []string {
	alive, el := "element ip "+t.Table+" alive", t.element(peerIP, peerPort)
	return []string{
		"add " + alive + " { " + el + " }",
		"delete " + alive + " { " + el + " }",
		fmt.Sprintf("add %s { %s timeout %ds }", alive, el, t.Auth.Lifetime),
	}
}

// admit lets the peer through the gate to its tunnel's local address.
func (t Tunnel) admit(local string, alt bool) []string {
	lines := t.elements(local, alt)
	if t.Auth.Lifetime == 0 {
		return lines
	}
	return slices.Insert(lines, len(lines)-1, t.admission(t.peerIP(), t.peerPort())...)
}

// elements are the peer in the gate, whether or not its admission has run out.
func (t Tunnel) elements(local string, alt bool) []string {
	el := t.element(t.peerIP(), t.peerPort())
	lines := []string{fmt.Sprintf("add element ip %s %s { %s . %s }", t.Table, t.bare(), t.peerIP(), local)}
	if alt {
		lines = append(lines, fmt.Sprintf("add element ip %s alt_in { %s : %s }", t.Table, el, local))
	}
	return append(lines, fmt.Sprintf("add element ip %s peers { %s : %s }", t.Table, el, t.way(alt)))
}

// dismiss takes a peer out of the gate.
func (t Tunnel) dismiss(local, peerIP, peerPort string) []string {
	in, maybe := t.entered(local, peerIP, peerPort)
	return append(in, maybe...)
}

// entered are the lines that take a peer out of where it is, and those that take it out
// of where it may be: an element that need not be there (its time ran out, it was on the
// main address) is added before it is deleted, for it would fail the transaction.
func (t Tunnel) entered(local, peerIP, peerPort string) (in, maybe []string) {
	el := t.element(peerIP, peerPort)
	in = []string{
		fmt.Sprintf("delete element ip %s peers { %s }", t.Table, el),
		fmt.Sprintf("delete element ip %s %s { %s . %s }", t.Table, t.bare(), peerIP, local),
	}
	maybe = []string{
		fmt.Sprintf("add element ip %s alt_in { %s : %s }", t.Table, el, t.FOUIPAlt),
		fmt.Sprintf("delete element ip %s alt_in { %s }", t.Table, el),
	}
	if t.Auth.Lifetime > 0 {
		maybe = append(maybe,
			fmt.Sprintf("add element ip %s alive { %s }", t.Table, el),
			fmt.Sprintf("delete element ip %s alive { %s }", t.Table, el))
	}
	return in, maybe
}
