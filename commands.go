package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"ipipou/instance"
	"ipipou/plans"
	"ipipou/runner"
)

// commands are the one without a word, and the others.
var commands = []command{
	{
		about:   "IP tunnels that the kernel carries: authenticated, over UDP, across NAT and roaming; or static, in all of Linux's modes.",
		takes:   func(l *line) []any { return []any{&l.making, &l.running, &l.auditing} },
		options: true, run: up,
	},
	{
		word: "check", usage: "[NAME | FLAGS]", about: "What this host can do, or lacks for the instance of the flags, and how to mend it.",
		takes:   func(l *line) []any { return []any{&l.maybeName, &l.making, &l.looking} },
		options: true, run: checkHost,
	},
	{
		word: "status", usage: "[NAME | FLAGS]", about: "Show an instance's tunnels and what they counted.",
		takes:   func(l *line) []any { return []any{&l.maybeName, &l.making, &l.looking, &l.watching} },
		options: true, run: status,
	},
	{
		word: "diff", usage: "[NAME | FLAGS]", about: "Compare what is planned with what there is.",
		takes:   func(l *line) []any { return []any{&l.maybeName, &l.making} },
		options: true, run: diff,
	},
	{
		word: "confirm", usage: "NAME", about: "Keep what was started with --confirm.",
		takes: func(l *line) []any { return []any{&l.names} }, run: confirm,
	},
	{
		word: "down", usage: "NAME...", about: "End instances and clean up after dead ones; without a configuration.",
		takes: func(l *line) []any { return []any{&l.names} }, run: down,
	},
	{
		word: "convert", usage: "FILE", about: "Print a configuration of the Python tool's as TOML.",
		takes: func(l *line) []any { return []any{&l.file} }, run: convert,
	},
	{
		word: "completion", usage: "SHELL", about: "Print what completes command lines in bash, zsh or fish.",
		takes: func(l *line) []any { return []any{&l.shell} }, run: completion,
	},
}

// status shows all instances, the one of that name, or the one of the flags.
func status(l *line, stdout, stderr io.Writer) int {
	show, err := l.reports(stderr)
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	if !l.Watch {
		code, _ := l.show(show, stdout, stderr)
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for first := true; ; first = false {
		if instance.Terminal(stdout) && !l.JSON {
			fmt.Fprint(stdout, "\x1b[H\x1b[2J") // the cursor up, and all cleared (ECMA-48)
		}
		// What can't be found out while an instance comes or goes, can be a second later.
		if code, over := l.show(show, stdout, stderr); over || first && code != 0 {
			return code
		}
		select {
		case <-ctx.Done():
			return 0
		case <-again.C:
		}
	}
}

// show writes the reports once. What could not be found out is an error, beside the rest;
// over tells of one that stays.
func (l *line) show(reports func() ([]instance.Report, error), stdout, stderr io.Writer) (code int, over bool) {
	all, err := reports()
	if err != nil {
		return fail(stderr, err, plans.ExitUsage), true
	}
	for _, r := range all {
		if r.Fault == "" {
			continue
		}
		if code = fail(stderr, errors.New(r.Fault), plans.ExitGeneral); r.Daemon != instance.Running {
			return code, false // there is nothing else to be said of it
		}
	}
	if l.JSON {
		err = instance.WriteJSON(stdout, all, l.Watch)
	} else {
		style := instance.Style{Colours: instance.Palette(instance.Colours(stdout)), Details: l.Name != "", Now: time.Now()}
		if len(all) == 0 {
			fmt.Fprintf(stdout, "no instance is running here, or has left anything behind (%s)\n", strings.Join(runner.Dirs(), ", "))
		}
		err = style.Show(stdout, all)
	}
	if err != nil {
		return fail(stderr, err, plans.ExitGeneral), true
	}
	return code, false
}

// reports makes what finds out what is asked for: now, and again each time. Of an instance
// whose process answers the configuration is not read, if it is not needed for its name.
func (l *line) reports(stderr io.Writer) (func() ([]instance.Report, error), error) {
	if !l.makes() {
		return instance.AskAll, nil
	}
	name, err := "", error(nil)
	if l.Name != "" {
		if name, err = plans.ParseName(l.Name); err != nil {
			return nil, err
		}
	}
	var config *plans.Config
	resolve := func() error {
		c, err := l.config(stderr)
		config = &c
		return err
	}
	if l.Name == "" || l.flags() {
		if err := resolve(); err != nil {
			return nil, err
		}
		name = config.Name
	}
	known := false // it is looked at again and again, and comes and goes
	return func() ([]instance.Report, error) {
		r := instance.Ask(name)
		if r.Daemon == instance.Running {
			known = true
			return []instance.Report{r}, nil
		}
		if config == nil {
			switch err := resolve(); {
			case err == nil:
			case r.Daemon == instance.Absent && !known:
				return nil, fmt.Errorf("%s: no such instance, and %w", name, err)
			default: // it was started with flags alone, or from elsewhere
				config = nil
				return []instance.Report{r}, nil
			}
		}
		r.Look(*config)
		return []instance.Report{r}, nil
	}, nil
}

// confirmable refuses what --confirm can't mean.
func (l *line) confirmable(c plans.Config) error {
	switch {
	case l.Confirm == nil:
		return nil
	case l.PrintOnly:
		return errors.New("--confirm: --print-only starts nothing that could be confirmed")
	case c.ReauthOnly:
		return errors.New("--confirm: --reauth-only starts nothing that could be confirmed")
	}
	return nil
}

// confirm keeps what was started with --confirm, of all the instances that it can.
func confirm(l *line, stdout, stderr io.Writer) int {
	return l.each(stdout, stderr, instance.Confirm)
}

// down ends all the instances that it can.
func down(l *line, stdout, stderr io.Writer) int {
	settings := instance.LogSettings{Verbosity: l.Verbose, Format: "text"}
	log := instance.NewLog(stderr, settings)
	return l.each(stdout, stderr, func(name string) (string, error) {
		return instance.Down(name, log, echo(log, settings, stderr))
	})
}

// each does something to all instances that are named, and says what was done; the exit
// code is that of the first with which it fails.
func (l *line) each(stdout, stderr io.Writer, do func(name string) (done string, err error)) (code int) {
	for i, name := range l.Names {
		var err error
		if l.Names[i], err = plans.ParseName(name); err != nil {
			return fail(stderr, fmt.Errorf("%s: %w", l.command.word, err), plans.ExitUsage)
		}
	}
	for _, name := range l.Names {
		done, err := do(name)
		if err != nil {
			fail(stderr, err, 0)
			code = cmp.Or(code, instance.ExitCode(err))
			continue
		}
		fmt.Fprintf(stdout, "%s: %s\n", name, instance.Printable(done)) // another process may have said it
	}
	return code
}

func convert(l *line, stdout, stderr io.Writer) int {
	text, err := plans.Convert(l.File, os.ReadFile)
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		return fail(stderr, err, plans.ExitGeneral)
	}
	return 0
}
