package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// setPath makes programs be looked for elsewhere, until the test ends.
func setPath(t *testing.T, path string) {
	t.Helper()
	before := Path
	t.Cleanup(func() { Path = before })
	Path = path
}

func TestCommand(t *testing.T) {
	run := Command(time.Minute)
	out, _, err := run(plans.Command{Argv: []string{"sh", "-c", "cat; echo $LC_ALL"}, Stdin: "in "})
	if err != nil || out != "in C\n" {
		t.Errorf("%q %v", out, err)
	}
	_, stderr, err := run(c("ls /nonexistent"))
	if err == nil || !strings.Contains(stderr, "No such file") {
		t.Errorf("%q %v", stderr, err)
	}
	_, _, err = Command(50 * time.Millisecond)(c("sleep 60"))
	if !errors.Is(err, ErrKilled) {
		t.Errorf("error %v, want ErrKilled", err)
	}
	_, _, err = run(plans.Command{Argv: []string{"sh", "-c", "kill -9 $$"}})
	if !errors.Is(err, ErrKilled) {
		t.Errorf("error %v, want ErrKilled", err)
	}
	_, _, err = run(c("no-such-program"))
	if err == nil {
		t.Error("a missing program ran")
	}
}

// What a command prints is read while it runs, and its input written, however much there is of either.
func TestCommandsPipes(t *testing.T) {
	run := Command(time.Minute)
	for _, size := range []int{1, pipePage, pipePage + 1, 1 << 20} {
		text := strings.Repeat("x", size)
		for _, in := range []plans.Command{{Stdin: text}, {Data: []byte(text)}} {
			in.Argv = []string{"sh", "-c", "tee /dev/fd/2"}
			out, stderr, err := run(in)
			if err != nil || out != text || stderr != text {
				t.Errorf("%d bytes: %d and %d are back (%v)", size, len(out), len(stderr), err)
			}
		}
		in := plans.Command{Argv: []string{"true"}, Stdin: text} // which does not read it
		if _, _, err := run(in); err != nil {
			t.Errorf("%d bytes that nobody reads: %v", size, err)
		}
	}
	if out, _, err := run(c("cat")); err != nil || out != "" {
		t.Errorf("without input: %q %v", out, err)
	}
}

// fakeIP is an ip whose batches are run as lines of shell.
func fakeIP(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	text := "#!/bin/sh\nn=0\nwhile read -r line; do n=$((n + 1)); eval \"$line\" || { echo Command failed -:$n >&2; exit 1; }; done\n"
	if err := os.WriteFile(filepath.Join(dir, "ip"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	setPath(t, dir+":"+Path)
}

// A batch takes as long as it takes, while its commands do not.
func TestBatchesTime(t *testing.T) {
	fakeIP(t)
	batch := func(limit time.Duration, lines ...string) (string, string, error) {
		return Command(limit)(plans.Command{Argv: []string{"ip", "-batch", "-"}, Stdin: strings.Join(lines, "\n") + "\n"})
	}
	out, _, err := batch(2*time.Second, "sleep 0.6", "echo 2", "sleep 0.6", "sleep 0.6", "sleep 0.6", "echo 6")
	if err != nil || out != "2\n6\n" {
		t.Errorf("%q %v, want all done", out, err)
	}
	out, _, err = batch(100*time.Millisecond, "echo 1", "sleep 60", "echo 3")
	if !errors.Is(err, ErrKilled) || out != "1\n" {
		t.Errorf("%q %v, want it killed at the second", out, err)
	}
	out, stderr, err := batch(time.Minute, "echo 1", "false", "echo 3")
	if err == nil || errors.Is(err, ErrKilled) || out != "1\n" || stderr != "Command failed -:2\n" {
		t.Errorf("%q %q %v, want it ended at the second", out, stderr, err)
	}
	out, _, err = batch(time.Minute, "echo "+strings.Repeat("x", 3*pipePage), "exec sleep 0", "echo 3")
	if err != nil || out != strings.Repeat("x", 3*pipePage)+"\n" {
		t.Errorf("%d bytes, %v: want it ended well at the second", len(out), err)
	}
	if _, _, err := batch(100*time.Millisecond, "exec sleep 60 >&- 2>&-", "echo 2"); !errors.Is(err, ErrKilled) {
		t.Errorf("error %v, want ErrKilled of what has no output and does not end", err)
	}
}

// What a command has started may hold its output, or print on: it has ended nevertheless.
func TestCommandsThatLeaveOthers(t *testing.T) {
	run := Command(20 * time.Second)
	for _, left := range []string{"sleep 60", "while sleep 0.1; do echo again; done"} {
		out, _, err := run(plans.Command{Argv: []string{"sh", "-c", "echo begun; ( " + left + " ) & echo $!"}})
		lines := strings.SplitN(out, "\n", 3)
		if err != nil || len(lines) < 3 || lines[0] != "begun" {
			t.Errorf("%s: %q %v", left, out, err)
			continue
		}
		if _, _, err := run(c("kill " + lines[1])); err != nil {
			t.Errorf("%s: not left running: %v", left, err)
		}
	}
	// One that gives its output up is awaited, and killed as any other.
	if _, _, err := Command(50 * time.Millisecond)(plans.Command{Argv: []string{"sh", "-c", "exec >&- 2>&-; exec sleep 60"}}); !errors.Is(err, ErrKilled) {
		t.Errorf("without output: %v, want ErrKilled", err)
	}
}

// All that a process printed is there, also if it is seen to have ended before it was read.
func TestOutputsOfOneThatEnded(t *testing.T) {
	p, err := newPipes()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	const size = 60_000 // a pipe has room for it
	cmd := exec.Command("sh", "-c", fmt.Sprintf("head -c %d /dev/zero | tee /dev/fd/2", size))
	cmd.Stdout, cmd.Stderr = p.theirs[1], p.theirs[2]
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	p.serve(cmd.Process, 0) // while we hold its outputs, too
	if err := cmd.Wait(); err != nil || p.text[1].Len() != size || p.text[2].Len() != size {
		t.Errorf("%d and %d bytes, want %d (%v)", p.text[1].Len(), p.text[2].Len(), size, err)
	}
}

// Nothing of the caller's environment gets to a command, and it is found in Path alone.
func TestCommandsEnvironment(t *testing.T) {
	run := Command(time.Minute)
	t.Setenv("IPIPOU_SECRET", "hunter2")
	t.Setenv("LD_LIBRARY_PATH", "/nonexistent")
	t.Setenv("LC_ALL", "de_DE.UTF-8")
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for _, name := range []string{"env", "own"} {
		script := "#!/bin/sh\necho " + name + " of the caller\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out, _, err := run(c("env"))
	if want := "PATH=" + Path + "\nLC_ALL=C\nLANGUAGE=\n"; err != nil || out != want {
		t.Errorf("the environment is %q (%v), want %q", out, err, want)
	}
	for name, want := range map[string]string{
		"own":              "own is not installed, or not in PATH (" + Path + ")",
		dir + "/nosuch":    dir + "/nosuch can't be run: ",
		dir:                dir + " can't be run: ",
		"":                 " is not installed",
		"../" + dir + "/x": "can't be run: ",
	} {
		_, err := LookPath(name)
		_, _, ran := run(plans.Command{Argv: []string{name}})
		if err == nil || !strings.Contains(err.Error(), want) || ran == nil || ran.Error() != err.Error() {
			t.Errorf("%q: %v, and run: %v; want %s", name, err, ran, want)
		}
	}
	if out, _, err := run(c(dir + "/own")); err != nil || out != "own of the caller\n" {
		t.Errorf("by its full name: %q %v", out, err)
	}
	setPath(t, dir+":"+Path)
	if out, _, err := run(c("env")); err != nil || out != "env of the caller\n" {
		t.Errorf("the first of two: %q %v", out, err)
	}
	if err := os.Remove(filepath.Join(dir, "env")); err != nil {
		t.Fatal(err)
	}
	if out, _, err := run(c("env")); err != nil || !strings.HasPrefix(out, "PATH=") {
		t.Errorf("the other, when the first is gone: %q %v", out, err)
	}
}

// A command does not outlive a kill -9 of ours: the next start may begin at once.
func TestCommandsDieWithUs(t *testing.T) {
	const name = "IPIPOU_TEST_DIES" // where the process that is killed has its command write its number
	if file := os.Getenv(name); file != "" {
		Command(time.Minute)(plans.Command{Argv: []string{"sh", "-c", `echo $$ >"$0"; exec sleep 60`, file}})
		return
	}
	file := filepath.Join(t.TempDir(), "pid")
	us := exec.Command(os.Args[0], "-test.run=^TestCommandsDieWithUs$")
	us.Env = append(os.Environ(), name+"="+file)
	if err := us.Start(); err != nil {
		t.Fatal(err)
	}
	await := func(what string, so func() bool) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); !so(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				us.Process.Kill()
				t.Fatal(what)
			}
		}
	}
	pid := ""
	await("the command was not started", func() bool {
		text, _ := os.ReadFile(file)
		line, written := strings.CutSuffix(string(text), "\n")
		pid = line
		return written
	})
	if err := us.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	us.Wait()
	await("the command lives on", func() bool {
		status, err := os.ReadFile("/proc/" + pid + "/status")
		return err != nil || strings.Contains(string(status), "State:\tZ") // where nobody reaps
	})
}
