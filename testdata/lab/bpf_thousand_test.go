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
		"server = true", `fou-dev = "s0"`, "reply-on-auth-ok = true",
		`auth-secret = "lab secret"`, fmt.Sprintf("auth-key-b64 = %q", private), fmt.Sprintf("auth-remote-pubkey-b64 = %q", public),
	}, top...)
	for i := range n {
		lines = append(lines, "[[tunnel]]", fmt.Sprintf("number = %d", i))
	}
	return lines
}

// clientsFile is n clients, for one process. Each has a server of its own, at serverAt: the kernel's drivers don't take
// two tunnels to one address.
func clientsFile(n int, private, public string, top ...string) []string {
	lines := append([]string{
		`fou-dev = "c0"`, "reply-on-auth-ok = true",
		`auth-secret = "lab secret"`, fmt.Sprintf("auth-key-b64 = %q", private), fmt.Sprintf("auth-remote-pubkey-b64 = %q", public),
	}, top...)
	for i := range n {
		lines = append(lines, "[[tunnel]]", fmt.Sprintf("number = %d", i),
			fmt.Sprintf(`fou-remote = "%s:10000"`, serverAt(i)), fmt.Sprintf("tunl-ip = %q", innerAt(2*i+1)))
	}
	return lines
}

func serverAt(i int) string { return fmt.Sprintf("198.18.%d.%d", i>>8, i&255) }

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
	server := startIPIPOU(t, dir, w.srv, "--config", tomlFile(t, dir, "thousand", tunnelsFile(thousand, serverPrivate, public, bpf)...))
	procs := []*Proc{server}
	for _, i := range []int{0, 500, thousand - 1} {
		number := fmt.Sprint(i)
		inside := func(last int) string { return innerAt(2*i + last) }
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
	lean(t, server.Pid())
	up := 0
	for _, tunnel := range instanceReport(t, dir, w.srv, "thousand").Tunnels {
		if tunnel.State == "up" {
			up++
		}
	}
	if up != 3 {
		t.Errorf("%d of the reported tunnels are up, want 3", up)
	}
	lean(t, server.Pid()) // and gives back what it took to say so
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

// The same when each has a peer.
func TestBPFThousandBound(t *testing.T) {
	if InGuest() {
		t.Skip("a thousand interfaces take minutes in an emulated machine")
	}
	c := newCrowd(t, thousand, false, bpf)
	c.start(t)
	c.settle(t, c.places(0))
	lean(t, c.server.cmd.Process.Pid)
}

// A process of a thousand clients is as small, though they authenticate again and again, as nobody answers.
func TestBPFThousandClients(t *testing.T) {
	if InGuest() {
		t.Skip("a thousand interfaces take minutes in an emulated machine")
	}
	w := newBenchWire(t)
	dir := t.TempDir()
	private, _ := keygen(t)
	_, public := keygen(t)
	w.srv.batch(t, "addr add "+serverAt(0)+"/15 dev s0")
	w.cli.batch(t, "route add "+crowdNetwork+" via "+SrvAddr)
	before := snapshots(t, w.cli)
	lines := clientsFile(thousand, private, public, bpf)
	server := w.srv.ListenUDP(t, serverAt(0)+":10000")
	client := startIPIPOU(t, dir, w.cli, "--config", tomlFile(t, dir, "thousand", lines...))
	for range 3 {
		receiveOne(t, server)
	}
	if links := strings.Count(w.cli.Run(t, "ip", "-o", "link", "show"), " ipipou"); links != thousand {
		t.Errorf("%d interfaces, want %d", links, thousand)
	}
	lean(t, client.Pid())
	stop(t, client)
	sameStates(t, "in the end", dir, before)
}

// lean checks that a process of a thousand tunnels is as small as it is promised to be.
func lean(t testing.TB, pid int) {
	t.Helper()
	Eventually(t, commandTimeout/4, func() error { // what a start took is given back in the background
		kb := inMemory(t, pid, "status", "VmRSS:")
		if kb > thousandMemory {
			return fmt.Errorf("%d kB in memory, want at most %d", kb, thousandMemory)
		}
		t.Logf("%d kB in memory", kb)
		return nil
	})
}
