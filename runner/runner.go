package runner

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
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

// Check looks for the programs that plans need, before anything is changed.
// The error of a missing one is that of the first step that needs it.
func Check(all iter.Seq[plans.Plan]) error {
	found := map[string]bool{}
	for c := range Needs(all) {
		if found[c.Argv[0]] {
			continue
		}
		if _, err := LookPath(c.Argv[0]); err != nil {
			return &StepError{Command: c, Err: err}
		}
		found[c.Argv[0]] = true
	}
	return nil
}

// Needs are the commands that plans can't do without: not those that may fail, nor those
// that a look at the host can make needless.
func Needs(all iter.Seq[plans.Plan]) iter.Seq[plans.Command] {
	return func(yield func(plans.Command) bool) {
		more := true
		for p := range all {
			p.Walk(func(s plans.Step) {
				if s.Do.IsZero() && s.UndoOnce { // noted for the end: it must be there then
					s.Do = s.Undo
				}
				if s.Do.IsZero() || s.MayFail || !s.Unless.IsZero() {
					return
				}
				for _, c := range []plans.Command{s.Do, s.UndoIf} {
					if more && !c.IsZero() {
						more = yield(c)
					}
				}
			})
			if !more {
				return
			}
		}
	}
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

// Look runs a command that changes nothing, between two plans and not within one.
func (r *Runner) Look(c plans.Command) (stdout string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stdout, stderr, err := r.Exec(c)
	if err != nil {
		return "", &StepError{Command: c, Stderr: stderr, Err: err}
	}
	return stdout, nil
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
		// What was killed may not have been done.
		return nil, errors.Join(err, r.undo(r.Journal.Since(mark), errors.Is(err, ErrKilled)))
	}
	return took, r.Journal.Keep(mark)
}

func (r *Runner) steps(ctx context.Context, steps []plans.Step, vars map[string]string) (took []string, err error) {
	for len(steps) > 0 {
		if ctx.Err() != nil {
			return nil, &StepError{Command: steps[0].Do, Err: ErrInterrupted}
		}
		done, way, err := r.some(steps, vars)
		if err != nil {
			return nil, err
		}
		steps = steps[done:]
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

// some does the first of the steps, or several by one process. It returns how many,
// and the way on that the failure of the last of them opened, if any.
func (r *Runner) some(steps []plans.Step, vars map[string]string) (done int, way *plans.Else, err error) {
	if steps[0].Absent != "" {
		return r.absent(steps)
	}
	seen := map[string]string{}
	if together := r.together(steps, vars, seen); len(together) > 1 {
		return r.batch(together, vars)
	}
	way, err = r.step(steps[0], vars, seen)
	return 1, way, err
}

// taken reports whether what the step makes may be there already. Each look is done
// once, for what it prints is remembered in seen.
func (r *Runner) taken(s plans.Step, seen map[string]string) bool {
	if s.Taken.IsZero() || s.Undo.IsZero() {
		return false
	}
	look := s.Taken.String()
	if _, known := seen[look]; !known {
		seen[look], _, _ = r.Exec(s.Taken) // what can't be looked at will fail itself
	}
	return s.Finds(seen[look])
}

// absent looks once for what as many of the first steps as look alike must not find.
func (r *Runner) absent(steps []plans.Step) (done int, way *plans.Else, err error) {
	look := steps[0].Do
	stdout, stderr, err := r.Exec(look)
	if err != nil {
		return 0, nil, &StepError{Command: look, Stderr: stderr, Err: err}
	}
	for _, s := range steps {
		if s.Absent == "" || !slices.Equal(s.Do.Argv, look.Argv) {
			break
		}
		if s.Finds(stdout) {
			return done, nil, &StepError{Command: look, Err: errors.New(s.Absent)}
		}
		done++
	}
	return done, nil, nil
}

// expand puts the values into all commands of a step.
func expand(s plans.Step, vars map[string]string) (plans.Step, error) {
	s.UndoUnless = slices.Clone(s.UndoUnless)
	all := []*plans.Command{&s.Do, &s.Undo, &s.If, &s.Unless, &s.UndoIf, &s.Taken, &s.Ask.Query}
	for i := range s.UndoUnless {
		all = append(all, &s.UndoUnless[i])
	}
	lines, err := plans.Command{Argv: s.Lines}.Expand(vars)
	if err != nil {
		return s, &StepError{Command: s.Taken, Err: err}
	}
	s.Lines = lines.Argv
	for _, c := range all {
		expanded, err := c.Expand(vars)
		if err != nil {
			return s, &StepError{Command: *c, Err: err}
		}
		*c = expanded
	}
	return s, nil
}

// step does one step, and returns the way on that its failure opened, if any. What was
// seen of the host for it, it does not look at again.
func (r *Runner) step(s plans.Step, vars, seen map[string]string) (*plans.Else, error) {
	s, err := expand(s, vars)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Ask.Name != "":
		value, err := r.Ask(s.Ask, vars)
		if err != nil {
			return nil, &StepError{Command: s.Ask.Query, Err: err}
		}
		vars[s.Ask.Name] = value
		return nil, nil
	case s.Key != "" && r.Journal.Pending(s.Key) != nil:
		return nil, nil
	case !s.Unless.IsZero() && r.holds(s.Unless), !s.If.IsZero() && !r.holds(s.If):
		return nil, nil
	case s.TakeBack != "":
		return nil, r.takeBack(s)
	}
	if r.taken(s, seen) {
		stderr, err := r.run(s.Do)
		if err != nil {
			return r.failed(s, 0, stderr, err, vars)
		}
		_, err = r.note(s)
		return nil, err
	}
	ids, err := r.note(s)
	if err != nil || s.Do.IsZero() {
		return nil, err
	}
	stderr, err := r.run(s.Do)
	if err == nil {
		return nil, nil
	}
	return r.failed(s, ids[0], stderr, err, vars)
}

// note puts the steps' undos into the journal; the id is 0 of a step that has none.
func (r *Runner) note(steps ...plans.Step) (ids []int, err error) {
	var entries []Entry
	for _, s := range steps {
		if !s.Undo.IsZero() {
			entries = append(entries, Entry{Undo: s.Undo, Key: s.Key, Passing: s.Passing, Once: s.UndoOnce, Unless: s.UndoUnless, If: s.UndoIf})
		}
	}
	noted, err := r.Journal.NoteAll(entries)
	if err != nil {
		return nil, &StepError{Command: steps[0].Do, Err: err}
	}
	for _, s := range steps {
		id := 0
		if !s.Undo.IsZero() {
			id, noted = noted[0], noted[1:]
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// failed decides what follows when a step has failed.
func (r *Runner) failed(s plans.Step, id int, stderr string, err error, vars map[string]string) (*plans.Else, error) {
	// A command that was killed may have done its work: its undo stays. One
	// that said no has done nothing.
	if id != 0 && !errors.Is(err, ErrKilled) {
		if err := r.Journal.Drop(id); err != nil {
			return nil, &StepError{Command: s.Do, Err: err}
		}
	}
	for i, e := range s.Else {
		if !e.When.Matches(stderr) {
			continue
		}
		if e.Error != "" {
			return nil, &StepError{Command: s.Do, Err: fmt.Errorf("%s (%s)", e.Error, e.When.In(stderr))}
		}
		if r.confirm(e, vars) {
			say, err := plans.Command{Argv: []string{e.Say}}.Expand(vars)
			if err != nil {
				return nil, &StepError{Command: s.Do, Err: err}
			}
			r.Log.Warn(say.Argv[0])
			return &s.Else[i], nil
		}
	}
	failed := &StepError{Command: s.Do, Stderr: stderr, Err: err}
	if s.MayFail {
		r.Log.Debug("not needed, goes on", "error", failed)
		return nil, nil
	}
	return nil, failed
}

func (r *Runner) echo(steps ...plans.Step) {
	if r.Echo == nil {
		return
	}
	for _, s := range steps {
		r.Echo(s.Do)
	}
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
		return &StepError{Command: e.Undo, Err: err}
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

// Pending are the undos in the journal, each as its Command.String: what they take away
// is ours.
func (r *Runner) Pending() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]bool{}
	for _, e := range r.Journal.Since(0) {
		all[e.Undo.String()] = true
	}
	return all
}

// Forget drops the pending undos of a plan's steps without running them: what they
// would undo is somebody else's by now.
func (r *Runner) Forget(p plans.Plan) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var ids []int
	for _, e := range r.Journal.Since(0) {
		if slices.ContainsFunc(p.Steps, func(s plans.Step) bool { return s.Undo.String() == e.Undo.String() }) {
			ids = append(ids, e.ID)
		}
	}
	return r.Journal.Drop(ids...)
}

func (r *Runner) undo(entries []Entry, tolerant bool) error {
	failed, all := 0, len(entries)
	for len(entries) > 0 {
		some, b := undos(entries)
		outcomes := make([]outcome, max(len(some), 1))
		if len(some) > 1 {
			outcomes = r.runAll(&b, some)
		} else {
			some = []Entry{entries[len(entries)-1]}
			there, needed := r.wanted(some[0])
			if needed && failed > 0 {
				// By what could not be undone, for all we know: both are for the next start.
				entries = entries[:len(entries)-1]
				continue
			}
			if there && !needed {
				outcomes[0].stderr, outcomes[0].err = r.run(some[0].Undo)
			}
		}
		var done []int
		for i, e := range some {
			o := outcomes[i]
			gone := o.err != nil && isGone(e.Undo, o.stderr)
			if o.err != nil && !(gone && o.again) && !(tolerant && (gone || e.Once)) {
				failed++
				r.Log.Error("undo failed", "error", &StepError{Command: e.Undo, Stderr: o.stderr, Err: o.err})
			}
			if o.err == nil || gone || e.Once { // else it stays in the journal, for the next start to try again
				done = append(done, e.ID)
			}
		}
		if err := r.Journal.Drop(done...); err != nil {
			failed++
			r.Log.Error("journal", "error", err)
		}
		entries = entries[:len(entries)-len(some)]
	}
	if failed > 0 {
		return fmt.Errorf("%w: %d of %d undos", ErrUndo, failed, all)
	}
	return nil
}

// wanted reports whether there is something to undo, and whether others need it.
func (r *Runner) wanted(e Entry) (there, needed bool) {
	if !e.If.IsZero() && !r.holds(e.If) {
		return false, false
	}
	for _, look := range e.Unless {
		if stdout, _, err := r.Exec(look); err == nil && strings.TrimSpace(stdout) != "" {
			return true, true
		}
	}
	return true, false
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
