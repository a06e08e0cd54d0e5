package plans

import (
	"net/netip"
	"strconv"
)

// Names of what a plan needs to know at run time beside the host's facts.
const (
	PeerIP   = "PEER_IP"   // the peer's outer address
	PeerPort = "PEER_PORT" // and UDP port
	OldIP    = "OLD_IP"    // the same before a rebind
	OldPort  = "OLD_PORT"
	OldLocal = "OLD_LOCAL" // the outer local address before a rebind
)

// TookAlt is the name of the way a bind or rebind took when it had to use the
// alternate local address.
const TookAlt = "alternate"

// Up is the plan that makes an instance ready: a server closed and listening, a
// client's tunnel complete. Its undo is the instance's `down`.
func (c Config) Up() Plan {
	p := Plan{Name: "up"}
	p.Steps = append(p.Steps,
		Step{
			Comment: "the kernel's FOU, unless it answers already",
			Do:      cmd("modprobe", "fou"),
			Unless:  cmd("ip", "fou", "show"),
		},
		Step{
			Comment: "the kernel's ipip, unless it is there already",
			Do:      cmd("modprobe", "ipip"),
			Unless:  cmd("test", "-d", "/sys/module/ipip"),
		})
	for _, t := range c.Tunnels {
		p.Steps = append(p.Steps, Step{
			Comment: "somebody else's interface of this name is never touched",
			Do:      cmd("ip", "link", "show", "dev", t.Dev),
			Absent:  "interface " + t.Dev + " exists already",
		})
	}
	if c.Servers() {
		p.Steps = append(p.Steps, c.gate()...)
	}
	for _, t := range c.Tunnels {
		if t.Mode == Server {
			p.Steps = append(p.Steps, t.listen(t.localIP(), "listener"))
		}
	}
	for _, t := range c.Tunnels {
		if t.Mode == Client {
			p.Steps = append(p.Steps, t.connect()...)
		}
	}
	return p
}

// Facts are what the host must tell before a plan of the instance can run. A
// Var without a name is only looked for.
func (c Config) Facts() []Var {
	var vars []Var
	seen := map[string]bool{}
	add := func(v Var) {
		if !seen[v.Name+v.Comment] {
			seen[v.Name+v.Comment] = true
			vars = append(vars, v)
		}
	}
	for _, t := range c.Tunnels {
		if t.FOUDev != "" && t.FOUIP.IsValid() {
			add(Var{
				Comment: "the outer interface " + t.FOUDev,
				Query:   cmd("ip", "-o", "link", "show", "dev", t.FOUDev), Word: 2,
				Missing: t.FOUDev + " does not exist: give another --fou-dev",
			})
		}
		if t.factIP != "" {
			add(Var{
				Name: t.factIP, Comment: "first IPv4 address of " + t.FOUDev,
				Query: cmd("ip", "-4", "-o", "address", "show", "dev", t.FOUDev), Word: 4,
				Missing: t.FOUDev + " does not exist or has no IPv4 address: give --fou-local-ip, or another --fou-dev",
			})
		}
		if t.factDev != "" {
			add(Var{
				Name: t.factDev, Comment: "interface that has " + t.FOUIP.String(),
				Query: cmd("ip", "-4", "-o", "address", "show", "to", t.FOUIP.String()), Word: 2,
				Missing: "no interface has the address " + t.FOUIP.String() + ": give another --fou-local-ip",
			})
		}
		if t.Mode == Client {
			add(t.remoteFact())
			add(Var{Name: t.varPeerPort, Comment: "UDP port of " + t.Dev + "'s server", Value: strconv.Itoa(int(t.RemotePort))})
		}
	}
	return vars
}

// remoteFact is the address of a client's server, resolved where the plan runs
// if it was given by name.
func (t Tunnel) remoteFact() Var {
	v := Var{Name: t.varPeerIP, Comment: "outer address of " + t.Dev + "'s server"}
	if t.RemoteIP.IsValid() {
		v.Value = t.RemoteIP.String()
		return v
	}
	v.Comment += ", " + t.RemoteHost
	v.Query, v.Word = cmd("getent", "ahostsv4", t.RemoteHost), 1
	v.Missing = t.RemoteHost + " has no IPv4 address, or there is no getent to ask: set " + t.varPeerIP
	return v
}

// key names an undo of this tunnel for later plans.
func (t Tunnel) key(what string) string { return what + "_" + strconv.Itoa(t.Number) }

func (t Tunnel) port() string { return strconv.Itoa(int(t.FOUPort)) }

// onOuter is a command that ends with the outer interface, if one was given.
func (t Tunnel) onOuter(words ...string) Command {
	if t.FOUDev != "" {
		words = append(words, "dev", t.FOUDev)
	}
	return cmd(words...)
}

// listen is the FOU listener at a local address.
func (t Tunnel) listen(local, key string) Step {
	return Step{
		Comment: "what comes to the FOU port is taken out of its UDP",
		Do:      t.onOuter("ip", "fou", "add", "port", t.port(), "ipproto", "4", "local", local),
		Undo:    t.onOuter("ip", "fou", "del", "port", t.port(), "local", local),
		Key:     t.key(key),
		Else: []Else{
			t.listening(local, ""),
			t.plainListener(key, "this kernel or iproute2 can't bind a FOU listener to one address: the listener is on all"),
		},
	}
}

// listening accepts a FOU listener that is there already, if it takes packets
// to that address from everybody, or just from our peer. Whatever else holds
// the port is an error. peer is in the words of `ip fou show`, "" for none.
func (t Tunnel) listening(local, peer string) Else {
	all := "port " + t.port() + " ipproto 4"
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
			Do:      cmd("ip", "fou", "add", "port", t.port(), "ipproto", "4"),
			Undo:    cmd("ip", "fou", "del", "port", t.port()),
			Key:     t.key("plain_" + key),
			Else:    []Else{t.listening(t.localIP(), "")},
		}},
	}
}

// linkAdd makes the tunnel's interface, to a peer that the runner knows.
func (t Tunnel) linkAdd(local string) Command {
	words := []string{"ip", "link", "add", "name", t.Dev, "type", "ipip"}
	words = append(words, t.ends(local, t.peerIP(), t.peerPort())...)
	return t.onOuter(append(words, "mode", "ipip")...)
}

// linkSet moves the tunnel's ends. What it doesn't name keeps its value; the
// outer interface is named again, for one that was made anew has another index.
func (t Tunnel) linkSet(local, peerIP, peerPort string) Command {
	return t.onOuter(append([]string{"ip", "link", "set", "dev", t.Dev, "type", "ipip"}, t.ends(local, peerIP, peerPort)...)...)
}

func (t Tunnel) ends(local, peerIP, peerPort string) []string {
	words := []string{
		"remote", peerIP, "local", local,
		"encap", "fou", "encap-sport", t.port(), "encap-dport", peerPort,
	}
	if t.EncapCsum != nil {
		words = append(words, map[bool]string{true: "encap-csum", false: "noencap-csum"}[*t.EncapCsum])
	}
	return words
}

func (t Tunnel) linkDel() Command { return cmd("ip", "link", "del", "dev", t.Dev) }

// inner are the steps that make the link usable; gate comes before it is up,
// when it takes no packets yet. All but the gate goes with the link.
func (t Tunnel) inner(gate ...Step) []Step {
	steps := []Step{{
		Comment: "inner addresses of both ends",
		Do:      cmd("ip", "address", "add", t.IP.String(), "peer", t.PeerIP.String(), "dev", t.Dev),
	}}
	steps = append(steps, gate...)
	steps = append(steps, Step{Do: cmd("ip", "link", "set", "dev", t.Dev, "up")})
	for _, r := range t.Routes {
		steps = append(steps, Step{
			Comment: "network behind the other end",
			Do:      cmd("ip", "route", "add", r.String(), "dev", t.Dev),
		})
	}
	return steps
}

func (t Tunnel) peerIP() string { return "${" + t.varPeerIP + "}" }

func (t Tunnel) peerPort() string { return "${" + t.varPeerPort + "}" }

// PeerVars are the values by which plans of t know its peer.
func (t Tunnel) PeerVars(peer netip.AddrPort) map[string]string {
	return map[string]string{t.varPeerIP: peer.Addr().String(), t.varPeerPort: strconv.Itoa(int(peer.Port()))}
}

// OldVars are the values by which Rebind knows where its peer was.
func OldVars(local netip.Addr, peer netip.AddrPort) map[string]string {
	return map[string]string{
		OldLocal: local.String(), OldIP: peer.Addr().String(), OldPort: strconv.Itoa(int(peer.Port())),
	}
}
