package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A benchWire is a server and a client at the two ends of one cable: no bridge, no router, nothing that would thin out
// what the server costs.
type benchWire struct {
	srv, cli      *NS
	local, seenAs string // the client's address, and what the server takes it for
}

const benchClient = "203.0.113.2"

func newBenchWire(t testing.TB) benchWire {
	t.Helper()
	w := benchWire{NewNS(t, "srv"), NewNS(t, "cli"), benchClient, benchClient}
	w.srv.batch(t, veth("s0", 1, "c0", w.cli), "addr add "+SrvAddr+"/24 dev s0", "link set s0 up")
	w.cli.batch(t, "addr add "+benchClient+"/24 dev c0", "link set c0 up")
	// Known for good: a neighbour is asked for anew every half a minute, and meanwhile each packet takes a longer way.
	w.srv.batch(t, "neigh replace "+benchClient+" lladdr 02:00:00:00:02:01 dev s0 nud permanent")
	w.cli.batch(t, "neigh replace "+SrvAddr+" lladdr 02:00:00:00:01:01 dev c0 nud permanent")
	w.srv.waitRunning(t)
	w.cli.waitRunning(t)
	return w
}

// newBenchNAT is the same over the network of the other tests: the client is behind the router.
func newBenchNAT(t testing.TB) benchWire {
	t.Helper()
	n := NewNet(t)
	n.Rtr.Sysctl(t, map[string]string{
		"net/netfilter/nf_conntrack_udp_timeout": "3600", "net/netfilter/nf_conntrack_udp_timeout_stream": "3600",
	})
	return benchWire{n.Srv, n.C1, C1Addr, RtrAddr}
}

// byHand makes the tunnel with the commands of our plans, less the gate: in UDP, or as bare ipip.
func (w benchWire) byHand(t testing.TB, udp bool) {
	t.Helper()
	for _, end := range []struct {
		ns                              *NS
		dev, local, remote, inner, peer string
	}{
		{w.srv, "s0", SrvAddr, w.seenAs, "172.28.0.0", "172.28.0.1"},
		{w.cli, "c0", w.local, SrvAddr, "172.28.0.1", "172.28.0.0"},
	} {
		encap := ""
		if udp {
			peer := ""
			if end.ns == w.cli {
				peer = " peer " + end.remote + " peer_port 10000"
			}
			end.ns.batch(t, "fou add port 10000 ipproto 4 local "+end.local+peer+" dev "+end.dev)
			encap = " encap fou encap-sport 10000 encap-dport 10000"
		}
		end.ns.batch(t,
			"link add name ipipou0 type ipip remote "+end.remote+" local "+end.local+encap+" mode ipip dev "+end.dev,
			"address add "+end.inner+" peer "+end.peer+" dev ipipou0",
			"link set dev ipipou0 up",
		)
	}
}

func (w benchWire) kernelWireguard(t testing.TB) {
	t.Helper()
	w.wireguard(t, func(ns *NS, dev string) { ns.batch(t, "link add "+dev+" type wireguard") })
}

// plain gives the cable's own ends the addresses that a tunnel would have.
func (w benchWire) plain(t testing.TB) {
	t.Helper()
	w.srv.batch(t, "address add 172.28.0.0 peer 172.28.0.1 dev s0",
		"neigh replace 172.28.0.1 lladdr 02:00:00:00:02:01 dev s0 nud permanent")
	w.cli.batch(t, "address add 172.28.0.1 peer 172.28.0.0 dev c0",
		"neigh replace 172.28.0.0 lladdr 02:00:00:00:01:01 dev c0 nud permanent")
}

// ours runs the program at both ends, with a backend; more is for the server.
func (w benchWire) ours(t testing.TB, backend string, more ...string) {
	t.Helper()
	dir := t.TempDir()
	serverPrivate, serverPublic := keygen(t)
	clientPrivate, clientPublic := keygen(t)
	server := startIPIPOU(t, dir, w.srv, append([]string{"-s", "--backend", backend, "--fou-dev", "s0", "--reply-on-auth-ok", "-vv",
		"--auth-key-b64", serverPrivate, "--auth-remote-pubkey-b64", clientPublic}, more...)...)
	server.WaitLog(t, `waiting for an authentication`, commandTimeout)
	client := startIPIPOU(t, dir, w.cli, "-c", "--backend", backend, "--fou-dev", "c0", "--reply-on-auth-ok", "-vv", "-r", SrvAddr+":10000",
		"--tunl-ip", "172.28.0.1", "--auth-key-b64", clientPrivate, "--auth-remote-pubkey-b64", serverPublic)
	client.WaitLog(t, `up, .* replies`, commandTimeout)
}

// track makes the host track connections, as any rule about their state does.
func (w benchWire) track(t testing.TB) {
	t.Helper()
	w.srv.RunInput(t, "table ip track {\n chain in {\n type filter hook input priority filter\n ct state invalid drop\n }\n}\n",
		"nft", "-f", "-")
}

// wireguard makes a tunnel of interfaces that add makes, which is given their namespaces and names.
func (w benchWire) wireguard(t testing.TB, add func(ns *NS, dev string)) {
	t.Helper()
	dir := t.TempDir()
	keys := [2]string{filepath.Join(dir, "server"), filepath.Join(dir, "client")}
	var public [2]string
	for i, file := range keys {
		private := w.srv.Run(t, "wg", "genkey")
		if err := os.WriteFile(file, []byte(private), 0o600); err != nil {
			t.Fatal(err)
		}
		public[i] = strings.TrimSpace(w.srv.RunInput(t, private, "wg", "pubkey"))
	}
	for i, ns := range []*NS{w.srv, w.cli} {
		dev := fmt.Sprintf("ipipou-wg%d", i)
		add(ns, dev)
		ns.Run(t, "wg", "set", dev, "listen-port", "10000", "private-key", keys[i],
			"peer", public[1-i], "allowed-ips", "0.0.0.0/0", "endpoint", []string{w.seenAs, SrvAddr}[i]+":10000")
		ns.batch(t, fmt.Sprintf("address add 172.28.0.%d peer 172.28.0.%d dev %s", i, 1-i, dev), "link set "+dev+" up")
	}
}

type gateVariant struct {
	name string
	part int // of the amounts: what is slow is given less
	make func(testing.TB, benchWire)
}

// gateVariants are in an order that matters: the first is what the others are compared with, and those with connection
// tracking come after those that must find a host that does not have it.
var gateVariants = []gateVariant{
	{"kernel FOU by hand, open to all", 1, func(t testing.TB, w benchWire) { w.byHand(t, true) }},
	{"ipipou", 1, func(t testing.TB, w benchWire) { w.ours(t, "kernel") }},
	{"ipipou, alternate address", 1, func(t testing.TB, w benchWire) { w.ours(t, "kernel", "--force-fou-local-ip-alt") }},
	{"kernel FOU by hand, connection tracking", 1, func(t testing.TB, w benchWire) { w.byHand(t, true); w.track(t) }},
	{"ipipou, connection tracking", 1, func(t testing.TB, w benchWire) { w.track(t); w.ours(t, "kernel") }},
	{"kernel WireGuard", 10, func(t testing.TB, w benchWire) { w.kernelWireguard(t) }},
}

// backendVariants have the same at both ends.
var backendVariants = []gateVariant{
	{"kernel FOU by hand, open to all", 1, func(t testing.TB, w benchWire) { w.byHand(t, true) }},
	{"ipipou, backend kernel", 1, func(t testing.TB, w benchWire) { w.ours(t, "kernel") }},
	{"ipipou, backend bpf", 1, func(t testing.TB, w benchWire) { w.ours(t, "bpf") }},
	{"ipip by hand, without UDP", 1, func(t testing.TB, w benchWire) { w.byHand(t, false) }},
	{"kernel WireGuard", 10, func(t testing.TB, w benchWire) { w.kernelWireguard(t) }},
	{"no tunnel", 1, func(t testing.TB, w benchWire) { w.plain(t) }},
}

// A gateMeasure is a column of the table.
type gateMeasure struct {
	name   string
	digits int // of the figure, behind the point
	amount int
	rate   func(b testing.TB, w benchWire, n int) float64
}

var gateMeasures = []gateMeasure{
	{"TCP in, Mbit/s", 0, 100_000_000, func(b testing.TB, w benchWire, n int) float64 {
		return mbits(n, BulkTCP(b, w.cli, w.srv, "172.28.0.0", int64(n)))
	}},
	{"TCP out, Mbit/s", 0, 100_000_000, func(b testing.TB, w benchWire, n int) float64 {
		return mbits(n, BulkTCP(b, w.srv, w.cli, "172.28.0.1", int64(n)))
	}},
	{"64-byte UDP in, kpps", 1, 10_000, func(b testing.TB, w benchWire, n int) float64 {
		return float64(n) / 1e3 / BulkUDP(b, w.cli, w.srv, "172.28.0.0", n, 64).Seconds()
	}},
	{"64-byte UDP out, kpps", 1, 10_000, func(b testing.TB, w benchWire, n int) float64 {
		return float64(n) / 1e3 / BulkUDP(b, w.srv, w.cli, "172.28.0.1", n, 64).Seconds()
	}},
}

func mbits(bytes int, d time.Duration) float64 { return float64(bytes) * 8 / 1e6 / d.Seconds() }

// BenchmarkGate prints what the server's gate costs, as a table for docs/costs.md, to a client behind the NAT router. In and
// out are as the server sees it.
// It means something only where time counts instructions (IPIPOU_LAB_ICOUNT=1, see `make bench`): the same then gives
// the same to half a percent. All variants stand side by side and are measured in turn, a round each; ratios are within
// a round, and what is printed are medians. IPIPOU_LAB_ROUNDS is the number of rounds; the first, in which caches fill
// and TCP learns, is not counted.
func BenchmarkGate(b *testing.B) { benchGate(b, newBenchNAT, gateVariants, gateMeasures) }

// BenchmarkCable is the same with the client at the other end of a cable, no router and no bridge: all of what the
// server costs, and nothing else to hide it.
func BenchmarkCable(b *testing.B) { benchGate(b, newBenchWire, gateVariants, gateMeasures) }

// BenchmarkBackends compares what carries the data, at both ends of a cable alike.
func BenchmarkBackends(b *testing.B) { benchGate(b, newBenchWire, backendVariants, gateMeasures) }

func benchGate(b *testing.B, network func(testing.TB) benchWire, variants []gateVariant, measures []gateMeasure) {
	b.Helper()
	if InGuest() {
		// The lab has it for its router. If something holds it, that shows in the figures of all alike.
		exec.Command("modprobe", "-r", "nf_conntrack_netlink", "nft_masq", "nft_chain_nat", "nft_ct").Run()
	}
	var wires []benchWire
	for _, v := range variants {
		w := network(b)
		v.make(b, w)
		w.cli.Ping(b, "172.28.0.0")
		wires = append(wires, w)
	}
	rates, rounds := inTurn(b, len(wires), len(measures), func(i, m int) float64 {
		return measures[m].rate(b, wires[i], measures[m].amount/variants[i].part)
	})

	var table strings.Builder
	table.WriteString("| |")
	for _, measure := range measures {
		fmt.Fprintf(&table, " %s | ratio |", measure.name)
	}
	table.WriteString("\n|---|" + strings.Repeat("---:|", 2*len(measures)) + "\n")
	spread := 0.0
	for i, v := range variants {
		fmt.Fprintf(&table, "| %s |", v.name)
		for m, measure := range measures {
			ratios := slices.Clone(rates[i][m])
			for round := range ratios {
				ratios[round] /= rates[0][m][round]
			}
			if v.part == 1 {
				spread = max(spread, (slices.Max(ratios)-slices.Min(ratios))/2)
			}
			fmt.Fprintf(&table, " %.*f | %.3f |", measure.digits, median(rates[i][m]), median(ratios))
		}
		table.WriteString("\n")
	}
	fmt.Printf("\n%s\nMedians of %d rounds; no ratio was more than %.3f from the middle of its range.\n\n", &table, rounds, spread)
}

// inTurn measures some things in turn, a round each, and returns what it measured, by thing, measure and round. The
// first round does not count.
func inTurn(b *testing.B, things, measures int, rate func(thing, measure int) float64) (rates [][][]float64, rounds int) {
	b.Helper()
	rounds = 5
	if text := os.Getenv("IPIPOU_LAB_ROUNDS"); text != "" {
		if _, err := fmt.Sscan(text, &rounds); err != nil || rounds < 1 {
			b.Fatalf("IPIPOU_LAB_ROUNDS: %q is no number of rounds", text)
		}
	}
	rates = make([][][]float64, things)
	for i := range rates {
		rates[i] = make([][]float64, measures)
	}
	for round := range rounds + 1 {
		for m := range measures {
			for turn := range things {
				i := (turn + round) % things
				if r := rate(i, m); round > 0 {
					rates[i][m] = append(rates[i][m], r)
				}
			}
		}
	}
	return rates, rounds
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
