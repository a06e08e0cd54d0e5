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
	RunDir   = "RUN_DIR"   // where the instance's journal is
)

// TookAlt is the name of the way a bind or rebind took when it had to use the
// alternate local address.
const TookAlt = "alternate"

// Up is the plan that makes an instance ready: a server closed and listening, a
// client's tunnel complete. Its undo is the instance's `down`.
func (c Config) Up() Plan {
	p := Plan{Name: "up"}
	p.Steps = append(p.Steps, c.modules()...)
	seen := map[string]bool{}
	for _, t := range c.Tunnels {
		if seen[t.Dev] {
			continue
		}
		seen[t.Dev] = true
		p.Steps = append(p.Steps, Step{
			Comment: "somebody else's interface of this name is never touched",
			// Not by its name: asked for one that is not there, the kernel looks for a
			// module of that name (dev_load in net/core/dev_ioctl.c), which takes longer
			// than all the rest.
			Do:     cmd("ip", "-br", "link", "show"),
			Absent: "interface " + t.Dev + " exists already",
			Lines:  []string{t.Dev + " *", t.Dev + "@*"},
		})
	}
	p.Steps = append(p.Steps, c.forwarding()...)
	p.Steps = append(p.Steps, c.members()...)
	if len(c.gated()) > 0 {
		p.Steps = append(p.Steps, c.gate()...)
	}
	for _, t := range c.gated() {
		p.Steps = append(p.Steps, t.bridging()...) // there whether or not a peer is bound
		p.Steps = append(p.Steps, t.listen(t.localIP(), "listener"))
	}
	for _, t := range c.on(Kernel) {
		if t.Role != Server {
			p.Steps = append(p.Steps, t.connect()...)
		}
	}
	p.Steps = append(p.Steps, c.bpfUp()...)
	return p
}

// modules loads what the kernel lacks. What is loaded stays: others may use it.
func (c Config) modules() []Step {
	var steps []Step
	seen := map[string]bool{}
	add := func(name string, unless ...string) {
		if !seen[name] {
			seen[name] = true
			steps = append(steps, Step{
				Comment: "the kernel's " + name + ", unless it is there already",
				Do:      cmd("modprobe", name),
				Unless:  cmd(unless...),
			})
		}
	}
	for _, t := range c.on(Kernel) {
		if t.Encap == None {
			continue
		}
		add("fou", "ip", "fou", "show") // its answer tells, built into the kernel too
		if t.how().outer6 {
			add("fou6", "test", "-d", "/sys/module/fou6")
		}
	}
	for _, t := range c.on(Kernel) {
		add(t.how().module, "test", "-d", "/sys/module/"+t.how().module)
	}
	return steps
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
		family := familyFlag(t.how().outer6)
		if t.FOUDev != "" && t.FOUIP.IsValid() {
			add(Var{
				Comment: "the outer interface " + t.FOUDev,
				Query:   cmd("ip", "-o", "link", "show", "dev", t.FOUDev), Word: 2,
				Missing: t.FOUDev + " does not exist: give another --fou-dev",
			})
		}
		if t.factIP != "" {
			query := []string{"ip", family, "-o", "address", "show", "dev", t.FOUDev}
			if t.how().outer6 {
				// Not one that privacy extensions change every day (RFC 8981).
				query = append(query, "scope", "global", "-temporary", "-deprecated", "-tentative")
			}
			add(Var{
				Name: t.factIP, Comment: "first " + t.how().outer() + " address of " + t.FOUDev,
				Query: cmd(query...), Word: 4,
				Missing: t.FOUDev + " does not exist or has no " + t.how().outer() + " address: give --fou-local-ip, or another --fou-dev",
			})
		}
		if t.factDev != "" {
			add(Var{
				Name: t.factDev, Comment: "interface that has " + t.FOUIP.String(),
				Query: cmd("ip", family, "-o", "address", "show", "to", t.FOUIP.String()), Word: 2,
				Missing: "no interface has the address " + t.FOUIP.String() + ": give another --fou-local-ip",
			})
		}
		if t.Role != Server && t.hasRemote() {
			add(t.remoteFact())
			if t.Encap != None {
				add(Var{Name: t.varPeerPort, Comment: "UDP port of " + t.otherEnd(), Value: strconv.Itoa(int(t.RemotePort))})
			}
		}
	}
	for _, v := range c.bpfFacts() {
		add(v)
	}
	return append(vars, c.oldSettings()...)
}

func (t Tunnel) otherEnd() string {
	if t.Role == Static {
		return t.Dev + "'s other end"
	}
	return t.Dev + "'s server"
}

// remoteFact is the address of the other end, resolved where the plan runs if
// it was given by name.
func (t Tunnel) remoteFact() Var {
	v := Var{Name: t.varPeerIP, Comment: "outer address of " + t.otherEnd()}
	if t.RemoteIP.IsValid() {
		v.Value = t.RemoteIP.String()
		return v
	}
	v.Comment += ", " + t.RemoteHost
	v.Query, v.Word = cmd("getent", "ahostsv4", t.RemoteHost), 1
	if t.how().outer6 {
		v.Query = cmd("getent", "ahostsv6", t.RemoteHost)
	}
	v.Missing = t.RemoteHost + " has no " + t.how().outer() + " address, or there is no getent to ask: set " + t.varPeerIP
	return v
}

// key names an undo of this tunnel for later plans.
func (t Tunnel) key(what string) string { return what + "_" + strconv.Itoa(t.Number) }

func (t Tunnel) port() string { return strconv.Itoa(int(t.FOUPort)) }

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
