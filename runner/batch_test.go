package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ipipou/plans"
)

// batch runs lines as `ip -batch -` does. A failure that ends in "usage" ends the program.
func (f *fake) batch(head, lines string) (stdout, stderr string, err error) {
	head, force := strings.CutSuffix(head, " -force")
	f.batches++
	for i, line := range strings.Split(strings.TrimSuffix(lines, "\n"), "\n") {
		out, said, fault := f.exec(c(head + " " + line))
		stdout += out
		if fault == nil {
			continue
		}
		err, stderr = fault, stderr+said+"\n"
		if strings.HasSuffix(said, "usage") {
			return stdout, stderr, err
		}
		stderr += fmt.Sprintf("Command failed -:%d\n", i+1)
		if !force {
			return stdout, stderr, err
		}
	}
	return stdout, stderr, err
}

func TestBatch(t *testing.T) {
	exists := plans.Else{When: plans.Exists, Say: "it exists", Steps: []plans.Step{step("ip way on", "ip way back")}}
	three := func() plans.Plan {
		second := step("ip add b", "ip del b")
		second.Else = []plans.Else{exists, {When: plans.Unsupported, Say: "unknown", Steps: []plans.Step{step("ip old b", "ip del old b")}}}
		return plans.Plan{Name: "up", Steps: []plans.Step{
			step("ip add a", "ip del a"), step("ip up a", ""), second, step("ip add c", "ip del c"), step("nft x", "nft y"),
			step("ip -6 add d", "ip -6 del d"),
		}}
	}
	for name, test := range map[string]struct {
		fail    map[string]string
		ran     string // and echoed
		batches int
		left    string // the undos that are pending
		err     string
	}{
		"all well": {
			ran:     "ip add a, ip up a, ip add b, ip add c, nft x, ip -6 add d",
			batches: 1,
			left:    "ip del a, ip del b, ip del c, nft y, ip -6 del d",
		},
		"a way on": {
			fail:    map[string]string{"ip add b": "RTNETLINK answers: File exists"},
			ran:     "ip add a, ip up a, ip add b, ip way on, ip add c, nft x, ip -6 add d",
			batches: 1,
			left:    "ip del a, ip way back, ip del c, nft y, ip -6 del d",
		},
		"the last fails": {
			fail:    map[string]string{"ip add c": "no room"},
			ran:     "ip add a, ip up a, ip add b, ip add c, ip del b, ip del a",
			batches: 2,
			err:     "ip add c: no room",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fake{fail: test.fail}
			r := newRunner(t, f)
			var echoed []string
			r.Echo = func(c plans.Command) { echoed = append(echoed, c.String()) }
			_, err := r.Run(context.Background(), three(), map[string]string{})
			if got := strings.Join(f.ran, ", "); got != test.ran {
				t.Errorf("ran %s\nwant %s", got, test.ran)
			}
			if got := strings.Join(echoed, ", "); got != test.ran {
				t.Errorf("echoed %s\nwant %s", got, test.ran)
			}
			if f.batches != test.batches {
				t.Errorf("%d batches, want %d", f.batches, test.batches)
			}
			var left []string
			for _, e := range r.Journal.Since(0) {
				left = append(left, e.Undo.String())
			}
			if got := strings.Join(left, ", "); got != test.left {
				t.Errorf("pending %s\nwant %s", got, test.left)
			}
			if got := fmt.Sprint(err); test.err != "" && got != test.err || test.err == "" && err != nil {
				t.Errorf("error %v, want %q", err, test.err)
			}
		})
	}
}

// Some errors end the program, and it doesn't tell the line.
func TestBatchEndsUntold(t *testing.T) {
	second := step("ip add b", "ip del b")
	second.Else = []plans.Else{{When: plans.Unsupported, Say: "unknown", Steps: []plans.Step{step("ip old b", "ip del old b")}}}
	// What has been done says so when it is done again.
	done := map[string]bool{}
	f := &fake{fail: map[string]string{"ip add b": "unknown command, usage"}}
	f.ctx = func(line string) {
		if done[line] && line == "ip add a" {
			f.fail[line] = "File exists"
		}
		done[line] = true
	}
	r := newRunner(t, f)
	_, err := r.Run(context.Background(), plans.Plan{Steps: []plans.Step{
		step("ip add a", "ip del a"), step("ip up a", ""), second, step("ip add c", "ip del c"), step("ip up c", ""),
	}}, map[string]string{})
	if err != nil {
		t.Fatal(err)
	}
	want := "ip del a, ip del old b, ip del c"
	var left []string
	for _, e := range r.Journal.Since(0) {
		left = append(left, e.Undo.String())
	}
	if got := strings.Join(left, ", "); got != want {
		t.Errorf("pending %s, want %s; ran %q", got, want, f.ran)
	}
	// And on the way down each is undone though one ends the program.
	f.ran, f.ctx = nil, nil
	f.fail = map[string]string{"ip del c": "usage"}
	if err := r.Undo(); !errors.Is(err, ErrUndo) {
		t.Errorf("undo: %v", err)
	}
	for _, line := range []string{"ip del old b", "ip del a"} {
		if !strings.Contains(strings.Join(f.ran, ","), line) {
			t.Errorf("%s was not run: %q", line, f.ran)
		}
	}
	if got := r.Journal.Since(0); len(got) != 1 || got[0].Undo.String() != "ip del c" {
		t.Errorf("pending %v, want what failed", got)
	}
}

// A batch that was killed may have been done to any line.
func TestBatchTimeout(t *testing.T) {
	f := &fake{}
	r := newRunner(t, f)
	r.Exec = func(c plans.Command) (string, string, error) {
		if c.Argv[1] == "-batch" {
			return "", "", fmt.Errorf("%w after 10s", ErrKilled)
		}
		return f.exec(c)
	}
	f.fail = map[string]string{"ip del b": "Cannot find device"}
	_, err := r.Run(context.Background(), plans.Plan{Steps: []plans.Step{step("ip add a", "ip del a"), step("ip add b", "ip del b")}}, map[string]string{})
	if want := "ip add a (or one of 1 after it): killed after 10s"; fmt.Sprint(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
	if diff := cmp.Diff([]string{"ip del b", "ip del a"}, f.ran); diff != "" {
		t.Error(diff)
	}
	if left := r.Journal.Since(0); len(left) > 0 {
		t.Errorf("pending %v", left)
	}
}

// What must not be there is looked for once, and questions are one process too.
func TestBatchOfLooks(t *testing.T) {
	absent := func(name string) plans.Step {
		return plans.Step{Do: c("ip -br link show"), Absent: name + " exists already", Lines: []string{name + " *", name + "@*"}}
	}
	f := &fake{fail: map[string]string{}, out: map[string]string{"ip -br link show": "lo  UNKNOWN\nab  UP\nc@s0  UP\n"}}
	r := newRunner(t, f)
	if _, err := r.Run(context.Background(), plans.Plan{Steps: []plans.Step{absent("a"), absent("b")}}, nil); err != nil || len(f.ran) != 1 {
		t.Errorf("%v, after %q", err, f.ran)
	}
	_, err := r.Run(context.Background(), plans.Plan{Steps: []plans.Step{absent("a"), absent("c"), absent("b")}}, nil)
	if want := "ip -br link show: c exists already"; fmt.Sprint(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}

	ask := func(name string) plans.Step {
		return plans.Step{Ask: plans.Var{Name: "INDEX_" + name, Query: c("ip -o link show dev " + name), Word: 1, Number: true, Missing: "no " + name}}
	}
	f.out = map[string]string{"ip -o link show dev x": "7: x: <UP>\n", "ip -o link show dev y": "8: y: <UP>\n"}
	vars := map[string]string{}
	if _, err := r.Run(context.Background(), plans.Plan{Steps: []plans.Step{ask("x"), ask("y")}}, vars); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"INDEX_x": "7", "INDEX_y": "8"}, vars); diff != "" {
		t.Error(diff)
	}
	f.fail["ip -o link show dev y"] = "does not exist"
	_, err = r.Run(context.Background(), plans.Plan{Steps: []plans.Step{ask("x"), ask("y")}}, vars)
	if want := "ip -o link show dev y: no y"; fmt.Sprint(err) != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// What the operator's own commands may look like is run as he wrote it.
func TestBatchTakesNoStrangeOptions(t *testing.T) {
	lines := []string{
		"ip -n blue link set lo up", "ip -n blue route add default dev lo", "tc -n blue qdisc add dev lo clsact", "tc -n blue qdisc show",
		"ip -batch one", "ip -batch two", "ip netns exec blue cat", "ip net e blue cat", "ip vrf exec red cat", "ip vrf exec red cat",
	}
	f := &fake{}
	r := newRunner(t, f)
	var p plans.Plan
	for _, l := range lines {
		p.Steps = append(p.Steps, step(l, ""))
	}
	if _, err := r.Run(context.Background(), p, map[string]string{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lines, f.ran); diff != "" || f.batches != 0 {
		t.Errorf("%d batches; ran (- want, + got):\n%s", f.batches, diff)
	}
}
