package plans

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/base64"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"

	"ipipou/datapath"
)

// runtime is the part of every script that is the same: running, noting and
// undoing steps, as package runner does it.
//
//go:embed script.sh
var runtime string

// bpfRuntime is what scripts of the BPF data path need beside it.
//
//go:embed bpf.sh
var bpfRuntime string

// Script is an instance as a complete POSIX sh program:
//
//	sh NAME.sh up | down | bind IP PORT [DEV] | rebind IP PORT [DEV] | auth | keepalive SEC | status
//
// It runs the same plans as package runner, keeps its own journal of undos and
// resolves host facts where it runs. It needs a POSIX shell, iproute2, and nft
// for a server, for what is forwarded, and for a client's authentication; with
// backend bpf, bpftool, and nft for the latter two only.
// header lines are printed as comments at its top. Tokens, private keys and
// secrets are in it only if asked for; else it names the files that hold them.
func Script(c Config, header []string, secrets bool) string {
	s := &script{undos: map[string]Command{}, args: map[string][]string{}, unless: map[string][]Command{}, wanted: map[string]Command{}}
	s.line("#!/bin/sh")
	for _, h := range header {
		s.line("%s", strings.TrimRight("# "+h, " "))
	}
	s.line("set -u")
	s.line("NAME=%s", Quote(c.Name))
	s.body.WriteString(runtime)
	if len(c.sending()) > 0 {
		s.body.WriteString(authenticate + send)
	} else {
		s.line("\nlocked() { \"$@\"; }")
	}
	if len(c.on(BPF)) > 0 {
		s.line("%s=${JOURNAL%%/*}", RunDir)
		s.body.WriteString(bpfRuntime)
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
	s.object(c)
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
	// unless are the looks that make an undo needless, wanted those without which
	// it is.
	unless map[string][]Command
	wanted map[string]Command
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
		query := v.shell()
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
	known := c.Facts()
	c.Up().Walk(func(st Step) { known = append(known, st.Ask) })
	for _, v := range known {
		if v.Name != "" {
			s.line("\tset_var %s \"$%s\"", v.Name, v.Name)
		}
	}
	s.line("\treturn 0\n}")
}

// shell asks for the value in a script.
func (v Var) shell() string {
	if v.Number {
		return fmt.Sprintf("$(number %d %d %s)", v.Word, v.Less, v.Query.line())
	}
	return fmt.Sprintf("$(word %d %s)", v.Word, v.Query.line())
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
			if !st.Unless.IsZero() {
				s.body.WriteString("\tquiet " + st.Unless.line() + " ||\n\t")
			}
			s.line("\ttake_back undo_%s || %s", st.TakeBack, orFail(st, ":"))
			continue
		}
		if v := st.Ask; v.Name != "" {
			s.line("\t%s=%s", v.Name, v.shell())
			s.line("\t[ -n \"$%s\" ] || {\n\t\tSTEP=%s ERR=%s\n\t\tfail %d\n\t}", v.Name, Quote(v.Query.line()), Quote(v.Missing), ExitCode(v.Query.Argv))
			continue
		}
		if st.Absent != "" {
			s.line("\tabsent %s %s %s || fail %d", Quote(st.Absent), Quote(strings.Join(st.Lines, "|")), st.Do.line(), ExitCode(st.Do.Argv))
			continue
		}
		if st.Do.IsZero() {
			s.condition(st)
			s.line("\tnote %s", Quote(entry))
			continue
		}
		if !st.Taken.IsZero() {
			s.pending(st, undo)
			s.line("\ttaken %s %s", Quote(strings.Join(st.Lines, "|")), st.Taken.line())
		}
		s.pending(st, undo)
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
			if e.Error != "" {
				s.line("\t\t\tERR=%s\n\t\t\tfail %d", Quote(e.Error), ExitCode(st.Do.Argv))
				continue
			}
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

// pending makes what follows depend on the step's not being done already for another
// tunnel.
func (s *script) pending(st Step, undo string) {
	if st.Key != "" {
		s.body.WriteString("\tpending " + undo + " ||\n\t")
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
	s.unless[name], s.wanted[name] = st.UndoUnless, st.UndoIf
	entry = name
	for _, v := range s.args[name] {
		entry += " ${" + v + "}"
	}
	return name, entry
}

// positional numbers the variables of a command: ${FOU_IP} becomes ${1}, and
// ${FOU_IP.ip4} ${1.ip4}.
func positional(c Command) (Command, []string) {
	var names []string
	number := func(w string) string {
		var b strings.Builder
		for {
			before, name, after, ok := cutVar(w)
			b.WriteString(before)
			if !ok {
				return b.String()
			}
			name, form, formed := strings.Cut(name, ".")
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
			b.WriteString("${" + strconv.Itoa(slices.Index(names, name)+1))
			if formed {
				b.WriteString("." + form)
			}
			b.WriteString("}")
			w = after
		}
	}
	out := Command{Argv: make([]string, len(c.Argv)), Data: c.Data}
	for i, w := range c.Argv {
		out.Argv[i] = number(w)
	}
	out.Stdin = number(c.Stdin)
	return out, names
}

// attempt runs a command after its undo is noted; what follows it in the line
// comes before the text of a here-document.
func (s *script) attempt(entry string, c Command, after string) {
	s.command("\ttry "+Quote(entry), c, after)
}

func (s *script) command(before string, c Command, after string) {
	if len(c.Data) > 0 {
		before += " unpacked"
	}
	if !slices.Contains(programs, c.Argv[0]) {
		before += " command" // the operator's own may be called like a function here
	}
	if c.Stdin == "" {
		s.line("%s %s%s", before, c.line(), after)
		return
	}
	s.line("%s %s <<EOF%s", before, c.line(), after)
	s.body.WriteString(escapeExpanded(c.Stdin, hereEscapes) + "EOF\n")
}

// programs are those that plans call, none of which is called like a function.
var programs = []string{
	"ip", "nft", "modprobe", "sysctl", "test", "bpftool", "tc", "mkdir", "rmdir", "rm", "dd", "mount", "umount",
}

// object writes the compiled programs.
func (s *script) object(c Config) {
	if len(c.on(BPF)) == 0 {
		return
	}
	var packed bytes.Buffer
	w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	w.Write(datapath.Object) // a buffer takes all
	w.Close()
	s.line("\n# The compiled BPF programs (datapath/ipipou.bpf.c), gzip in base64.")
	s.line("object() {\n\tbase64 -d <<'EOF' | gzip -dc")
	text := base64.StdEncoding.EncodeToString(packed.Bytes())
	for line := range slices.Chunk([]byte(text), 100) {
		s.line("%s", line)
	}
	s.line("EOF\n}")
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
		if look := s.wanted[name]; !look.IsZero() {
			run += "! quiet " + look.line() + " || "
		}
		for _, look := range s.unless[name] {
			run += "needed " + look.line() + " || "
		}
		s.command(run+"run", s.undos[name], "")
		s.line("}")
	}
}

// fn is the tunnel in the name of a shell function.
func fn(t Tunnel) string { return fmt.Sprint(t.Number) }
