package lab

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// A sight is a host that another reaches at an address, and where it sees it come from.
type sight struct {
	from, to     *NS
	addr, source string
}

func look(t testing.TB, when string, sights ...sight) {
	t.Helper()
	for _, s := range sights {
		if got := seenAs(t, s.from, s.to, s.addr); got != s.source {
			t.Errorf("%s: %s at %s sees %s as %s, want %s", when, s.to.Name, s.addr, s.from.Name, got, s.source)
		}
	}
}

// changeAddress gives the client another address of the router's network.
func changeAddress(t testing.TB, n *Net, from, to string) {
	t.Helper()
	n.C1.batch(t, "addr add "+to+"/24 dev c0", "addr del "+from+"/24 dev c0", "route replace default via "+routerOf(to))
}

func routerOf(addr string) string { return addr[:strings.LastIndex(addr, ".")] + ".1" }

// All traffic of a client behind NAT goes through the tunnel but the tunnel's own packets and the LAN's: the Internet,
// which here is Bad, sees the server. The client roams, and in the end no rule and no table is left.
func TestDefaultRoute(t *testing.T) {
	t.Parallel()
	p := newPair(t, "forward = true\nmasquerade = true\n", "routes = [\"default\"]\n")
	p.C1.Sysctl(t, map[string]string{"net/ipv4/conf/all/promote_secondaries": "1"})
	p.Rtr.Run(t, "ip", "addr", "add", "10.1.3.1/24", "dev", "r1")
	before := snapshots(t, p.Srv, p.C1)
	look(t, "before", sight{p.C1, p.Bad, BadAddr, RtrAddr})
	works := func(when, own string) {
		t.Helper()
		look(t, when, sight{p.C1, p.Bad, BadAddr, SrvAddr}, sight{p.C1, p.Srv, serverInner[0], clientInner[0]},
			sight{p.C1, p.Rtr, routerOf(own), own}, sight{p.Rtr, p.C1, own, routerOf(own)},
			sight{p.C1, p.Srv, SrvAddr, RtrAddr})
		TransferTCP(t, p.C1, p.Bad, BadAddr, 300_000)
		p.C1.fullPing(t, "ipipou0", BadAddr)
	}
	p.startServer(t)
	p.startClient(t, 0)
	works("in the beginning", C1Addr)
	last := C1Addr
	for _, to := range []string{"10.1.1.9", "10.1.3.2", C1Addr} {
		n, m := p.client[0].Len(), p.server.Len()
		changeAddress(t, p.Net, last, to)
		p.client[0].WaitLogFrom(t, n, regexp.QuoteMeta("own address changed, tunnel moved from "+last+" to "+to), commandTimeout)
		p.server.WaitLogFrom(t, m, `ipipou0: peer moved from \S+ to `+RtrAddr, commandTimeout)
		works("at "+to, to)
		last = to
	}
	n := p.server.Len()
	p.NATForce(t, C1Addr, RtrAddr2+":4000")
	p.client[0].Signal(t, syscall.SIGUSR1)
	p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+RtrAddr2+`:4000`, commandTimeout)
	works("mapped anew", C1Addr)
	stop(t, p.client[0], p.server)
	sameStates(t, "in the end", p.dir, before)
	look(t, "in the end", sight{p.C1, p.Bad, BadAddr, RtrAddr})
}

// A static tunnel takes a default route as well, here for both versions of IP. The Internet is behind Rtr, which knows
// two public hosts.
func TestStaticDefaultRoute(t *testing.T) {
	t.Parallel()
	n, dir := NewNet(t), t.TempDir()
	const inet4, inet6 = "198.51.100.1", "2001:db8:9::1"
	n.Rtr.Sysctl(t, map[string]string{"net/ipv6/conf/all/forwarding": "1"})
	n.Rtr.batch(t, "addr add "+inet4+"/32 dev lo", "addr add "+inet6+"/128 dev lo", "addr add 2001:db8::2/64 dev r0")
	for ns, addr := range map[*NS]string{n.Srv: "2001:db8::1/64 dev s0", n.Bad: "2001:db8::66/64 dev b0"} {
		ns.batch(t, "addr add "+addr, "route add default via "+RtrAddr, "route add default via 2001:db8::2")
	}
	before := snapshots(t, n.Srv, n.Bad)
	inner := func(own, peer string) []string {
		return []string{"--mode", "gre", "--encap", "fou", "--tunl-ip", "172.28.0." + own + ",fd00:28::" + own,
			"--tunl-peer-ip", "172.28.0." + peer + ",fd00:28::" + peer}
	}
	ends := []end{
		{n.Srv, append(inner("1", "2"), "--fou-dev", "s0", "--fou-remote", BadAddr, "--forward", "--masquerade")},
		{n.Bad, append(inner("2", "1"), "--fou-dev", "b0", "--fou-remote", SrvAddr, "--routes", "default,::/0")},
	}
	// A start that was killed makes the next one no different.
	for _, p := range static(t, dir, ends...) {
		kill(t, p)
	}
	procs := static(t, dir, ends...)
	look(t, "through the tunnel", sight{n.Bad, n.Rtr, inet4, SrvAddr}, sight{n.Bad, n.Rtr, RtrAddr, BadAddr},
		sight{n.Rtr, n.Bad, BadAddr, RtrAddr}, sight{n.Bad, n.Srv, SrvAddr, BadAddr})
	n.Bad.fullPing(t, "ipipou0", inet6)
	if err := tcp(n.Bad, n.Rtr, inet6, 300_000); err != nil {
		t.Error(err)
	}
	n.Bad.Ping(t, "2001:db8::2")
	if c := n.Bad.Counters(t, "ipipou0"); c.TX.Bytes < 300_000 {
		t.Errorf("IPv6 did not go through the tunnel: %+v", c)
	}
	stop(t, procs...)
	sameStates(t, "in the end", dir, before)
	look(t, "in the end", sight{n.Bad, n.Rtr, inet4, BadAddr})
}
