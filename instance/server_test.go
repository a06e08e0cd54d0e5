package instance

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"ipipou/plans"
	"ipipou/runner"
)

// A bind that fails because of what the mender is putting back already is tried again,
// also when there is nothing left to put back by the time it looks itself.
func TestBindWaitsForTheMender(t *testing.T) {
	for name, meanwhile := range map[string]int64{"put back meanwhile": 1, "nothing was gone": 0} {
		tunnel := hostTunnels(t)[1]
		tunnel.Dev = "lo" // which is not gone
		journal, err := runner.OpenJournal(t.TempDir(), "a")
		if err != nil {
			t.Fatal(err)
		}
		in := &Instance{
			Log: slog.New(slog.DiscardHandler), vars: map[string]string{tunnel.IPVar(): "192.0.2.1", "RUN_DIR": t.TempDir()},
			Config: plans.Config{Tunnels: []plans.Tunnel{tunnel, tunnel}},
		}
		in.board = newBoard(in.Config, time.Now, in.changed)
		s := &server{in: in, ctx: context.Background(), bound: []binding{{tunnel: tunnel}}, mends: &mender{in: in, names: names{in, map[string]int{}, map[string]bool{}}}}
		failed := 0
		in.run = &runner.Runner{Log: in.Log, Journal: journal, Exec: func(plans.Command) (string, string, error) {
			if failed == 0 {
				failed++
				s.mends.mended.Add(meanwhile)
				return "", "", errors.New("exit status 1")
			}
			return "", "", nil
		}}
		err = s.bind(0, netip.MustParseAddrPort("198.51.100.7:4242"))
		if failed != 1 || (err == nil) != (meanwhile > 0) {
			t.Errorf("%s: %v", name, err)
		}
		journal.Close()
	}
}
