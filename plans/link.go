package plans

import "strconv"

// onOuter is a command that ends with the outer interface, if one was given.
func (t Tunnel) onOuter(words ...string) Command {
	if t.FOUDev != "" {
		words = append(words, "dev", t.FOUDev)
	}
	return cmd(words...)
}

// fou is a command about the tunnel's UDP port.
func (t Tunnel) fou(verb string, more ...string) Command {
	words := []string{"ip", "fou", verb, "port", t.port()}
	if t.how().outer6 {
		words = []string{"ip", "-6", "fou", verb, "port", t.port()}
	}
	return cmd(append(words, more...)...)
}

// inside says what a listener finds in its UDP.
func (t Tunnel) inside() []string {
	if t.Encap == GUE {
		return []string{"gue"}
	}
	return []string{"ipproto", strconv.Itoa(t.how().proto)}
}

// listen is the FOU listener at a local address.
func (t Tunnel) listen(local, key string) Step {
	return Step{
		Comment: "what comes to the " + t.Encap.port() + " is taken out of its UDP",
		Do:      t.onOuter(t.fou("add", append(t.inside(), "local", local)...).Argv...),
		Undo:    t.onOuter(t.fou("del", "local", local).Argv...),
		Key:     t.key(key),
		Taken:   cmd("ip", "fou", "show"),
		Lines:   t.inTheWay(local),
		Else: []Else{
			t.listening(local, ""),
			t.plainListener(key, "this kernel or iproute2 can't bind a FOU listener to one address: the listener is on all"),
		},
	}
}

func (e Encap) port() string { return map[Encap]string{FOU: "FOU port", GUE: "GUE port"}[e] }

// listens is a FOU listener as `ip fou show` has it, on all local addresses.
func (t Tunnel) listens() string {
	all := "port " + t.port()
	for _, w := range t.inside() {
		all += " " + w
	}
	if t.how().outer6 {
		all += " -6"
	}
	return all
}

// inTheWay are listeners beside which there is no room for one at that address.
func (t Tunnel) inTheWay(local string) []string {
	at := t.listens() + " local " + local
	return []string{t.listens(), at, at + " *"}
}

// listening accepts a FOU listener that is there already, if it takes packets
// to that address from everybody, or just from our peer. Whatever else holds
// the port is an error. peer is in the words of `ip fou show`, "" for none.
func (t Tunnel) listening(local, peer string) Else {
	all := t.listens()
	lines := []string{all, all + " local " + local, all + " local " + local + " dev *"}
	if peer != "" {
		lines = append(lines, all+" local "+local+" "+peer, all+" local "+local+" "+peer+" *")
	}
	return Else{
		When:    Exists,
		Confirm: cmd("ip", "fou", "show"),
		Lines:   lines,
		Say:     "a FOU listener on port " + t.port() + " exists already: it is used, and will stay",
	}
}

// plainListener is the listener in the form that iproute2 and kernels before
// 5.2 know, which is one for all local addresses.
func (t Tunnel) plainListener(key, say string) Else {
	return Else{
		When: Unsupported,
		Say:  say,
		Steps: []Step{{
			Comment: "FOU listener in the form that older kernels and iproute2 know",
			Do:      t.fou("add", t.inside()...),
			Undo:    t.fou("del"),
			Key:     t.key("plain_" + key),
			Else:    []Else{t.listening(t.localIP(), "")},
		}},
	}
}

// linkAdd makes the tunnel's interface, to a peer that the runner knows.
func (t Tunnel) linkAdd(local string) Command {
	words := []string{"ip", "link", "add", "name", t.Dev, "type", t.how().kind}
	words = append(words, t.ends(local, t.peerIP(), t.peerPort())...)
	words = append(words, t.options()...)
	return t.onOuter(append(words, t.how().words...)...)
}

// linkSet moves the tunnel's ends. What it doesn't name keeps its value; the
// outer interface is named again, for one that was made anew has another index.
func (t Tunnel) linkSet(local, peerIP, peerPort string) Command {
	return t.onOuter(append([]string{"ip", "link", "set", "dev", t.Dev, "type", t.how().kind}, t.ends(local, peerIP, peerPort)...)...)
}

func (t Tunnel) ends(local, peerIP, peerPort string) []string {
	words := []string{"remote", peerIP, "local", local}
	if !t.hasRemote() {
		words = []string{"local", local}
		peerPort = strconv.Itoa(int(t.RemotePort))
	}
	if t.Encap == None {
		return words
	}
	words = append(words, "encap", string(t.Encap), "encap-sport", t.port(), "encap-dport", peerPort)
	if t.EncapCsum != nil {
		csum := "encap-csum"
		if t.how().outer6 {
			csum = "encap-udp6-csum"
		}
		words = append(words, map[bool]string{true: csum, false: "no" + csum}[*t.EncapCsum])
	}
	return words
}

// options are what ip-link(8) calls by different names for IPv4 and IPv6.
func (t Tunnel) options() []string {
	ttl, tos := "ttl", "tos"
	var words []string
	if t.how().outer6 {
		ttl, tos = "hoplimit", "tclass"
	}
	for _, o := range [][2]string{{"key", t.Key}, {ttl, t.TTL}, {tos, t.TOS}} {
		if o[1] != "" {
			words = append(words, o[0], o[1])
		}
	}
	if t.PMTU != nil {
		words = append(words, map[bool]string{true: "pmtudisc", false: "nopmtudisc"}[*t.PMTU])
	}
	if t.how().outer6 {
		// The extension header that RFC 2473 puts there by default is dropped by
		// many routers (RFC 7872), and costs 8 bytes.
		words = append(words, "encaplimit", "none")
	}
	return words
}

func (t Tunnel) linkDel() Command { return cmd("ip", "link", "del", "dev", t.Dev) }

// interior are the steps that make the link usable; gate comes before it is up,
// when it takes no packets yet. All but the gate goes with the link.
func (t Tunnel) interior(gate ...Step) []Step {
	addresses, late := t.addresses()
	steps := append(t.grouping(), addresses...)
	steps = append(steps, gate...)
	up := Step{Do: cmd("ip", "link", "set", "dev", t.Dev, "up")}
	if t.MTU > 0 {
		up.Do = cmd("ip", "link", "set", "dev", t.Dev, "mtu", strconv.Itoa(t.MTU), "up")
	}
	steps = append(append(steps, up), late...)
	return append(steps, t.routing()...)
}

// addresses are the inner ones; late are those that want a link that is up.
func (t Tunnel) addresses() (steps, late []Step) {
	for i, a := range t.Addrs {
		words := []string{"ip", "address", "add", a.String()}
		switch {
		case a.Peer.Is6():
			words = append(words, "peer", a.Peer.String()+"/128")
		case a.Peer.IsValid():
			words = append(words, "peer", a.Peer.String())
		}
		if a.IP.Is6() {
			// Nobody else can have it; with detection it would not be usable at once.
			words = append(words, "nodad")
		}
		comment := ""
		if i == 0 {
			comment = "inner addresses"
			if a.Peer.IsValid() {
				comment = "inner addresses of both ends"
			}
		}
		step := Step{Comment: comment, Do: cmd(append(words, "dev", t.Dev)...)}
		if a.Peer.Is6() {
			// The kernel makes the route to the peer only on a link that is up.
			late = append(late, step)
			continue
		}
		steps = append(steps, step)
	}
	return steps, late
}
