package main

import (
	"io"
	"os"

	"ipipou/instance"
	"ipipou/instance/check"
	"ipipou/plans"
)

// checkHost looks at the host: for the instance of the line or, without any, in general.
func checkHost(l *line, stdout, stderr io.Writer) int {
	var config *plans.Config
	if l.makes() {
		c, err := l.config(stderr)
		if err != nil {
			return fail(stderr, err, plans.ExitUsage)
		}
		config = &c
	}
	ctx, _, stop := signals(func(os.Signal) {})
	defer stop()
	report := check.Look(ctx, check.This(), config)
	write := func() error { return report.Text(stdout, instance.Colours(stdout)) }
	if l.JSON {
		write = func() error { return report.JSON(stdout) }
	}
	if err := write(); err != nil {
		return fail(stderr, err, plans.ExitGeneral)
	}
	if !report.Works {
		return plans.ExitGeneral
	}
	return 0
}
