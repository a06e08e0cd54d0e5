package runner

import (
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A look finds who runs and who died, and changes nothing.
func TestLeft(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("IPIPOU_RUN_DIR", dir)
	is := func(when string, runs, journal bool) {
		t.Helper()
		before, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		if r, j := Left("office"); r != runs || j != journal {
			t.Errorf("%s: runs %v, journal %v", when, r, j)
		}
		if after, _ := os.ReadDir(dir); len(after) != len(before) {
			t.Errorf("%s: there are %v, were %v", when, after, before)
		}
	}
	is("before", false, false)
	j, err := OpenJournal(dir, "office")
	if err != nil {
		t.Fatal(err)
	}
	is("while it runs", true, false)
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	is("when it has ended", false, false)
	for _, file := range []string{"office.lock", "office.journal"} { // killed
		if err := os.WriteFile(dir+"/"+file, []byte("1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	is("when it was killed", false, true)
	if os.Getuid() == 0 {
		asked := make(chan bool)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
			_, err := unix.SetfsuidRetUid(64998)
			runs, _ := Left("office")
			asked <- runs || err != nil
		}()
		if !<-asked {
			t.Error("who may not look is told that it does not run")
		}
	}
}
