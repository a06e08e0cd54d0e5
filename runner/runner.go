package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"ipipou/plans"
)

// A Runner runs the plans of one instance, one after the other.
type Runner struct {
	Exec    Exec
	Journal *Journal
	Log     *slog.Logger
	// Echo is called with each command that is about to change the host.
	Echo func(plans.Command)

	mu sync.Mutex
}

// Check looks for the programs that a plan needs, before anything is changed.
// The error of a missing one is that of the first step that needs it.
func Check(p plans.Plan) error {
	var err error
	p.Walk(func(s plans.Step) {
		if s.Do.IsZero() && s.UndoOnce { // noted for the end: it must be there then
			s.Do = s.Undo
		}
		if err != nil || s.Do.IsZero() || s.MayFail || !s.Unless.IsZero() {
			return
		}
		for _, c := range []plans.Command{s.Do, s.UndoIf} {
			if c.IsZero() {
				continue
			}
			if _, e := exec.LookPath(c.Argv[0]); e != nil && err == nil {
				err = &StepError{Command: c, Err: fmt.Errorf("%s is not installed, or not in PATH", c.Argv[0])}
			}
		}
	})
	return err
}

// Ask runs the query of a Var, which may hold other variables.
func (r *Runner) Ask(v plans.Var, vars map[string]string) (string, error) {
	if v.Value != "" {
		return v.Value, nil
	}
	query, err := v.Query.Expand(vars)
	if err != nil {
		return "", err
	}
	stdout, stderr, err := r.Exec(query)
	if answer := v.Answer(stdout); err == nil && answer != "" {
		return answer, nil
	}
	if v.Default != "" {
		return v.Default, nil
	}
	r.Log.Debug("no answer", "command", strings.Join(v.Query.Argv, " "), "stderr", strings.TrimSpace(stderr))
	return "", errors.New(v.Missing)
}

// Run runs a plan to its end. It returns the names of the ways on that were
// taken. If a step fails, what the plan did before is undone in reverse order,
// and the error is a *StepError (joined with ErrUndo if that went wrong too).
// If ctx ends, the command that is running gets done, and then the same
// happens. What steps ask the host is added to vars.
func (r *Runner) Run(ctx context.Context, p plans.Plan, vars map[string]string) (took []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	mark := r.Journal.Mark()
	took, err = r.steps(ctx, p.Steps, vars)
	if err != nil {
		return nil, errors.Join(err, r.undo(r.Journal.Since(mark), false))
	}
	return took, r.Journal.Keep(mark)
}

func (r *Runner) steps(ctx context.Context, steps []plans.Step, vars map[string]string) (took []string, err error) {
	for _, s := range steps {
		if ctx.Err() != nil {
			return nil, &StepError{Command: s.Do, Err: ErrInterrupted}
		}
		way, err := r.step(s, vars)
		if err != nil {
			return nil, err
		}
		if way == nil {
			continue
		}
		if way.Name != "" {
			took = append(took, way.Name)
		}
		more, err := r.steps(ctx, way.Steps, vars)
		if took = append(took, more...); err != nil || way.Final {
			return took, err
		}
	}
	return took, nil
}

// step does one step, and returns the way on that its failure opened, if any.
func (r *Runner) step(s plans.Step, vars map[string]string) (*plans.Else, error) {
	if s.Ask.Name != "" {
		value, err := r.Ask(s.Ask, vars)
		if err != nil {
			return nil, &StepError{Command: s.Ask.Query, Err: err}
		}
		vars[s.Ask.Name] = value
		return nil, nil
	}
	do, undo, wanted, needless, undoIf := s.Do, s.Undo, s.If, s.Unless, s.UndoIf
	undoUnless := slices.Clone(s.UndoUnless)
	all := []*plans.Command{&do, &undo, &wanted, &needless, &undoIf}
	for i := range undoUnless {
		all = append(all, &undoUnless[i])
	}
	for _, c := range all {
		expanded, err := c.Expand(vars)
		if err != nil {
			return nil, &StepError{Command: *c, Err: err}
		}
		*c = expanded
	}
	switch {
	case s.Absent != "":
		if r.holds(do) {
			return nil, &StepError{Command: do, Err: errors.New(s.Absent)}
		}
		return nil, nil
	case s.Key != "" && r.Journal.Pending(s.Key) != nil:
		return nil, nil
	case !s.Unless.IsZero() && r.holds(needless), !s.If.IsZero() && !r.holds(wanted):
		return nil, nil
	case s.TakeBack != "":
		return nil, r.takeBack(s)
	}
	id := 0
	var err error
	if !undo.IsZero() {
		if id, err = r.Journal.Note(Entry{Undo: undo, Key: s.Key, Passing: s.Passing, Once: s.UndoOnce, Unless: undoUnless, If: undoIf}); err != nil {
			return nil, &StepError{Command: do, Err: err}
		}
	}
	if do.IsZero() {
		return nil, nil
	}
	stderr, err := r.run(do)
	if err == nil {
		return nil, nil
	}
	// A command that was killed may have done its work: its undo stays. One
	// that said no has done nothing.
	if id != 0 && !errors.Is(err, ErrTimeout) {
		if err := r.Journal.Drop(id); err != nil {
			return nil, &StepError{Command: do, Err: err}
		}
	}
	for i, e := range s.Else {
		if !e.When.Matches(stderr) {
			continue
		}
		if e.Error != "" {
			return nil, &StepError{Command: do, Err: fmt.Errorf("%s (%s)", e.Error, e.When.In(stderr))}
		}
		if r.confirm(e, vars) {
			r.Log.Warn(e.Say)
			return &s.Else[i], nil
		}
	}
	failed := &StepError{Command: do, Stderr: stderr, Err: err}
	if s.MayFail {
		r.Log.Debug("not needed, goes on", "error", failed)
		return nil, nil
	}
	return nil, failed
}

func (r *Runner) run(c plans.Command) (stderr string, err error) {
	if r.Echo != nil {
		r.Echo(c)
	}
	_, stderr, err = r.Exec(c)
	return stderr, err
}

func (r *Runner) holds(look plans.Command) bool {
	_, _, err := r.Exec(look)
	return err == nil
}

func (r *Runner) confirm(e plans.Else, vars map[string]string) bool {
	if e.Confirm.IsZero() {
		return true
	}
	lines, err := plans.Command{Argv: e.Lines}.Expand(vars)
	if err != nil {
		return false
	}
	stdout, _, err := r.Exec(e.Confirm)
	return err == nil && plans.Else{Lines: lines.Argv}.Confirms(stdout)
}

func (r *Runner) takeBack(s plans.Step) error {
	e := r.Journal.Pending(s.TakeBack)
	if e == nil {
		return nil
	}
	if err := r.undo([]Entry{*e}, s.MayFail); err != nil && !s.MayFail {
		return err
	}
	return nil
}

// Undo undoes all that is in the journal, the last first. It goes on past an
// undo that fails; the error then is ErrUndo.
func (r *Runner) Undo() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.undo(r.Journal.Since(0), false)
}

// Recover is Undo for the journal of an instance that died. Its last step may
// not have been done, so an object that isn't there is no fault.
func (r *Runner) Recover() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.undo(r.Journal.Since(0), true)
}

func (r *Runner) undo(entries []Entry, tolerant bool) error {
	failed := 0
	for i := len(entries) - 1; i >= 0; i-- {
		e := entries[i]
		if r.wanted(e) {
			stderr, err := r.run(e.Undo)
			gone := err != nil && isGone(e.Undo, stderr)
			if err != nil && !(tolerant && (gone || e.Once)) {
				failed++
				r.Log.Error("undo failed", "error", &StepError{Command: e.Undo, Stderr: stderr, Err: err})
			}
			if err != nil && !gone && !e.Once {
				continue // it stays in the journal, for the next start to try again
			}
		}
		if err := r.Journal.Drop(e.ID); err != nil {
			failed++
			r.Log.Error("journal", "error", err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d of %d undos", ErrUndo, failed, len(entries))
	}
	return nil
}

// wanted reports whether there is something to undo that others don't need.
func (r *Runner) wanted(e Entry) bool {
	if !e.If.IsZero() && !r.holds(e.If) {
		return false
	}
	for _, look := range e.Unless {
		if stdout, _, err := r.Exec(look); err == nil && strings.TrimSpace(stdout) != "" {
			return false
		}
	}
	return true
}

// isGone reports whether an undo failed because there was nothing to undo. For
// a FOU listener that isn't there the kernel has other words (fou_destroy).
func isGone(undo plans.Command, stderr string) bool {
	line := strings.Replace(strings.Join(undo.Argv, " "), "ip -6 ", "ip ", 1)
	if strings.HasPrefix(line, "ip fou del ") && strings.Contains(stderr, "Invalid argument") {
		return true
	}
	return plans.Gone.Matches(stderr)
}
