package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// A mesh is three nodes on subnets of their own, with a router between, and one host for each, which is plugged into
// its bridge when that is there:
//
//	host 10.42.1.9 h0 ── p0 node u0 192.0.2.1    ──┐
//	host 10.42.2.9 h0 ── p0 node u0 198.51.100.1 ──┼── router
//	host 10.42.3.9 h0 ── p0 node u0 203.0.113.1  ──┘
type mesh struct {
	router      *NS
	node, host  [3]*NS
	dir, config string
}

var meshOuter = [3]string{"192.0.2.", "198.51.100.", "203.0.113."}

func newMesh(t testing.TB) *mesh {
	t.Helper()
	m := &mesh{router: NewNS(t, "router"), dir: t.TempDir()}
	m.router.Sysctl(t, map[string]string{"net/ipv4/ip_forward": "1"})
	for i, net := range meshOuter {
		m.node[i], m.host[i] = NewNS(t, "node"), NewNS(t, "host")
		up, inside := fmt.Sprint("r", i), fmt.Sprintf("10.42.%d.", i+1)
		m.router.batch(t, veth(up, i, "u0", m.node[i]), "addr add "+net+"254/24 dev "+up, "link set "+up+" up")
		m.node[i].batch(t, "addr add "+net+"1/24 dev u0", "link set u0 up", "route add default via "+net+"254",
			veth("p0", 8+i, "h0", m.host[i]), "link set p0 up")
		m.host[i].batch(t, "addr add "+inside+"9/24 dev h0", "link set h0 up", "route add default via "+inside+"1")
	}
	for _, ns := range slices.Concat(m.node[:], m.host[:], []*NS{m.router}) {
		ns.waitRunning(t)
	}
	return m
}

// nodes makes the configuration of the first n nodes, each with a bridge.
func (m *mesh) nodes(t testing.TB, name, mode, encap string, n int) {
	t.Helper()
	lines := []string{"mode = \"" + mode + "\"", "encap = \"" + encap + "\"", "fou-dev = \"u0\"", "forward = true"}
	for i := range n {
		lines = append(lines, "", "[[node]]", fmt.Sprintf("name = \"%c\"", 'a'+i), "fou-local-ip = \""+meshOuter[i]+"1\"",
			fmt.Sprintf("bridge = { name = \"br0\", address = \"10.42.%d.1/24\" }", i+1))
		if mode != "any4" {
			lines = append(lines, fmt.Sprintf("tunl-ip = \"10.99.0.%d\"", i+1))
		} else {
			lines = append(lines, fmt.Sprintf("tunl-ip = [\"10.99.0.%d\", \"fd99::%[1]d\"]", i+1))
		}
	}
	m.config = tomlFile(t, m.dir, name, lines...)
}

func (m *mesh) args(i int) []string {
	return []string{"--config", m.config, "--node", string(rune('a' + i))}
}

// plug connects the hosts of the first n nodes to their bridges, which have to be there.
func (m *mesh) plug(t testing.TB, n int) {
	t.Helper()
	for i := range n {
		m.node[i].batch(t, "link set p0 master br0")
	}
}

// works has all of the first n nodes, and all hosts behind them, talk to one another.
func (m *mesh) works(t *testing.T, mode string, n int) {
	t.Helper()
	for i := range n {
		for j := range i {
			m.node[i].fullPing(t, "ipipou0", fmt.Sprintf("10.99.0.%d", j+1))
			if mode == "any4" {
				m.node[i].fullPing(t, "ipipou0", fmt.Sprintf("fd99::%d", j+1))
				if err := both(m.node[i], m.node[j], fmt.Sprintf("fd99::%d", i+1), fmt.Sprintf("fd99::%d", j+1), 100_000); err != nil {
					t.Error(err)
				}
			}
			m.host[i].Ping(t, fmt.Sprintf("10.42.%d.9", j+1))
			if err := both(m.host[i], m.host[j], fmt.Sprintf("10.42.%d.9", i+1), fmt.Sprintf("10.42.%d.9", j+1), 300_000); err != nil {
				t.Error(err)
			}
		}
	}
	for _, ns := range m.node[:n] {
		if c := ns.Counters(t, "ipipou0"); c.RX.Bytes < 300_000 || c.TX.Bytes < 300_000 {
			t.Errorf("in %s: ipipou0 counted %+v, so what crossed went elsewhere", ns.Name, c)
		}
	}
}

// strangers get nothing in, by UDP or by the bare protocol; what a node sends is the proof that they could.
func (m *mesh) strangers(t *testing.T, mode, encap string) {
	t.Helper()
	proto, inner := byte(4), IPv4UDP("10.42.2.9:1000", "10.42.1.9:2001", []byte("forged"))
	if mode == "gre" {
		proto, inner = 47, append([]byte{0, 0, 8, 0}, inner...)
	}
	arrives := func(from string, udp bool, patience time.Duration) bool {
		packet := ipv4(proto, netip.MustParseAddr(from), netip.MustParseAddr(meshOuter[0]+"1"), inner)
		if udp {
			packet = IPv4UDP(from+":10000", meshOuter[0]+"1:10000", inner)
		}
		for end := time.Now().Add(patience); ; {
			err := datagram(m.router, m.host[0], "10.42.1.9:2001", packet, min(patience, time.Second))
			if err == nil || time.Now().After(end) {
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("from %s: %v", from, err)
				}
				return err == nil
			}
		}
	}
	for _, udp := range []bool{false, true} {
		if arrives(meshOuter[0]+"254", udp, 300*time.Millisecond) {
			t.Errorf("a stranger's packet comes out of the tunnel (UDP: %v)", udp)
		}
	}
	if !arrives(meshOuter[1]+"1", encap != "none", 20*time.Second) {
		t.Error("a node's packet does not arrive, so what strangers get in is not known")
	}
}

// One file for all nodes of a network: two, and three without a subnet in common.
func TestNodes(t *testing.T) {
	t.Parallel()
	m := newMesh(t)
	before := snapshots(t, m.node[:]...)
	for _, c := range []struct {
		n           int
		mode, encap string
	}{
		{2, "ipip", "fou"}, {3, "ipip", "fou"}, {3, "ipip", "none"}, {3, "gre", "fou"}, {3, "any4", "gue"},
	} {
		t.Run(fmt.Sprintf("%d, %s, %s", c.n, c.mode, c.encap), func(t *testing.T) {
			m.nodes(t, "mesh", c.mode, c.encap, c.n)
			var ends []end
			for i := range c.n {
				ends = append(ends, end{m.node[i], m.args(i)})
			}
			procs := static(t, m.dir, ends...)
			m.plug(t, c.n)
			m.works(t, c.mode, c.n)
			if c.mode != "any4" {
				m.strangers(t, c.mode, c.encap)
			}
			stop(t, procs...)
		})
	}
	sameStates(t, "after the program's tunnels", m.dir, before)

	// The recipe for two public hosts by hand: both scripts come from the one file, and need nothing of the program.
	t.Run("scripts", func(t *testing.T) {
		m.nodes(t, "hosts", "ipip", "fou", 2)
		scripts := []*scriptHost{
			printed(t, m.node[0], m.dir, shells(t)["busybox"], m.args(0)...),
			printed(t, m.node[1], m.dir, nil, m.args(1)...),
		}
		for _, s := range scripts {
			s.do(t, "up")
		}
		m.plug(t, 2)
		m.works(t, "ipip", 2)
		for i, s := range scripts {
			if status := s.do(t, "status"); !strings.Contains(status, "remote "+meshOuter[1-i]+"1 local "+meshOuter[i]+"1") {
				t.Errorf("status of node %c:\n%s", 'a'+i, status)
			}
		}
		for _, s := range scripts {
			s.do(t, "down")
		}
	})
	sameStates(t, "after the scripts", m.dir, before)
}
