package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"

	"ipipou/plans"
	"ipipou/runner"
)

// A gated is a mender of a server with a bound peer, on a host of which only the gate's table is there.
type gated struct {
	*mender
	table bool     // is there
	shut  bool     // nobody can be let in
	busy  bool     // looks take too long
	made  int      // how often the gate was made anew
	open  bool     // to the peer
	ran   []string // links
}

func (g *gated) exec(c plans.Command) (stdout, stderr string, err error) {
	line := strings.Join(c.Argv, " ")
	no := func(said string) (string, string, error) { return "", said, errors.New("exit status 1") }
	switch {
	case strings.HasPrefix(line, "nft -s -t list table") && g.busy:
		return "", "", fmt.Errorf("%w after 10s", runner.ErrKilled)
	case strings.HasPrefix(line, "nft -s -t list table") && !g.table:
		return no("Error: No such file or directory")
	case strings.HasPrefix(c.Stdin, "add table"):
		g.table, g.open = true, false
		g.made++
	case strings.Contains(c.Stdin, " peers {"):
		if g.shut {
			return no("Error: Could not process rule: Cannot allocate memory")
		}
		g.open = true
	case strings.HasPrefix(line, "ip link"):
		g.ran = append(g.ran, line)
	}
	return "", "", nil
}

func newGated(t *testing.T) *gated {
	t.Helper()
	settings := plans.Settings{}
	for name, value := range map[string]string{"server": "true", "auth-token": "t", "fou-dev": "s0", "fou-local-ip": "192.0.2.1", "tunl-dev": "nosuch0"} {
		if err := settings.Set(name, value, "--"+name); err != nil {
			t.Fatal(err)
		}
	}
	config, err := plans.Resolve(nil, nil, settings, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	config = config.Decided(plans.Kernel)
	journal, err := runner.OpenJournal(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { journal.Close() })
	g := &gated{table: true}
	in := &Instance{Config: config, Log: slog.New(slog.DiscardHandler), vars: map[string]string{}}
	in.prepare(journal)
	in.run.Exec = g.exec
	peer := netip.MustParseAddrPort("198.51.100.1:4000")
	s := &server{in: in, bound: []binding{{tunnel: config.Tunnels[0], peer: peer, local: config.Tunnels[0].FOUIP}}}
	g.mender = newMender(in, s, nil, in.anew())
	return g
}

// look has the mender look at everything, as if it had not done so for long.
func (g *gated) look() {
	clear(g.last)
	g.all(context.Background())
}

// Who could not be let in through a gate that was made anew is let in as soon as that can be.
func TestGateIsReopened(t *testing.T) {
	g := newGated(t)
	g.table, g.shut = false, true
	g.look()
	g.look()
	if g.made != 1 || g.open {
		t.Fatalf("the gate was made %d times, open %v", g.made, g.open)
	}
	g.shut = false
	g.look()
	if g.made != 1 || !g.open {
		t.Errorf("the gate was made %d times, open %v", g.made, g.open)
	}
}

// What a busy host does not tell is not taken for gone, and is asked again.
func TestBusyHostLosesNothing(t *testing.T) {
	g := newGated(t)
	g.busy = true
	if whole := g.all(context.Background()); whole || g.made > 0 {
		t.Errorf("whole %v; the gate was made anew %d times", whole, g.made)
	}
}

// An instance that is told to end finishes what it puts back, and begins nothing more.
func TestEndingInstanceMendsWhole(t *testing.T) {
	g := newGated(t)
	ctx, end := context.WithCancel(context.Background())
	put := g.mend(ctx, "a thing", func(ctx context.Context) error { end(); return ctx.Err() })
	if !put {
		t.Error("what was begun is not finished")
	}
	if g.mend(ctx, "another thing", func(context.Context) error { t.Error("it was begun"); return nil }) {
		t.Error("it was put back")
	}
}
