package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// A narrow is a path whose middle takes only smaller packets from some time on. The ends are told by ICMP alone:
//
//	a u0 10.0.1.2 fd01::2 ── r1 m0 10.0.9.1 ── m0 r2 ── 10.0.2.2 fd02::2 u0 b
//
// Each tunnel has outer addresses of its own, so that none learns from another. Those of a that authenticate are
// hidden behind an address of r1's each.
type narrow struct {
	a, r1, r2, b *NS
	dir          string
}

// A narrowPath is a tunnel over it; static if it is not authenticated.
type narrowPath struct {
	mode, encap, more string
	auth              bool
}

var narrowPaths = []narrowPath{
	{mode: "ipip", auth: true},
	{mode: "ipip", auth: true, more: "force-fou-local-ip-alt = true"},
	{mode: "gre", auth: true, more: "key = 7"},
	{mode: "ipip", encap: "none"},
	{mode: "ipip", encap: "fou"},
	{mode: "ipip", encap: "gue"},
	{mode: "ipip", encap: "fou", more: "one-to-many"},
	{mode: "gre", encap: "fou"},
	{mode: "sit", encap: "none"},
	{mode: "sit", encap: "fou"},
	{mode: "ip6ip6", encap: "none"},
	{mode: "ip6ip6", encap: "fou"},
}

func (p narrowPath) String() string {
	return strings.Join(strings.Fields(map[bool]string{true: "authenticated", false: "static"}[p.auth]+" "+p.mode+" "+p.encap+" "+p.more), " ")
}

// outer and inner are the addresses of the ith tunnel, at end 1, which is a, or 2.
func (p narrowPath) outer(i, end int) string {
	if p.mode == "ip6ip6" {
		return fmt.Sprintf("fd0%d::%d", end, 20+i)
	}
	return fmt.Sprintf("10.0.%d.%d", end, 20+i)
}

func (p narrowPath) inner(i, end int) string {
	if p.mode == "ip6ip6" || p.mode == "sit" {
		return fmt.Sprintf("fd50:%d::%d", i, end)
	}
	return fmt.Sprintf("10.50.%d.%d", i, end)
}

func newNarrow(t testing.TB) *narrow {
	t.Helper()
	n := &narrow{NewNS(t, "a"), NewNS(t, "r1"), NewNS(t, "r2"), NewNS(t, "b"), t.TempDir()}
	for i, end := range []struct {
		host, router *NS
		via          string
	}{{n.a, n.r1, "2"}, {n.b, n.r2, "1"}} {
		net := i + 1
		end.router.Sysctl(t, map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0",
		})
		if i == 0 {
			n.r1.batch(t, veth("m0", 9, "m0", n.r2))
		}
		lines := []string{"link set u0 up"}
		for j, p := range narrowPaths {
			bits := map[bool]string{true: "/64", false: "/24"}[p.mode == "ip6ip6"]
			lines = append(lines, "addr add "+p.outer(j, net)+bits+" dev u0")
		}
		end.router.batch(t, veth("x0", i, "u0", end.host),
			fmt.Sprintf("addr add 10.0.%d.1/24 dev x0", net), fmt.Sprintf("addr add fd0%d::1/64 dev x0", net), "link set x0 up",
			fmt.Sprintf("addr add 10.0.9.%d/24 dev m0", net), fmt.Sprintf("addr add fd09::%d/64 dev m0", net), "link set m0 up",
			"route add default via 10.0.9."+end.via, "route add default via fd09::"+end.via)
		end.host.batch(t, lines...)
	}
	var rules []string
	for i, p := range narrowPaths {
		if p.auth {
			n.r1.batch(t, fmt.Sprintf("addr add 10.0.9.%d/32 dev m0", 20+i))
			rules = append(rules, fmt.Sprintf("oifname m0 ip saddr %s snat to 10.0.9.%d", p.outer(i, 1), 20+i))
		}
	}
	n.r1.RunInput(t, "table ip nat {\nchain post {\ntype nat hook postrouting priority 100\n"+strings.Join(rules, "\n")+"\n}\n}\n", "nft", "-f", "-")
	n.widen(t)
	for _, ns := range []*NS{n.a, n.r1, n.r2, n.b} {
		ns.waitRunning(t)
	}
	return n
}

// narrow makes the middle narrow, and widen wide. Then the ends have new routes, and with them have forgotten what
// they had learnt.
func (n *narrow) narrow(t testing.TB) {
	t.Helper()
	n.r1.batch(t, "link set m0 mtu 1400")
	n.r2.batch(t, "link set m0 mtu 1400")
}

func (n *narrow) widen(t testing.TB) {
	t.Helper()
	n.r1.batch(t, "link set m0 mtu 1500")
	n.r2.batch(t, "link set m0 mtu 1500")
	n.forget(t)
}

func (n *narrow) forget(t testing.TB) {
	t.Helper()
	for i, ns := range []*NS{n.a, n.b} {
		for _, family := range []string{"-4", "-6"} {
			ns.Try("ip", family, "route", "del", "default")
		}
		ns.batch(t, fmt.Sprintf("route add default via 10.0.%d.1", i+1), fmt.Sprintf("route add default via fd0%d::1", i+1))
	}
}

// configs are one of each host for the static tunnels, and one for those that authenticate.
func (n *narrow) configs(t testing.TB) (static, auth [2]string) {
	t.Helper()
	for side, name := range []string{"a", "b"} {
		me, you := side+1, 2-side
		statics := []string{"static = true"}
		auths := []string{"fou-dev = \"u0\"", "auth-token = \"a token\"", fmt.Sprint("server = ", name == "b")}
		for i, p := range narrowPaths {
			lines := []string{"[[tunnel]]", fmt.Sprint("number = ", i), fmt.Sprintf("mode = %q", p.mode),
				fmt.Sprintf("fou-local-ip = %q", p.outer(i, me)), fmt.Sprintf("tunl-ip = %q", p.inner(i, me))}
			more, remote := p.more, fmt.Sprintf("fou-remote-ip = %q", p.outer(i, you))
			if more == "one-to-many" {
				more = ""
				remote = fmt.Sprintf("routes = [\"%s via %s onlink\"]", p.inner(i, you), p.outer(i, you))
			} else {
				lines = append(lines, fmt.Sprintf("tunl-peer-ip = %q", p.inner(i, you)))
			}
			switch {
			case !p.auth:
				statics = append(statics, append(lines, fmt.Sprintf("encap = %q\nfou-dev = \"u0\"", p.encap), more, remote)...)
			case name == "b":
				auths = append(auths, append(lines, more)...)
			default:
				if strings.HasPrefix(more, "force") {
					more = "" // the server's alone
				}
				auths = append(auths, append(lines, more, remote, fmt.Sprint("fou-remote-port = ", 10000+i))...)
			}
		}
		static[side] = tomlFile(t, n.dir, "static-"+name, statics...)
		auth[side] = tomlFile(t, n.dir, "auth-"+name, auths...)
	}
	return static, auth
}

// start starts all tunnels, and waits until they are up.
func (n *narrow) start(t testing.TB) (procs []*Proc) {
	t.Helper()
	staticConfig, authConfig := n.configs(t)
	server := startIPIPOU(t, n.dir, n.b, "--config", authConfig[1], "--verb", "3")
	procs = static(t, n.dir, end{n.a, []string{"--config", staticConfig[0]}}, end{n.b, []string{"--config", staticConfig[1]}})
	server.WaitLog(t, `ipipou2: waiting for an authentication`, commandTimeout)
	client := startIPIPOU(t, n.dir, n.a, "--config", authConfig[0], "--verb", "3")
	for i, p := range narrowPaths {
		if p.auth {
			server.WaitLog(t, fmt.Sprintf(`ipipou%d: peer bound at 10\.0\.9\.%d`, i, 20+i), commandTimeout)
			continue
		}
		for _, proc := range procs {
			proc.WaitLog(t, fmt.Sprintf(`ipipou%d: up`, i), commandTimeout)
		}
	}
	return append(procs, client, server)
}

// A flow is one TCP connection.
type flow [2]net.Conn

func openFlow(t testing.TB, from, to *NS, addr string) (flow, error) {
	t.Helper()
	conn, listener, err := dial(from, to, addr)
	if err != nil {
		return flow{}, err
	}
	defer listener.Close()
	t.Cleanup(func() { conn.Close() })
	accepted, err := listener.Accept()
	if err == nil {
		t.Cleanup(func() { accepted.Close() })
	}
	return flow{conn, accepted}, err
}

// push sends n bytes each way, both ways at once, and waits until they have arrived.
func (f flow) push(n int) error {
	var all sync.WaitGroup
	var errs [2]error
	for i, way := range []string{"there", "back"} {
		from, to := f[i], f[1-i]
		from.SetDeadline(time.Now().Add(stall))
		all.Go(func() { from.Write(make([]byte, n)) })
		all.Go(func() {
			if got, err := io.CopyN(io.Discard, to, int64(n)); err != nil {
				errs[i] = fmt.Errorf("%s: %d of %d bytes: %w", way, got, n, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

// A path that takes only smaller packets swallows nothing, whether that was so before the tunnel or comes later.
func TestPathMTU(t *testing.T) {
	t.Parallel()
	n := newNarrow(t)
	before := snapshots(t, n.a, n.b)
	each := func(when string, f func(i int, p narrowPath) error) {
		t.Helper()
		var all sync.WaitGroup
		for i, p := range narrowPaths {
			all.Go(func() {
				if err := f(i, p); err != nil {
					t.Errorf("%s: %s: %v", p, when, err)
				}
			})
		}
		all.Wait()
	}
	anew := func(i int, p narrowPath) error {
		f, err := openFlow(t, n.a, n.b, p.inner(i, 2))
		if err != nil {
			return err
		}
		return f.push(200_000)
	}
	procs := n.start(t)
	flows := make([]flow, len(narrowPaths))
	each("while the path is wide", func(i int, p narrowPath) (err error) {
		if flows[i], err = openFlow(t, n.a, n.b, p.inner(i, 2)); err != nil {
			return err
		}
		return flows[i].push(200_000)
	})
	if t.Failed() {
		t.FailNow()
	}
	n.narrow(t)
	each("when the path gets narrow", func(i int, p narrowPath) error { return flows[i].push(200_000) })
	each("a new connection then", anew)
	stop(t, procs...)
	n.forget(t)
	procs = n.start(t)
	each("a tunnel made when the path is narrow", anew)
	stop(t, procs...)
	n.widen(t)
	sameStates(t, "in the end", n.dir, before)
}
