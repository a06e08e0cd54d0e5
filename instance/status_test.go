package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ipipou/runner"
)

// asStranger runs f as a user who may do nothing here.
func asStranger(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can be another user")
	}
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		const user = 64998
		if _, err := unix.SetfsuidRetUid(user); err != nil {
			done <- err
			return
		}
		f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// runDir is a directory for instances that everybody can enter.
func runDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("IPIPOU_RUN_DIR", dir)
	return dir
}

// Who may not look is told so, and not that nothing is there.
func TestStatusOfAStranger(t *testing.T) {
	dir := runDir(t)
	// As systemd makes it of RuntimeDirectory=ipipou/%i with DynamicUser=yes.
	private := t.TempDir()
	if err := errors.Join(os.Chmod(private, 0o700), os.Mkdir(filepath.Join(private, "office"), 0o755),
		os.Symlink(filepath.Join(private, "office"), filepath.Join(dir, "office")), os.Mkdir(filepath.Join(dir, "hub.bpf"), 0o700)); err != nil {
		t.Fatal(err)
	}
	socket, err := listenUnix(filepath.Join(dir, "hub.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := os.WriteFile(filepath.Join(dir, "hub.lock"), []byte(fmt.Sprintln(os.Getpid())), 0o600); err != nil {
		t.Fatal(err)
	}
	asStranger(t, func() {
		all, err := AskAll()
		said := map[string]string{}
		for _, r := range all {
			said[r.Name] = string(r.Daemon) + ": " + r.Why
		}
		const want = "silent: not permitted: run as root, or as its user"
		if err != nil || said["hub"] != want || said["office"] != want || said["hub.bpf"] != "" {
			t.Errorf("%v, %v", said, err)
		}
		if r := Ask("office"); r.Daemon != Silent {
			t.Errorf("%+v", r)
		}
		if r := Ask("home"); r.Daemon != Absent {
			t.Errorf("%+v", r)
		}
		if _, err := Confirm("office"); fmt.Sprint(err) != "office does not answer: not permitted: run as root, or as its user" {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	asStranger(t, func() {
		if all, err := AskAll(); len(all) > 0 || err == nil || !strings.Contains(err.Error(), "not permitted to look into "+dir) {
			t.Errorf("%v, %v", all, err)
		}
		if r := Ask("office"); r.Daemon != Silent {
			t.Errorf("%+v", r)
		}
	})
}

// What another user puts in place of a lock makes nobody wait; and one that is held is a
// living process's, whatever its number is here.
func TestStatusOfStrangeLocks(t *testing.T) {
	dir := runDir(t)
	if err := unix.Mkfifo(filepath.Join(dir, "office.lock"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := Ask("office"); r.Daemon != Absent {
		t.Errorf("%+v", r)
	}
	if _, err := stop(filepath.Join(dir, "office.lock")); err == nil || !strings.Contains(err.Error(), "office.lock is not a file") {
		t.Error(err)
	}
	for _, text := range []string{"", "2147483647\n"} { // it is about to be written; of a container
		for _, ending := range []string{".lock", ".journal"} {
			if err := os.WriteFile(filepath.Join(dir, "home"+ending), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if r := Ask("home"); r.Daemon != Dead {
			t.Errorf("%q: %+v", text, r)
		}
		lock, err := os.Open(filepath.Join(dir, "home.lock"))
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		if r := Ask("home"); r.Daemon != Silent || r.PID != 0 {
			t.Errorf("%q: %+v", text, r)
		}
		lock.Close()
	}
}

// An answer is for the instance that was asked, whoever gives it.
func TestStatusOfAnotherName(t *testing.T) {
	dir := runDir(t)
	l, err := listenUnix(socketPath(dir, "office"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if all := traces([]string{dir}); len(all) > 0 {
		t.Errorf("a socket alone is taken for %v", all)
	}
	if err := os.WriteFile(filepath.Join(dir, "office.lock"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		if conn, err := l.Accept(); err == nil {
			io.CopyN(io.Discard, conn, int64(len(askStatus))+1)
			json.NewEncoder(conn).Encode(reply{Status: &Report{Format: ReportFormat, Name: "home", Daemon: Dead}})
			conn.Close()
		}
	}()
	if r := Ask("office"); r.Name != "office" || r.Daemon != Running {
		t.Errorf("%+v", r)
	}
}

// Of two of one name it is the one that lives, wherever it is.
func TestStatusOfTwo(t *testing.T) {
	dir := runDir(t)
	unit := filepath.Join(dir, "office")
	if err := errors.Join(os.Mkdir(unit, 0o755), os.WriteFile(filepath.Join(dir, "office.journal"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if found, _ := find([]string{dir}, "office"); found.dir != dir {
		t.Errorf("found in %s, want %s", found.dir, dir)
	}
	j, err := runner.OpenJournal(unit, "office")
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if found, _ := find([]string{dir}, "office"); found.dir != unit {
		t.Errorf("found in %s, want %s", found.dir, unit)
	}
}
