package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// gateways are a network of desktops and a private one of a cluster, each behind a gateway that was no router before.
// The gateways meet on an Ethernet where a stranger is too, who knows the way; and the cluster's has a third network.
//
//	desktop 192.168.50.9 l0 ── lan0 a u0 192.0.2.1 ──┐
//	worker  10.77.0.9    l0 ── lan0 b u0 192.0.2.2 ──┼── sw
//	guest   172.31.0.9   l0 ── dmz0 ┘     192.0.2.66 u0 ── stranger
type gateways struct {
	a, b, desktop, worker, guest, stranger *NS
	dir                                    string
}

const (
	desktopAddr, workerAddr  = "192.168.50.9", "10.77.0.9"
	guestAddr, strangerAddr  = "172.31.0.9", "192.0.2.66"
	gatewayInner, farGateway = "10.99.0.1", "10.77.0.1"
)

func newGateways(t testing.TB) *gateways {
	t.Helper()
	g := &gateways{
		a: NewNS(t, "a"), b: NewNS(t, "b"), desktop: NewNS(t, "desktop"), worker: NewNS(t, "worker"),
		guest: NewNS(t, "guest"), stranger: NewNS(t, "stranger"), dir: t.TempDir(),
	}
	sw := NewNS(t, "sw")
	sw.batch(t,
		"link add br0 type bridge stp_state 0", "link set br0 up",
		veth("p0", 1, "u0", g.a), veth("p1", 2, "u0", g.b), veth("p2", 3, "u0", g.stranger),
		"link set p0 up master br0", "link set p1 up master br0", "link set p2 up master br0",
	)
	g.a.batch(t, "addr add 192.0.2.1/24 dev u0", "link set u0 up",
		veth("lan0", 4, "l0", g.desktop), "addr add 192.168.50.1/24 dev lan0", "link set lan0 up")
	g.b.batch(t, "addr add 192.0.2.2/24 dev u0", "link set u0 up",
		veth("lan0", 5, "l0", g.worker), "addr add 10.77.0.1/24 dev lan0", "link set lan0 up",
		veth("dmz0", 6, "l0", g.guest), "addr add 172.31.0.1/24 dev dmz0", "link set dmz0 up")
	for ns, addr := range map[*NS]string{g.desktop: desktopAddr, g.worker: workerAddr, g.guest: guestAddr} {
		ns.batch(t, "addr add "+addr+"/24 dev l0", "link set l0 up", "route add default via "+addr[:len(addr)-1]+"1")
	}
	g.stranger.batch(t, "addr add "+strangerAddr+"/24 dev u0", "link set u0 up",
		"route add 192.168.50.0/24 via 192.0.2.1", "route add 10.77.0.0/24 via 192.0.2.2", "route add 172.31.0.0/24 via 192.0.2.2")
	for _, ns := range []*NS{sw, g.a, g.b, g.desktop, g.worker, g.guest, g.stranger} {
		ns.waitRunning(t)
	}
	// What turning forwarding on and off changes besides, in the kernel.
	g.a.Sysctl(t, map[string]string{"net/ipv4/conf/lan0/forwarding": "1"})
	g.b.Sysctl(t, map[string]string{"net/ipv4/conf/all/accept_redirects": "0"})
	return g
}

// ends are both gateways, from one file, to which each may have something added.
func (g *gateways) ends(t testing.TB, onA, onB string) []end {
	t.Helper()
	config := tomlFile(t, g.dir, "gateways", `mode = "ipip"`, `encap = "fou"`, `fou-dev = "u0"`, `forward = true`,
		"[[node]]", `name = "a"`, `fou-local-ip = "192.0.2.1"`, `tunl-ip = "10.99.0.1"`, `forward-to = ["lan0"]`, onA,
		"[[node]]", `name = "b"`, `fou-local-ip = "192.0.2.2"`, `tunl-ip = "10.99.0.2"`, `forward-to = ["10.77.0.0/24"]`,
		`networks = ["10.77.0.0/24"]`, onB)
	return []end{{g.a, []string{"--config", config, "--node", "a"}}, {g.b, []string{"--config", config, "--node", "b"}}}
}

// passes is what gets from one host to another within a time.
func passes(from, to *NS, addr string, patience time.Duration) []string {
	var all sync.WaitGroup
	var mu sync.Mutex
	got := []string{}
	try := func(what string, f func() error) {
		all.Go(func() {
			if f() == nil {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, what)
			}
		})
	}
	try("TCP", func() error {
		var listener net.Listener
		err := to.Do(func() (err error) {
			listener, err = net.Listen("tcp4", addr+":0")
			return err
		})
		if err != nil {
			return err
		}
		defer listener.Close()
		return from.Do(func() error {
			conn, err := net.DialTimeout("tcp4", listener.Addr().String(), patience)
			if err == nil {
				conn.Close()
			}
			return err
		})
	})
	try("UDP", func() error { return datagram(from, to, addr+":0", nil, patience) })
	try("ping", func() error {
		_, err := from.Try("ping", "-n", "-c", "1", "-W", fmt.Sprint(int(patience.Seconds())), addr)
		return err
	})
	all.Wait()
	slices.Sort(got)
	return got
}

// datagram waits until one arrives that is sent from a socket, or else as the packet that was given.
func datagram(from, to *NS, at string, packet []byte, patience time.Duration) error {
	var conn net.PacketConn
	err := to.Do(func() (err error) {
		conn, err = net.ListenPacket("udp4", at)
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	err = from.Do(func() error {
		if packet == nil {
			c, err := net.Dial("udp4", conn.LocalAddr().String())
			if err == nil {
				_, err = c.Write([]byte("hello"))
				c.Close()
			}
			return err
		}
		c, err := rawSocket()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.send(packet, [4]byte(packet[16:20]))
	})
	if err != nil {
		return err
	}
	conn.SetReadDeadline(time.Now().Add(patience))
	_, _, err = conn.ReadFrom(make([]byte, 100))
	return err
}

// seenAs is where a host sees another's connection come from.
func seenAs(t testing.TB, from, to *NS, addr string) string {
	t.Helper()
	conn, listener, err := dialTCP(from, to, addr)
	if err != nil {
		t.Fatalf("from %s to %s at %s: %v", from.Name, to.Name, addr, err)
	}
	defer listener.Close()
	defer conn.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	return accepted.RemoteAddr().(*net.TCPAddr).IP.String()
}

// reaches has a host reach another by all means, which sees it at an address, and data go both ways.
func reaches(t testing.TB, from, to *NS, addr, source string) {
	t.Helper()
	if got := passes(from, to, addr, 20*time.Second); !slices.Equal(got, []string{"TCP", "UDP", "ping"}) {
		t.Errorf("from %s to %s at %s only these pass: %v", from.Name, to.Name, addr, got)
		return
	}
	if got := seenAs(t, from, to, addr); got != source {
		t.Errorf("%s sees %s as %s, want %s", to.Name, from.Name, got, source)
	}
	TransferTCP(t, from, to, addr, 300_000)
}

// shutOut has those get nothing through whom the tunnel does not concern.
func (g *gateways) shutOut(t testing.TB) {
	t.Helper()
	// Desktops know a way through the tunnel to the guests, whom it does not concern either.
	g.a.Run(t, "ip", "route", "add", "172.31.0.0/24", "dev", "ipipou0")
	defer g.a.Run(t, "ip", "route", "del", "172.31.0.0/24", "dev", "ipipou0")
	var all sync.WaitGroup
	for _, way := range []struct {
		from, to *NS
		addr     string
	}{
		{g.stranger, g.worker, workerAddr}, {g.stranger, g.desktop, desktopAddr}, {g.stranger, g.guest, guestAddr},
		{g.guest, g.worker, workerAddr}, {g.guest, g.desktop, desktopAddr}, {g.guest, g.stranger, strangerAddr},
		{g.worker, g.stranger, strangerAddr}, {g.worker, g.guest, guestAddr}, {g.desktop, g.guest, guestAddr},
	} {
		all.Go(func() {
			if got := passes(way.from, way.to, way.addr, time.Second); len(got) > 0 {
				t.Errorf("from %s to %s at %s these pass: %v", way.from.Name, way.to.Name, way.addr, got)
			}
		})
	}
	all.Wait()
	// Nor does it help to be somebody else, or to send tunnel data.
	inner := IPv4UDP(desktopAddr+":1000", workerAddr+":2001", []byte("forged"))
	for what, packet := range map[string][]byte{
		"a desktop's address":  inner,
		"FOU":                  IPv4UDP(strangerAddr+":10000", "192.0.2.2:10000", inner),
		"FOU from a gateway's": IPv4UDP("192.0.2.1:10001", "192.0.2.2:10000", inner),
		"ipip":                 ipv4(4, netip.MustParseAddr(strangerAddr), netip.MustParseAddr("192.0.2.2"), inner),
	} {
		if datagram(g.stranger, g.worker, workerAddr+":2001", packet, 300*time.Millisecond) == nil {
			t.Errorf("from the stranger to the worker passes: %s", what)
		}
	}
}

// Two private networks reach each other through gateways, without masquerading and with it, and nobody else does.
func TestGateways(t *testing.T) {
	t.Parallel()
	g := newGateways(t)
	before := snapshots(t, g.a, g.b)
	const toDesktops = `networks = ["192.168.50.0/24"]`
	for _, c := range []struct {
		name, onA, onB string
		source         string // of desktops at the worker
		back           bool   // the worker knows a way to the desktops
	}{
		{"routed", toDesktops, "", desktopAddr, true},
		{"masqueraded near", "masquerade = true", "", gatewayInner, true},
		{"masqueraded far", toDesktops, "masquerade = true", farGateway, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.back {
				g.worker.batch(t, "route del default")
				defer g.worker.batch(t, "route add default via 10.77.0.1")
			}
			procs := static(t, g.dir, g.ends(t, c.onA, c.onB)...)
			for _, ns := range []*NS{g.a, g.b} {
				if !strings.Contains(ns.Run(t, "sysctl", "net.ipv4.ip_forward"), "= 1") {
					t.Errorf("%s does not forward", ns.Name)
				}
			}
			reaches(t, g.desktop, g.worker, workerAddr, c.source)
			if c.source == desktopAddr {
				reaches(t, g.worker, g.desktop, desktopAddr, workerAddr)
				g.shutOut(t)
			}
			asPlanned(t, procs...)
			stop(t, procs...)
			sameStates(t, "after "+c.name, g.dir, before)
		})
	}
	// Two instances that forward end in either order; the one that is left goes on.
	t.Run("beside another", func(t *testing.T) {
		other := end{g.b, []string{"--mode", "ipip", "--number", "5", "--fou-local", "192.0.2.2@u0", "--fou-remote", strangerAddr,
			"--tunl-ip", "10.99.5.1", "--forward"}}
		first := static(t, g.dir, other)
		procs := static(t, g.dir, g.ends(t, toDesktops, "")...)
		stop(t, first...)
		reaches(t, g.desktop, g.worker, workerAddr, desktopAddr)
		g.shutOut(t)
		last := static(t, g.dir, other)
		stop(t, procs...)
		if !strings.Contains(g.b.Run(t, "sysctl", "net.ipv4.ip_forward"), "= 1") {
			t.Errorf("%s does not forward for the instance that is left", g.b.Name)
		}
		stop(t, last...)
		// What it was before the first, the last one can't know.
		g.b.Run(t, "sysctl", "-q", "-w", "net.ipv4.conf.all.accept_redirects=0")
		sameStates(t, "after both", g.dir, before)
	})
	t.Run("killed", func(t *testing.T) {
		ends := g.ends(t, toDesktops, "")
		for _, p := range static(t, g.dir, ends...) {
			kill(t, p)
		}
		procs := static(t, g.dir, ends...)
		reaches(t, g.desktop, g.worker, workerAddr, desktopAddr)
		stop(t, procs...)
		sameStates(t, "after a restart", g.dir, before)
	})
}
