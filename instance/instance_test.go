package instance

import (
	"errors"
	"strings"
	"testing"

	"ipipou/plans"
	"ipipou/runner"
)

func TestExitCodes(t *testing.T) {
	step := func(line string, err error) error {
		return &runner.StepError{Command: plans.Command{Argv: strings.Fields(line)}, Err: err}
	}
	no := errors.New("exit status 1")
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("any"), 1},
		{step("modprobe fou", no), 10},
		{step("nft -f -", no), 40},
		{step("ip -4 address add", no), 51},
		{step("ip link add", no), 52},
		{step("ip fou add", no), 53},
		{step("ip route add", no), 1},
		{&Error{ExitSockets, no}, 20},
		{&Error{ExitBind, step("ip link add", no)}, 100},
		{&Error{ExitRebind, step("nft -f -", no)}, 101},
		{&Error{ExitSend, no}, 120},
		{step("ip link add", runner.ErrInterrupted), 0},
		{runner.ErrUndo, 200},
		{errors.Join(step("ip link add", runner.ErrInterrupted), runner.ErrUndo), 200},
		// systemd units take 200 for success; a start that failed is none.
		{errors.Join(step("ip fou add", no), runner.ErrUndo), 53},
	} {
		if got := ExitCode(c.err); got != c.want {
			t.Errorf("%v: exit code %d, want %d", c.err, got, c.want)
		}
	}
}
