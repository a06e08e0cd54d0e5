package plans

import (
	_ "embed"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// runtime is the part of every script that is the same: running, noting and
// undoing steps, as package runner does it.
//
//go:embed script.sh
var runtime string

// Script is an instance as a complete POSIX sh program:
//
//	sh NAME.sh up | down | bind IP PORT [DEV] | rebind IP PORT [DEV] | auth | keepalive SEC | status
//
// It runs the same plans as package runner, keeps its own journal of undos and
// resolves host facts where it runs. It needs a POSIX shell, iproute2, and nft
// for a server, for what is forwarded, and for a client's authentication.
// header lines are printed as comments at its top. Tokens, private keys and
// secrets are in it only if asked for; else it names the files that hold them.
func Script(c Config, header []string, secrets bool) string {
	s := &script{undos: map[string]Command{}, args: map[string][]string{}, unless: map[string][]Command{}}
	s.line("#!/bin/sh")
	for _, h := range header {
		s.line("%s", strings.TrimRight("# "+h, " "))
	}
	s.line("set -u")
	s.line("NAME=%s", Quote(c.Name))
	s.body.WriteString(runtime)
	if len(c.clients()) > 0 {
		s.body.WriteString(authenticate + send)
	} else {
		s.line("\nlocked() { \"$@\"; }")
	}
	s.facts(c)
	s.steps("up", c.Up().Steps)
	for _, t := range c.Tunnels {
		if t.Role == Server {
			s.steps("bind_"+fn(t), t.Bind().Steps)
			s.steps("rebind_"+fn(t), t.Rebind().Steps)
		} else {
			s.steps("rebind_"+fn(t), t.Move().Steps)
		}
	}
	s.undoFunctions()
	s.payloads(c, secrets)
	s.status(c)
	s.operations(c)
	s.dispatch(c)
	return s.body.String()
}

type script struct {
	body  strings.Builder
	undos map[string]Command
	args  map[string][]string // variables that an undo is given, by its name
	// unless are the looks that make an undo needless.
	unless map[string][]Command
}

func (s *script) line(format string, args ...any) {
	fmt.Fprintf(&s.body, format+"\n", args...)
}

func (s *script) comment(indent, text string) {
	if text != "" {
		s.line("%s# %s", indent, text)
	}
}

// facts resolves what only the host can tell, unless the environment or the
// journal of a running instance says it.
func (s *script) facts(c Config) {
	s.line("\n# What the host has to tell. A value in the environment goes before.\nfacts() {")
	for _, v := range c.Facts() {
		s.comment("\t", v.Comment)
		if v.Value != "" {
			s.line("\t: \"${%s:=%s}\"", v.Name, v.Value)
			continue
		}
		query := fmt.Sprintf("$(word %d %s)", v.Word, v.Query.line())
		if v.Name == "" {
			s.line("\t[ -n \"%s\" ] || die 2 %s", query, Quote(v.Missing))
			continue
		}
		s.line("\t: \"${%s:=%s}\"", v.Name, query)
		if v.Default != "" {
			s.line("\t: \"${%s:=%s}\"", v.Name, v.Default)
			continue
		}
		s.line("\t[ -n \"$%s\" ] || die 2 %s", v.Name, Quote(v.Missing))
	}
	s.line("\treturn 0\n}\n")
	s.line("# What a later call must know of this one.\nremember() {")
	for _, v := range c.Facts() {
		if v.Name != "" {
			s.line("\tset_var %s \"$%s\"", v.Name, v.Name)
		}
	}
	s.line("\treturn 0\n}")
}

// steps writes steps as a function; ways on become functions of their own.
func (s *script) steps(name string, steps []Step) {
	type tail struct {
		name  string
		steps []Step
	}
	var tails []tail
	s.line("\n%s() {", name)
	for i, st := range steps {
		s.comment("\t", st.Comment)
		undo, entry := s.undo(fmt.Sprintf("undo_%s_%d", name, i+1), st)
		if st.TakeBack != "" {
			s.line("\ttake_back undo_%s || %s", st.TakeBack, orFail(st, ":"))
			continue
		}
		if st.Absent != "" {
			s.line("\tabsent %s %s || fail %d", Quote(st.Absent), st.Do.line(), ExitCode(st.Do.Argv))
			continue
		}
		if st.Do.IsZero() {
			s.condition(st)
			s.line("\tnote %s", Quote(entry))
			continue
		}
		if st.Key != "" {
			s.body.WriteString("\tpending " + undo + " ||\n\t")
		}
		s.condition(st)
		if !st.Unless.IsZero() {
			s.body.WriteString("\tquiet " + st.Unless.line() + " ||\n\t")
		}
		if len(st.Else) == 0 {
			s.attempt(entry, st.Do, " || "+orFail(st, ":"))
			continue
		}
		s.attempt(entry, st.Do, " || {")
		word := "if"
		for j, e := range st.Else {
			test := string(e.When)
			if !e.Confirm.IsZero() {
				test += fmt.Sprintf(" && prints %s %s", Quote(strings.Join(e.Lines, "|")), e.Confirm.line())
			}
			s.line("\t\t%s %s; then", word, test)
			word = "elif"
			s.line("\t\t\tsay %s", Quote(e.Say))
			if len(e.Steps) == 0 {
				continue
			}
			t := tail{fmt.Sprintf("%s_or_%d_%d", name, i+1, j+1), e.Steps}
			tails = append(tails, t)
			s.line("\t\t\t%s", t.name)
			if e.Final {
				s.line("\t\t\treturn")
			}
		}
		s.line("\t\telse\n\t\t\t%s\n\t\tfi\n\t}", orFail(st, ":"))
	}
	s.line("\treturn 0\n}")
	for _, t := range tails {
		s.steps(t.name, t.steps)
	}
}

// condition makes what follows depend on the step's If.
func (s *script) condition(st Step) {
	if !st.If.IsZero() {
		s.body.WriteString("\t! quiet " + st.If.line() + " ||\n\t")
	}
}

// undo gives the step's undo a function, and the journal entry that calls it
// with the values of now; both are "" if there is nothing to undo.
func (s *script) undo(name string, st Step) (function, entry string) {
	if st.Undo.IsZero() {
		return "", ""
	}
	if st.Key != "" {
		name = "undo_" + st.Key
	}
	if st.Passing {
		name = "passing_" + name
	}
	s.undos[name], s.args[name] = positional(st.Undo)
	s.unless[name] = st.UndoUnless
	entry = name
	for _, v := range s.args[name] {
		entry += " ${" + v + "}"
	}
	return name, entry
}

// positional numbers the variables of a command: ${FOU_IP} becomes ${1}.
func positional(c Command) (Command, []string) {
	var names []string
	number := map[string]string{}
	for _, w := range append(c.Argv[:len(c.Argv):len(c.Argv)], c.Stdin) {
		for {
			_, name, after, ok := cutVar(w)
			if !ok {
				break
			}
			if number[name] == "" {
				names = append(names, name)
				number[name] = "${" + strconv.Itoa(len(names)) + "}"
			}
			w = after
		}
	}
	// Every name has a number, so there is no error.
	out, _ := c.Expand(number)
	return out, names
}

// attempt runs a command after its undo is noted; what follows it in the line
// comes before the text of a here-document.
func (s *script) attempt(entry string, c Command, after string) {
	s.command("\ttry "+Quote(entry), c, after)
}

func (s *script) command(before string, c Command, after string) {
	if !slices.Contains([]string{"ip", "nft", "modprobe", "sysctl", "test"}, c.Argv[0]) {
		before += " command" // the operator's own may be called like a function here
	}
	if c.Stdin == "" {
		s.line("%s %s%s", before, c.line(), after)
		return
	}
	s.line("%s %s <<EOF%s", before, c.line(), after)
	s.body.WriteString(escapeExpanded(c.Stdin, "") + "EOF\n")
}

// orFail is what a step comes to when it failed.
func orFail(st Step, otherwise string) string {
	if st.MayFail {
		return otherwise
	}
	return "fail " + strconv.Itoa(ExitCode(st.Do.Argv))
}

func (s *script) undoFunctions() {
	names := make([]string, 0, len(s.undos))
	for name := range s.undos {
		names = append(names, name)
	}
	sort.Strings(names)
	s.line("\n# Undos, run in reverse order of their steps.")
	for _, name := range names {
		s.line("%s() {", name)
		run := "\t"
		for _, look := range s.unless[name] {
			run += "needed " + look.line() + " || "
		}
		s.command(run+"run", s.undos[name], "")
		s.line("}")
	}
}

// fn is the tunnel in the name of a shell function.
func fn(t Tunnel) string { return fmt.Sprint(t.Number) }
