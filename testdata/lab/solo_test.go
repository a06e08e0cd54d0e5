package lab

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// solo is a server of one tunnel and one client behind the NAT, both run by flags alone.
type solo struct {
	*Net
	dir            string
	server, client *Proc
}

func newSolo(t testing.TB) *solo {
	t.Helper()
	return &solo{Net: NewNet(t), dir: t.TempDir()}
}

func serverArgs(more ...string) []string {
	return append([]string{"-s", "--verb", "3"}, more...)
}

func clientArgs(more ...string) []string {
	return append([]string{"--fou-dev", "c0", "-r", SrvAddr + ":10000", "--tunl-ip", clientInner[0], "--verb", "3"}, more...)
}

// launch starts the program on a host and does not wait for anything.
func (s *solo) launch(t testing.TB, ns *NS, args ...string) *Proc {
	t.Helper()
	return startIPIPOU(t, s.dir, ns, args...)
}

func (s *solo) startServer(t testing.TB, args ...string) {
	t.Helper()
	s.server = s.launch(t, s.Srv, serverArgs(args...)...)
	s.server.WaitLog(t, `ipipou0: waiting for an authentication`, commandTimeout)
}

// startClient returns where the server sees the client.
func (s *solo) startClient(t testing.TB, args ...string) string {
	t.Helper()
	from := s.server.Len()
	s.client = s.launch(t, s.C1, clientArgs(args...)...)
	return s.server.WaitLogFrom(t, from, `ipipou0: peer (?:bound at|moved from \S+ to) (\S+)`, commandTimeout)[1]
}

func (s *solo) works(t testing.TB) {
	t.Helper()
	s.C1.Ping(t, serverInner[0])
	s.Srv.Ping(t, clientInner[0])
}

// moves waits until the server has moved the tunnel to an address, after the first n bytes of its output.
func (s *solo) moves(t testing.TB, n int, to string) {
	t.Helper()
	s.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+regexp.QuoteMeta(to)+`\n`, commandTimeout)
}

// A key is an ed25519 key, and its halves as the flags want them.
type key struct {
	ed25519.PrivateKey
	private, public string
}

func newKey(t testing.TB) key {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{private, base64.StdEncoding.EncodeToString(private.Seed()), base64.StdEncoding.EncodeToString(public)}
}

// sign makes an authentication by the letter of the protocol, with nothing of the program's.
func (k key) sign(secret string, at time.Time, salt uint32) []byte {
	stamp := binary.BigEndian.AppendUint64(nil, uint64(at.Unix()))[3:]
	stamp = binary.BigEndian.AppendUint32(stamp, salt)
	return append(ed25519.Sign(k.PrivateKey, append(append([]byte{}, stamp...), secret...)), stamp...)
}

// signed reports whether a payload is a signature by k over its last nine bytes and the secret.
func (k key) signed(secret string, payload []byte) bool {
	return len(payload) == 73 && ed25519.Verify(k.Public().(ed25519.PublicKey),
		append(append([]byte{}, payload[64:]...), secret...), payload[:64])
}

// A packet is a UDP packet as it was on the wire.
type packet struct {
	src, dst netip.AddrPort
	ttl      byte
	checksum uint16
	right    bool // the checksum is
	payload  []byte
}

func parsePacket(b []byte) (p packet, ok bool) {
	if len(b) < 28 || b[0] != 0x45 || b[9] != 17 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return p, false
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length < 28 || length > len(b) {
		return p, false
	}
	udp := b[20:length]
	p.src = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[12:])), binary.BigEndian.Uint16(udp))
	p.dst = netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[16:])), binary.BigEndian.Uint16(udp[2:]))
	p.ttl, p.checksum = b[8], binary.BigEndian.Uint16(udp[6:])
	if n := int(binary.BigEndian.Uint16(udp[4:])); n >= 8 && n <= len(udp) {
		p.payload = udp[8:n]
		pseudo := binary.BigEndian.AppendUint16([]byte{0, 17}, uint16(n))
		sum := append(append(append([]byte{}, b[12:20]...), pseudo...), udp[:n]...)
		p.right = checksum(sum) == 0
	}
	return p, true
}

// A sniffer hears what a device receives.
type sniffer struct {
	mu   sync.Mutex
	seen []packet
}

// Sniff hears the UDP packets that a device receives, until the end of the test.
func (ns *NS) Sniff(t testing.TB, dev string) *sniffer {
	t.Helper()
	var fd int
	err := ns.Do(func() error {
		index, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		protocol := binary.NativeEndian.Uint16([]byte{unix.ETH_P_IP >> 8, unix.ETH_P_IP & 0xff})
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: index.Index}); err != nil {
			return err
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	})
	if err != nil {
		t.Fatalf("in %s: sniff %s: %v", ns.Name, dev, err)
	}
	s, stop, done := &sniffer{}, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 65536)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, buf, 0)
			if err != nil {
				continue
			}
			if p, ok := parsePacket(append([]byte{}, buf[:n]...)); ok {
				s.mu.Lock()
				s.seen = append(s.seen, p)
				s.mu.Unlock()
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		unix.Close(fd)
	})
	return s
}

// find is the first packet heard that is wanted.
func (s *sniffer) find(want func(packet) bool) (packet, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.seen {
		if want(p) {
			return p, true
		}
	}
	return packet{}, false
}

// wait is find for what may be still to come.
func (s *sniffer) wait(t testing.TB, what string, want func(packet) bool) (found packet) {
	t.Helper()
	Eventually(t, commandTimeout, func() error {
		var ok bool
		if found, ok = s.find(want); !ok {
			return fmt.Errorf("no packet heard that is %s", what)
		}
		return nil
	})
	return found
}

// isInner reports whether a payload is tunnel data and no authentication.
func isInner(b []byte) bool {
	return len(b) >= 20 && b[0]>>4 == 4 && int(binary.BigEndian.Uint16(b[2:])) == len(b)
}

// dropped is how many packets the gate has dropped from strangers.
func (ns *NS) dropped(t testing.TB) int {
	t.Helper()
	out := ns.Run(t, "nft", "list", "table", "ip", "ipipou0")
	matches := regexp.MustCompile(`@(?:fou|alive) counter packets (\d+) bytes \d+ drop`).FindAllStringSubmatch(out, -1)
	if matches == nil {
		t.Fatalf("no counter of drops in\n%s", out)
	}
	sum := 0
	for _, m := range matches {
		n, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

// tracked is how many connections the namespace tracks.
func (ns *NS) tracked(t testing.TB) string {
	t.Helper()
	var count string
	err := ns.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_count")
		count = strings.TrimSpace(string(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// A link is what `ip` tells of a tunnel.
type link struct {
	IfIndex  int
	LinkInfo struct {
		Data struct {
			Remote, Local string
			Encap         struct {
				Type         string
				Sport, Dport int
				Csum         bool
			}
		} `json:"info_data"`
	}
}

func (ns *NS) link(t testing.TB, dev string) link {
	t.Helper()
	out := ns.Run(t, "ip", "-d", "-j", "link", "show", "dev", dev)
	var links []link
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		t.Fatalf("in %s: %s: %v: %s", ns.Name, dev, err, out)
	}
	return links[0]
}

// count is the number of lines of a text that a regular expression matches.
func count(text, expr string) int {
	n, re := 0, regexp.MustCompile(expr)
	for line := range strings.Lines(text) {
		if re.MatchString(line) {
			n++
		}
	}
	return n
}

// kill ends a process as nothing else does: it can't clean up.
func kill(t testing.TB, p *Proc) {
	t.Helper()
	p.Signal(t, syscall.SIGKILL)
	p.Wait(t, commandTimeout)
}

// noJournal checks that a host that was cleaned up has no journal and no lock either.
func noJournal(t testing.TB, dir string, ns *NS) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, ns.Name, "run", "*"))
	if err != nil || len(files) > 0 {
		t.Errorf("left behind on %s: %v (%v)", ns.Name, files, err)
	}
}
