package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"ipipou/testdata/lab"
)

func (d *demo) ping(i int) {
	for _, end := range []struct {
		ns       *lab.NS
		who, to_ string
	}{{d.clients[i], fmt.Sprintf("client %d to server", i+1), d.path.serverInner[i]},
		{d.net.Srv, fmt.Sprintf("server to client %d", i+1), clientInner[i]}} {
		out := end.ns.Run(d, "ping", "-n", "-q", "-c", "3", "-i", "0.05", "-W", "10", end.to_)
		times := regexp.MustCompile(`(\d+) received.*\n.* = [\d.]+/([\d.]+)/`).FindStringSubmatch(out)
		if times == nil {
			d.Fatalf("ping said: %s", out)
		}
		d.say(fmt.Sprintf("  ping  %s  %-11s  %s of 3 answered, after %s ms", end.who, end.to_, times[1], times[2]))
	}
}

// transfer sends twice: for the checksums, which take longer than all else, and for the rate.
func (d *demo) transfer(what string, from, to *lab.NS, addr string) {
	size := d.path.size
	lab.TransferTCP(d, from, to, addr, size)
	took := lab.BulkTCP(d, from, to, addr, 5*size)
	d.say(fmt.Sprintf("  TCP   %s  %-11s  %d MB with equal checksums, then %d MB with %.0f Mbit/s", what, addr, size/1e6, 5*size/1e6,
		float64(5*size)*8/1e6/took.Seconds()))
}

// at shows where the server has client 1, which must be there.
func (d *demo) at(want string) {
	shown, peer := d.path.at(d)
	d.text(shown)
	if peer != want {
		d.Errorf("the server has client 1 at %s, not %s", peer, want)
	}
}

// addresses are those of the server's first interface, and its routes.
func (d *demo) addresses() string {
	return d.net.Srv.Run(d, "ip", "-o", "address", "show", "dev", "ipipou0") +
		d.net.Srv.Run(d, "ip", "route", "show", "table", "all", "dev", "ipipou0")
}

// stranger sends what client 1's own packets look like, but from elsewhere.
func (d *demo) stranger() {
	before, passed := d.path.counters(d)
	inner := lab.IPv4Echo(clientInner[0], d.path.serverInner[0], 1, 1)
	for _, from := range [][2]string{{lab.BadAddr + ":10000", ""}, {lab.RtrAddr + ":10000", ", where client 1 was before it moved"}} {
		d.say("It sends a valid tunnel packet from " + from[0] + from[1] + ".")
		d.net.Bad.SendUDP(d, from[0], lab.SrvAddr+":10000", inner)
	}
	var reasons []string
	lab.Eventually(d, wait, func() error {
		reasons = nil
		total := 0
		now, n := d.path.counters(d)
		for _, reason := range slices.Sorted(maps.Keys(now)) {
			if more := now[reason] - before[reason]; more > 0 {
				total += more
				reasons = append(reasons, fmt.Sprintf("`%s` went up by %d", reason, more))
			}
		}
		if total != 2 {
			return fmt.Errorf("the server dropped %d packets, not 2: %v", total, reasons)
		}
		if n != passed {
			return fmt.Errorf("%d packets of the stranger came out of the tunnel", n-passed)
		}
		return nil
	})
	d.say("The gate's counter " + strings.Join(reasons, ", ") + ", that of packets received by the tunnel by 0.")
	d.ping(0)
}
