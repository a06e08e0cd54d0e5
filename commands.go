package main

import (
	"cmp"
	"fmt"
	"io"
	"os"

	"ipipou/instance"
	"ipipou/plans"
)

// commands are the one without a word, and the others.
var commands = []command{
	{
		about:   "IP tunnels that the kernel carries: authenticated, over UDP, across NAT and roaming; or static, in all of Linux's modes.",
		takes:   func(l *line) []any { return []any{&l.making, &l.running, &l.auditing} },
		options: true, run: up,
	},
	{
		word: "check", usage: "[FLAGS]", about: "What this host can do, or lacks for the instance of the flags, and how to mend it.",
		takes:   func(l *line) []any { return []any{&l.making, &l.looking} },
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
		takes: func(l *line) []any { return []any{&l.names} }, run: later,
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
		takes: func(l *line) []any { return []any{&l.shell} }, run: later,
	},
}

// later is a command that is still to be written.
func later(l *line, _, stderr io.Writer) int {
	return fail(stderr, fmt.Errorf("%s: not implemented yet", l.command.word), plans.ExitDeaf)
}

func status(l *line, stdout, stderr io.Writer) int {
	if l.Name != "" {
		l.Config = append(l.Config, l.Name)
	}
	files, err := l.files()
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	config, _, err := l.resolve(files, stderr)
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	if err := instance.Status(config, stdout); err != nil {
		return fail(stderr, err, plans.ExitGeneral)
	}
	return 0
}

// down ends all the instances that it can; the exit code is that of the first which it
// can't.
func down(l *line, stdout, stderr io.Writer) (code int) {
	for i, name := range l.Names {
		var err error
		if l.Names[i], err = plans.ParseName(name); err != nil {
			return fail(stderr, fmt.Errorf("down: %w", err), plans.ExitUsage)
		}
	}
	settings := instance.LogSettings{Verbosity: l.Verbose, Format: "text"}
	log := instance.NewLog(stderr, settings)
	for _, name := range l.Names {
		done, err := instance.Down(name, log, echo(log, settings, stderr))
		if err != nil {
			fail(stderr, err, 0)
			code = cmp.Or(code, instance.ExitCode(err))
			continue
		}
		fmt.Fprintf(stdout, "%s: %s\n", name, done)
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
