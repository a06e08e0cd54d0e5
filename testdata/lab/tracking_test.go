package lab

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// What many a server has: only what was asked for, and the FOU ports.
const firewall = `table inet filter {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    udp dport 10000-10001 accept
    iifname "ipipou*" accept
    iifname "lo" accept
  }
}
`

// The server works where connections are not tracked, and makes nobody track them; and where they are, behind a
// firewall that goes by it, it leaves no trace in the table.
func TestConnectionTracking(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	before := p.Srv.Snapshot(t)
	p.start(t)
	p.works(t, 0)
	p.works(t, 1)
	p.Bad.Ping(t, SrvAddr)
	if n := p.Srv.tracked(t); n != "0" {
		t.Errorf("%s connections are tracked on a server that has no use for it", n)
	}
	stop(t, p.client[0], p.client[1], p.server)
	SameState(t, "the server without connection tracking", before, p.Srv.Snapshot(t))

	p.Srv.RunInput(t, firewall, "nft", "-f", "-")
	before = p.Srv.Snapshot(t)
	p.Bad.NoPing(t, SrvAddr, "-W", "1")
	p.Srv.Ping(t, BadAddr)
	if n := p.Srv.tracked(t); n == "0" {
		t.Fatal("nothing is tracked: this firewall proves nothing")
	}
	p.start(t)
	for i := range 2 {
		p.works(t, i)
	}
	for _, to := range []string{RtrAddr + ":4000", RtrAddr2 + ":4001"} {
		n := p.server.Len()
		p.NATForce(t, C1Addr, to)
		p.client[0].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+regexp.QuoteMeta(to), commandTimeout)
		p.works(t, 0)
	}
	TransferTCP(t, p.C2, p.Srv, serverInner[1], 5_000_000)
	table := p.Srv.Run(t, "conntrack", "-L")
	for line := range strings.Lines(table) {
		if regexp.MustCompile(`port=1000[01]\b|172\.29\.`).MatchString(line) {
			t.Errorf("the tunnel itself is tracked: %s", line)
		}
	}
	if !strings.Contains(table, clientInner[1]) {
		t.Errorf("what is in the tunnel is not tracked, so the table proves nothing:\n%s", table)
	}
	stop(t, p.client[0], p.client[1], p.server)
	SameState(t, "the server with a firewall", before, p.Srv.Snapshot(t))
}
