package instance

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// A lock names a process that does not hold it, as one of another PID namespace or
// one that got the number later: it gets no signal.
func TestDownLeavesStrangersAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("IPIPOU_RUN_DIR", dir)
	stranger := exec.Command("sleep", "60")
	if err := stranger.Start(); err != nil {
		t.Fatal(err)
	}
	defer stranger.Wait()
	defer stranger.Process.Kill()
	path := filepath.Join(dir, "office.lock")
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ text, want string }{
		{fmt.Sprintln(stranger.Process.Pid), "does not hold " + path},
		{fmt.Sprintln(gone.Process.Pid), "no such process"},
		{"", path + " names no process"},
		{"-1\n", path + " names no process"},
		{"1x\n", path + " names no process"},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		lock, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		ran := func(c plans.Command) { t.Errorf("ran %s", c) }
		done, err := Down("office", slog.New(slog.DiscardHandler), ran)
		if err == nil || !strings.Contains(err.Error(), c.want) || done != "" {
			t.Errorf("lock of %q: %q, %v; want %q", c.text, done, err, c.want)
		}
		lock.Close()
	}
	if err := stranger.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("the stranger is gone: %v", err)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", stranger.Process.Pid)); err != nil || strings.Contains(string(text), ") Z ") {
		t.Errorf("the stranger has ended: %s (%v)", text, err)
	}
}

// A directory that others can write might hold commands of theirs.
func TestDownTrustsNoOpenDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IPIPOU_RUN_DIR", dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(dir, "office")
	journal := filepath.Join(unit, "office.journal")
	if err := os.Mkdir(unit, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal, []byte(`{"id":1,"undo":{"argv":["false"]}}`+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(unit, 0o777); err != nil {
		t.Fatal(err)
	}
	_, err := Down("office", slog.New(slog.DiscardHandler), func(c plans.Command) { t.Errorf("ran %s", c) })
	if err == nil || !strings.Contains(err.Error(), "nobody else can write") {
		t.Errorf("%v", err)
	}
}

// Root stops an instance of a unit's dynamic user, and runs nothing of his journal.
func TestDownOfAnothers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can look at another user's")
	}
	const user = 64998
	top := t.TempDir()
	t.Setenv("IPIPOU_RUN_DIR", top)
	dir := filepath.Join(top, "office")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "office.lock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "10")
	process.ExtraFiles = []*os.File{lock} // the lock is its own, too
	process.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- process.Wait() }()
	if _, err := lock.WriteString(fmt.Sprintln(process.Process.Pid)); err != nil {
		t.Fatal(err)
	}
	lock.Close()
	if err := os.Chown(dir, user, user); err != nil {
		t.Fatal(err)
	}
	ran := func(c plans.Command) { t.Errorf("ran %s", c) }
	down := func(want string) error {
		t.Helper()
		done, err := Down("office", slog.New(slog.DiscardHandler), ran)
		if text := fmt.Sprint(done, err); !strings.Contains(text, want) {
			t.Errorf("%s; want %q", text, want)
		}
		return err
	}
	down(fmt.Sprintf("stopped (process %d)", process.Process.Pid))
	if err := <-ended; err == nil || err.Error() != "signal: terminated" {
		t.Errorf("the process ended with %v", err)
	}
	down("was dead, and had left nothing behind")
	if err := os.WriteFile(filepath.Join(dir, "office.journal"), []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := down("whose commands are user 64998's and not for root"); ExitCode(err) != plans.ExitCleanup {
		t.Errorf("exit code %d", ExitCode(err))
	}
}

// What can't be read of a dead instance's journal is named here too: the next start finds nothing any more.
func TestDownNamesDamage(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IPIPOU_RUN_DIR", dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	line := `00000000 {"id":1,"undo":{"argv":["ip","link","del","dev","office"]}}` + "\n"
	if err := os.WriteFile(filepath.Join(dir, "office.journal"), []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	_, err := Down("office", NewLog(&said, LogSettings{Format: "text"}), func(c plans.Command) { t.Errorf("ran %s", c) })
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(said.String(), `damaged, so this is not undone`) || !strings.Contains(said.String(), `"ip link del dev office"`) {
		t.Errorf("it said %q", said.String())
	}
}

// One that cleans up is waited for as long as it does something.
func TestDownWaits(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "office.journal")
	wait := func(script string, patience time.Duration) error {
		cmd := exec.Command("sh", "-c", script, journal)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		process, err := unix.PidfdOpen(cmd.Process.Pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(process)
		return ended(process, journal, patience)
	}
	if err := wait("for i in 1 2 3; do sleep 0.5; echo >>$0; done", time.Second); err != nil {
		t.Error(err)
	}
	if err := wait("exec sleep 60", 50*time.Millisecond); err == nil || err.Error() != "has undone nothing for 50ms; it goes on" {
		t.Errorf("error %v", err)
	}
}
