package lab

import (
	"strings"
	"syscall"
	"testing"
)

// Killed, failed or told to end at any command, a tunnel by BPF is cleaned up by itself or by the next start.

// A hub's two peers are bound, and one moves.
func TestBPFKilledHub(t *testing.T) {
	t.Parallel()
	n, dir := NewNet(t), t.TempDir()
	config := tomlFile(t, dir, "hub", `server = true`, `backend = "bpf"`, `fou-dev = "s0"`, `fou-local-port = 10000`, `tunl-dev = "ipipou0"`,
		`tunl-ip = "172.28.0.0"`, `forward = true`, `bridge = { name = "br0", address = "10.42.0.1/24" }`, `auth-lifetime = 600`,
		`pre-up = [["true", "pre-up"]]`, `post-up = [["true", "post-up"]]`, `pre-down = [["true", "pre-down"]]`, `post-down = [["true", "post-down"]]`,
		`[[tunnel]]`, `number = 0`, `auth-token = "the first"`, `tunl-peer-ip = "172.28.0.1"`, `routes = ["10.43.0.0/24"]`,
		`[[tunnel]]`, `number = 1`, `auth-token = "the second"`, `tunl-peer-ip = "172.28.0.3"`, `routes = ["10.44.0.0/24"]`)
	authenticate := func(from, token string) func(*testing.T, *Proc) {
		return func(t *testing.T, _ *Proc) { n.Bad.SendUDP(t, BadAddr+from, SrvAddr+":10000", []byte(token)) }
	}
	l := newLife(t, n.Srv, dir, []phase{
		{done: `ipipou0/1: waiting for`},
		{do: authenticate(":7000", "the first"), done: `ipipou0/0: peer bound at`, survives: `ERROR ipipou0/0: bind to \S+ failed: `},
		{do: authenticate(":7001", "the second"), done: `ipipou0/1: peer bound at`, survives: `ERROR ipipou0/1: bind to \S+ failed: `},
		{do: authenticate(":7002", "the first"), done: `ipipou0/0: peer moved from`, survives: `ERROR ipipou0/0: rebind to \S+ failed: `},
	}, "--config", config)
	l.everywhere(true)
}

// A client all of whose packets go through the tunnel gets another address. Its mounts outlive it.
func TestBPFKilledClient(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	moved, back := renumbered(s.C1, "c0", C1Addr, "10.1.1.9", "10.1.1.1")
	moved.survives = `WARN ipipou0: authentication not sent, will try again`
	l := newLife(t, s.C1, s.dir, []phase{{done: `authentication sent`}, moved},
		clientArgs("--backend", "bpf", "--auth-token", "t", "--routes", "default,10.43.0.0/24")...)
	l.enter, l.restore = []string{"nsenter", "env"}, back
	l.everywhere(false)
}

// A static tunnel whose network is forwarded, and one without UDP that gets another address.
func TestBPFKilledStatic(t *testing.T) {
	args := []string{"--static", "--backend", "bpf", "--mode", "any4", "--fou-dev", "a0", "--fou-remote", "192.0.2.2", "--tunl-ip", "10.9.0.1/30,fd09::1/64"}
	up := phase{done: `ipipou0: up`}
	t.Run("fou", func(t *testing.T) {
		t.Parallel()
		w := newWire(t)
		newLife(t, w.a, w.dir, []phase{up}, append(args, "--encap", "fou", "--forward", "--masquerade", "--bridge", "br0 10.42.0.1/24,fd42::1/64",
			"--routes", "10.43.0.0/24,fd43::/64")...).everywhere(false)
	})
	t.Run("none", func(t *testing.T) {
		t.Parallel()
		w := newWire(t)
		moved, back := renumbered(w.a, "a0", "192.0.2.1", "192.0.2.9", "192.0.2.2")
		moved.survives = `ERROR ipipou0: moving the tunnel: `
		back()
		l := newLife(t, w.a, w.dir, []phase{up, moved}, append(args, "--routes", "0.0.0.0/0")...)
		l.restore = back
		l.everywhere(false)
	})
}

// renumbered is a phase in which a host gets another address, and takes that back.
func renumbered(ns *NS, dev, from, to, router string) (moved phase, back func()) {
	change := func(lines ...string) {
		lines = append(lines, "route replace default via "+router)
		// By force: all or part of it may be so already.
		ns.TryInput(strings.Join(lines, "\n")+"\n", "ip", "-force", "-batch", "-")
	}
	moved = phase{
		do: func(t *testing.T, p *Proc) {
			n := p.Len()
			p.cmd.Process.Signal(syscall.SIGUSR1) // it may have ended
			p.first(t, n, `SIGUSR1: `)            // now it hears of addresses
			change("addr add "+to+"/24 dev "+dev, "addr del "+from+"/24 dev "+dev, "addr del "+to+"/24 dev "+dev, "addr add "+to+"/24 dev "+dev)
		},
		done: `own address changed, tunnel moved from`,
	}
	return moved, func() { change("addr del "+to+"/24 dev "+dev, "addr add "+from+"/24 dev "+dev) }
}
