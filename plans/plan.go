package plans

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"ipipou/datapath"
)

// A Command is one program call. Argv and Stdin may hold ${NAME}; Stdin is
// empty for all but nft, whose ruleset is one transaction, and bpftool.
//
// ${NAME.ip4}, ${NAME.be16} and ${NAME.le32} are the value's bytes as bpftool reads
// them, decimal with blanks between: of an IPv4 address, and of numbers of 16 bits in
// network order and of 32 in that of a little-endian host.
type Command struct {
	Argv  []string `json:"argv"`
	Stdin string   `json:"stdin,omitempty"`
	// Data in place of Stdin is the BPF object; it stands in base64 in a script.
	Data []byte `json:"data,omitempty"`
}

// IsZero reports that there is nothing to run.
func (c Command) IsZero() bool { return len(c.Argv) == 0 }

// String is the command as it is echoed: words quoted for a shell where they
// need it, a ruleset behind it.
func (c Command) String() string {
	s := c.line()
	if len(c.Data) > 0 {
		return fmt.Sprintf("%s <<%d bytes", s, len(c.Data))
	}
	if c.Stdin != "" {
		s += " <<EOF\n" + strings.TrimSuffix(c.Stdin, "\n") + "\nEOF"
	}
	return s
}

// line is the command's words for a shell.
func (c Command) line() string {
	words := make([]string, len(c.Argv))
	for i, w := range c.Argv {
		words[i] = Quote(w)
	}
	return strings.Join(words, " ")
}

// Expand replaces each ${NAME} by its value. An unknown name is an error, so
// that no command ever runs with a hole in it.
func (c Command) Expand(vars map[string]string) (Command, error) {
	out := Command{Argv: make([]string, len(c.Argv)), Data: c.Data}
	var err error
	for i, w := range c.Argv {
		if out.Argv[i], err = expand(w, vars); err != nil {
			return Command{}, err
		}
	}
	out.Stdin, err = expand(c.Stdin, vars)
	return out, err
}

func expand(s string, vars map[string]string) (string, error) {
	var b strings.Builder
	for {
		before, name, after, ok := cutVar(s)
		b.WriteString(before)
		if !ok {
			return b.String(), nil
		}
		name, form, formed := strings.Cut(name, ".")
		v, known := vars[name]
		if !known {
			return "", fmt.Errorf("no value for ${%s}", name)
		}
		if formed {
			var err error
			if v, err = bytesOf(v, form); err != nil {
				return "", fmt.Errorf("${%s}: %w", name, err)
			}
		}
		b.WriteString(v)
		s = after
	}
}

// bytesOf writes a value's bytes as bpftool reads them.
func bytesOf(value, form string) (string, error) {
	n, notNumber := strconv.ParseUint(value, 10, 32)
	switch form {
	case "ip4":
		if a, err := netip.ParseAddr(value); err == nil && a.Is4() {
			return datapath.Address(a), nil
		}
	case "be16":
		if notNumber == nil && n < 1<<16 {
			return datapath.Port(uint16(n)), nil
		}
	case "le32":
		if notNumber == nil {
			return datapath.Number(int(n)), nil
		}
	}
	return "", fmt.Errorf("%q has no form %s", value, form)
}

// cutVar splits s around its first ${NAME}.
func cutVar(s string) (before, name, after string, ok bool) {
	i := strings.Index(s, "${")
	if i < 0 {
		return s, "", "", false
	}
	name, after, ok = strings.Cut(s[i+2:], "}")
	if !ok {
		return s, "", "", false
	}
	return s[:i], name, after, true
}

// A Step is one change of the host, or one look at it.
type Step struct {
	Comment string
	Do      Command
	// Undo takes Do back; zero when nothing is left to undo because the undo
	// of an earlier step takes it along (an address goes with its interface).
	// Without Do, it is noted and nothing else.
	Undo Command
	// UndoOnce marks an undo that is not tried again if it fails: no business of
	// ours, and no reason not to start the next time.
	UndoOnce bool
	// UndoUnless are looks that print something while others need what Undo would
	// take away. They will take it away themselves.
	UndoUnless []Command
	// UndoIf is a look without which the undo is needless: it must succeed.
	UndoIf Command
	// Key names the undo for later plans. While an undo of this key is
	// pending, the step has been done and is skipped.
	Key string
	// TakeBack, in place of Do: run the pending undo of that key, if any.
	TakeBack string
	// Passing marks an undo that only counts until its plan has succeeded.
	Passing bool
	// MayFail marks a step whose failure changes nothing that matters.
	MayFail bool
	// Absent marks a look at something that must not exist: Do must print none of the
	// Lines; * at the end of one stands for anything.
	Absent string
	Lines  []string
	// Taken is a look that prints one of the Lines if what Do makes may be there
	// already, somebody else's. Then the undo is noted after Do has made it: who is
	// killed before must not find it among what was his.
	Taken Command
	// Unless is a look at the host that makes the step needless if it succeeds; it
	// may compare facts.
	Unless Command
	// If is a look at the host that makes the step needless if it fails; it may
	// compare facts.
	If Command
	// Else are ways on when Do fails in a way that is known beforehand.
	Else []Else
	// Ask, in place of Do, is asked of the host now; later steps and plans know the
	// answer.
	Ask Var
}

// A Failure is a way in which a command is known to fail.
type Failure string

const (
	// Exists: an object of that name or address is there already.
	Exists Failure = "exists"
	// Unsupported: the kernel or iproute2 doesn't know the form of the command.
	Unsupported Failure = "unsupported"
	// Gone: there is no such object, so there is nothing to undo.
	Gone Failure = "gone"
	// NoHelper: the kernel's BPF lacks a function that a program calls.
	NoHelper Failure = "nohelper"
)

// Phrases are the words by which a command's stderr tells the failure
// (strerror(3) texts as iproute2 and nft print them in the C locale).
func (f Failure) Phrases() []string {
	switch f {
	case Exists:
		return []string{"File exists", "Address already in use", "already assigned", "Operation already in progress", "Exclusivity flag on"}
	case Unsupported:
		return []string{"unknown command", "Invalid argument"}
	case Gone:
		return []string{
			"No such file or directory", "Cannot find device", "Cannot assign requested address", "No such device", "does not exist", "No such process",
			"priority/protocol not found", "Cannot find specified", "Parent Qdisc doesn't exist",
			"Address not found", "address not found", // Linux 6.10 and later, IPv4 and IPv6
			"Invalid handle", // no clsact any more where there was one (tc_get_qdisc in net/sched/sch_api.c)
		}
	case NoHelper:
		return []string{"unknown func", "invalid func", "unknown_func"}
	}
	return nil
}

// Matches reports whether stderr tells this failure.
func (f Failure) Matches(stderr string) bool {
	for _, p := range f.Phrases() {
		if strings.Contains(stderr, p) {
			return true
		}
	}
	return false
}

// In is the line of stderr that tells the failure.
func (f Failure) In(stderr string) string {
	for line := range strings.Lines(stderr) {
		if f.Matches(line) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// An Else is what follows when a step fails in the way of When.
type Else struct {
	When Failure
	// Confirm, if not zero, must print one of these Lines; * at the end of one
	// stands for anything.
	Confirm Command
	Lines   []string
	// Say is told to the operator.
	Say string
	// Name tells the caller of the runner which way was taken.
	Name string
	// Error is why there is no way on: what the failure means and what to do.
	Error string
	// Steps take the place of the failed step. None: what exists belongs to
	// somebody else; it is used, and not undone.
	Steps []Step
	// Final: Steps take the place of all that would have followed, too.
	Final bool
}

// Confirms reports whether what Confirm printed has one of the lines.
func (e Else) Confirms(stdout string) bool { return prints(stdout, e.Lines) }

// Finds reports whether what Do or Taken printed has one of the lines.
func (s Step) Finds(stdout string) bool { return prints(stdout, s.Lines) }

func prints(stdout string, lines []string) bool {
	for line := range strings.Lines(stdout) {
		line = strings.TrimSpace(line)
		for _, want := range lines {
			head, open := strings.CutSuffix(want, "*")
			if line == want || open && strings.HasPrefix(line, head) {
				return true
			}
		}
	}
	return false
}

// A Plan is one operation: its steps, done in order or not at all.
type Plan struct {
	Name  string
	Steps []Step
}

// Walk calls f for each step of the plan, those of its alternatives included.
func (p Plan) Walk(f func(Step)) { walk(p.Steps, f) }

func walk(steps []Step, f func(Step)) {
	for _, s := range steps {
		f(s)
		for _, e := range s.Else {
			walk(e.Steps, f)
		}
	}
}

// A Var is a ${NAME} that the host has to tell.
type Var struct {
	Name    string
	Comment string
	// Value is the value where it is known beforehand, else Query asks for it:
	// the Word-th word (from 1) of the first line of its output, without what
	// follows a slash.
	Value string
	Query Command
	Word  int
	// Number: only the digits at the word's beginning count, and Less is taken off.
	Number bool
	Less   int
	// Missing is the error when the query has no answer, unless Default says
	// what that means.
	Missing string
	Default string
}

// Answer takes the value of v from what its query printed; "" if it is not there.
func (v Var) Answer(stdout string) string {
	line, _, _ := strings.Cut(stdout, "\n")
	words := strings.Fields(line)
	if len(words) < v.Word {
		return ""
	}
	value, _, _ := strings.Cut(words[v.Word-1], "/")
	if !v.Number {
		return value
	}
	if i := strings.IndexFunc(value, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		value = value[:i]
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < v.Less {
		return ""
	}
	return strconv.Itoa(n - v.Less)
}

// Quote writes a word for a POSIX shell, with ${NAME} left to be expanded.
func Quote(w string) string {
	if w != "" && strings.IndexFunc(w, needsQuotes) < 0 {
		return w
	}
	if _, _, _, ok := cutVar(w); !ok {
		return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
	}
	return `"` + escapeExpanded(w, quotedEscapes) + `"`
}

// What the shell expands, escaped in a here-document and in double quotes.
var (
	hereEscapes   = strings.NewReplacer(`\`, `\\`, "`", "\\`", "$", `\$`)
	quotedEscapes = strings.NewReplacer(`\`, `\\`, "`", "\\`", "$", `\$`, `"`, `\"`)
)

// escapeExpanded escapes s for a place where the shell expands, leaving ${NAME}.
func escapeExpanded(s string, r *strings.Replacer) string {
	var b strings.Builder
	for {
		before, name, after, ok := cutVar(s)
		b.WriteString(r.Replace(before))
		if !ok {
			return b.String()
		}
		if name, form, formed := strings.Cut(name, "."); formed {
			// A function of script.sh, in quotes of its own.
			b.WriteString("$(" + form + ` "${` + name + `}")`)
		} else {
			b.WriteString("${" + name + "}")
		}
		s = after
	}
}

func needsQuotes(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	return !strings.ContainsRune("-_./:@%+,=", r)
}

func cmd(words ...string) Command { return Command{Argv: words} }

// nft is one ruleset in one transaction.
func nft(lines ...string) Command {
	return Command{Argv: []string{"nft", "-f", "-"}, Stdin: strings.Join(lines, "\n") + "\n"}
}
