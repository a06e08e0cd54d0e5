package runner

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"

	"ipipou/plans"
)

// batchLen is how many commands one process runs at most: between two of them the
// plan can be interrupted, and what was done is dropped from the journal.
const batchLen = 128

// batchers are the programs that read commands from their stdin with `-batch -`, one
// a line. They end at the first that fails, or with -force go on, and tell each by
// `Command failed -:LINE` behind what it said (iproute2, lib/utils.c do_batch). A
// thousand processes take seconds, one with a thousand lines a fraction of one.
var batchers = []string{"ip", "tc"}

// shareable are the options that commands of one process can have in common. Others
// take a word of their own (-n NETNS), or would be a second -batch.
var shareable = []string{"-4", "-6", "-o", "-br"}

// A batch is commands for one process.
type batch struct {
	program string
	options []string // for all: -6, -o
	lines   []string
}

// add reports whether c can be run in the same process, as its last command.
func (b *batch) add(c plans.Command) bool {
	options, words, ok := batchable(c)
	if !ok || len(b.lines) == batchLen {
		return false
	}
	if len(b.lines) == 0 {
		b.program, b.options = c.Argv[0], options
	}
	if b.program != c.Argv[0] || !slices.Equal(b.options, options) {
		return false
	}
	b.lines = append(b.lines, strings.Join(words, " "))
	return true
}

func batchable(c plans.Command) (options, words []string, ok bool) {
	if c.IsZero() || c.Stdin != "" || len(c.Data) > 0 || !slices.Contains(batchers, c.Argv[0]) {
		return nil, nil, false
	}
	words = c.Argv[1:]
	for len(words) > 0 && strings.HasPrefix(words[0], "-") {
		if !slices.Contains(shareable, words[0]) {
			return nil, nil, false
		}
		options, words = append(options, words[0]), words[1:]
	}
	if len(words) > 1 && strings.HasPrefix("exec", words[1]) {
		return nil, nil, false // of netns and vrf: what it starts would read our lines
	}
	// A batch has quotes, comments and continued lines of its own.
	special := func(w string) bool { return w == "" || strings.ContainsAny(w, " \t\n\"'\\#") }
	return options, words, len(words) > 0 && !slices.ContainsFunc(words, special)
}

// command runs the batch. With force it goes on past what fails.
func (b *batch) command(force bool) plans.Command {
	argv := append([]string{b.program}, b.options...)
	if force {
		argv = append(argv, "-force")
	}
	return plans.Command{Argv: append(argv, "-batch", "-"), Stdin: strings.Join(b.lines, "\n") + "\n"}
}

// readsLines reports whether the command is a batch, which does a line before it reads the
// next.
func readsLines(c plans.Command) bool {
	return slices.Contains(batchers, c.Argv[0]) && strings.HasSuffix(strings.Join(c.Argv, " "), " -batch -")
}

// saidOf cuts what a batch has said by the commands that failed, by their places
// from 0. rest is what it said last, and of no command: the program ended there.
func saidOf(stderr string) (failed map[int]string, rest string) {
	failed = map[int]string{}
	for line := range strings.Lines(stderr) {
		number, told := strings.CutPrefix(strings.TrimSpace(line), "Command failed -:")
		n, err := strconv.Atoi(number)
		if !told || err != nil || n < 1 {
			rest += line
			continue
		}
		failed[n-1] = rest
		rest = ""
	}
	return failed, rest
}

// knownOf is of how many of n commands that were to be run whatever fails it is known
// how they ended: a program that was killed, or gave up, has not said anything of
// those after the last that it named.
func knownOf(n int, failed map[int]string, rest string, err error) int {
	if err == nil || len(failed) > 0 && rest == "" && !errors.Is(err, ErrKilled) {
		return n
	}
	known := 0
	for i := range failed {
		known = max(known, i+1)
	}
	return known
}

// together are the first of the steps that one process can do: as many questions or
// changes as there are in a row. Their commands have their values in.
func (r *Runner) together(steps []plans.Step, vars, seen map[string]string) (some []plans.Step) {
	var b batch
	for _, s := range steps {
		asks := func(s plans.Step) bool { return s.Ask.Name != "" }
		if s.Absent != "" || len(some) > 0 && asks(s) != asks(some[0]) {
			break
		}
		if s.TakeBack != "" || !s.If.IsZero() || !s.Unless.IsZero() || s.Key != "" && r.Journal.Pending(s.Key) != nil {
			break
		}
		s, err := expand(s, vars)
		if err != nil || !b.add(does(s)) || r.taken(s, seen) {
			break
		}
		some = append(some, s)
	}
	return some
}

func does(s plans.Step) plans.Command {
	if s.Ask.Name != "" {
		return s.Ask.Query
	}
	return s.Do
}

// batch does steps that together found, by one process. It returns how many of them
// are done with; of the last of these it may be the way on that its failure opened.
func (r *Runner) batch(steps []plans.Step, vars map[string]string) (done int, way *plans.Else, err error) {
	var b batch
	for _, s := range steps {
		b.add(does(s))
	}
	if steps[0].Ask.Name != "" {
		return len(steps), nil, r.askAll(&b, steps, vars)
	}
	ids, err := r.note(steps...)
	if err != nil {
		return 0, nil, err
	}
	_, stderr, err := r.Exec(b.command(false))
	done = len(steps)
	if err != nil {
		if done, stderr = r.endOf(steps, stderr, err); done == len(steps) {
			r.echo(steps...)
			return done, nil, &StepError{Command: steps[0].Do, Stderr: stderr, Err: err, More: len(steps) - 1}
		}
	}
	r.echo(steps[:min(done+1, len(steps))]...)
	if done == len(steps) {
		return done, nil, nil
	}
	// What comes after it has not been run.
	later := slices.DeleteFunc(ids[done+1:], func(id int) bool { return id == 0 })
	if err := r.Journal.Drop(later...); err != nil {
		return done, nil, &StepError{Command: steps[done].Do, Err: err}
	}
	way, err = r.failed(steps[done], ids[done], stderr, err, vars)
	return done + 1, way, err
}

// endOf finds the step at which a batch ended, and what was said of it. If it can't be
// told, all of them may have been done.
func (r *Runner) endOf(steps []plans.Step, stderr string, err error) (at int, said string) {
	failed, rest := saidOf(stderr)
	for i, said := range failed {
		if i < len(steps) {
			return i, said
		}
	}
	if errors.Is(err, ErrKilled) {
		return len(steps), stderr
	}
	// The program takes some errors for the operator's and ends without telling the
	// line (iproute2's usage()). Alone, that command says the same again; those that
	// have been done before it say something else, or nothing.
	for i, s := range steps {
		if _, again, err := r.Exec(s.Do); err != nil && strings.TrimSpace(again) == strings.TrimSpace(rest) {
			return i, again
		}
	}
	return len(steps), stderr
}

// askAll asks many questions. Each has one line for an answer, or they are asked one
// by one.
func (r *Runner) askAll(b *batch, steps []plans.Step, vars map[string]string) error {
	stdout, _, err := r.Exec(b.command(false))
	lines := strings.Split(strings.TrimSuffix(stdout, "\n"), "\n")
	for i, s := range steps {
		answer := ""
		if err == nil && len(lines) == len(steps) && slices.Contains(b.options, "-o") {
			answer = s.Ask.Answer(lines[i])
		}
		if answer == "" {
			var err error
			if answer, err = r.Ask(s.Ask, vars); err != nil {
				return &StepError{Command: s.Ask.Query, Err: err}
			}
		}
		vars[s.Ask.Name] = answer
	}
	return nil
}

// An outcome is how a command ended.
type outcome struct {
	stderr string
	err    error
	again  bool // it may have been run before
}

// undos are the last of the entries that one process can undo, the last first.
func undos(entries []Entry) (some []Entry, b batch) {
	for _, e := range slices.Backward(entries) {
		if !e.If.IsZero() || len(e.Unless) > 0 || !b.add(e.Undo) {
			break
		}
		some = append(some, e)
	}
	return some, b
}

// runAll runs the commands of a batch, all of them whatever fails.
func (r *Runner) runAll(b *batch, entries []Entry) []outcome {
	if r.Echo != nil {
		for _, e := range entries {
			r.Echo(e.Undo)
		}
	}
	if !b.slow() {
		return r.runPart(b, entries)
	}
	out := make([]outcome, len(entries))
	var running sync.WaitGroup
	for from := 0; from < len(entries); from += slowLen {
		to := min(from+slowLen, len(entries))
		running.Go(func() {
			part := batch{b.program, b.options, b.lines[from:to]}
			copy(out[from:], r.runPart(&part, entries[from:to]))
		})
	}
	running.Wait()
	return out
}

// slowLen is how many commands a process runs when others wait for the kernel beside
// it.
const slowLen = batchLen / 16

// slow reports whether the commands are such that the kernel takes its time over and that
// can be run in any order. It waits until no CPU uses the object; links are waited for
// together, and beside them listeners, those one after the other (genl_mutex).
func (b *batch) slow() bool {
	return !slices.ContainsFunc(b.lines, func(l string) bool {
		return !strings.HasPrefix(l, "link del ") && !strings.HasPrefix(l, "fou del ")
	})
}

// runPart runs the commands of a batch by one process.
func (r *Runner) runPart(b *batch, entries []Entry) []outcome {
	_, stderr, err := r.Exec(b.command(true))
	failed, rest := saidOf(stderr)
	known := knownOf(len(entries), failed, rest, err)
	out := make([]outcome, len(entries))
	for i, e := range entries {
		if said, bad := failed[i]; bad {
			out[i] = outcome{stderr: said, err: err}
		} else if i >= known {
			_, stderr, err := r.Exec(e.Undo)
			out[i] = outcome{stderr, err, true}
		}
	}
	return out
}
