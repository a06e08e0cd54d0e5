package runner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ipipou/plans"
)

// fake is a host on which some commands fail.
type fake struct {
	ran     []string
	fail    map[string]string // command: stderr
	out     map[string]string
	ctx     func(command string)
	batches int
}

func (f *fake) exec(c plans.Command) (string, string, error) {
	line := strings.Join(c.Argv, " ")
	if head, ok := strings.CutSuffix(line, " -batch -"); ok {
		return f.batch(head, c.Stdin)
	}
	f.ran = append(f.ran, line)
	if f.ctx != nil {
		f.ctx(line)
	}
	if stderr, ok := f.fail[line]; ok {
		return "", stderr, errors.New("exit status 1")
	}
	return f.out[line], "", nil
}

func newRunner(t *testing.T, f *fake) *Runner {
	t.Helper()
	j, err := OpenJournal(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := j.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Runner{Exec: f.exec, Journal: j, Log: slog.New(slog.DiscardHandler)}
}

func c(line string) plans.Command {
	if line == "" {
		return plans.Command{}
	}
	return plans.Command{Argv: strings.Fields(line)}
}

func step(do, undo string) plans.Step { return plans.Step{Do: c(do), Undo: c(undo)} }

func TestRunAndUndoInReverse(t *testing.T) {
	f := &fake{}
	r := newRunner(t, f)
	p := plans.Plan{Steps: []plans.Step{step("a ${X}", "-a ${X}"), step("b", ""), step("c", "-c")}}
	if _, err := r.Run(t.Context(), p, map[string]string{"X": "1"}); err != nil {
		t.Fatal(err)
	}
	if err := r.Undo(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a 1", "b", "c", "-c", "-a 1"}, f.ran); diff != "" {
		t.Error(diff)
	}
	if left := r.Journal.Since(0); len(left) != 0 {
		t.Errorf("left in the journal: %v", left)
	}
}

func TestFailedStepUndoesWhatItsPlanDid(t *testing.T) {
	f := &fake{fail: map[string]string{"c": "RTNETLINK answers: no\n", "-b": "busy"}}
	r := newRunner(t, f)
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{step("earlier", "-earlier")}}, nil); err != nil {
		t.Fatal(err)
	}
	p := plans.Plan{Steps: []plans.Step{step("a", "-a"), step("b", "-b"), step("c", "-c"), step("d", "-d")}}
	_, err := r.Run(t.Context(), p, nil)
	var failed *StepError
	if !errors.As(err, &failed) || failed.Error() != "c: RTNETLINK answers: no" || !errors.Is(err, ErrUndo) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"earlier", "a", "b", "c", "-b", "-a"}, f.ran); diff != "" {
		t.Error(diff)
	}
	if left := r.Journal.Since(0); len(left) != 2 || left[0].Undo.Argv[0] != "-earlier" || left[1].Undo.Argv[0] != "-b" {
		t.Errorf("left in the journal: %v", left)
	}
}

func TestUnknownVariableRunsNothing(t *testing.T) {
	f := &fake{}
	r := newRunner(t, f)
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{step("a", "-a ${NO}")}}, nil); err == nil || len(f.ran) != 0 {
		t.Errorf("error %v, ran %v", err, f.ran)
	}
}

func TestUndoGoesOnPastAFailure(t *testing.T) {
	f := &fake{fail: map[string]string{"-b": "no"}}
	r := newRunner(t, f)
	p := plans.Plan{Steps: []plans.Step{step("a", "-a"), step("b", "-b"), step("c", "-c")}}
	if _, err := r.Run(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Undo(); !errors.Is(err, ErrUndo) {
		t.Errorf("error %v, want ErrUndo", err)
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "-c", "-b", "-a"}, f.ran); diff != "" {
		t.Error(diff)
	}
	// What could not be undone is not forgotten.
	if left := r.Journal.Since(0); len(left) != 1 || left[0].Undo.Argv[0] != "-b" {
		t.Errorf("left in the journal: %v", left)
	}
	f.fail["-b"] = "Cannot find device \"b\""
	if err := r.Undo(); !errors.Is(err, ErrUndo) {
		t.Errorf("error %v, want ErrUndo: somebody else took it away", err)
	}
	if left := r.Journal.Since(0); len(left) != 0 {
		t.Errorf("what is gone is still in the journal: %v", left)
	}
}

func TestWaysOn(t *testing.T) {
	exists := plans.Else{When: plans.Exists, Confirm: c("show"), Lines: []string{"port ${P}", "port ${P} *"}}
	other := plans.Else{When: plans.Unsupported, Name: "plain", Steps: []plans.Step{step("plain", "-plain")}}
	final := plans.Else{When: plans.Exists, Name: "end", Steps: []plans.Step{step("end", "-end")}, Final: true,
		Confirm: c("show"), Lines: []string{"end"}}
	p := plans.Plan{Steps: []plans.Step{
		{Do: c("add"), Undo: c("-add"), Else: []plans.Else{exists, other, final}},
		step("rest", "-rest"),
	}}
	for name, test := range map[string]struct {
		stderr, shown string
		ran           []string
		took          []string
		fails         bool
	}{
		"used, and not undone":     {"RTNETLINK answers: Address already in use", "x\nport 1 local\n", []string{"add", "show", "rest", "-rest"}, nil, false},
		"somebody else's":          {"RTNETLINK answers: Address already in use", "port 11\n", []string{"add", "show", "show"}, nil, true},
		"another way":              {"fou: unknown command \"peer\"?", "", []string{"add", "plain", "rest", "-rest", "-plain"}, []string{"plain"}, false},
		"another way to the end":   {"Operation already in progress", "end", []string{"add", "show", "show", "end", "-end"}, []string{"end"}, false},
		"a failure nobody thought": {"Operation not permitted", "", []string{"add"}, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{fail: map[string]string{"add": test.stderr}, out: map[string]string{"show": test.shown}}
			r := newRunner(t, f)
			took, err := r.Run(t.Context(), p, map[string]string{"P": "1"})
			if (err != nil) != test.fails {
				t.Fatalf("error %v", err)
			}
			if err := r.Undo(); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.ran, f.ran); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(test.took, took); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestKeysPassingAndTakeBack(t *testing.T) {
	f := &fake{fail: map[string]string{"look": "no such thing"}}
	r := newRunner(t, f)
	first := plans.Plan{Steps: []plans.Step{
		{Do: c("list"), Absent: "there is one", Lines: []string{"one *"}},
		{Do: c("load"), Unless: c("loaded")},
		{Do: c("never"), If: c("look")},
		{Do: c("addr"), Undo: c("-addr"), Key: "addr"},
		{Do: c("set"), Undo: c("-set"), Passing: true},
	}}
	second := plans.Plan{Steps: []plans.Step{
		{Do: c("addr"), Undo: c("-addr"), Key: "addr"}, // done, and pending: skipped
		{TakeBack: "addr"},
		{TakeBack: "nothing"},
	}}
	for _, p := range []plans.Plan{first, second} {
		if _, err := r.Run(t.Context(), p, nil); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"list", "loaded", "look", "addr", "set", "-addr"}, f.ran); diff != "" {
		t.Error(diff)
	}
	if left := r.Journal.Since(0); len(left) != 0 {
		t.Errorf("left in the journal: %v", left)
	}
	f.out = map[string]string{"list": "two\none of them\n"}
	if _, err := r.Run(t.Context(), first, nil); err == nil || err.Error() != "list: there is one" {
		t.Errorf("error %v", err)
	}
	// What can't be taken back ends its plan, and is named.
	f.fail["-addr"] = "busy"
	back := plans.Plan{Steps: []plans.Step{second.Steps[0], second.Steps[1]}}
	if _, err := r.Run(t.Context(), back, nil); err == nil || !strings.HasPrefix(err.Error(), "-addr: clean-up failed") {
		t.Errorf("error %v", err)
	}
	delete(f.fail, "-addr")
	if err := r.Undo(); err != nil {
		t.Error(err)
	}
}

func TestInterruptedBetweenSteps(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := &fake{ctx: func(line string) {
		if line == "b" {
			cancel()
		}
	}}
	r := newRunner(t, f)
	_, err := r.Run(ctx, plans.Plan{Steps: []plans.Step{step("a", "-a"), step("b", "-b"), step("c", "-c")}}, nil)
	if !errors.Is(err, ErrInterrupted) {
		t.Errorf("error %v", err)
	}
	if diff := cmp.Diff([]string{"a", "b", "-b", "-a"}, f.ran); diff != "" {
		t.Error(diff)
	}
}

// The undo must be on disk when its step runs, and a later process must find
// what a dead one left.
func TestJournalIsWrittenAhead(t *testing.T) {
	dir := t.TempDir()
	j, err := OpenJournal(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "x.journal")
	var during string
	f := &fake{ctx: func(line string) {
		if line == "b" {
			data, _ := os.ReadFile(path)
			during = string(data)
		}
	}}
	r := &Runner{Exec: f.exec, Journal: j, Log: slog.New(slog.DiscardHandler)}
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{step("a", "-a"), step("b", "-b")}}, nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(during, `"-b"`) {
		t.Errorf("while b ran the journal was\n%s", during)
	}
	if _, err := OpenJournal(dir, "x"); !errors.Is(err, ErrRunning) || !strings.Contains(err.Error(), fmt.Sprint(os.Getpid())) {
		t.Errorf("a second instance: %v", err)
	}
	// As if the process had died: the lock goes with its file.
	if err := j.lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenJournal(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	f = &fake{fail: map[string]string{"-b": "Cannot find device \"b\""}}
	r = &Runner{Exec: f.exec, Journal: again, Log: slog.New(slog.DiscardHandler)}
	if err := r.Recover(); err != nil {
		t.Errorf("an object that isn't there is no fault after a crash: %v", err)
	}
	if diff := cmp.Diff([]string{"-b", "-a"}, f.ran); diff != "" {
		t.Error(diff)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("files left: %v", left)
	}
}

func TestJournalStaysSmall(t *testing.T) {
	j, err := OpenJournal(t.TempDir(), "x")
	if err != nil {
		t.Fatal(err)
	}
	for range 500 {
		id, err := j.Note(Entry{Undo: c("-a"), Passing: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := j.Drop(id); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(j.path); err != nil || info.Size() > 64<<10 {
		t.Errorf("%v %v", info.Size(), err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

// A command that was killed may have changed the host: its undo is run.
func TestTimeoutIsUndone(t *testing.T) {
	f := &fake{}
	r := newRunner(t, f)
	r.Exec = func(cmd plans.Command) (string, string, error) {
		f.ran = append(f.ran, cmd.Argv[0])
		if cmd.Argv[0] == "a" {
			return "", "", ErrKilled
		}
		return "", "", nil
	}
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{step("a", "-a")}}, nil); !errors.Is(err, ErrKilled) {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"a", "-a"}, f.ran); diff != "" {
		t.Error(diff)
	}
}

// What a step asks is known to later ones and to the caller.
func TestAsk(t *testing.T) {
	f := &fake{out: map[string]string{"index of eth0": "12: eth0: mtu 1500\n", "none": ""}}
	r := newRunner(t, f)
	ask := func(line string, word, less int) plans.Step {
		return plans.Step{Ask: plans.Var{Name: "N", Query: c(line), Word: word, Number: true, Less: less, Missing: "no such number"}}
	}
	vars := map[string]string{"DEV": "eth0"}
	p := plans.Plan{Steps: []plans.Step{ask("index of ${DEV}", 4, 28), step("use ${N} ${N.le32} ${N.be16}", "")}}
	if _, err := r.Run(t.Context(), p, vars); err != nil || vars["N"] != "1472" {
		t.Errorf("N is %q (%v)", vars["N"], err)
	}
	if diff := cmp.Diff([]string{"index of eth0", "use 1472 192 5 0 0 5 192"}, f.ran); diff != "" {
		t.Error(diff)
	}
	p.Steps = []plans.Step{step("a", "-a"), ask("none", 1, 0)}
	_, err := r.Run(t.Context(), p, vars)
	if err == nil || err.Error() != "none: no such number" {
		t.Errorf("error %v", err)
	}
	if f.ran[len(f.ran)-1] != "-a" {
		t.Errorf("the last that ran is %s, want -a", f.ran[len(f.ran)-1])
	}
}

// A failure that is known to be final is told in words, with the line that says it.
func TestElseError(t *testing.T) {
	f := &fake{fail: map[string]string{"load": "libbpf: load failed\n1: (85) call unknown#152\nunknown func bpf_redirect_neigh#152\nprocessed 2 insns\n"}}
	r := newRunner(t, f)
	s := step("load", "")
	s.Else = []plans.Else{{When: plans.NoHelper, Error: "take another kernel"}}
	_, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{s}}, nil)
	if err == nil || err.Error() != "load: take another kernel (unknown func bpf_redirect_neigh#152)" {
		t.Errorf("error %v", err)
	}
}

// An undo is left out where its look fails, and a step is taken back only where its own says so.
func TestLooksBeforeUndos(t *testing.T) {
	f := &fake{fail: map[string]string{"mounted": "no"}}
	r := newRunner(t, f)
	filter := step("filter", "-filter")
	filter.Key = "filter"
	back := plans.Step{TakeBack: "filter", Unless: c("there")}
	p := plans.Plan{Steps: []plans.Step{{Undo: c("umount"), UndoIf: c("mounted")}, filter, back, filter}}
	if _, err := r.Run(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	f.fail["there"] = "no"
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{back, filter}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Undo(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"filter", "there", "there", "-filter", "filter", "-filter", "mounted"}, f.ran); diff != "" {
		t.Error(diff)
	}
}

func TestCheckNamesTheMissingProgram(t *testing.T) {
	setPath(t, t.TempDir())
	err := Check(slices.Values([]plans.Plan{
		{Steps: []plans.Step{{Do: c("modprobe fou"), Unless: c("ip fou show")}}},
		{Steps: []plans.Step{step("nft -f -", ""), step("ip link add", "")}},
	}))
	var failed *StepError
	if !errors.As(err, &failed) || plans.ExitCode(failed.Command.Argv) != plans.ExitNft ||
		!strings.Contains(err.Error(), "nft is not installed") {
		t.Errorf("error %v", err)
	}
}

func TestDirIsOursAlone(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IPIPOU_RUN_DIR", dir)
	if got, _, err := Dir(); err != nil || got != dir {
		t.Errorf("%s %v", got, err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Dir(); err == nil {
		t.Error("a directory that everybody can write is accepted")
	}
}

// What others need stays, but for good only if it isn't our own that could not be undone and needs it.
func TestUndoNeededByWhatFailed(t *testing.T) {
	f := &fake{out: map[string]string{"look": "a filter"}, fail: map[string]string{"-filter": "busy"}}
	r := newRunner(t, f)
	p := plans.Plan{Steps: []plans.Step{
		{Do: c("qdisc"), Undo: c("-qdisc"), UndoUnless: []plans.Command{c("look")}},
		{Do: c("filter"), Undo: c("-filter"), UndoIf: c("there")},
	}}
	if _, err := r.Run(t.Context(), p, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Undo(); !errors.Is(err, ErrUndo) || len(r.Journal.Since(0)) != 2 {
		t.Errorf("error %v, left are %v, want both", err, r.Journal.Since(0))
	}
	f.fail, f.out, f.ran = nil, nil, nil
	if err := r.Recover(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"there", "-filter", "look", "-qdisc"}, f.ran); diff != "" {
		t.Error(diff)
	}
}

func TestForget(t *testing.T) {
	f := &fake{}
	r := newRunner(t, f)
	if _, err := r.Run(context.Background(), plans.Plan{Steps: []plans.Step{step("a", "a back"), step("b", "b back")}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(plans.Plan{Steps: []plans.Step{step("", "a back"), step("c", "")}}); err != nil {
		t.Fatal(err)
	}
	if err := r.Undo(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b", "b back"}, f.ran); diff != "" {
		t.Error(diff)
	}
}

// What is said names what the host was found to have.
func TestElseSays(t *testing.T) {
	f := &fake{fail: map[string]string{"make eth0": "File exists"}}
	r := newRunner(t, f)
	var said strings.Builder
	r.Log = slog.New(slog.NewTextHandler(&said, nil))
	p := plans.Plan{Steps: []plans.Step{{Do: c("make ${DEV}"), Else: []plans.Else{{When: plans.Exists, Say: "${DEV} has it already"}}}}}
	if _, err := r.Run(t.Context(), p, map[string]string{"DEV": "eth0"}); err != nil || !strings.Contains(said.String(), `"eth0 has it already"`) {
		t.Errorf("%v, said %q", err, &said)
	}
}

// What may be somebody else's is noted for undoing only once it is known to be ours: a kill may come between.
func TestTaken(t *testing.T) {
	f := &fake{out: map[string]string{"list": "table of theirs\n"}, fail: map[string]string{"make theirs": "File exists"}}
	r := newRunner(t, f)
	pending := map[string]int{}
	f.ctx = func(line string) { pending[line] = len(r.Journal.Since(0)) }
	make := func(name string) plans.Step {
		return plans.Step{
			Do: c("make " + name), Undo: c("delete " + name), Taken: c("list"), Lines: []string{"table of " + name},
			Else: []plans.Else{{When: plans.Exists, Say: "it is used, and will stay"}},
		}
	}
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{make("theirs"), make("ours")}}, nil); err != nil {
		t.Fatal(err)
	}
	if pending["make theirs"] != 0 || pending["make ours"] != 1 {
		t.Errorf("%d undos were pending when theirs was tried, %d when ours was", pending["make theirs"], pending["make ours"])
	}
	if diff := cmp.Diff([]string{"list", "make theirs", "list", "make ours"}, f.ran); diff != "" {
		t.Error(diff)
	}
	// It was gone by then.
	f.fail = nil
	if _, err := r.Run(t.Context(), plans.Plan{Steps: []plans.Step{make("theirs")}}, nil); err != nil {
		t.Fatal(err)
	}
	if left := r.Journal.Since(0); pending["make theirs"] != 1 || len(left) != 2 || left[1].Undo.String() != "delete theirs" {
		t.Errorf("%d undos were pending when it was tried, %v are", pending["make theirs"], left)
	}
}
