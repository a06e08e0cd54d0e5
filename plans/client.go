package plans

// connect are a client's steps, followed by what comes after them in the plan.
func (t Tunnel) connect(after []Step) []Step {
	link := Step{
		Comment: t.Dev + ": the tunnel to the server",
		Do:      t.linkAdd(t.localIP()),
		Undo:    t.linkDel(),
	}
	rest := append(t.inner(), after...)
	return append([]Step{link}, t.listenTo(rest)...)
}

// listenTo is a client's FOU listener in the form in which the kernel itself
// refuses all but the server (a connected socket, fou(7) of Linux 5.2), and
// where that is not known, the plain form.
func (t Tunnel) listenTo(rest []Step) []Step {
	where := []string{"port", t.port(), "local", t.localIP(), "peer", "${" + PeerIP + "}", "peer_port", "${" + PeerPort + "}"}
	if t.FOUDev != "" {
		where = append(where, "dev", t.FOUDev)
	}
	add := append([]string{"ip", "fou", "add", "port", t.port(), "ipproto", "4"}, where[2:]...)
	plain := Step{
		Comment: "FOU listener in the form that older kernels and iproute2 know",
		Do:      cmd("ip", "fou", "add", "port", t.port(), "ipproto", "4"),
		Undo:    cmd("ip", "fou", "del", "port", t.port()),
		Key:     t.key("plain_listener"),
		Else:    []Else{t.listening(t.localIP())},
	}
	step := Step{
		Comment: "what the server sends to the FOU port is taken out of its UDP; the kernel refuses other senders",
		Do:      cmd(add...),
		Undo:    cmd(append([]string{"ip", "fou", "del"}, where...)...),
		Key:     t.key("listener"),
		Else: []Else{t.listening(t.localIP()), {
			When:  Unsupported,
			Say:   "this kernel or iproute2 can't bind a FOU listener to one peer: the listener is open to all senders",
			Name:  "plain listener",
			Steps: append([]Step{plain}, rest...),
		}},
	}
	return append([]Step{step}, rest...)
}

// Move is the plan for a client whose own outer address or whose server's has
// changed: the facts and the PEER variables hold the new ones.
func (t Tunnel) Move() Plan {
	steps := []Step{
		{Comment: "the listener on the old address", TakeBack: t.key("listener")},
		{TakeBack: t.key("plain_listener")},
		{
			Comment: t.Dev + ": the tunnel from the new address",
			Do:      t.linkSet(t.localIP(), t.peerIP(), t.peerPort()),
		},
	}
	return Plan{Name: "rebind", Steps: append(steps, t.listenTo(nil)...)}
}
