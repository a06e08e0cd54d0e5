package lab

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// processesAtMost is for how many tunnels one process each is measured too: more don't fit into a machine's memory.
const processesAtMost = 100

// BenchmarkTunnels prints what it takes to start and to stop servers of many tunnels, each with an interface and a port
// of its own, by one process and by one process each, as many are started by systemd at once.
func BenchmarkTunnels(b *testing.B) {
	onHost(b)
	private, _ := keygen(b)
	_, public := keygen(b)
	var table strings.Builder
	table.WriteString("| tunnels | start, s | stop, s | memory, MB | start with a process each, s | stop, s | memory, MB |\n|" + strings.Repeat("---:|", 7) + "\n")
	for _, n := range []int{1, 10, 100, thousand} {
		one := measureTunnels(b, servers, n, func(dir string) [][]string {
			return [][]string{{"--config", tomlFile(b, dir, "tunnels", tunnelsFile(n, private, public, bpf, "verb = 2")...)}}
		})
		fmt.Fprintf(&table, "| %d | %s |", n, one)
		if n > processesAtMost {
			table.WriteString(" – | – | – |\n")
			continue
		}
		each := measureTunnels(b, servers, n, func(string) (args [][]string) {
			for i := range n {
				args = append(args, []string{
					"-s", "--backend", "bpf", "-n", fmt.Sprint(i), "--fou-dev", "s0", "-vv", "--reply-on-auth-ok",
					"--auth-secret", "lab secret", "--auth-key-b64", private, "--auth-remote-pubkey-b64", public,
				})
			}
			return args
		})
		fmt.Fprintf(&table, " %s |\n", each)
	}
	fmt.Printf("\n%s\n", &table)
}

// BenchmarkKernelTunnels prints the same of the kernel's drivers, for servers, whose interfaces are made when their peers
// bind, and for clients. They are in the emulated machine, where all takes ten times as long: what the table is for is
// whether it grows with the number.
func BenchmarkKernelTunnels(b *testing.B) {
	if !InGuest() {
		b.Skip("this kernel has no such drivers")
	}
	private, _ := keygen(b)
	_, public := keygen(b)
	var table strings.Builder
	table.WriteString("| tunnels | start of servers, s | stop, s | memory, MB | of clients, s | stop, s | memory, MB |\n|" + strings.Repeat("---:|", 7) + "\n")
	for _, n := range []int{10, 100, thousand} {
		fmt.Fprintf(&table, "| %d |", n)
		for _, at := range []side{servers, clients} {
			cost := "– | – | –" // not asked for
			b.Run(fmt.Sprintf("%s/%d", at.name, n), func(b *testing.B) {
				cost = measureTunnels(b, at, n, func(dir string) [][]string {
					lines := at.file(n, private, public, `backend = "kernel"`, "verb = 2")
					return [][]string{{"--config", tomlFile(b, dir, "tunnels", lines...)}}
				}).String()
			})
			fmt.Fprintf(&table, " %s |", cost)
		}
		table.WriteString("\n")
	}
	fmt.Printf("\n%s\n", &table)
}

// A side of tunnels: where it runs, its configuration, and what its log says of each tunnel that is up.
type side struct {
	name  string
	in    func(benchWire) *NS
	file  func(n int, private, public string, top ...string) []string
	ready string
}

var (
	servers = side{"servers", func(w benchWire) *NS { return w.srv }, tunnelsFile, "waiting for an authentication"}
	clients = side{"clients", func(w benchWire) *NS { return w.cli }, clientsFile, "authentication sent"}
)

type tunnelsCost struct {
	start, stop time.Duration
	memory      float64 // MB, of what processes share each has its part
}

func (c tunnelsCost) String() string {
	return fmt.Sprintf("%.2f | %.2f | %.0f", c.start.Seconds(), c.stop.Seconds(), c.memory)
}

// measureTunnels starts a process for each list of arguments, all at once, until n tunnels are up.
func measureTunnels(b *testing.B, at side, n int, args func(dir string) [][]string) (cost tunnelsCost) {
	b.Helper()
	w, dir := newBenchWire(b), b.TempDir()
	w.cli.batch(b, "route add "+crowdNetwork+" via "+SrvAddr)
	all := args(dir)
	procs := make([]*followed, len(all))
	started := time.Now()
	for i, words := range all {
		procs[i] = follow(b, filepath.Join(dir, fmt.Sprint(i)), at.in(w), words...)
	}
	for _, p := range procs {
		for range n / len(procs) {
			p.wait(b, at.ready)
		}
	}
	cost.start = time.Since(started)
	for _, p := range procs {
		cost.memory += float64(inMemory(b, p.cmd.Process.Pid, "smaps_rollup", "\nPss:")) / 1e3
	}
	stopped := time.Now()
	var running sync.WaitGroup
	for _, p := range procs {
		running.Go(func() {
			if err := p.stop(); err != nil {
				b.Errorf("%s: %v: %s", p.cmd, err, p.errors())
			}
		})
	}
	running.Wait()
	cost.stop = time.Since(stopped)
	return cost
}
