package plans

import "strings"

// connect are a client's steps.
func (t Tunnel) connect() []Step {
	return append([]Step{
		{
			Comment: t.Dev + ": the tunnel to the server",
			Do:      t.linkAdd(t.localIP()),
			Undo:    t.linkDel(),
		},
		t.listenTo(),
	}, t.inner()...)
}

// listenTo is a client's FOU listener in the form in which the kernel itself
// refuses all but the server (a connected socket, fou(7) of Linux 5.2), and
// where that is not known, the plain form.
func (t Tunnel) listenTo() Step {
	peer := []string{"peer", t.peerIP(), "peer_port", t.peerPort()}
	return Step{
		Comment: "what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders",
		Do:      t.onOuter(append([]string{"ip", "fou", "add", "port", t.port(), "ipproto", "4", "local", t.localIP()}, peer...)...),
		Undo:    t.onOuter(append([]string{"ip", "fou", "del", "port", t.port(), "local", t.localIP()}, peer...)...),
		Key:     t.key("listener"),
		Else: []Else{
			t.listening(t.localIP(), strings.Join(peer, " ")),
			t.plainListener("listener", "this kernel or iproute2 can't bind a FOU listener to one peer: the listener is open to all senders"),
		},
	}
}

// Move is the plan for a client whose own outer address or whose server's has
// changed: the facts and the PEER variables hold the new ones.
func (t Tunnel) Move() Plan {
	steps := []Step{
		// If the outer interface was made anew, the kernel can't find the old one's.
		{Comment: "the listener on the old address", TakeBack: t.key("listener"), MayFail: true},
		{TakeBack: t.key("plain_listener"), MayFail: true},
		{
			Comment: t.Dev + ": the tunnel from the new address",
			Do:      t.linkSet(t.localIP(), t.peerIP(), t.peerPort()),
		},
	}
	return Plan{Name: "rebind", Steps: append(steps, t.listenTo())}
}
