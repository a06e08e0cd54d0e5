package lab

import (
	"fmt"
	"strings"
)

// Public addresses of a Net.
const (
	SrvAddr  = "203.0.113.1"
	RtrAddr  = "203.0.113.2" // what the clients are seen as
	RtrAddr2 = "203.0.113.3" // two more of the router's, to roam to
	RtrAddr3 = "203.0.113.4"
	BadAddr  = "203.0.113.66"
	C1Addr   = "10.1.1.2"
	C2Addr   = "10.1.2.2"
)

// Net is the network most tests use:
//
//	Srv s0 203.0.113.1 ──┐                                     ┌── 10.1.1.2 c0 C1
//	                     ├── sw ── 203.0.113.2 r0 Rtr (r1, r2) ┤
//	Bad b0 203.0.113.66 ─┘         (also .3, .4)  masquerades  └── 10.1.2.2 c0 C2
//
// All public hosts are on one Ethernet. The clients' default route is the router, which hides them behind its address.
// Every hardware address is fixed, so that two Nets are equal to Snapshot.
type Net struct{ Srv, Rtr, C1, C2, Bad, sw *NS }

// The router's own table. The chain `force` comes first, so what it maps, masquerading leaves alone.
const rtrRules = `table ip lab {
  chain force {
    type nat hook postrouting priority 90; policy accept;
  }
  chain masq {
    type nat hook postrouting priority 100; policy accept;
    oifname "r0" masquerade
  }
}
`

// NewNet makes a network, which is removed with the test.
func NewNet(t T) *Net {
	t.Helper()
	n := &Net{
		sw: NewNS(t, "sw"), Srv: NewNS(t, "srv"), Rtr: NewNS(t, "rtr"), C1: NewNS(t, "c1"), C2: NewNS(t, "c2"),
		Bad: NewNS(t, "bad"),
	}
	n.sw.Sysctl(t, map[string]string{
		"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1",
	})
	n.Rtr.Sysctl(t, map[string]string{"net/ipv4/ip_forward": "1"})

	n.sw.batch(t,
		"link add br0 type bridge stp_state 0",
		"link set br0 up",
		veth("p-srv", 1, "s0", n.Srv), veth("p-rtr", 2, "r0", n.Rtr), veth("p-bad", 3, "b0", n.Bad),
		"link set p-srv up master br0", "link set p-rtr up master br0", "link set p-bad up master br0",
	)
	n.Rtr.batch(t,
		veth("r1", 4, "c0", n.C1), veth("r2", 5, "c0", n.C2),
		"addr add "+RtrAddr+"/24 dev r0", "addr add "+RtrAddr2+"/24 dev r0", "addr add "+RtrAddr3+"/24 dev r0",
		"addr add 10.1.1.1/24 dev r1", "addr add 10.1.2.1/24 dev r2",
		"link set r0 up", "link set r1 up", "link set r2 up",
	)
	n.Srv.batch(t, "addr add "+SrvAddr+"/24 dev s0", "link set s0 up")
	n.Bad.batch(t, "addr add "+BadAddr+"/24 dev b0", "link set b0 up")
	n.C1.batch(t, "addr add "+C1Addr+"/24 dev c0", "link set c0 up", "route add default via 10.1.1.1")
	n.C2.batch(t, "addr add "+C2Addr+"/24 dev c0", "link set c0 up", "route add default via 10.1.2.1")
	n.Rtr.RunInput(t, rtrRules, "nft", "-f", "-")

	for _, ns := range []*NS{n.sw, n.Srv, n.Rtr, n.C1, n.C2, n.Bad} {
		ns.waitRunning(t)
	}
	return n
}

// veth is the command for a link of device `here` to device `there` in another namespace.
func veth(here string, id int, there string, ns *NS) string {
	return fmt.Sprintf("link add %s address 02:00:00:00:01:%02x type veth peer name %s netns %s address 02:00:00:00:02:%02x",
		here, id, there, ns.Name, id)
}

// NATForce makes the router map all UDP of a client's address to a public address and port, such as
// "203.0.113.3:4000" or "203.0.113.2:4000", and forget the mappings that it had. An empty `to` goes back to
// masquerading.
func (n *Net) NATForce(t T, client, to string) {
	t.Helper()
	rules := "flush chain ip lab force\n"
	for line := range strings.Lines(n.Rtr.Run(t, "nft", "-s", "list", "chain", "ip", "lab", "force")) {
		if strings.Contains(line, " snat to ") && !strings.Contains(line, "ip saddr "+client+" ") {
			rules += "add rule ip lab force " + strings.TrimSpace(line) + "\n"
		}
	}
	if to != "" {
		rules += fmt.Sprintf("add rule ip lab force oifname \"r0\" ip saddr %s meta l4proto udp snat to %s\n", client, to)
	}
	n.Rtr.RunInput(t, rules, "nft", "-f", "-")
	n.NATForget(t, client)
}

// NATForget makes the router forget what it knows of a client's UDP flows, as after a restart of the router.
func (n *Net) NATForget(t T, client string) {
	t.Helper()
	// conntrack ends with 1 if there was nothing to delete.
	out, err := n.Rtr.Try("conntrack", "-D", "-p", "udp", "-s", client)
	if err != nil && !strings.Contains(err.Error(), "0 flow entries have been deleted") {
		t.Fatalf("%v\n%s", err, out)
	}
}
