package lab

import (
	"fmt"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// A taking is what somebody takes away from a host behind the program's back.
type taking struct {
	ns   *NS
	proc func() *Proc
	argv string // of what takes it
	gone string // as the log calls it
}

// putsBack takes something away, waits for the program to say that it has put it back, and looks that all is as it was
// and that the tunnels work, without anybody having authenticated anew.
func putsBack(t *testing.T, k taking, works func()) {
	t.Helper()
	comesBack(t, k.ns.quick(t), k, works)
}

// comesBack is putsBack with what was there before.
func comesBack(t *testing.T, before string, k taking, works func()) {
	t.Helper()
	n := k.proc().Len()
	k.ns.Run(t, strings.Fields(k.argv)...)
	k.proc().WaitLogFrom(t, n, `WARN `+regexp.QuoteMeta(k.gone)+`( \(and \d+ more\))? was gone: put back\n`, commandTimeout)
	Eventually(t, commandTimeout, func() error {
		if diff := Diff(before, k.ns.quick(t)); diff != "" {
			return fmt.Errorf("after %s (- before, + now):\n%s", k.argv, diff)
		}
		return nil
	})
	works()
	if said := k.proc().Logs()[n:]; count(said, `ERROR|peer (bound|moved)|authenticated`) > 0 {
		t.Errorf("after %s it said\n%s", k.argv, said)
	}
}

// Somebody loads the firewall anew, or deletes an interface: what he took away is put back, of servers and clients.
func TestMends(t *testing.T) {
	t.Parallel()
	p := newPair(t, "forward = true\n", "")
	edit(t, p.config[0], "number = 1\n", "number = 1\nroutes = [\"default\"]\nauth-lifetime = 3600\n")
	before := snapshots(t, p.Srv, p.C1)
	p.start(t)
	works := func() {
		t.Helper()
		p.works(t, 0)
		p.works(t, 1)
	}
	server, client := func() *Proc { return p.server }, func() *Proc { return p.client[0] }
	works()
	for _, k := range []taking{
		{ns: p.Srv, proc: server, argv: "ip link del ipipou0", gone: "the interface ipipou0"},
		{ns: p.Srv, proc: server, argv: "ip addr del 172.29.0.1/32 dev s0", gone: "the alternate local address 172.29.0.1"},
		{ns: p.Srv, proc: server, argv: "nft flush table inet ipipou0", gone: "the nft table inet ipipou0"},
		{ns: p.C1, proc: client, argv: "ip link del ipipou0", gone: "the interface ipipou0"},
		{ns: p.Srv, proc: server, argv: "ip route flush table 10001", gone: "the route default of ipipou1"},
	} {
		putsBack(t, k, works)
	}
	// Of listeners the kernel tells nothing, but of the rules.
	for _, k := range []taking{
		{ns: p.Srv, proc: server, argv: "ip -4 rule flush pref 29003", gone: "the FOU listener at " + SrvAddr + " of ipipou0"},
		{ns: p.C1, proc: client, argv: "ip -4 addr flush dev ipipou0", gone: "the FOU listener at " + C1Addr + " of ipipou0"},
	} {
		before := k.ns.quick(t)
		deleteListener(t, k.ns, 10000)
		comesBack(t, before, k, works)
	}
	// Who is bound for a time has to authenticate: nobody knows whether his time had run out.
	for _, flush := range []string{"nft flush ruleset", "nft flush table ip ipipou0", "nft delete table ip ipipou0"} {
		n := p.server.Len()
		p.Srv.Run(t, strings.Fields(flush)...)
		p.server.WaitLogFrom(t, n, `WARN the nft table ip ipipou0 was gone: put back\n`, commandTimeout)
		p.works(t, 0)
		p.C2.NoPing(t, serverInner[1], "-c", "1")
		m := p.client[1].Len()
		p.client[1].Signal(t, syscall.SIGUSR1)
		p.client[1].WaitLogFrom(t, m, `reply source=\S+ length=73 ok=true`, commandTimeout)
		p.works(t, 1)
	}
	// A peer that moves right after finds all there.
	lost := "nft delete element ip ipipou0 peers { " + SrvAddr + " . 10000 . " + RtrAddr2 + " . 4000 }"
	for i, take := range []string{"ip link del ipipou0", "nft flush ruleset", lost} {
		p.Srv.Run(t, strings.Fields(take)...)
		n := p.server.Len()
		to := RtrAddr2 + ":4000"
		if i%2 == 0 {
			to = RtrAddr3 + ":4001"
		}
		p.NATForce(t, C1Addr, to)
		p.client[0].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+to, commandTimeout)
		p.works(t, 0)
	}
	stop(t, p.client[0], p.client[1], p.server)
	sameStates(t, "in the end", p.dir, before)
}

// deleteListener deletes the FOU listener of a port.
func deleteListener(t *testing.T, ns *NS, port int) {
	t.Helper()
	shown := regexp.MustCompile(fmt.Sprintf(`(?m)^port %d ipproto \d+(.*)$`, port)).FindStringSubmatch(ns.Run(t, "ip", "fou", "show"))
	if shown == nil {
		t.Fatalf("in %s there is no listener on port %d", ns.Name, port)
	}
	ns.batch(t, fmt.Sprintf("fou del port %d%s", port, shown[1]))
}

// The outer interface of a server is made anew, as drivers and network managers do.
func TestMendsOuterInterface(t *testing.T) {
	t.Parallel()
	outerMadeAnew(t, newPair(t, "", ""), "WARN what hung on s0 was gone: put back")
}

func outerMadeAnew(t *testing.T, p *pair, says string) {
	t.Helper()
	before := snapshots(t, p.Srv)
	p.start(t)
	n := p.server.Len()
	p.Srv.batch(t, "link del s0")
	p.sw.batch(t, veth("p-srv", 1, "s0", p.Srv), "link set p-srv up master br0")
	p.Srv.batch(t, "addr add "+SrvAddr+"/24 dev s0", "link set s0 up")
	p.Srv.waitRunning(t)
	p.server.WaitLogFrom(t, n, says, commandTimeout)
	p.works(t, 0)
	p.works(t, 1)
	stop(t, p.client[0], p.client[1], p.server)
	sameStates(t, "in the end", p.dir, before)
}

// Nodes of a network without remotes are shut in and out by tables of their own.
func TestMendsNodes(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	m.nodes(t, "mesh", "ipip", "fou", 3)
	var ends []end
	for i := range 3 {
		ends = append(ends, end{m.node[i], m.args(i)})
	}
	before := snapshots(t, m.node[0])
	procs := static(t, m.dir, ends...)
	m.plug(t, 3)
	m.works(t, "ipip", 3)
	a, proc := m.node[0], func() *Proc { return procs[0] }
	works := func() { t.Helper(); m.works(t, "ipip", 3) }
	quick := a.quick(t)
	n := procs[0].Len()
	a.Run(t, "nft", "flush", "ruleset")
	for _, table := range []string{"inet ipipou0", "ip ipipou0-nodes"} {
		procs[0].WaitLogFrom(t, n, `WARN the nft table `+table+` was gone: put back`, commandTimeout)
	}
	SameState(t, "the node after a flush", quick, a.quick(t))
	putsBack(t, taking{ns: a, proc: proc, argv: "ip link del ipipou0", gone: "the interface ipipou0"}, works)
	stop(t, procs...)
	sameStates(t, "in the end", m.dir, before)
}

// setDown sets a tunnel's interface down, which is left so, and up, when it gets back what it has lost.
func setDown(t *testing.T, ns *NS, proc *Proc, dev, gone string, works func()) {
	t.Helper()
	n := proc.Len()
	up := taking{ns: ns, proc: func() *Proc { return proc }, argv: "ip link set " + dev + " up", gone: gone}
	before := ns.quick(t)
	ns.Run(t, "ip", "link", "set", dev, "down")
	proc.WaitLogFrom(t, n, `WARN `+dev+` was set down by somebody: it is left so`, commandTimeout)
	if now := ns.Run(t, "ip", "link", "show", "dev", dev); strings.Contains(now, "UP>") || strings.Contains(now, "UP,") {
		t.Errorf("it was set up again: %s", now)
	}
	comesBack(t, before, up, works)
	// Without there having been the time to see it down.
	n = proc.Len()
	ns.batch(t, "link set "+dev+" down", "link set "+dev+" up")
	proc.WaitLogFrom(t, n, `WARN `+regexp.QuoteMeta(gone)+`( \(and \d+ more\))? was gone: put back\n`, commandTimeout)
	works()
}

// The same for BPF: the tunnel's interface, the filters of the outer one, and that one itself.
func TestBPFMends(t *testing.T) {
	t.Parallel()
	for name, newPair := range map[string]func(testing.TB) *pair{
		"hub":       newHub,
		"two ports": func(t testing.TB) *pair { return newPair(t, bpf, bpf) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPair(t)
			edit(t, p.config[0], "number = 1\n", "number = 1\nroutes = [\"10.77.0.0/24\"]\n")
			edit(t, p.config[1], "number = 0\n", "number = 0\nroutes = [\"default\"]\n")
			second, _, _ := strings.Cut(p.tunnel(1), ":")
			dev, _, _ := strings.Cut(second, "/")
			before := snapshots(t, p.Srv, p.C1)
			p.start(t)
			server, client := func() *Proc { return p.server }, func() *Proc { return p.client[0] }
			works := func() {
				t.Helper()
				p.works(t, 0)
				p.works(t, 1)
			}
			for _, k := range []taking{
				{ns: p.Srv, proc: server, argv: "ip link del ipipou0", gone: "the interface ipipou0"},
				{ns: p.Srv, proc: server, argv: "tc filter del dev s0 ingress", gone: "the BPF program on s0"},
				{ns: p.Srv, proc: server, argv: "tc qdisc del dev s0 clsact", gone: "the BPF program on s0"},
				{ns: p.Srv, proc: server, argv: "ip link del ipipou0", gone: "the interface ipipou0"},
				{ns: p.C1, proc: client, argv: "ip link del ipipou0", gone: "the interface ipipou0"},
				{ns: p.Srv, proc: server, argv: "ip route del 10.77.0.0/24", gone: "the route 10.77.0.0/24 of " + second},
				{ns: p.Srv, proc: server, argv: "ip addr flush dev " + dev, gone: "the route 10.77.0.0/24 of " + second},
				{ns: p.C1, proc: client, argv: "ip route flush table 10000", gone: "the route default of ipipou0"},
				// As systemd-networkd does when it is restarted (ManageForeignRoutingPolicyRules=).
				{ns: p.C1, proc: client, argv: "ip -4 rule flush pref 29000", gone: "the rule to " + SrvAddr + " lookup main pref 29000 of ipipou0"},
			} {
				putsBack(t, k, works)
			}
			setDown(t, p.Srv, p.server, dev, "the route 10.77.0.0/24 of "+second, works)
			setDown(t, p.C1, p.client[0], "ipipou0", "the route default of ipipou0", works)
			stop(t, p.client[0], p.client[1], p.server)
			sameStates(t, "in the end", p.dir, before)
		})
	}
	t.Run("outer interface", func(t *testing.T) {
		outerMadeAnew(t, newHub(t), "ipipou0: the outer interface was made anew, tunnel moved")
	})
}

// Somebody deletes the tunnel's interface and makes his own of that name: it is his, until he takes it away, and in the end.
func TestBPFNameTakenByOthers(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	args := []string{"--static", "--backend", "bpf", "--encap", "fou", "--fou-dev", "a0", "--fou-remote", "192.0.2.2", "--tunl-ip", "10.9.0.1/30"}
	take := func(p *Proc) {
		t.Helper()
		n := p.Len()
		// The program may be looking just now, and be the first to make another one: not twice within seconds.
		Eventually(t, commandTimeout, func() error {
			_, err := w.a.TryInput("link del ipipou0\nlink add ipipou0 type bridge\n", "ip", "-batch", "-")
			return err
		})
		p.WaitLogFrom(t, n, `ERROR the interface ipipou0 was deleted, and somebody has made another one of that name`, commandTimeout)
	}
	before := snapshots(t, w.a)
	p := static(t, w.dir, end{w.a, args})[0]
	take(p)
	n := p.Len()
	w.a.batch(t, "link del ipipou0")
	p.WaitLogFrom(t, n, `WARN the interface ipipou0 was gone: put back`, commandTimeout)
	stop(t, p)
	sameStates(t, "after it was given back", w.dir, before)

	p = static(t, w.dir, end{w.a, args})[0]
	take(p)
	stop(t, p)
	w.a.Run(t, "test", "-d", "/sys/class/net/ipipou0/bridge")
	w.a.batch(t, "link del ipipou0")
	sameStates(t, "after it was taken", w.dir, before)
}
