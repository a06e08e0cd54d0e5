// Demo shows the program at work, for `make demo`: it boots the lab's virtual machine, makes a server, a NAT router and
// two clients in it, and lets one see what happens to them.
//
//	go run ./testdata/lab/demo
//
// It exits with 1 if anything is not as it says.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ipipou/testdata/lab"
)

func main() {
	if lab.InGuest() {
		os.Exit(guest())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	started := time.Now()
	fmt.Println("Booting a stock Debian kernel under emulation; the network of the demo is in there.")
	result, err := lab.Again(ctx, lab.VM{Timeout: 10 * time.Minute})
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
	fmt.Printf("\nAll of it took %.0f s, of which the machine's boot %.0f s.\n", time.Since(started).Seconds(), result.Boot.Seconds())
	os.Exit(result.Exit)
}

// guest runs the demo in the machine.
func guest() (exit int) {
	d := &demo{}
	defer func() {
		if r := recover(); r != nil && r != any(d) {
			panic(r)
		}
		for i := len(d.cleanups) - 1; i >= 0; i-- {
			d.cleanups[i]()
		}
		if d.Failed() {
			fmt.Println("\nThe demo FAILED.")
			exit = 1
		}
	}()
	if err := lab.LoadModules(); err != nil {
		d.Fatal(err)
	}
	d.run()
	return 0
}

const wait = time.Minute

// inner addresses of the tunnels' ends.
var (
	serverInner = []string{"172.28.0.0", "172.28.0.2"}
	clientInner = []string{"172.28.0.1", "172.28.0.3"}
)

func (d *demo) run() {
	d.net = lab.NewNet(d)
	d.clients = []*lab.NS{d.net.C1, d.net.C2}
	hosts := []*lab.NS{d.net.Srv, d.net.C1, d.net.C2}
	d.configure()

	d.heading("The network")
	d.say("Two clients behind one NAT router, a server in public, and a stranger next to it:")
	d.text("",
		"client 1  10.1.1.2 ──┐                                  ┌── 203.0.113.1   server",
		"                     ├── router, seen as 203.0.113.2 ───┤",
		"client 2  10.1.2.2 ──┘                                  └── 203.0.113.66  stranger", "")
	d.say("The server's configuration, of two tunnels in one process:")
	d.text(d.shown(0)...)

	d.heading("The plan")
	d.say("`ipipou --config server.toml --print-only` prints all that it would do as a shell script.")
	d.say("Its first operation:")
	d.text(d.plan(0, "up")...)
	d.say("And what it does when client 1 has proven who it is:")
	d.text(d.plan(0, "bind_0")...)

	var before []string
	for _, ns := range hosts {
		before = append(before, ns.Snapshot(d))
	}

	d.heading("The server starts")
	server := d.start("server", d.net.Srv, 0)
	server.waitFor(`ipipou1: waiting for an authentication`)

	var clients []*process
	for i, ns := range d.clients {
		d.heading(fmt.Sprintf("Client %d starts", i+1))
		c := d.start(fmt.Sprintf("client %d", i+1), ns, i+1)
		c.waitFor(fmt.Sprintf(`ipipou%d: up`, i))
		server.waitFor(fmt.Sprintf(`ipipou%d: peer bound at`, i))
		clients = append(clients, c)
	}
	d.say("Both clients come from one public address. The kernel can't have two tunnels between the same")
	d.say("two addresses, so the second one has an alternate local address, which nft rewrites.")

	d.heading("Both tunnels carry packets")
	for i, ns := range d.clients {
		d.ping(i)
		d.transfer(fmt.Sprintf("client %d to server", i+1), ns, d.net.Srv, serverInner[i])
		d.transfer(fmt.Sprintf("server to client %d", i+1), d.net.Srv, ns, clientInner[i])
	}
	d.say("(Emulated: each byte is a few instructions that another program works out.)")

	d.heading("Client 1 moves to another public port")
	d.say("The router forgets client 1 and gives it " + lab.RtrAddr2 + ":4242 from now on. The server's interface before:")
	from := d.link()
	d.net.NATForce(d, lab.C1Addr, lab.RtrAddr2+":4242")
	clients[0].signal(syscall.SIGUSR1, "client 1 is told to authenticate anew (SIGUSR1; --keepalive does it by itself):")
	server.waitFor(`ipipou0: peer moved from \S+ to ` + regexp.QuoteMeta(lab.RtrAddr2) + `:4242`)
	clients[0].show()
	d.say("and after; it is the same interface, so its addresses and routes stayed:")
	if to := d.link(); to == from {
		d.Errorf("the interface did not change: %s", to)
	}
	d.ping(0)
	d.ping(1)

	d.heading("A stranger")
	d.stranger()

	d.heading("The end")
	for i, p := range append(clients, server) {
		p.signal(syscall.SIGTERM, p.name+" is stopped (SIGTERM):")
		if code := p.Wait(d, wait); code != 0 {
			d.Errorf("%s ended with exit code %d", p.name, code)
		}
		p.show()
		_ = i
	}
	d.say("Interfaces, addresses, routes, FOU ports, nft rules and sysctls, compared with before the start:")
	for i, ns := range hosts {
		name := []string{"server", "client 1", "client 2"}[i]
		if diff := lab.Diff(before[i], ns.Snapshot(d)); diff != "" {
			d.Errorf("%s is not as it was (- before, + after):\n%s", name, diff)
			continue
		}
		d.say(fmt.Sprintf("  %-8s  the same, all %d facts", name, strings.Count(before[i], "\n")))
	}
}

// configure writes the three configurations, with keys of the program's own making.
func (d *demo) configure() {
	dir, err := os.MkdirTemp("", "demo")
	if err != nil {
		d.Fatal(err)
	}
	d.dir = dir
	d.Cleanup(func() { os.RemoveAll(dir) })
	serverPrivate, serverPublic := d.keygen()
	config := "server = true\nfou-dev = \"s0\"\nreply-on-auth-ok = true\nauth-secret = \"of the demo\"\nauth-key-b64 = \"" +
		serverPrivate + "\"\n"
	for i := range d.clients {
		private, public := d.keygen()
		config += fmt.Sprintf("\n[[tunnel]]\nnumber = %d\nauth-remote-pubkey-b64 = %q\n", i, public)
		d.write(i+1, fmt.Sprintf("number = %d\nfou-dev = \"c0\"\nfou-remote = \"%s:%d\"\ntunl-ip = %q\nauth-key-b64 = %q\n"+
			"auth-remote-pubkey-b64 = %q\nauth-secret = \"of the demo\"\n",
			i, lab.SrvAddr, 10000+i, clientInner[i], private, serverPublic))
	}
	d.write(0, config)
}

func (d *demo) config(i int) string {
	return filepath.Join(d.dir, []string{"server", "client1", "client2"}[i]+".toml")
}

func (d *demo) write(i int, text string) {
	if err := os.WriteFile(d.config(i), []byte(text), 0o600); err != nil {
		d.Fatal(err)
	}
}

func (d *demo) keygen() (private, public string) {
	out, err := exec.Command(lab.Bin(d), "--auth-keygen").Output()
	keys := strings.Fields(string(out))
	if err != nil || len(keys) != 2 {
		d.Fatalf("ipipou --auth-keygen: %v: %q", err, out)
	}
	return keys[0], keys[1]
}

// shown is a configuration without its private key.
func (d *demo) shown(i int) []string {
	text, err := os.ReadFile(d.config(i))
	if err != nil {
		d.Fatal(err)
	}
	hidden := regexp.MustCompile(`(?m)^(auth-key-b64 = ).*`).ReplaceAllString(string(text), `${1}"…"`)
	return strings.Split(strings.TrimSpace(hidden), "\n")
}

// plan is one function of the printed script.
func (d *demo) plan(i int, function string) []string {
	script, err := exec.Command(lab.Bin(d), "--config", d.config(i), "--print-only").Output()
	if err != nil {
		d.Fatalf("ipipou --print-only: %v", err)
	}
	_, rest, found := strings.Cut(string(script), "\n"+function+"() {\n")
	body, _, ended := strings.Cut(rest, "\n}\n")
	if !found || !ended {
		d.Fatalf("the printed script has no %s()", function)
	}
	return strings.Split(strings.ReplaceAll(function+"() {\n"+body+"\n}", "\t", "  "), "\n")
}

func (d *demo) ping(i int) {
	for _, end := range []struct {
		ns       *lab.NS
		who, to_ string
	}{{d.clients[i], fmt.Sprintf("client %d to server", i+1), serverInner[i]},
		{d.net.Srv, fmt.Sprintf("server to client %d", i+1), clientInner[i]}} {
		out := end.ns.Run(d, "ping", "-n", "-q", "-c", "3", "-i", "0.2", "-W", "10", end.to_)
		times := regexp.MustCompile(`(\d+) received.*\n.* = [\d.]+/([\d.]+)/`).FindStringSubmatch(out)
		if times == nil {
			d.Fatalf("ping said: %s", out)
		}
		d.say(fmt.Sprintf("  ping  %s  %-11s %s of 3 answered, after %s ms", end.who, end.to_, times[1], times[2]))
	}
}

func (d *demo) transfer(what string, from, to *lab.NS, addr string) {
	const size = 20_000_000
	took := lab.TransferTCP(d, from, to, addr, size)
	d.say(fmt.Sprintf("  TCP   %s  %d MB in %.1f s, %.0f Mbit/s, checksums equal", what, size/1_000_000, took.Seconds(),
		size*8/1e6/took.Seconds()))
}

// link shows where the first tunnel of the server leads to.
func (d *demo) link() string {
	out := d.net.Srv.Run(d, "ip", "-d", "link", "show", "dev", "ipipou0")
	ends := regexp.MustCompile(`ipip remote \S+ local \S+|encap fou\b.*encap-dport \d+`).FindAllString(out, -1)
	if len(ends) != 2 {
		d.Fatalf("ip -d link show said: %s", out)
	}
	d.text("ip -d link show ipipou0:  " + strings.Join(ends, "  …  "))
	return strings.Join(ends, " ")
}

// stranger sends what client 1's own packets look like, but from elsewhere.
func (d *demo) stranger() {
	dropped, passed := d.dropped(), d.net.Srv.Counters(d, "ipipou0").RX.Packets
	inner := lab.IPv4Echo(clientInner[0], serverInner[0], 1, 1)
	for _, source := range []string{lab.BadAddr + ":10000", lab.RtrAddr + ":10000"} {
		d.say("It sends a valid tunnel packet from " + source + map[bool]string{
			true: ".", false: ", where client 1 was before it moved."}[source != lab.RtrAddr+":10000"])
		d.net.Bad.SendUDP(d, source, lab.SrvAddr+":10000", inner)
	}
	lab.Eventually(d, wait, func() error {
		if n := d.dropped() - dropped; n != 2 {
			return fmt.Errorf("the gate dropped %d packets, not 2", n)
		}
		return nil
	})
	if n := d.net.Srv.Counters(d, "ipipou0").RX.Packets; n != passed {
		d.Errorf("%d packets of the stranger came out of the tunnel", n-passed)
	}
	d.say("The gate's drop counter went up by 2, the tunnel's receive counter by 0.")
	d.ping(0)
}

// dropped is what the gate's drop rules have counted.
func (d *demo) dropped() (n int) {
	rules := d.net.Srv.Run(d, "nft", "list", "table", "ip", "ipipou0")
	for _, m := range regexp.MustCompile(`counter packets (\d+) bytes \d+ drop`).FindAllStringSubmatch(rules, -1) {
		count, err := strconv.Atoi(m[1])
		if err != nil {
			d.Fatal(err)
		}
		n += count
	}
	return n
}

// A process is a running ipipou, whose output is shown as it comes.
type process struct {
	*lab.Proc
	d     *demo
	name  string
	shown int
}

func (d *demo) start(name string, ns *lab.NS, config int) *process {
	args := []string{"--config", d.config(config), "--verb", "2", "--no-log-time", "--no-log-pid"}
	d.say("$ ipipou " + strings.Join(append([]string{"--config", filepath.Base(args[1])}, args[2:]...), " "))
	host := filepath.Join(d.dir, ns.Name)
	return &process{d: d, name: name, Proc: ns.Start(d, append([]string{
		"env", "IPIPOU_RUN_DIR=" + host + "/run", "STATE_DIRECTORY=" + host + "/state", lab.Bin(d)}, args...)...)}
}

// waitFor waits for a line in the output that has not been shown yet, and shows all up to now.
func (p *process) waitFor(expr string) {
	p.WaitLogFrom(p.d, p.shown, expr+`.*\n`, wait)
	p.show()
}

func (p *process) signal(sig syscall.Signal, why string) {
	p.show()
	p.d.say(why)
	p.Signal(p.d, sig)
}

// show prints what is new. A ruleset's first lines stand for it: they are in the plan.
func (p *process) show() {
	logs := p.Logs()
	end := strings.LastIndexByte(logs, '\n') + 1
	inside := 0
	for line := range strings.Lines(logs[min(p.shown, end):end]) {
		line = strings.ReplaceAll(strings.TrimRight(line, "\n"), "\t", "  ")
		switch {
		case inside > 0 && line == "EOF":
			if inside > 5 {
				p.d.labelled(p.name, fmt.Sprintf("    … %d more lines, those of the plan", inside-5))
			}
			inside = 0
			p.d.labelled(p.name, line)
		case inside > 0:
			if inside++; inside <= 5 {
				p.d.labelled(p.name, line)
			}
		default:
			p.d.labelled(p.name, line)
			if strings.HasSuffix(line, "<<EOF") {
				inside = 1
			}
		}
	}
	p.shown = end
}

// A demo prints, and is the lab.T of the lab's helpers.
type demo struct {
	net      *lab.Net
	clients  []*lab.NS
	dir      string
	cleanups []func()
	failed   bool
	sections int
}

func (d *demo) heading(text string) {
	d.sections++
	fmt.Printf("\n━━ %d. %s %s\n", d.sections, text, strings.Repeat("━", max(0, 70-len([]rune(text)))))
}

func (d *demo) say(text string) { fmt.Println(text) }

func (d *demo) text(lines ...string) {
	for _, line := range lines {
		d.labelled("", line)
	}
}

// labelled prints a line behind a label, folded to 100 columns.
func (d *demo) labelled(label, line string) {
	if label != "" {
		label = fmt.Sprintf("%-8s │ ", label)
	} else {
		label = "  "
	}
	room := 100 - len([]rune(label))
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))] + "      "
	for i := 0; ; i++ {
		part := []rune(line)
		if len(part) <= room {
			fmt.Println(label + line)
			return
		}
		cut := strings.LastIndex(string(part[:room-1]), " ")
		if cut <= len(indent) {
			fmt.Println(label + line)
			return
		}
		fmt.Println(label + line[:cut] + ` \`)
		line = indent + line[cut+1:]
	}
}

func (d *demo) Helper() {}

func (d *demo) Cleanup(f func()) { d.cleanups = append(d.cleanups, f) }

func (d *demo) Failed() bool { return d.failed }

func (d *demo) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (d *demo) Error(args ...any) {
	d.failed = true
	fmt.Print("\nFAILED: ", fmt.Sprintln(args...))
}

func (d *demo) Errorf(format string, args ...any) { d.Error(fmt.Sprintf(format, args...)) }

// Fatal ends run; guest recovers.
func (d *demo) Fatal(args ...any) {
	d.Error(args...)
	panic(d)
}

func (d *demo) Fatalf(format string, args ...any) { d.Fatal(fmt.Sprintf(format, args...)) }
