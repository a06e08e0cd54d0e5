package instance

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ipipou/plans"
	"ipipou/runner"
)

// A moved is a static tunnel of BPF whose outer interface, which had the index 7, is no
// more; but its own address was asked for when it still was, and another one already.
func moved(t *testing.T, said *strings.Builder) *static {
	t.Helper()
	f, err := plans.Load("./a.toml", func(string) ([]byte, error) {
		return []byte("static = true\nbackend = \"bpf\"\nfou-dev = \"nosuch0\"\nfou-remote = \"192.0.2.2\"\ntunl-ip = \"10.9.0.1/30\""), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := plans.Resolve([]string{"a"}, []plans.File{f}, plans.Settings{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tunnel := c.Tunnels[0]
	in := &Instance{Config: c, Log: NewLog(said, LogSettings{Verbosity: 3, Format: "text"}), vars: map[string]string{}, asked: changing(c)}
	journal, err := runner.OpenJournal(t.TempDir(), "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { journal.Close() })
	in.run = &runner.Runner{Log: in.Log, Journal: journal, Exec: func(c plans.Command) (string, string, error) {
		t.Errorf("ran %s", c)
		return "", "", errors.New("exit status 1")
	}}
	now := in.anew()
	for name := range in.asked {
		now.answers[name] = answer{value: "7"}
	}
	now.indexes[tunnel.FOUDev] = 0
	return &static{&mover{in: in, again: make(chan struct{}, 1), tunnel: &tunnel, at: tunnel.RemoteIP, index: 7, vars: map[string]string{tunnel.IPVar(): "192.0.2.1"}}}
}

// Whose outer interface is gone does not move, nor try to: an address that was asked for
// before is of no use.
func TestNobodyMovesToWhatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		s := moved(t, &said)
		if s.stale(s.in.moment()) {
			t.Error("it is to move to an interface that is gone")
		}
		// It went away when the tunnel was to move already.
		s.trigger()
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := s.run(ctx); err != nil {
			t.Error(err)
		}
		if want := " WARN ipipou0: not moved yet: the interface nosuch0 is gone\n"; said.String() != want {
			t.Errorf("it said %q, want %q", said.String(), want)
		}
	})
}

// What had no interface at the start, and is there when its tunnel has moved to a new one, is not taken for a loss.
func TestGuardedWhenItIsThere(t *testing.T) {
	var said strings.Builder
	s := moved(t, &said)
	there := false
	s.in.run.Exec = func(c plans.Command) (string, string, error) {
		if there {
			return "filter " + c.String(), "", nil
		}
		return "", "Cannot find device", errors.New("exit status 1")
	}
	m := newMender(s.in, nil, nil, s.in.anew())
	if len(m.guards) != 1 {
		t.Fatalf("%d are guarded, want 1: %s", len(m.guards), said.String())
	}
	for _, there = range []bool{false, true, false} {
		if intact, err := m.intact(m.guards[0]); intact != there || err != nil {
			t.Errorf("intact: %v %v, want %v", intact, err, there)
		}
	}
}

// A server's peer is where it authenticates from, whatever the name of who may.
func TestServersDoNotFollowNames(t *testing.T) {
	for role, want := range map[plans.Role]bool{plans.Server: false, plans.Client: true, plans.Static: true} {
		m := &mover{tunnel: &plans.Tunnel{Role: role, RemoteHost: "a", Monitor: plans.MonitorPing}}
		if m.refreshes() != want {
			t.Errorf("role %v: its name is resolved anew: %v, want %v", role, !want, want)
		}
	}
}

// A static tunnel whose other end's name stands for another address is known to lead there; where it is pinged, when
// that has found out.
func TestStandingOfWhatMoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		s := moved(t, &said)
		s.in.board = newBoard(s.in.Config, time.Now, func(string, standing) {})
		s.in.run.Exec = func(plans.Command) (string, string, error) { return "", "", nil }
		maps.Copy(s.in.vars, map[string]string{plans.RunDir: t.TempDir(), "TUN_INDEX": "3", "ENDPOINTS_MAP": "4"})
		s.in.moment().answers[s.tunnel.IPVar()] = answer{value: "192.0.2.1"}
		s.index = 0 // no matter which
		maps.Copy(s.vars, s.tunnel.PeerVars(s.remote()))
		stands := func(want State) {
			t.Helper()
			s.mu.Lock()
			s.tunnel.RemoteIP = s.tunnel.RemoteIP.Next()
			err := s.follow()
			s.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if now := s.in.board.standings()[s.tunnel.Title()]; now.State != want || now.Peer != s.peer() {
				t.Errorf("it stands %v, want %s, %v; it said %q", now, want, s.peer(), said.String())
			}
		}
		stands(Up)
		s.tunnel.MonitorEvery = time.Second
		s.in.pinged(s.mover)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.ping.Run(ctx)
		stands(Lost) // there is no such interface
		stands(Lost)
	})
}
