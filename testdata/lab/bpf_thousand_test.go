package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// thousand is how many tunnels one process is promised to carry.
const thousand = 1000

// thousandMemory is what a process of so many may have in memory, in kB.
const thousandMemory = 40_000

// tunnelsFile is a server of n tunnels, each with an interface and a port of its own, for peers with one key.
func tunnelsFile(n int, private, public string, top ...string) []string {
	lines := append([]string{
		"server = true", `backend = "bpf"`, `fou-dev = "s0"`, "reply-on-auth-ok = true",
		`auth-secret = "lab secret"`, fmt.Sprintf("auth-key-b64 = %q", private), fmt.Sprintf("auth-remote-pubkey-b64 = %q", public),
	}, top...)
	for i := range n {
		lines = append(lines, "[[tunnel]]", fmt.Sprintf("number = %d", i))
	}
	return lines
}

// One process carries a thousand tunnels, each with an interface of its own, in little memory, with nothing to do while
// nothing happens, and leaves nothing behind.
func TestBPFThousand(t *testing.T) {
	if InGuest() {
		t.Skip("a thousand interfaces take minutes in an emulated machine")
	}
	w := newBenchWire(t)
	before := snapshots(t, w.srv, w.cli)
	dir := t.TempDir()
	serverPrivate, serverPublic := keygen(t)
	private, public := keygen(t)
	server := startIPIPOU(t, dir, w.srv, "--config", tomlFile(t, dir, "thousand", tunnelsFile(thousand, serverPrivate, public)...))
	procs := []*Proc{server}
	for _, i := range []int{0, 500, thousand - 1} {
		number := fmt.Sprint(i)
		inside := func(last int) string { return fmt.Sprintf("172.28.%d.%d", (2*i+last)>>8, (2*i+last)&255) }
		client := startIPIPOU(t, dir, w.cli, "--backend", "bpf", "-n", number, "--fou-dev", "c0", "-r", fmt.Sprintf("%s:%d", SrvAddr, 10000+i),
			"--tunl-ip", inside(1), "--reply-on-auth-ok", "-vv", "--auth-secret", "lab secret",
			"--auth-key-b64", private, "--auth-remote-pubkey-b64", serverPublic)
		client.WaitLog(t, `up, .* replies`, commandTimeout)
		w.cli.Ping(t, inside(0))
		w.srv.Ping(t, inside(1))
		procs = append([]*Proc{client}, procs...)
	}
	if links := strings.Count(w.srv.Run(t, "ip", "-o", "link", "show"), " ipipou"); links != thousand {
		t.Errorf("%d interfaces, want %d", links, thousand)
	}
	ticks := server.ticks(t)
	time.Sleep(2 * time.Second) // it is idle time that is tested
	if used := server.ticks(t) - ticks; used > 20 {
		t.Errorf("%d ms of CPU in two idle seconds", 10*used)
	}
	if kb := server.resident(t); kb > thousandMemory {
		t.Errorf("%d kB in memory, want at most %d", kb, thousandMemory)
	}
	stop(t, procs...)
	sameStates(t, "in the end", dir, before)
}

// ticks is the CPU time of the process and of those that it has run, in hundredths of a second (proc_pid_stat(5)).
func (p *Proc) ticks(t testing.TB) int {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // the name may hold anything
	sum := 0
	for _, field := range strings.Fields(rest)[11:15] {
		var n int
		if _, err := fmt.Sscan(field, &n); err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// resident is what the process has in memory, in kB.
func (p *Proc) resident(t testing.TB) int {
	t.Helper()
	return inMemory(t, p.Pid(), "status", "VmRSS:")
}

// inMemory is a field of a file about the process, in kB.
func inMemory(t testing.TB, pid int, file, field string) (kb int) {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), field)
	if _, err := fmt.Sscan(rest, &kb); err != nil {
		t.Fatalf("%s of process %d: %v", field, pid, err)
	}
	return kb
}
