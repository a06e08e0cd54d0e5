package lab

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rebindSizes are how many tunnels the servers of BenchmarkRebind have; IPIPOU_LAB_PEERS names others.
const rebindSizes = "1 100"

// BenchmarkRebind prints how long it takes from an authentication that is sent to the reply that arrives at the peer's new
// address, and how long the commands take that the plan is made of, typed into a shell that runs already: from their
// first byte to the shell's word that the last has ended. Both move the same tunnel, in turn.
func BenchmarkRebind(b *testing.B) {
	backend := "kernel"
	if !InGuest() {
		backend = "bpf"
	}
	sizes := os.Getenv("IPIPOU_LAB_PEERS")
	if sizes == "" {
		sizes = rebindSizes
	}
	if InGuest() {
		noModprobe(b)
	} else {
		b.Setenv("TMPDIR", "/dev/shm") // its files are in memory, as in /run and in the machine
	}
	var table strings.Builder
	table.WriteString("| tunnels | ipipou, ms | by hand, ms | ratio |\n|---:|---:|---:|---:|\n")
	for _, text := range strings.Fields(sizes) {
		var n int
		if _, err := fmt.Sscan(text, &n); err != nil || n < 1 {
			b.Fatalf("IPIPOU_LAB_PEERS: %q is no number of tunnels", text)
		}
		c := newCrowd(b, n, false, "backend = \""+backend+"\"")
		c.cli.batch(b, "route add local "+crowdNetwork+" dev lo")
		c.start(b)
		c.settle(b, c.places(0))
		hand := newShell(b, c.srv)
		var ours, byHand, ratios []float64
		for range rebinds {
			took := c.rebind(b).Seconds() * 1e3
			there, other := c.at[0], netip.AddrPortFrom(c.at[0].Addr().Next(), 30000)
			typed := hand.run(b, c.byHand(b, there, other)).Seconds() * 1e3
			hand.run(b, c.byHand(b, other, there))
			ours, byHand, ratios = append(ours, took), append(byHand, typed), append(ratios, took/typed)
		}
		fmt.Fprintf(&table, "| %d | %.1f | %.1f | %.2f |\n", n, median(ours), median(byHand), median(ratios))
		if err := c.server.stop(); err != nil {
			b.Error(err)
		}
	}
	fmt.Printf("\n%s\nMedians of %d moves, backend %s.\n\n", &table, rebinds, backend)
}

// rebind moves the first peer to another port, and returns how long it took until the reply was there.
func (c *crowd) rebind(b *testing.B) time.Duration {
	b.Helper()
	fd := bound(b, c.cli, unix.SOCK_DGRAM, c.at[0].Addr().String())
	defer unix.Close(fd)
	patience(b, fd)
	self, err := unix.Getsockname(fd)
	if err != nil {
		b.Fatal(err)
	}
	to := netip.AddrPortFrom(c.at[0].Addr(), uint16(self.(*unix.SockaddrInet4).Port))
	payload := c.authentication(b, 0, to)[28:]
	server := netip.MustParseAddrPort(c.local(0))
	started := time.Now()
	err = unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: server.Addr().As4(), Port: int(server.Port())})
	if err == nil {
		_, err = again(unix.Read, fd, make([]byte, 200))
	}
	took := time.Since(started)
	if err != nil {
		b.Fatalf("no reply: %v", err)
	}
	c.follow(b, commandTimeout, func(string) bool { return c.at[0] == to })
	return took
}

// byHand is a rebind of the first tunnel as who has read the plan would type it.
func (c *crowd) byHand(b *testing.B, from, to netip.AddrPort) string {
	b.Helper()
	if !InGuest() {
		ip, port := to.Addr().As4(), to.Port()
		value := fmt.Sprintf("hex %02x %02x %02x %02x %02x %02x 00 00 00 00 00 00 00 00 00 00", ip[0], ip[1], ip[2], ip[3], port>>8, port&255)
		return "bpftool batch file - <<E\nmap update id " + c.srv.bpfMap(b, "s0", "peers") + " key hex 00 00 00 00 value " + value + "\nE\n"
	}
	element := func(at netip.AddrPort) string {
		return fmt.Sprintf("%s . 10000 . %s . %d", SrvAddr, at.Addr(), at.Port())
	}
	return fmt.Sprintf("ip link set dev ipipou0 type ipip remote %s local %s encap fou encap-sport 10000 encap-dport %d dev s0\n"+
		"nft -f - <<E\n", to.Addr(), SrvAddr, to.Port()) + strings.Join([]string{
		"delete element ip ipipou0 peers { " + element(from) + " }",
		"add element ip ipipou0 alt_in { " + element(from) + " : 172.29.0.0 }",
		"delete element ip ipipou0 alt_in { " + element(from) + " }",
		"delete element ip ipipou0 bare { " + from.Addr().String() + " . " + SrvAddr + " }",
		"add element ip ipipou0 bare { " + to.Addr().String() + " . " + SrvAddr + " }",
		"add element ip ipipou0 peers { " + element(to) + " : goto pass }",
	}, "\n") + "\nE\n"
}

// A shell runs in a namespace, and is told by its stdin what to do.
type shell struct {
	in  *os.File
	out *os.File
}

func newShell(b *testing.B, ns *NS) *shell {
	b.Helper()
	argv := ns.exec([]string{"sh", "-e"})
	cmd := exec.Command(argv[0], argv[1:]...)
	in, toShell, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	fromShell, out, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	in.Close()
	out.Close()
	b.Cleanup(func() {
		toShell.Close()
		cmd.Wait()
		fromShell.Close()
	})
	return &shell{toShell, fromShell}
}

// run runs commands, and returns how long they took.
func (s *shell) run(b *testing.B, commands string) time.Duration {
	b.Helper()
	started := time.Now()
	_, err := s.in.WriteString("{\n" + commands + "} >/dev/null\necho done\n")
	if err == nil {
		_, err = s.out.Read(make([]byte, 100))
	}
	took := time.Since(started)
	if err != nil {
		b.Fatalf("%v:\n%s", err, commands)
	}
	return took
}
