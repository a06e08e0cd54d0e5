package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// names are the host names that a host knows. Others it asks for at a server that isn't there.
func (ns *NS) names(t testing.TB, lines ...string) {
	t.Helper()
	dir := filepath.Join("/etc/netns", ns.Name) // ip-netns(8) puts these in place of /etc's
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for name, text := range map[string]string{
		"hosts":       "127.0.0.1 localhost\n" + strings.Join(lines, "\n") + "\n",
		"resolv.conf": "nameserver 127.0.0.1\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// movesTo waits for the program's word, after the first n bytes of its output, that an end has another address.
func movesTo(t testing.TB, p *Proc, n int, dev, whose, from, to string) {
	t.Helper()
	p.WaitLogFrom(t, n, regexp.QuoteMeta(dev+": "+whose+" address changed, tunnel moved from "+from+" to "+to)+`\n`, commandTimeout)
}

// Static tunnels, over IPv4 and IPv6, follow the name of their other end and, there, their own address; while the name
// can't be resolved they stay where they were. All that is not for them goes through them, and that follows too.
func TestStaticMoves(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.b.Sysctl(t, map[string]string{"net/ipv4/conf/all/promote_secondaries": "1"})
	before := snapshots(t, w.a, w.b)
	config := func(ns *NS, dev, own, peer, remote4, remote6 string, more ...string) end {
		lines := append([]string{"static = true", "encap = \"fou\"", "fou-dev = \"" + dev + "\""}, more...)
		return end{ns, []string{"--config", tomlFile(t, w.dir, ns.Name, append(lines,
			"[[tunnel]]", "mode = \"ipip\"", "number = 0", "fou-remote-ip = \""+remote4+"\"",
			"tunl-ip = \"10.9.0."+own+"\"", "tunl-peer-ip = \"10.9.0."+peer+"\"",
			"[[tunnel]]", "mode = \"ip6ip6\"", "number = 1", "fou-remote-ip = \""+remote6+"\"",
			"tunl-ip = \"fd00:9::"+own+"\"", "tunl-peer-ip = \"fd00:9::"+peer+"\"",
		)...)}}
	}
	old, new := [2]string{"192.0.2.2", "2001:db8::2"}, [2]string{"192.0.2.3", "2001:db8::3"}
	w.a.names(t, old[0]+" b.example", old[1]+" b.example")
	a := config(w.a, "a0", "1", "2", "b.example", "b.example", "refresh = \"2s\"")
	edit(t, a.args[1], "mode = \"ipip\"", "mode = \"ipip\"\nroutes = [\"default\"]", "mode = \"ip6ip6\"", "mode = \"ip6ip6\"\nroutes = [\"::/0\"]")
	procs := static(t, w.dir, a, config(w.b, "b0", "2", "1", "192.0.2.1", "2001:db8::1"))
	for _, p := range procs {
		p.WaitLog(t, `ipipou1: up`, commandTimeout)
	}
	works := func(at [2]string) {
		t.Helper()
		for i, inner := range []string{"10.9.0.", "fd00:9::"} {
			w.a.fullPing(t, fmt.Sprint("ipipou", i), inner+"2")
			if err := both(w.a, w.b, inner+"1", inner+"2", 100_000); err != nil {
				t.Error(err)
			}
			rules := w.a.Run(t, "ip", []string{"-4", "-6"}[i], "rule")
			if count(rules, "to "+regexp.QuoteMeta(at[i])+" lookup main") != 1 || count(rules, " to ") != 1 {
				t.Errorf("rules, of which one has to name %s:\n%s", at[i], rules)
			}
		}
	}
	works(old)
	n, m := procs[0].Len(), procs[1].Len()
	w.a.names(t)
	for _, addr := range old {
		procs[0].WaitLogFrom(t, n, `WARN .*b\.example.* staying with `+regexp.QuoteMeta(addr)+`:`, commandTimeout)
	}
	works(old)
	w.b.batch(t, "addr add "+new[0]+"/24 dev b0", "addr del "+old[0]+"/24 dev b0", "addr add "+new[1]+"/64 dev b0", "addr del "+old[1]+"/64 dev b0")
	w.a.names(t, new[0]+" b.example", new[1]+" b.example")
	for i, dev := range []string{"ipipou0", "ipipou1"} {
		movesTo(t, procs[1], m, dev, "own", old[i], new[i])
		movesTo(t, procs[0], n, dev, "the other end's", old[i], new[i])
		procs[0].WaitLogFrom(t, n, dev+`: b\.example can be resolved again`, commandTimeout)
	}
	works(new)
	stop(t, procs...)
	w.b.batch(t, "addr add "+old[0]+"/24 dev b0", "addr del "+new[0]+"/24 dev b0", "addr add "+old[1]+"/64 dev b0", "addr del "+new[1]+"/64 dev b0")
	sameStates(t, "in the end", w.dir, before)
}

// A client follows its server's name to another machine, and authenticates there at once.
func TestClientFollowsName(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	before := snapshots(t, s.Srv, s.Bad, s.C1)
	client, server := newKey(t), newKey(t)
	auth := []string{"--auth-secret", "of the lab", "--reply-on-auth-ok"}
	serverKeys := slices.Concat(auth, []string{"--auth-key-b64", server.private, "--auth-remote-pubkey-b64", client.public})
	s.startServer(t, append(serverKeys, "--fou-dev", "s0")...)
	other := s.launch(t, s.Bad, serverArgs(append(serverKeys, "--fou-dev", "b0")...)...)
	other.WaitLog(t, `waiting for an authentication`, commandTimeout)
	s.C1.names(t, SrvAddr+" vpn.example")
	s.startClient(t, append(auth, "--auth-key-b64", client.private, "--auth-remote-pubkey-b64", server.public,
		"--fou-remote", "vpn.example:10000", "--refresh", "2s")...)
	s.works(t)

	n := s.client.Len()
	s.C1.names(t, BadAddr+" vpn.example")
	movesTo(t, s.client, n, "ipipou0", "the other end's", SrvAddr, BadAddr)
	other.WaitLog(t, `ipipou0: peer bound at `+RtrAddr, commandTimeout)
	s.client.WaitLogFrom(t, n, `reply source=`+BadAddr+`:10000 length=73 ok=true`, commandTimeout)
	s.C1.Ping(t, serverInner[0])
	s.Bad.Ping(t, clientInner[0])
	if err := both(s.C1, s.Bad, clientInner[0], serverInner[0], 300_000); err != nil {
		t.Error(err)
	}
	stop(t, s.client, s.server, other)
	sameStates(t, "in the end", s.dir, before)
}
