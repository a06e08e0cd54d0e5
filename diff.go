package main

import (
	"errors"
	"io"
	"os"

	"ipipou/instance"
	"ipipou/plans"
)

// Exit codes of diff beside 0 and, for wrong usage, ExitUsage. One that is no difference
// must be told from one that is, as by diff(1).
const (
	exitDiffers     = 1
	exitNotCompared = 3
)

func diff(l *line, stdout, stderr io.Writer) int {
	if !l.makes() {
		return fail(stderr, errors.New("nothing to compare: want NAME, or --config, or the other flags of an instance"), plans.ExitUsage)
	}
	config, err := l.config(stderr)
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	ctx, _, stop := signals(func(os.Signal) {})
	defer stop()
	same, err := instance.Diff(ctx, config, stdout, instance.Colours(stdout))
	switch {
	case err != nil:
		return fail(stderr, err, exitNotCompared)
	case !same:
		return exitDiffers
	}
	return 0
}
