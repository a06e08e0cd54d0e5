package main

import (
	"io"
	"os"

	"ipipou/instance"
	"ipipou/instance/check"
	"ipipou/plans"
)

// checkHost looks at the host: for the instance of the flags or, without any, in general.
func checkHost(l *line, stdout, stderr io.Writer) int {
	var config *plans.Config
	if l.makes() {
		files, err := l.files()
		if err != nil {
			return fail(stderr, err, plans.ExitUsage)
		}
		c, _, err := l.resolve(files, stderr)
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

// makes reports whether the line has anything that makes an instance.
func (l *line) makes() bool {
	for name := range l.settings {
		if name != "v" {
			return true
		}
	}
	return len(l.Config) > 0
}
