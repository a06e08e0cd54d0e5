package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/authd"
)

// hubSizes are how many peers the hubs of BenchmarkPeers have; IPIPOU_LAB_PEERS names others.
const hubSizes = "1 100 1000 10000"

// BenchmarkPeers prints what a hub's peers cost, one port and one interface for all of them: its start, to bind one of
// them anew, and the data of one and of many in turn. It runs on the host (IPIPOU_LAB_HOST=1, see `make bench-host`).
func BenchmarkPeers(b *testing.B) {
	onHost(b)
	sizes := os.Getenv("IPIPOU_LAB_PEERS")
	if sizes == "" {
		sizes = hubSizes
	}
	var hubs []*hub
	for _, text := range strings.Fields(sizes) {
		var n int
		if _, err := fmt.Sscan(text, &n); err != nil || n < 1 {
			b.Fatalf("IPIPOU_LAB_PEERS: %q is no number of peers", text)
		}
		hubs = append(hubs, newPeersHub(b, n))
	}
	moves := make([][]float64, len(hubs)) // in ms
	for range rebinds {
		for i, h := range hubs {
			moves[i] = append(moves[i], h.rebind(b).Seconds()*1e3)
		}
	}
	for _, h := range hubs {
		h.bindFirst(b) // only now: of one peer, it is the one that was moved
	}
	rates, rounds := inTurn(b, len(hubs), len(peersMeasures), func(i, m int) float64 { return peersMeasures[m].rate(b, hubs[i]) })

	var table strings.Builder
	table.WriteString("| peers | start, s | memory, MB | rebind, ms |")
	for _, m := range peersMeasures {
		fmt.Fprintf(&table, " %s |", m.name)
	}
	table.WriteString("\n|" + strings.Repeat("---:|", 4+len(peersMeasures)) + "\n")
	for i, h := range hubs {
		fmt.Fprintf(&table, "| %d | %.2f | %.0f | %.1f |", len(h.keys), h.start.Seconds(), h.memory, median(moves[i]))
		for m, measure := range peersMeasures {
			if rate := median(rates[i][m]); rate > 0 {
				fmt.Fprintf(&table, " %.*f |", measure.digits, rate)
			} else {
				table.WriteString(" – |")
			}
		}
		table.WriteString("\n")
	}
	fmt.Printf("\n%s\nMedians of %d rounds, and of %d rebinds. In turn: %d peers, or all but the first.\n\n", &table, rounds, rebinds, inTurnPeers)
}

const (
	rebinds     = 20
	inTurnPeers = 1000
)

// peersMeasures are by the first peer, where ipipou runs, and by sockets of the others', which send and receive what
// would be in a tunnel themselves: with those the hub's end is all that it costs.
var peersMeasures = []struct {
	name   string
	digits int
	rate   func(b *testing.B, h *hub) float64
}{
	{"TCP to one, Gbit/s", 1, func(b *testing.B, h *hub) float64 {
		const n = 4_000_000_000
		return mbits(n, flowTCP(b, h.srv, h.cli, h.inner(0), n)) / 1e3
	}},
	{"64-byte UDP to one, kpps", 0, func(b *testing.B, h *hub) float64 {
		return peersPackets / 1e3 / flowUDP(b, h.srv, h.cli, h.inner(0), peersPackets, 64).Seconds()
	}},
	{"from one", 0, func(b *testing.B, h *hub) float64 {
		return peersPackets / 1e3 / flowUDP(b, h.cli, h.srv, hubInner, peersPackets, 64).Seconds()
	}},
	{"to many in turn", 0, func(b *testing.B, h *hub) float64 {
		if len(h.outer) == 0 {
			return 0
		}
		return peersPackets / 1e3 / datagrams(b, h.toPeers, h.outer, [][]byte{make([]byte, 64)}, peersPackets).Seconds()
	}},
	{"from many", 0, func(b *testing.B, h *hub) float64 {
		if len(h.outer) == 0 {
			return 0
		}
		return peersPackets / 1e3 / datagrams(b, h.outer, []int{h.fromPeers}, h.packets, peersPackets).Seconds()
	}},
}

const peersPackets = 200_000

// A hub has one tunnel interface and one port for all its peers, each with a key, an address and a network of its own.
type hub struct {
	benchWire
	dir    string
	public string // its key
	keys   []ed25519.PrivateKey
	log    *followed

	start  time.Duration
	memory float64 // of the process after the start, at most, in MB
	moving int     // the peer that rebind moves

	outer     []int // sockets of the peers that have no ipipou: the outer ends of their tunnels
	toPeers   []int // sockets at the hub, each connected to the inner address of one of those
	fromPeers int   // the hub's, to which packets lead
	packets   [][]byte
}

const hubInner, hubSecret = "172.28.0.0", "lab secret"

func (h *hub) title(i int) string {
	if len(h.keys) == 1 {
		return "ipipou0"
	}
	return fmt.Sprintf("ipipou0/%d", i)
}

// inner is the address of a peer, in the network that is behind it.
func (h *hub) inner(i int) string { return fmt.Sprintf("10.%d.%d.1", 1+i>>8, i&255) }

func newPeersHub(b *testing.B, n int) *hub {
	b.Helper()
	h := &hub{benchWire: newBenchWire(b), dir: b.TempDir()}
	private, public := keygen(b)
	h.public = public
	config := "server = true\nbackend = \"bpf\"\nfou-dev = \"s0\"\nfou-local-port = 10000\ntunl-dev = \"ipipou0\"\n" +
		"tunl-ip = \"" + hubInner + "\"\nreply-on-auth-ok = true\nverb = 2\n" +
		"auth-secret = \"" + hubSecret + "\"\nauth-key-b64 = \"" + private + "\"\n"
	var tunnels strings.Builder
	for i := range n {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		h.keys = append(h.keys, key)
		fmt.Fprintf(&tunnels, "\n[[tunnel]]\nnumber = %d\nauth-remote-pubkey-b64 = %q\ntunl-peer-ip = %q\nroutes = [%q]\n",
			i, base64.StdEncoding.EncodeToString(pub), h.inner(i), netip.PrefixFrom(netip.MustParseAddr(h.inner(i)), 24).Masked())
	}
	file := filepath.Join(h.dir, "hub.toml")
	if err := os.WriteFile(file, []byte(config+tunnels.String()), 0o600); err != nil {
		b.Fatal(err)
	}
	started := time.Now()
	h.log = follow(b, h.dir, h.srv, "--config", file)
	h.log.wait(b, h.title(n-1)+": waiting for an authentication")
	h.start = time.Since(started)
	h.memory = h.log.memory(b)
	h.bindOthers(b)
	return h
}

// bindOthers binds the peers that are measured in turn, and the one to be moved, by payloads as a client makes them.
func (h *hub) bindOthers(b *testing.B) {
	b.Helper()
	for i := 1; i < min(len(h.keys), 1+inTurnPeers); i++ {
		// A hundred of an address: more than that are refused in a second.
		addr := fmt.Sprintf("203.0.113.%d", 100+i/100)
		if i == 1 || i%100 == 0 {
			h.cli.batch(b, "addr add "+addr+"/24 dev c0")
			h.srv.batch(b, "neigh replace "+addr+" lladdr 02:00:00:00:02:01 dev s0 nud permanent")
		}
		h.outer = append(h.outer, h.authenticate(b, i, addr))
		h.log.wait(b, h.title(i)+": peer bound at ")
		to := bound(b, h.srv, unix.SOCK_DGRAM, hubInner)
		if err := unix.Connect(to, &unix.SockaddrInet4{Addr: netip.MustParseAddr(h.inner(i)).As4(), Port: 9}); err != nil {
			b.Fatal(err)
		}
		h.toPeers = append(h.toPeers, to)
	}
	h.fromPeers = bound(b, h.srv, unix.SOCK_DGRAM, hubInner)
	at, err := unix.Getsockname(h.fromPeers)
	if err != nil {
		b.Fatal(err)
	}
	port := at.(*unix.SockaddrInet4).Port
	for i := range h.outer {
		h.packets = append(h.packets, IPv4UDP(h.inner(1+i)+":1000", fmt.Sprintf("%s:%d", hubInner, port), make([]byte, 64)))
	}
	b.Cleanup(func() {
		for _, fd := range append(append(h.outer, h.toPeers...), h.fromPeers) {
			unix.Close(fd)
		}
	})
	h.moving = len(h.keys) - 1
	if h.moving == 0 || h.moving > inTurnPeers { // bound by nobody yet
		unix.Close(h.authenticate(b, h.moving, benchClient))
		h.log.wait(b, h.title(h.moving)+": peer bound at ")
	}
}

// rebind moves a peer to another port and returns how long it took from its authentication to the hub's word.
func (h *hub) rebind(b *testing.B) time.Duration {
	b.Helper()
	started := time.Now()
	fd := h.authenticate(b, h.moving, benchClient)
	h.log.wait(b, h.title(h.moving)+": peer moved from ")
	took := time.Since(started)
	if i := h.moving - 1; i >= 0 && i < len(h.outer) {
		fd, h.outer[i] = h.outer[i], fd
	}
	unix.Close(fd)
	return took
}

// authenticate sends a peer's authentication from an address and any port, and returns the socket.
func (h *hub) authenticate(b *testing.B, i int, from string) int {
	b.Helper()
	fd := bound(b, h.cli, unix.SOCK_DGRAM, from)
	err := unix.Connect(fd, &unix.SockaddrInet4{Addr: netip.MustParseAddr(SrvAddr).As4(), Port: 10000})
	var payload []byte
	if err == nil {
		payload, err = authd.Payload(authd.Auth{Key: h.keys[i], Secret: []byte(hubSecret)}, time.Now(), rand.Reader)
	}
	if err == nil {
		_, err = unix.Write(fd, payload)
	}
	if err != nil {
		b.Fatal(err)
	}
	return fd
}

// bindFirst starts ipipou for the first peer.
func (h *hub) bindFirst(b *testing.B) {
	b.Helper()
	client := startIPIPOU(b, h.dir, h.cli, "-c", "--backend", "bpf", "--fou-dev", "c0", "-r", SrvAddr+":10000", "--reply-on-auth-ok",
		"--tunl-ip", h.inner(0), "--tunl-peer-ip", hubInner, "-vv", "--auth-secret", hubSecret,
		"--auth-key-b64", base64.StdEncoding.EncodeToString(h.keys[0].Seed()), "--auth-remote-pubkey-b64", h.public)
	client.WaitLog(b, `up, .* replies`, commandTimeout)
	h.cli.Ping(b, hubInner)
}
