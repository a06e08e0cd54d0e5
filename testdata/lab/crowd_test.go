package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ipipou/authd"
)

// A crowd is many peers of one server, none of which is a process: what they send is made here, with a source of our
// choice, at the other end of the server's cable.
type crowd struct {
	benchWire
	dir, config string
	hub         bool
	keys        []ed25519.PrivateKey
	server      *followed

	at    []netip.AddrPort // where the server's log says that they are
	alt   []bool           // and that they are on their alternate addresses, with the kernel's drivers
	moves int
	port  uint16 // the last that was used
}

const crowdNetwork = "198.18.0.0/15"

// newCrowd writes the configuration of a server of n tunnels; more is added to its top.
func newCrowd(t testing.TB, n int, hub bool, more string) *crowd {
	t.Helper()
	c := &crowd{
		benchWire: newBenchWire(t), dir: t.TempDir(), hub: hub, at: make([]netip.AddrPort, n), alt: make([]bool, n), port: 20000,
	}
	c.srv.batch(t, "route add "+crowdNetwork+" via "+benchClient)
	lines := []string{
		"server = true", `fou-dev = "s0"`, `auth-secret = "` + hubSecret + `"`, "reply-on-auth-ok = true", "verb = 2",
		`auth-key-b64 = "` + newKey(t).private + `"`, more,
	}
	if hub {
		lines = append(lines, "fou-local-port = 10000", `tunl-dev = "ipipou0"`, `tunl-ip = "`+hubInner+`"`)
	}
	for i := range n {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c.keys = append(c.keys, private)
		lines = append(lines, "[[tunnel]]", fmt.Sprintf("number = %d", i),
			`auth-remote-pubkey-b64 = "`+base64.StdEncoding.EncodeToString(public)+`"`)
		if hub {
			lines = append(lines, `tunl-peer-ip = "`+c.inner(i)+`"`)
		}
	}
	c.config = tomlFile(t, c.dir, "crowd", lines...)
	return c
}

// inner is a peer's inner address.
func (c *crowd) inner(i int) string { return innerAt(2*i + 1) }

// serverInner is the server's for that peer.
func (c *crowd) serverInner(i int) string {
	if c.hub {
		return hubInner
	}
	return innerAt(2 * i)
}

func innerAt(n int) string { return fmt.Sprintf("172.28.%d.%d", n>>8, n&255) }

// local is the endpoint of a tunnel.
func (c *crowd) local(i int) string {
	if c.hub {
		i = 0
	}
	return fmt.Sprintf("%s:%d", SrvAddr, 10000+i)
}

func (c *crowd) start(t testing.TB) {
	t.Helper()
	c.server = follow(t, c.dir, c.srv, "--config", c.config)
	last := fmt.Sprintf("ipipou%d:", len(c.keys)-1)
	if c.hub {
		last = fmt.Sprintf("ipipou0/%d:", len(c.keys)-1)
	}
	c.server.wait(t, last+" waiting for an authentication")
}

// authentication is a packet that authenticates a peer from an address.
func (c *crowd) authentication(t testing.TB, i int, from netip.AddrPort) []byte {
	t.Helper()
	payload, err := authd.Payload(authd.Auth{Key: c.keys[i], Secret: []byte(hubSecret)}, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return IPv4UDP(from.String(), c.local(i), payload)
}

// places are where the peers are in a round: four behind each public address, which they change at different paces, so
// that they meet others there. No two have the same port, ever.
func (c *crowd) places(round int) []netip.AddrPort {
	boxes := max(1, len(c.keys)/4)
	to := make([]netip.AddrPort, len(c.keys))
	for i := range to {
		c.port++
		box := (7*i + round*(1+i%3)) % boxes
		to[i] = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18 + byte(box>>8), byte(box), 1}), c.port)
	}
	return to
}

// send authenticates all peers who are elsewhere from where they should be.
func (c *crowd) send(t testing.TB, to []netip.AddrPort) {
	t.Helper()
	var packets [][]byte
	for i := range to {
		if c.at[i] != to[i] {
			packets = append(packets, c.authentication(t, i, to[i]))
		}
	}
	c.cli.sendPackets(t, packets...)
}

// settle authenticates peers until the server says that all of them are where they should be. It asks again, for what
// the server is too busy for is lost.
func (c *crowd) settle(t testing.TB, to []netip.AddrPort) {
	t.Helper()
	there := func(string) bool { return slices.Equal(c.at, to) }
	for range 20 {
		c.send(t, to)
		if c.follow(t, commandTimeout/4, there) {
			return
		}
	}
	t.Fatalf("peers are at %v, want %v", c.at, to)
}

var movedLine = regexp.MustCompile(`ipipou(?:0/)?(\d+): peer (bound at|moved from \S+ to) (\S+)$`)

// follow reads the server's log until done, and keeps account of where it has put whom.
func (c *crowd) follow(t testing.TB, limit time.Duration, done func(line string) bool) bool {
	t.Helper()
	return c.server.until(t, limit, func(line string) bool {
		if strings.Contains(line, "ERROR") {
			t.Error(line)
		}
		if m := movedLine.FindStringSubmatch(line); m != nil {
			i, err := strconv.Atoi(m[1])
			if err != nil || i >= len(c.at) {
				t.Fatalf("whose line is this? %s", line)
			}
			c.moved(i, netip.MustParseAddrPort(m[3]))
		}
		return done(line)
	})
}

// moved is what becomes of a peer's tunnel: two of the kernel's can't have the same addresses.
func (c *crowd) moved(i int, to netip.AddrPort) {
	c.moves++
	c.at[i], c.alt[i] = to, false
	for j, at := range c.at {
		c.alt[i] = c.alt[i] || j != i && at.Addr() == to.Addr() && !c.alt[j]
	}
}

// files are how many of its own the server has, in a directory or open.
func (c *crowd) files(t testing.TB, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func (c *crowd) open(t testing.TB) int {
	t.Helper()
	return c.files(t, fmt.Sprintf("/proc/%d/fd", c.server.cmd.Process.Pid))
}

// journal is how many undos are pending in the server's journal, and how many lines it has.
func (c *crowd) journal(t testing.TB) (pending, lines int) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.dir, c.srv.Name, "run", "*.journal"))
	if err != nil || len(files) != 1 {
		t.Fatalf("journals %v (%v), want one", files, err)
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	return pendingUndos(t, string(text)), strings.Count(string(text), "\n")
}
