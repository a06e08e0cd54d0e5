package instance

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
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

// The format is the Python tool's: scripts and journald read it.
func TestLogFormat(t *testing.T) {
	var b bytes.Buffer
	log := NewLog(&b, 3, true, true)
	log.Info("up", "source", "a b")
	want := fmt.Sprintf(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} %d  INFO up source="a b"\n$`, os.Getpid())
	if !regexp.MustCompile(want).MatchString(b.String()) {
		t.Errorf("%q does not match %s", b.String(), want)
	}
	b.Reset()
	log = NewLog(&b, 1, false, false)
	log.Error("e")
	log.Warn("w")
	log.Info("i")
	log.With(slog.String("k", "v")).Warn("x")
	if got := b.String(); got != "ERROR e\n WARN w\n WARN x k=v\n" {
		t.Errorf("%q", got)
	}
	b.Reset()
	log = NewLog(&b, 0, false, false)
	log.Warn("w")
	log.Error("e")
	if got := b.String(); got != "ERROR e\n" {
		t.Errorf("%q", got)
	}
}
