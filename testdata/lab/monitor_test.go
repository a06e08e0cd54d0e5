package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// cut has the router drop what passes between the clients and the server, or no more.
func (n *Net) cut(t T, on bool) {
	t.Helper()
	if on {
		n.Rtr.RunInput(t, "add table ip cut\nadd chain ip cut c { type filter hook forward priority 0; policy drop; }\n", "nft", "-f", "-")
	} else {
		n.Rtr.Run(t, "nft", "delete", "table", "ip", "cut")
	}
}

// stateHook is a setting that notes each call, and the calls so far.
func stateHook(t testing.TB, dir, name string) (setting string, calls func() []string) {
	t.Helper()
	script, said := filepath.Join(dir, name+".sh"), filepath.Join(dir, name+".said")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho \"$@\" >>"+said+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("state-hook = [[%q, \"an-argument\"]]\n", script), func() []string {
		text, _ := os.ReadFile(said)
		return strings.Split(strings.TrimSpace(string(text)), "\n")
	}
}

func hookSaid(t testing.TB, calls func() []string, want ...string) {
	t.Helper()
	Eventually(t, commandTimeout, func() error {
		if got := calls(); !slices.Equal(got, want) {
			return fmt.Errorf("the state hook was called with %q, want %q", got, want)
		}
		return nil
	})
}

// Both ends ping each other: a dead path is noticed by both, and so is its return; the client authenticates meanwhile.
// It does so at once when there is another way to the server, and moves when the server's name stands for another host.
func TestBPFMonitorPing(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	ping := "monitor = \"ping\"\nmonitor-interval = \"2s\"\n"
	clientHook, clientSaid := stateHook(t, p.dir, "client")
	serverHook, serverSaid := stateHook(t, p.dir, "server")
	edit(t, p.config[0], "verb = 3\n", "verb = 3\nkeepalive = 1\n"+ping+serverHook)
	edit(t, p.config[1], "verb = 3\n", "verb = 3\n"+ping+clientHook, SrvAddr+":", "vpn.example:")
	p.C1.names(t, SrvAddr+" vpn.example")
	before := snapshots(t, p.Srv, p.C1, p.Bad)
	heard := p.C1.Sniff(t, "c0")
	p.startServer(t)
	p.startClient(t, 0)
	both := func(from [2]int, expr [2]string) {
		t.Helper()
		p.client[0].WaitLogFrom(t, from[0], expr[0], commandTimeout)
		p.server.WaitLogFrom(t, from[1], expr[1], commandTimeout)
	}
	lens := func() [2]int { return [2]int{p.client[0].Len(), p.server.Len()} }
	up := [2]string{`INFO ipipou0: up, 172\.28\.0\.0 answers`, `INFO ipipou0: up, 172\.28\.0\.1 answers`}
	lost := [2]string{`WARN ipipou0: lost, no answer to 3 pings of 172\.28\.0\.0`, `WARN ipipou0: lost, no answer to 3 pings of 172\.28\.0\.1`}
	both([2]int{}, up)
	at := p.server.WaitLog(t, p.tunnel(0)+` bound at (\S+)`, commandTimeout)[1]
	Eventually(t, commandTimeout, func() error {
		if _, ok := heard.find(func(k packet) bool {
			return k.src == netip.MustParseAddrPort(SrvAddr+":10000") && len(k.payload) == 0
		}); !ok {
			return fmt.Errorf("no keepalive of the server's at the client")
		}
		return nil
	})

	from := lens()
	p.cut(t, true)
	both(from, lost)
	n := p.client[0].Len()
	for range 2 { // at once, and again
		p.client[0].WaitLogFrom(t, n, `ipipou0: authenticating local=`, commandTimeout)
		n = p.client[0].Len()
	}
	from = lens()
	p.cut(t, false)
	both(from, up)
	p.works(t, 0)
	server := SrvAddr + ":10000"
	hookSaid(t, clientSaid, "an-argument ipipou0 up "+server, "an-argument ipipou0 lost "+server, "an-argument ipipou0 up "+server)
	hookSaid(t, serverSaid, "an-argument ipipou0 up "+at, "an-argument ipipou0 lost "+at, "an-argument ipipou0 up "+at)

	stop(t, p.server)
	p.client[0].WaitLogFrom(t, from[0], lost[0], commandTimeout)
	p.startServer(t)
	p.server.WaitLog(t, p.tunnel(0)+` bound at`, commandTimeout)
	p.server.WaitLog(t, up[1], commandTimeout)

	from = lens()
	p.Rtr.batch(t, "addr add 10.1.1.9/24 dev r1")
	p.C1.batch(t, "route replace default via 10.1.1.9")
	both(from, [2]string{`ipipou0: the way to ` + regexp.QuoteMeta(SrvAddr) + ` has changed, authenticating anew`, `ipipou0: \S+ authenticated by`})
	if again := p.client[0].Logs()[from[0]:]; count(again, `the way to`) != 1 {
		t.Errorf("one change of the way was taken for several:\n%s", again)
	}
	p.C1.batch(t, "route replace default via 10.1.1.1")

	other := p.ipipou(t, p.Bad, "--config", p.config[0], "--fou-dev", "b0")
	other.WaitLog(t, `ipipou1: waiting for an authentication`, commandTimeout)
	from = lens()
	p.C1.names(t, BadAddr+" vpn.example")
	movesTo(t, p.client[0], from[0], "ipipou0", "the other end's", SrvAddr, BadAddr)
	other.WaitLog(t, p.tunnel(0)+` bound at`, commandTimeout)
	p.client[0].WaitLogFrom(t, from[0], `reply source=`+BadAddr+`:10000 length=73 ok=true`, commandTimeout)
	p.C1.Ping(t, serverInner[0])
	stop(t, p.client[0], p.server, other)
	if count(p.client[0].Logs(), `reply of \S+ ignored`) != 0 {
		t.Error("the client warns of the server's keepalives")
	}
	sameStates(t, "in the end", p.dir, before)
}

// A client sees by its authentications that the path is dead, that it is back, and that another server is there.
func TestBPFMonitorAuth(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "monitor = \"auth\"\nkeepalive = 1\n")
	hook, said := stateHook(t, p.dir, "client")
	edit(t, p.config[1], "verb = 3\n", "verb = 3\n"+hook)
	p.startServer(t)
	p.startClient(t, 0)
	n := p.client[0].Len()
	p.cut(t, true)
	p.client[0].WaitLogFrom(t, n, `WARN ipipou0: lost, 3 authentications without a reply of `+regexp.QuoteMeta(SrvAddr), commandTimeout)
	n = p.client[0].Len()
	p.cut(t, false)
	p.client[0].WaitLogFrom(t, n, `INFO ipipou0: up, \S+ replies`, commandTimeout)
	server := SrvAddr + ":10000"
	hookSaid(t, said, "an-argument ipipou0 up "+server, "an-argument ipipou0 lost "+server, "an-argument ipipou0 up "+server)
	stop(t, p.server)
	p.startServer(t)
	p.server.WaitLog(t, p.tunnel(0)+` bound at`, commandTimeout)
	p.works(t, 0)
	n = p.client[0].Len()
	stop(t, p.server)
	p.client[0].WaitLogFrom(t, n, `WARN ipipou0: lost,`, commandTimeout)
	stop(t, p.client[0])
}

// The ends of a static tunnel ping each other, also after an interface was deleted and put back.
func TestBPFMonitorStatic(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	before := snapshots(t, w.a, w.b)
	args := func(dev, own, peer, remote string) []string {
		return []string{"--static", "--encap", "fou", "--fou-dev", dev, "--fou-remote", remote, "--tunl-ip", own, "--tunl-peer-ip", peer,
			"--monitor", "ping", "--monitor-interval", "1s"}
	}
	procs := static(t, w.dir, end{w.a, args("a0", "10.9.0.1", "10.9.0.2", "192.0.2.2")}, end{w.b, args("b0", "10.9.0.2", "10.9.0.1", "192.0.2.1")})
	procs[0].WaitLog(t, `ipipou0: up, 10\.9\.0\.2 answers`, commandTimeout)
	procs[1].WaitLog(t, `ipipou0: up, 10\.9\.0\.1 answers`, commandTimeout)
	w.a.batch(t, "link del ipipou0")
	procs[0].WaitLog(t, `the interface ipipou0 was gone: put back`, commandTimeout)
	n := procs[0].Len()
	w.b.batch(t, "link set b0 down")
	procs[0].WaitLogFrom(t, n, `WARN ipipou0: lost, no answer to 3 pings of 10\.9\.0\.2`, commandTimeout)
	n = procs[0].Len()
	w.b.batch(t, "link set b0 up", "addr add 2001:db8::2/64 dev b0")
	procs[0].WaitLogFrom(t, n, `ipipou0: up, 10\.9\.0\.2 answers`, commandTimeout)
	stop(t, procs...)
	sameStates(t, "in the end", w.dir, before)
}
