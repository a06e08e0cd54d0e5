package lab

import "testing"

// Killed or failed at any command, a tunnel by the kernel's drivers is cleaned up by itself or by the next start.

// A server's peer is bound at the alternate address, since another tunnel has the pair of addresses; then it moves to the
// main one, and, where there is time, to the alternate again.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	taken := func(addr string) string {
		return "link add other" + addr[len(addr)-1:] + " type ipip local " + SrvAddr + " remote " + addr + "\n"
	}
	const first, last = "203.0.113.98", "203.0.113.99"
	s.Srv.RunInput(t, taken(first)+taken(last), "ip", "-batch", "-")
	authenticate := func(from string) func(*testing.T, *Proc) {
		return func(t *testing.T, _ *Proc) { s.Bad.SendUDP(t, from, SrvAddr+":10000", []byte("a token")) }
	}
	phases := []phase{
		{done: `ipipou0: waiting for`},
		{do: authenticate(first + ":7000"), done: `ipipou0: peer bound at`, code: 100},
		{do: authenticate(BadAddr + ":7001"), done: `ipipou0: peer moved from \S+ to ` + BadAddr, code: 101},
	}
	if long() {
		phases = append(phases, phase{do: authenticate(last + ":7002"), done: `ipipou0: peer moved from \S+ to ` + last, code: 101})
	}
	l := newLife(t, s.Srv, s.dir, phases, "-s", "--backend", "kernel", "-b", SrvAddr, "--auth-token", "a token", "--auth-lifetime", "600",
		"--pre-up", "true pre-up", "--post-up", "true post-up", "--pre-down", "true pre-down", "--post-down", "true post-down")
	l.everywhere(false)
}

// A client, all of whose packets go through the tunnel and who forwards for others, gets another address.
func TestKilledClient(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	moved, back := renumbered(s.C1, "c0", C1Addr, "10.1.1.9", "10.1.1.1")
	moved.survives = `WARN ipipou0: authentication not sent, will try again`
	l := newLife(t, s.C1, s.dir, []phase{{done: `authentication sent`}, moved}, clientArgs("--backend", "kernel", "--mode", "gre", "--auth-token", "t", "--routes", "default,10.43.0.0/24",
		"--forward", "--masquerade", "--bridge", "br0 10.42.0.1/24")...)
	l.restore = back
	l.everywhere(false)
}

// A node of a network whose routes choose the other end.
func TestKilledNode(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	config := tomlFile(t, w.dir, "node", `backend = "kernel"`, `mode = "gre"`, `encap = "fou"`,
		"[[node]]", `name = "a"`, `fou-local-ip = "192.0.2.1"`, `tunl-ip = "10.99.0.1"`,
		"[[node]]", `name = "b"`, `fou-local-ip = "192.0.2.2"`, `tunl-ip = "10.99.0.2"`, `networks = ["10.77.0.0/24"]`,
		"[[node]]", `name = "c"`, `fou-local-ip = "192.0.2.3"`, `tunl-ip = "10.99.0.3"`)
	newLife(t, w.a, w.dir, []phase{{done: `ipipou0: up`}}, "--config", config, "--node", "a").everywhere(false)
}

// Both ends of static tunnels know each other's addresses, which are IPv6.
func TestKilledStatic(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	newLife(t, w.a, w.dir, []phase{{done: `ipipou0: up`}}, "--static", "--backend", "kernel", "--mode", "any6", "--encap", "gue",
		"--fou-local-ip", "2001:db8::1", "--fou-remote", "2001:db8::2", "--tunl-ip", "10.9.0.1,fd09::1",
		"--tunl-peer-ip", "10.9.0.2,fd09::2").everywhere(false)
}
