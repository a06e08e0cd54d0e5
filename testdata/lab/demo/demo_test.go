package main

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// What goes well is shown, and checked, by `make demo`. Here is what goes not so well.

var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "demo")
	os.Chmod(dir, 0o755) // for nobody
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		panic(string(out))
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// demoCommand is the demo, with a directory of its own for the ipipou that it builds.
func demoCommand(t *testing.T) (cmd *exec.Cmd, cache string) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI has to run as root")
		}
		t.Skip("must be root")
	}
	cache = t.TempDir()
	cmd = exec.Command(program)
	cmd.Env = append(os.Environ(), "IPIPOU_LAB_CACHE="+cache)
	return cmd, cache
}

// Ctrl-C ends all the processes, and with the last one in them go the namespaces and what is mounted there.
func TestInterrupted(t *testing.T) {
	cmd, cache := demoCommand(t)
	run := entries(t, "/run", "/run/netns")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	shown := ""
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.Contains(lines.Text(), "peer bound at") {
		shown += lines.Text() + "\n"
	}
	if n := len(running(t, cache)); n < 4 {
		t.Errorf("the demo, the one inside, a server and a client should run, not %d processes:\n%s", n, shown)
	}
	cmd.Process.Signal(os.Interrupt)
	for lines.Scan() {
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 1 || stderr.String() != "demo: interrupted\n" {
		t.Errorf("exit %d after an interrupt, and %q", code, &stderr)
	}
	if left := running(t, cache); len(left) > 0 {
		t.Errorf("processes are left: %q", left)
	}
	if now := entries(t, "/run", "/run/netns"); now != run {
		t.Errorf("/run has %s, had %s", now, run)
	}
	if left := entries(t, filepath.Join(cache, "bin")); left != "" {
		t.Errorf("left of the build: %s", left)
	}
}

// entries are the names in directories.
func entries(t *testing.T, dirs ...string) string {
	t.Helper()
	all := ""
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, entry := range list {
			pkg, _, named := strings.Cut(entry.Name(), "-")
			if entry.Name() == "netns" || named && (pkg == "authd" || pkg == "plans") {
				continue // of packages whose tests run beside this one
			}
			all += " " + filepath.Join(dir, entry.Name())
		}
	}
	return all
}

// running are the processes that have the directory in their environment, as all that the demo starts.
func running(t *testing.T, dir string) (commands []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range all {
		if env, _ := os.ReadFile(process + "/environ"); bytes.Contains(env, []byte("IPIPOU_LAB_CACHE="+dir)) {
			command, _ := os.ReadFile(process + "/cmdline")
			commands = append(commands, string(command))
		}
	}
	return commands
}

// What the demo wants and can't have is one line, and no demo.
func TestRefused(t *testing.T) {
	for name, refusal := range map[string]struct {
		prepare func(*exec.Cmd)
		want    string
	}{
		"not root": {func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}, "demo: must be root: namespaces want it\n"},
		"no BPF in tc": {func(cmd *exec.Cmd) {
			dir := t.TempDir()
			script := "#!/bin/sh\n[ $1 = qdisc ] || { echo RTNETLINK answers: No such file or directory >&2; exit 2; }\n"
			if err := os.WriteFile(filepath.Join(dir, "tc"), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			cmd.Env = append(cmd.Env, "PATH="+dir+":"+os.Getenv("PATH"))
		}, "demo: this host has no BPF in tc: "},
	} {
		t.Run(name, func(t *testing.T) {
			cmd, cache := demoCommand(t)
			refusal.prepare(cmd)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			cmd.Run()
			said := stderr.String()
			if code := cmd.ProcessState.ExitCode(); code != 1 || !strings.HasPrefix(said, refusal.want) || strings.Count(said, "\n") != 1 {
				t.Errorf("exit %d and %q, want 1 and %q", code, said, refusal.want)
			}
			if left := entries(t, filepath.Join(cache, "bin")); left != "" {
				t.Errorf("left of the build: %s", left)
			}
		})
	}
}
