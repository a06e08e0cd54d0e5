package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"ipipou/plans"
	"ipipou/runner"
)

// Each shell takes its script and completes with it.
func TestCompletion(t *testing.T) {
	cases := []struct{ line, want string }{
		{"ipipou sta", "status"},
		{"ipipou comp", "completion"},
		{"ipipou completion fi", "fish"},
		{"ipipou --mode si", "sit"},
		{"ipipou --mode=is", "isatap"},
		{"ipipou check --backend k", "kernel"},
		{"ipipou --auth-key-ty", "--auth-key-type"},
		{"ipipou status --wa", "--watch"},
		{"ipipou down --wa", ""}, // not its own
		{"ipipou --config off", "office"},
		{"ipipou -s --config ho", "home"},
		{"ipipou diff -n 3 --config ho", "home"},
		{"ipipou status ru", "running"},
		{"ipipou down ru", "running"},
		{"ipipou down un", "unit"},
		{"ipipou confirm ho", ""}, // does not run
		{"ipipou down one ru", "running"},
		{"ipipou convert ./ho", "./home.conf"},
		{"ipipou --auth-key-file ./ke", "./key"},
		{"ipipou --auth-token ke", ""},
		{"ipipou --fou-dev=l", "lo"},
	}
	for shell, complete := range map[string]func(t *testing.T, script string, lines []string) []string{
		"bash":            inBash,
		"fish":            inFish,
		"zsh":             inZsh("autoload -U compinit; compinit -u; source ./_ipipou"),
		"zsh, autoloaded": inZsh("fpath=($PWD $fpath); autoload -U compinit; compinit -u"),
	} {
		t.Run(shell, func(t *testing.T) {
			t.Parallel()
			shell, _, _ := strings.Cut(shell, ",")
			if _, err := exec.LookPath(shell); err != nil && os.Getenv("CI") == "" {
				t.Skip(err)
			}
			dir := t.TempDir()
			if err := os.Mkdir(filepath.Join(dir, "unit"), 0o700); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"office.toml", "home.conf", "running.journal", "unit/unit.journal", "key"} {
				if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			script := strings.ReplaceAll(printed(t, "completion", shell), plans.ConfigDir, dir)
			script = strings.ReplaceAll(script, runner.RunDir, dir)
			lines := make([]string, len(cases))
			for i, c := range cases {
				lines[i] = c.line
			}
			path := filepath.Join(dir, "_ipipou")
			if err := os.WriteFile(path, []byte(script), 0o600); err != nil {
				t.Fatal(err)
			}
			got := complete(t, path, lines)
			for i, c := range cases {
				if got[i] != c.want {
					t.Errorf("%s<Tab>: %q, want %q", c.line, got[i], c.want)
				}
			}
		})
	}
}

// printed is what the program prints.
func printed(t *testing.T, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(args, &out, &errs); code != 0 || errs.Len() > 0 {
		t.Fatalf("%v: exit code %d, %s", args, code, errs.String())
	}
	return out.String()
}

// output is what a shell prints, in the folder of the script.
func output(t *testing.T, script string, argv ...string) string {
	t.Helper()
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir = filepath.Dir(script)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir, "TERM=dumb", "LC_ALL=C.UTF-8"}
	var errs bytes.Buffer
	c.Stderr = &errs
	out, err := c.Output()
	if err != nil || errs.Len() > 0 {
		t.Fatalf("%s: %v\n%s", argv[0], err, errs.String())
	}
	return string(out)
}

func inBash(t *testing.T, script string, lines []string) (got []string) {
	text := "source " + script + "\n"
	for _, line := range lines {
		words := strings.Fields(strings.ReplaceAll(line, "=", " = "))
		text += "COMP_WORDS=(" + strings.Join(words, " ") + "); COMP_CWORD=" + strconv.Itoa(len(words)-1) + "; _ipipou; echo \"${COMPREPLY[*]}\"\n"
	}
	return strings.SplitN(output(t, script, "bash", "--norc", "-c", text), "\n", len(lines)+1)
}

func inFish(t *testing.T, script string, lines []string) (got []string) {
	text := "source " + script + "\n"
	for _, line := range lines {
		text += "echo (complete -C '" + line + "' | string replace -r '\\t.*' '')\n"
	}
	got = strings.SplitN(output(t, script, "fish", "--no-config", "-c", text), "\n", len(lines)+1)
	for i := range lines {
		if _, value, ok := strings.Cut(got[i], "="); ok {
			got[i] = value // fish says the word with its flag
		}
	}
	return got
}

// inZsh types the lines into a zsh with a terminal, for its completion is a part of the
// line editor.
func inZsh(load string) func(t *testing.T, script string, lines []string) []string {
	// Each line waits until the one before it has been reported.
	const typing = `
zmodload zsh/zpty zsh/zselect
zpty -b z zsh -f -i
zpty -w z "source ./inner"
zpty -r -m z line "*ready*"
: > out
integer n=0
for line in "$@"; do
	zpty -w -n z "$line"$'\t'$'\024'
	(( n++ ))
	repeat 3000; do
		zpty -r -t z line
		(( $(wc -l < out) == n )) && break
		zselect -t 1
	done
done
zpty -d z
cat out`
	return func(t *testing.T, script string, lines []string) (got []string) {
		inner := load + `
report() { print -r -- "$BUFFER" >> out; BUFFER= }
zle -N report; bindkey "^T" report; unsetopt beep auto_menu auto_list
PS1= ; print ready`
		if err := os.WriteFile(filepath.Join(filepath.Dir(script), "inner"), []byte(inner), 0o600); err != nil {
			t.Fatal(err)
		}
		words := slices.Concat([]string{"zsh", "-f", "-c", typing, "zsh"}, lines)
		typed := strings.SplitN(output(t, script, words...), "\n", len(lines)+1)
		for i, line := range lines {
			got = append(got, "")
			if now := strings.TrimRight(typed[i], " ="); now != line {
				got[i] = strings.TrimPrefix(now, line[:strings.LastIndexAny(line, " =")+1])
			}
		}
		return got
	}
}

// A bare -- is completed to every flag, and the script is a good one.
func TestCompletionKnowsAll(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	path := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(path, []byte(printed(t, "completion", "bash")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("shellcheck", "-s", "bash", path).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	got := strings.Fields(inBash(t, path, []string{"ipipou --"})[0])
	for _, o := range plans.Options {
		if !slices.Contains(got, "--"+o.Name) {
			t.Errorf("--%s is not completed", o.Name)
		}
	}
}
