package instance

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ipipou/plans"
	"ipipou/runner"
)

// Hooks run one at a time, in order, each tunnel's newest change only, and nothing waits for them; in the end nobody
// calls them.
func TestStateHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var said strings.Builder
		hook := [][]string{{"hook", "a word"}}
		in := &Instance{
			Log: NewLog(&said, LogSettings{Verbosity: 1, Format: "text"}),
			Config: plans.Config{Tunnels: []plans.Tunnel{
				{Dev: "ipipou0", StateHook: append(hook, []string{"second"})}, {Dev: "ipipou1", StateHook: hook}, {Dev: "ipipou2"},
			}},
		}
		var ran []string
		running := 0
		in.run = &runner.Runner{Exec: func(c plans.Command) (string, string, error) {
			if running++; running > 1 {
				t.Error("two hooks run at once")
			}
			time.Sleep(5 * time.Second)
			running--
			ran = append(ran, strings.Join(c.Argv, ","))
			if c.Argv[0] == "second" {
				return "", "no\nsuch thing\n", errors.New("exit status 1")
			}
			return "", "", nil
		}}
		in.hooks = newStateHooks(in)
		in.board = newBoard(in.Config, time.Now, in.changed)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); in.hooks.run(ctx) }()
		peer := netip.MustParseAddrPort("192.0.2.1:10000")
		start := time.Now()
		in.board.set("ipipou2", Up, peer)
		in.board.set("ipipou0", Up, peer)
		synctest.Wait() // that one is being told
		in.board.set("ipipou0", Lost, peer)
		in.board.set("ipipou1", Lost, netip.AddrPort{})
		for range 100 {
			in.board.set("ipipou0", Up, peer)
			in.board.set("ipipou0", Lost, peer)
		}
		if time.Since(start) > 0 {
			t.Error("the board waited")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		want := []string{
			"hook,a word,ipipou0,up,192.0.2.1:10000", "second,ipipou0,up,192.0.2.1:10000",
			"hook,a word,ipipou0,lost,192.0.2.1:10000", "second,ipipou0,lost,192.0.2.1:10000",
			"hook,a word,ipipou1,lost,-",
		}
		if !slices.Equal(ran, want) {
			t.Errorf("ran %q, want %q", ran, want)
		}
		if log := said.String(); strings.Count(log, "\n") != 2 || !strings.Contains(log, "WARN ipipou0: state-hook: second ipipou0 up 192.0.2.1:10000: no; such thing\n") {
			t.Errorf("it said\n%s", log)
		}
		cancel()
		<-done
		in.board.set("ipipou0", Up, peer)
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(ran) != len(want) {
			t.Errorf("in the end it ran %q", ran[len(want):])
		}
	})
}

// Of commands that hang, the end waits for one at most.
func TestStateHooksThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hook := [][]string{{"hang"}, {"hang"}, {"hang"}}
		in := &Instance{
			Log:    NewLog(io.Discard, LogSettings{}),
			Config: plans.Config{Tunnels: []plans.Tunnel{{Dev: "ipipou0", StateHook: hook}, {Dev: "ipipou1", StateHook: hook}}},
			run: &runner.Runner{Exec: func(plans.Command) (string, string, error) {
				time.Sleep(runner.DefaultTimeout)
				return "", "", runner.ErrKilled
			}},
		}
		in.hooks = newStateHooks(in)
		in.board = newBoard(in.Config, time.Now, in.changed)
		ctx, cancel := context.WithCancel(t.Context())
		for _, tunnel := range in.Config.Tunnels {
			in.board.set(tunnel.Dev, Up, netip.AddrPort{})
		}
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		in.hooks.run(ctx)
		if took := time.Since(start); took > runner.DefaultTimeout {
			t.Errorf("the end took %v", took)
		}
	})
}
