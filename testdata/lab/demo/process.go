package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"ipipou/testdata/lab"
)

// A process is a running ipipou, whose output is shown as it comes.
type process struct {
	*lab.Proc
	d     *demo
	name  string
	like  string // the process whose commands are the same
	shown int
}

func (d *demo) start(name string, ns *lab.NS, config int) *process {
	args := []string{"--config", d.config(config), "--verb", "2", "--no-log-time", "--no-log-pid"}
	d.say("$ ipipou " + strings.Join(append([]string{"--config", filepath.Base(args[1])}, args[2:]...), " "))
	host := filepath.Join(d.dir, ns.Name)
	return &process{d: d, name: name, Proc: ns.Start(d, append([]string{
		"env", "IPIPOU_RUN_DIR=" + host + "/run", "STATE_DIRECTORY=" + host + "/state", lab.Bin(d)}, args...)...)}
}

// waitFor waits for a line in the output that has not been shown yet, and shows all up to now.
func (p *process) waitFor(expr string) {
	p.WaitLogFrom(p.d, p.shown, expr+`.*\n`, wait)
	p.show()
}

func (p *process) signal(sig syscall.Signal, why string) {
	p.show()
	p.d.say(why)
	p.Signal(p.d, sig)
}

// show prints what is new. Of many commands that another process has run alike, it tells how many.
func (p *process) show() {
	logs := p.Logs()
	end := strings.LastIndexByte(logs, '\n') + 1
	commands := [][]string{}
	flush := func() {
		if p.like != "" && len(commands) > 5 {
			commands = [][]string{{fmt.Sprintf("[#] … %d commands, as those of %s", len(commands), p.like)}}
		}
		for _, command := range commands {
			p.command(command)
		}
		commands = nil
	}
	inside := false
	for line := range strings.Lines(logs[min(p.shown, end):end]) {
		line = strings.ReplaceAll(strings.TrimRight(line, "\n"), "\t", "  ")
		switch {
		case inside:
			last := len(commands) - 1
			commands[last] = append(commands[last], line)
			inside = line != "EOF"
		case strings.HasPrefix(line, "[#] "):
			commands = append(commands, []string{line})
			inside = strings.HasSuffix(line, "<<EOF")
		default:
			flush()
			p.d.labelled(p.name, line)
		}
	}
	flush()
	p.shown = end
}

// command prints one. The first lines of its input stand for all: they are in the plan.
func (p *process) command(lines []string) {
	for i, line := range lines {
		switch {
		case i <= 5 || i == len(lines)-1 || len(lines) <= 8:
			p.d.labelled(p.name, line)
		case i == 6:
			p.d.labelled(p.name, fmt.Sprintf("    … %d more lines, those of the plan", len(lines)-7))
		}
	}
}
