package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ipipou/plans"
)

// A life is all that the program does on a host: its start, what happens to it then, and its end. It is lived once
// undisturbed, with the commands noted that it says it runs; and then again and again, ended or failed at each of them.
// So a command that is new is tested without being named here.
type life struct {
	*testing.T
	ns     *NS
	dir    string
	args   []string
	phases []phase
	// restore takes back what the phases have changed on the host beside the program.
	restore func()
	// enter are words before the program's that get it into its namespace, where that is not for `ip netns exec`.
	enter []string

	ups, downs []step
	quick      string
	left       bool // the last run was killed
}

// A phase is a part of the program's life.
type phase struct {
	do   func(*testing.T, *Proc)
	done string // what the program says in the end
	// code is the exit code if a command fails; 0: as the command has it.
	code int
	// survives is what it says if it goes on after a failure, and does it all again by itself or with the next `do`.
	survives string
}

// A step is a command that changes the host.
type step struct {
	words, stdin string // the latter without its digits: numbers of devices and times differ each time
	phase        int
	nth          int // among those that are equal, from 1
}

// kind is the command without what it is about: ip link add, nft.
func (s step) kind() string {
	words := slices.DeleteFunc(strings.Fields(s.words), func(word string) bool { return strings.HasPrefix(word, "-") })
	if words[0] != "ip" {
		return words[0]
	}
	return strings.Join(words[:min(3, len(words))], " ")
}

// lastOfKind reports whether no later step of a phase is of the same kind as the ith.
func lastOfKind(steps []step, i int) bool {
	return !slices.ContainsFunc(steps[i+1:], func(s step) bool { return s.phase == steps[i].phase && s.kind() == steps[i].kind() })
}

func (s step) is(other step) bool { return s.words == other.words && s.stdin == other.stdin }

// newLife is one of the program with these arguments; the first phase is its start.
func newLife(t *testing.T, ns *NS, dir string, phases []phase, args ...string) *life {
	t.Helper()
	l := &life{T: t, ns: ns, dir: dir, args: args, phases: phases, restore: func() {}, enter: []string{"env"}}
	if err := os.MkdirAll(l.path("at"), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *life) path(name string) string { return filepath.Join(l.dir, l.ns.Name, name) }

// start starts the program, with wrapper.sh for its tools.
func (l *life) start(t *testing.T) *Proc {
	t.Helper()
	argv := append(l.enter[:len(l.enter):len(l.enter)], "-C", l.path("at"),
		"IPIPOU_RUN_DIR="+l.path("run"), "STATE_DIRECTORY="+l.path("state"), Bin(t)+"-wrapped", "--verb", "3")
	return l.ns.Start(t, append(argv, l.args...)...)
}

// arm has something done at a step from now on.
func (l *life) arm(t *testing.T, todo string, s step) {
	t.Helper()
	l.disarm(t)
	files := []struct{ name, text string }{{"stdin", s.stdin}, {"target", fmt.Sprintf("%s\n%d\n%s\n", todo, s.nth, s.words)}}
	for _, f := range files {
		if f.text == "" {
			continue
		}
		if err := os.WriteFile(l.path("at/"+f.name), []byte(f.text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

var digits = regexp.MustCompile(`[0-9]+`)

func (l *life) disarm(t *testing.T) {
	t.Helper()
	for _, name := range []string{"target", "stdin", "seen"} {
		if err := os.Remove(l.path("at/" + name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

// first waits for one of some texts after the first n bytes of the output and returns its number, or -1 when the program
// has ended without any.
func (p *Proc) first(t *testing.T, n int, exprs ...string) int {
	t.Helper()
	late := time.After(commandTimeout)
	for {
		ended := p.ended() // asked first: nothing is added later
		logs, changed := p.state()
		for i, expr := range exprs {
			if regexp.MustCompile(expr).MatchString(logs[n:]) {
				return i
			}
		}
		if ended {
			return -1
		}
		select {
		case <-changed:
		case <-p.done:
		case <-late:
			t.Fatalf("%s: no %q in its output after %v", p, exprs, commandTimeout)
		}
	}
}

// live goes through the phases until the program ends. The number is that of the phase in which it failed and survived,
// where it is disarmed, and -1 if there was none.
func (l *life) live(t *testing.T, p *Proc) (survived int) {
	t.Helper()
	survived = -1
	for i, phase := range l.phases {
		n := 0
		if i > 0 {
			n = p.Len()
		}
		if phase.do != nil {
			phase.do(t, p)
		}
		exprs := []string{phase.done}
		if phase.survives != "" {
			exprs = append(exprs, phase.survives)
		}
		switch p.first(t, n, exprs...) {
		case -1:
			return survived
		case 1:
			survived = i
			l.disarm(t)
			if phase.do != nil {
				phase.do(t, p)
			}
			if p.first(t, n, phase.done) < 0 {
				return survived
			}
		}
	}
	return survived
}

// steps are the commands that the program has said it runs.
func steps(logs string) (all []step) {
	lines := strings.Split(logs, "\n")
	for i := 0; i < len(lines); i++ {
		words, ok := strings.CutPrefix(lines[i], "[#] ")
		if !ok {
			continue
		}
		s := step{}
		if head, ok := strings.CutSuffix(words, " <<EOF"); ok {
			for words = head; i+1 < len(lines) && lines[i+1] != "EOF"; i++ {
				s.stdin += digits.ReplaceAllString(lines[i+1], "") + "\n"
			}
		}
		words, _, _ = strings.Cut(words, " <<") // the size of data
		s.words = strings.NewReplacer(`'\''`, `'`, `'`, ``).Replace(words)
		all = append(all, s)
	}
	return all
}

// number says which of those that are equal each step is.
func number(all []step) []step {
	for i := range all {
		for _, s := range all[:i+1] {
			if s.is(all[i]) {
				all[i].nth++
			}
		}
	}
	return all
}

// undisturbed lives it once, and notes the steps.
func (l *life) undisturbed() {
	l.Helper()
	l.quick = l.ns.quick(l)
	p, n := l.start(l.T), 0
	for i, phase := range l.phases {
		if phase.do != nil {
			phase.do(l.T, p)
		}
		p.WaitLogFrom(l, n, phase.done, commandTimeout)
		logs := p.Logs()
		for _, s := range steps(logs[n:]) {
			s.phase = i
			l.ups = append(l.ups, s)
		}
		n = len(logs)
	}
	stop(l, p)
	l.downs = number(steps(p.Logs()[n:]))
	l.ups = number(l.ups)
	l.restore()
	l.clean(l.T)
	for _, s := range append(l.ups, l.downs...) {
		tool, _, _ := strings.Cut(s.words, " ")
		if !slices.Contains(wrapped, tool) {
			l.Fatalf("%s: wrapper.sh does not stand in for it", tool)
		}
	}
	if len(l.ups) == 0 || len(l.downs) == 0 {
		l.Fatalf("%d steps on the way up, %d on the way down: something is wrong with the test", len(l.ups), len(l.downs))
	}
	l.Logf("%d steps on the way up, %d on the way down", len(l.ups), len(l.downs))
}

// clean checks that nothing is left.
func (l *life) clean(t *testing.T) {
	t.Helper()
	SameState(t, l.ns.Name, l.quick, l.ns.quick(t))
	noJournal(t, l.dir, l.ns)
}

// pending is what the one that was killed has left to undo, as it has noted that.
func (l *life) pending(t *testing.T) (notes string) {
	t.Helper()
	journals, err := filepath.Glob(l.path("run/*.journal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range journals {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		notes += string(text)
	}
	return notes
}

// next starts the program where the last run may have been killed: then it has to undo what that has left, and say so.
func (l *life) next(t *testing.T) *Proc {
	t.Helper()
	pending := strings.Contains(l.pending(t), `"undo"`)
	p := l.start(t)
	if pending {
		p.WaitLog(t, `WARN an earlier \S+ died and left \d+ things behind: undoing them first`, commandTimeout)
	}
	l.left = false
	return p
}

// killed kills the program right after a step of its way up.
func (l *life) killed(t *testing.T, s step) { l.killedAt(t, "after", s) }

// killedBefore kills the program where a step's undo is noted, but the step is not done.
func (l *life) killedBefore(t *testing.T, s step) { l.killedAt(t, "before", s) }

func (l *life) killedAt(t *testing.T, how string, s step) {
	t.Helper()
	p := l.startAt(t, how, s)
	l.live(t, p)
	l.dead(t, p)
}

// killedGoingDown lets the program come up, whatever the last one left, and kills it after a step of its way down.
func (l *life) killedGoingDown(t *testing.T, s step) {
	p := l.up(t)
	l.arm(t, "after", s)
	p.Signal(t, syscall.SIGTERM)
	l.dead(t, p)
}

// dead checks that the program was killed.
func (l *life) dead(t *testing.T, p *Proc) {
	t.Helper()
	if code := p.Wait(t, commandTimeout); code != -1 {
		t.Errorf("exit %d, it should have been killed", code)
	}
	l.disarm(t)
	l.restore()
	l.left = true
}

// up starts the program, and goes through all the phases.
func (l *life) up(t *testing.T) *Proc {
	t.Helper()
	p := l.next(t)
	l.live(t, p)
	if n := count(p.Logs(), "ERROR|^ipipou: "); n > 0 {
		t.Errorf("%d errors", n)
	}
	return p
}

// whole lets the program come up and go, if the last one was killed.
func (l *life) whole(t *testing.T) {
	t.Helper()
	if l.left {
		stop(t, l.up(t))
		l.restore()
		l.clean(t)
	}
}

// owes reports whether a step is among what the last one has left to undo.
func (l *life) owes(t *testing.T, s step) bool {
	t.Helper()
	notes := digits.ReplaceAllString(l.pending(t), "")
	for _, part := range []any{strings.Fields(s.words), s.stdin} {
		text, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		if part != "" && !strings.Contains(notes, digits.ReplaceAllString(string(text), "")) {
			return false
		}
	}
	return true
}

// startAt starts the program with something to be done at a step of its way up; where the last one has left such a step
// to undo, that is done before.
func (l *life) startAt(t *testing.T, todo string, s step) *Proc {
	t.Helper()
	if l.owes(t, s) {
		l.whole(t)
	}
	l.arm(t, todo, s)
	return l.next(t)
}

// fails has a step fail, after whatever the last one left is undone.
func (l *life) fails(t *testing.T, s step) {
	p := l.startAt(t, "fail", s)
	if survived := l.live(t, p); survived >= 0 && survived != s.phase {
		t.Errorf("it went on after a failure in phase %d, the step is of phase %d", survived, s.phase)
	}
	l.disarm(t)
	said := regexp.QuoteMeta(s.words) + `.*\(injected failure\)`
	want := l.phases[s.phase].code
	if want == 0 {
		want = plans.ExitCode(strings.Fields(s.words))
	}
	switch {
	case p.ended() && l.owes(t, s): // the step was an undo itself; but a start that failed is none that went well but for that
		l.unfinished(t, p, s, want)
		l.whole(t)
	case p.ended():
		if code := p.Wait(t, commandTimeout); code != want {
			t.Errorf("exit %d, want %d", code, want)
		}
		logs := strings.TrimSpace(p.Logs())
		if last := logs[strings.LastIndex(logs, "\n")+1:]; !regexp.MustCompile(`^ipipou: .*` + said).MatchString(last) {
			t.Errorf("its last line is %q, want the command and its failure in it", last)
		}
	default:
		p.WaitLog(t, `\w.*`+said, commandTimeout)
		stop(t, p)
	}
	l.restore()
	l.clean(t)
}

// told tells the program to end at a step: that has to be a clean end.
func (l *life) told(t *testing.T, s step) {
	p := l.startAt(t, "TERM", s)
	l.live(t, p)
	if code := p.Wait(t, commandTimeout); code != 0 {
		t.Errorf("exit %d, want 0", code)
	}
	if n := count(p.Logs(), "ERROR|^ipipou: "); n > 0 {
		t.Errorf("%d errors", n)
	}
	l.disarm(t)
	l.restore()
	l.clean(t)
}

// failsGoingDown has a step of the way down fail: the rest is done all the same, and this by the next start.
func (l *life) failsGoingDown(t *testing.T, s step) {
	p := l.up(t)
	l.arm(t, "fail", s)
	p.Signal(t, syscall.SIGTERM)
	l.unfinished(t, p, s, plans.ExitCleanup)
	l.restore()
}

// unfinished checks that the program ended with an undo that failed.
func (l *life) unfinished(t *testing.T, p *Proc, s step, want int) {
	t.Helper()
	if code := p.Wait(t, commandTimeout); code != want {
		t.Errorf("exit %d, want %d", code, want)
	}
	if n := count(p.Logs(), `ERROR undo failed .*`+regexp.QuoteMeta(s.words)+`.*\(injected failure\)`); n == 0 {
		t.Error("no error names the command")
	}
	l.disarm(t)
	l.left = true
}

// everywhere disturbs the program at each of its steps, one after the other: what one run leaves, the next one has to
// clean up. Thoroughly means: it is also ended in rarer ways, one of them at each step. In the machine, where all takes
// long, it is only killed, and of each kind of step in a phase only at the last, which leaves most behind. Who has the
// time gets all at each step (IPIPOU_LAB_LONG).
func (l *life) everywhere(thoroughly bool) {
	l.Helper()
	all := l.ns.Snapshot(l)
	l.undisturbed()
	at := func(what string, i int, steps []step, f func(*testing.T, step)) {
		if i < len(steps) && !l.Failed() { // one failure, or each is followed by others
			l.Run(fmt.Sprintf("%s %d", what, i+1), func(t *testing.T) {
				t.Logf("at %q", steps[i].words)
				f(t, steps[i])
			})
		}
	}
	everyStep := long() || !InGuest()
	killed := func(what string, i int, steps []step, f func(*testing.T, step)) {
		if everyStep || i < len(steps) && lastOfKind(steps, i) {
			at(what, i, steps, f)
		}
	}
	for i := range max(len(l.ups), len(l.downs)) {
		rarely := func(way int) bool { return long() || thoroughly && i%3 == way }
		killed("killed", i, l.ups, l.killed)
		if rarely(0) {
			at("killed before", i, l.ups, l.killedBefore)
		}
		killed("killed going down", i, l.downs, l.killedGoingDown)
		if everyStep {
			at("fails", i, l.ups, l.fails)
		}
		if rarely(1) {
			at("told to end", i, l.ups, l.told)
		}
		if rarely(2) {
			at("fails going down", i, l.downs, l.failsGoingDown)
		}
	}
	l.whole(l.T)
	SameState(l, l.ns.Name+" in the end", all, l.ns.Snapshot(l))
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), l.dir) {
		l.Errorf("something is still mounted in %s (%v)", l.dir, err)
	}
}
