package plans

import "strings"

// connect are the steps of an end that knows where the other is: a client's, or
// a static tunnel's.
func (t Tunnel) connect() []Step {
	comment := t.Dev + ": the tunnel to the server"
	switch {
	case t.OneToMany():
		comment = t.Dev + ": the tunnel to wherever its routes say"
	case t.Role == Static:
		comment = t.Dev + ": the tunnel to the other end"
	}
	steps := append(t.before(), t.bridging()...)
	steps = append(steps, Step{Comment: comment, Do: t.linkAdd(t.localIP()), Undo: t.linkDel()})
	steps = append(steps, t.listener()...)
	steps = append(steps, t.interior()...)
	return append(steps, t.after()...)
}

func (t Tunnel) listener() []Step {
	switch {
	case t.Encap == None:
		return nil
	case t.OneToMany():
		return []Step{t.listen(t.localIP(), "listener")}
	}
	return []Step{t.listenTo()}
}

// listenTo is a FOU listener in the form in which the kernel itself refuses all
// but the other end (a connected socket, fou(7) of Linux 5.2), and
// where that is not known, the plain form.
func (t Tunnel) listenTo() Step {
	from := "server"
	if t.Role == Static {
		from = "other end"
	}
	peer := []string{"peer", t.peerIP(), "peer_port", t.peerPort()}
	return Step{
		Comment: "what the " + from + " sends to the " + t.Encap.port() + " is taken out of its UDP; the kernel refuses other senders",
		Do:      t.onOuter(t.fou("add", append(append(t.inside(), "local", t.localIP()), peer...)...).Argv...),
		Undo:    t.onOuter(t.fou("del", append([]string{"local", t.localIP()}, peer...)...).Argv...),
		Key:     t.key("listener"),
		Taken:   cmd("ip", "fou", "show"),
		Lines:   t.inTheWay(t.localIP()),
		Else: []Else{
			t.listening(t.localIP(), strings.Join(peer, " ")),
			t.plainListener("listener", "this kernel or iproute2 can't bind a FOU listener to one peer: the listener is open to all senders"),
		},
	}
}

// Move is the plan for a tunnel whose own outer address or whose other end's has
// changed: the facts and the PEER variables hold the new ones.
func (t Tunnel) Move() Plan {
	if t.Backend == BPF {
		return t.bpfMove()
	}
	var steps []Step
	if t.Encap != None {
		steps = append(steps,
			// If the outer interface was made anew, the kernel can't find the old one's.
			Step{Comment: "the listener on the old address", TakeBack: t.key("listener"), MayFail: true},
			Step{TakeBack: t.key("plain_listener"), MayFail: true})
	}
	steps = append(steps, Step{
		Comment: t.Dev + ": the tunnel from the new address",
		Do:      t.linkSet(t.localIP(), t.peerIP(), t.peerPort()),
	})
	steps = append(steps, t.listener()...)
	return Plan{Name: "rebind", Steps: append(steps, t.movedRules()...)}
}
