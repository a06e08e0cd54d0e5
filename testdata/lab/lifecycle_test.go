package lab

import (
	"fmt"
	"syscall"
	"testing"
)

// A moment is when the program is about to run a command, or has said something.
type moment struct {
	log string // what it has put out by then
	// do makes the program go on, after it has put out the log of another moment.
	after string
	do    func(t *testing.T, s *solo)
}

func command(words string) string { return `(?m)^\[#\] ` + words }

// Whatever a server is doing when it is told to end, it leaves nothing; and where it is killed, the next one cleans up
// what it has left, and then works.
func TestServerEndsAtAnyMoment(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	token := []byte("a token of the lab's")
	args := serverArgs("-b", SrvAddr, "--auth-token", string(token), "--reply-on-auth-ok")
	const waiting, bound = `ipipou0: waiting for`, `ipipou0: peer bound at`
	bind := func(t *testing.T, s *solo) { s.Bad.SendUDP(t, BadAddr+":7000", SrvAddr+":10000", token) }
	rebind := func(t *testing.T, s *solo) { s.Bad.SendUDP(t, BadAddr+":7001", SrvAddr+":10000", token) }
	toAlternate := func(t *testing.T, s *solo) {
		// Somebody has the pair of addresses, as a second client's tunnel would.
		s.Srv.Run(t, "ip", "link", "add", "other", "type", "ipip", "local", SrvAddr, "remote", "203.0.113.99")
		s.Bad.SendUDP(t, "203.0.113.99:7002", SrvAddr+":10000", token)
	}
	endAtAnyMoment(t, s, s.Srv, args, []moment{
		{log: command(`nft -f -`)},
		{log: command(`ip fou add`)},
		{log: waiting},
		{log: command(`ip link add`), after: waiting, do: bind},
		{log: command(`ip address add`), after: waiting, do: bind},
		{log: command(`ip link set dev ipipou0 up`), after: waiting, do: bind},
		{log: command(`nft -f - <<EOF\nadd element ip ipipou0 (bare|peers)`), after: waiting, do: bind},
		{log: bound, after: waiting, do: bind},
		{log: command(`ip link set dev ipipou0 type ipip remote \S+ local \S+ encap fou encap-sport 10000 encap-dport 7001`), after: bound, do: rebind},
		{log: command(`nft -f - <<EOF\ndelete element ip ipipou0 peers .*7000`), after: bound, do: rebind},
		{log: command(`ip address add 172\.29`), after: bound, do: toAlternate},
		{log: command(`ip fou add port 10000 ipproto 4 local 172\.29`), after: bound, do: toAlternate},
		{log: command(`ip link set dev ipipou0 type ipip remote 203\.0\.113\.99 local 172\.29`), after: bound, do: toAlternate},
		{log: `peer moved from \S+ to 203\.0\.113\.99`, after: bound, do: toAlternate},
	}, bind)
}

// And so does a client.
func TestClientEndsAtAnyMoment(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	args := clientArgs("--auth-token", "a token of the lab's")
	const sent = `authentication sent`
	move := func(t *testing.T, s *solo) {
		s.C1.batch(t, "addr add 10.1.3.9/24 dev c0", "addr del "+C1Addr+"/24 dev c0")
	}
	endAtAnyMoment(t, s, s.C1, args, []moment{
		{log: command(`ip link add`)},
		{log: command(`ip fou add`)},
		{log: command(`ip address add`)},
		{log: command(`ip link set dev ipipou0 up`)},
		{log: sent},
		{log: command(`ip fou del`), after: sent, do: move},
		{log: command(`ip link set dev ipipou0 type ipip .*10\.1\.3\.9`), after: sent, do: move},
		{log: command(`ip fou add port 10000 ipproto 4 local 10\.1\.3\.9`), after: sent, do: move},
		{log: `tunnel moved from`, after: sent, do: move},
	}, nil)
}

// endAtAnyMoment starts the program, kills it at a moment, starts it again, and then ends it at the same moment by
// SIGTERM or SIGINT: that has to be a clean end, to the state before. What do has changed beside is taken back here.
func endAtAnyMoment(t *testing.T, s *solo, ns *NS, args []string, moments []moment, bind func(*testing.T, *solo)) {
	before, all := ns.quick(t), ns.Snapshot(t)
	reach := func(t *testing.T, m moment) *Proc {
		t.Helper()
		p := s.launch(t, ns, args...)
		if m.after != "" && m.after != `ipipou0: waiting for` && bind != nil {
			p.WaitLog(t, `ipipou0: waiting for`, commandTimeout)
			bind(t, s)
		}
		if m.after != "" {
			p.WaitLog(t, m.after, commandTimeout)
		}
		if m.do != nil {
			m.do(t, s)
		}
		p.WaitLog(t, m.log, commandTimeout)
		return p
	}
	restore := func(t *testing.T) {
		t.Helper()
		ns.Try("ip", "link", "del", "other")
		if ns == s.C1 {
			s.C1.Run(t, "ip", "-4", "addr", "flush", "dev", "c0")
			s.C1.batch(t, "addr add "+C1Addr+"/24 dev c0", "route replace default via 10.1.1.1")
		}
	}
	for i, m := range moments {
		t.Run(fmt.Sprint(i+1), func(t *testing.T) {
			kill(t, reach(t, m))
			restore(t)
			sig := []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}[i%2]
			p := reach(t, m)
			p.WaitLog(t, `WARN an earlier \S+ died and left \d+ things behind`, commandTimeout)
			p.Signal(t, sig)
			if code := p.Wait(t, commandTimeout); code != 0 {
				t.Errorf("after %q: exit %d at %v, want 0", m.log, code, sig)
			}
			if n := count(p.Logs(), "ERROR|^ipipou: "); n > 0 {
				t.Errorf("after %q: %d errors", m.log, n)
			}
			restore(t)
			SameState(t, fmt.Sprintf("%s, ended after %q,", ns.Name, m.log), before, ns.quick(t))
			noJournal(t, s.dir, ns)
		})
	}
	SameState(t, ns.Name+" in the end", all, ns.Snapshot(t))
}
