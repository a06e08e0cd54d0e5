package authd

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// netLab is two network namespaces with a cable between them: "c0" with
// clientAddr in one, "s0" with serverAddr in the other.
type netLab struct{ c, s string }

var labs atomic.Int32

func newNetLab(t testing.TB) netLab {
	t.Helper()
	skip := t.Skipf
	if os.Getenv("CI") != "" {
		skip = t.Fatalf
	}
	if os.Geteuid() != 0 {
		skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		skip("network namespaces need iproute2: %v", err)
	}
	n := fmt.Sprintf("authd-%d-%d-", os.Getpid(), labs.Add(1))
	l := netLab{n + "c", n + "s"}
	for _, ns := range []string{l.c, l.s} {
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			skip("no network namespaces here: %v: %s", err, out)
		}
		t.Cleanup(func() { ip(t, "netns", "del", ns) })
	}
	l.plug(t)
	return l
}

// plug makes the cable.
func (l netLab) plug(t testing.TB) {
	t.Helper()
	ip(t, "link", "add", "c0", "netns", l.c, "type", "veth", "peer", "name", "s0", "netns", l.s)
	ip(t, "-n", l.c, "address", "add", clientAddr.Addr().String()+"/24", "dev", "c0")
	ip(t, "-n", l.s, "address", "add", serverAddr.Addr().String()+"/24", "dev", "s0")
	ip(t, "-n", l.c, "link", "set", "c0", "up")
	ip(t, "-n", l.s, "link", "set", "s0", "up")
	// The kernel takes up to a second to let packets through, when there was
	// another link shortly before (net/core/link_watch.c).
	for _, end := range [][2]string{{l.c, "c0"}, {l.s, "s0"}} {
		for deadline := time.Now().Add(patience); !operational(t, end[0], end[1]); {
			if time.Now().After(deadline) {
				t.Fatalf("%s stays down", end[1])
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

func operational(t testing.TB, ns, dev string) bool {
	t.Helper()
	out, err := exec.Command("ip", "-n", ns, "link", "show", "dev", dev).CombinedOutput()
	if err != nil {
		t.Fatalf("ip link show: %v: %s", err, out)
	}
	return strings.Contains(string(out), "state UP")
}

func ip(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// within runs f in a namespace. Sockets stay in that where they were made, so
// only their making need be in f.
func within(t testing.TB, ns string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		// Never unlocked, so the thread ends with the goroutine and no other
		// finds itself in this namespace.
		runtime.LockOSThread()
		file, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
			file.Close()
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// peerLab is a running server, and what it binds.
type peerLab struct {
	netLab
	s     *Server
	log   *tap
	bound chan bound
	stop  func()
}

func (l netLab) serve(t testing.TB, tunnels ...ServerTunnel) *peerLab {
	t.Helper()
	log := newTap()
	return l.serveLogging(t, log, log.logger(), tunnels)
}

// serveLogging is serve with a logger that writes to log.
func (l netLab) serveLogging(t testing.TB, log *tap, logger *slog.Logger, tunnels []ServerTunnel) *peerLab {
	t.Helper()
	p := &peerLab{netLab: l, log: log, bound: make(chan bound, 1000)}
	var err error
	within(t, l.s, func() {
		p.s, err = NewServer(ServerConfig{
			Tunnels: tunnels,
			Log:     logger,
			Bind: func(i int, peer netip.AddrPort) error {
				p.bound <- bound{i, peer}
				return nil
			},
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.s.Serve(ctx) }()
	stopped := false
	p.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := get(t, "the end of Serve", done); err != nil {
			t.Errorf("Serve: %v", err)
		}
		if err := p.s.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	t.Cleanup(p.stop)
	return p
}

func (p *peerLab) expect(t testing.TB, want ...bound) {
	t.Helper()
	for _, w := range want {
		if diff := cmp.Diff(w, get(t, fmt.Sprint(w), p.bound), addrs); diff != "" {
			t.Error(diff)
		}
	}
}

// sender sends from the client's namespace.
func (l netLab) sender(t testing.TB) *rawSender {
	t.Helper()
	var (
		s   *rawSender
		err error
	)
	within(t, l.c, func() { s, err = newRawSender("c0") })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func send(t *testing.T, s *rawSender, src, dst netip.AddrPort, payload []byte) {
	t.Helper()
	if err := s.send(src, dst, 64, payload); err != nil {
		t.Fatal(err)
	}
}

// heard returns how many packets the filter of a socket has passed since the
// last time.
func heard(t *testing.T, c packetReceiver) int {
	t.Helper()
	st, err := c.(*packetConn).c.GetsockoptTpacketStats(unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Packets)
}

// listen opens an ordinary UDP socket in the client's namespace, so that the
// kernel verifies checksums.
func (l netLab) listen(t *testing.T, a netip.AddrPort) *net.UDPConn {
	t.Helper()
	var (
		c   *net.UDPConn
		err error
	)
	within(t, l.c, func() { c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(a)) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	return c
}

func keyPair(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return pub, priv
}

func TestNetServer(t *testing.T) {
	l := newNetLab(t)
	pub, priv := keyPair(t)
	secret := []byte("netprickle.com")
	p := l.serve(t,
		ServerTunnel{Name: "ipipou0", Local: at(10000), Device: "s0", Auth: Auth{RemoteKey: pub, Secret: secret}, Reply: true},
		ServerTunnel{Name: "ipipou1", Local: at(10001), Device: "s0", Auth: Auth{Token: []byte("hunter2")}, Reply: true, TTL: 7},
		// Two devices, so the socket is on all.
		ServerTunnel{Name: "ipipou2", Local: at(10002), Auth: Auth{Token: []byte("other")}},
	)
	snd := l.sender(t)
	udp := l.listen(t, clientAddr)

	// None of this may reach us.
	for range 100 {
		send(t, snd, clientAddr, at(10000), data(84))
		send(t, snd, clientAddr, at(10001), data(1400))
	}
	send(t, snd, clientAddr, at(9999), nil)
	send(t, snd, clientAddr, at(10003), []byte("hunter2"))
	frag := BuildUDP(clientAddr, at(10001), 64, []byte("hunter2"))
	frag[6] = 0x20
	if err := snd.sendPacket(frag, serverAddr.Addr()); err != nil {
		t.Fatal(err)
	}

	signed := Sign(priv, secret, time.Now(), [4]byte{1})
	send(t, snd, clientAddr, at(10000), signed)
	p.expect(t, bound{0, clientAddr})
	answer(t, udp, at(10000), Reverse(signed))

	opts := withOptions(BuildUDP(clientAddr, at(10001), 64, []byte("hunter2")), 4)
	if err := snd.sendPacket(opts, serverAddr.Addr()); err != nil {
		t.Fatal(err)
	}
	p.expect(t, bound{1, clientAddr})
	answer(t, udp, at(10001), []byte("2retnuh"))

	send(t, snd, clientAddr, at(10001), []byte("hunter3"))
	p.log.wait(t, "ipipou1: 198.51.100.7:4242 refused: wrong token")
	if n := heard(t, p.s.shared); n != 3 {
		t.Errorf("%d packets passed the filter, want 3", n)
	}
	p.stop()
	for _, s := range p.log.lines() {
		if strings.Contains(s, "hunter") {
			t.Errorf("told a secret: %s", s)
		}
	}
}

func answer(t *testing.T, c *net.UDPConn, from netip.AddrPort, want []byte) {
	t.Helper()
	buf := make([]byte, bufLen)
	n, src, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, buf[:n]); src != from || diff != "" {
		t.Errorf("from %v: %s", src, diff)
	}
}

// The reply as it is on the wire: headers, TTL and checksums.
func TestNetReplyPacket(t *testing.T) {
	l := newNetLab(t)
	p := l.serve(t, ServerTunnel{
		Name: "ipipou0", Local: serverAddr, Device: "s0", Auth: Auth{Token: []byte("hunter2")}, Reply: true, TTL: 7,
	})
	var (
		in  *packetConn
		err error
	)
	within(t, l.c, func() {
		in, err = listenPacket(Filter(FilterSpec{Ports: []uint16{clientAddr.Port()}, Src: serverAddr}), p.log.logger())
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	send(t, l.sender(t), clientAddr, serverAddr, []byte("hunter2"))

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	buf := make([]byte, bufLen)
	n, _, err := in.recv(ctx, buf)
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseUDP(buf[:n])
	if err != nil || string(d.Payload) != "2retnuh" || d.Src != serverAddr || d.Dst != clientAddr {
		t.Errorf("%v, %v", d, err)
	}
	if buf[8] != 7 {
		t.Errorf("TTL %d", buf[8])
	}
	checksumsHold(t, buf[:n])
}

func TestNetAddressOnly(t *testing.T) {
	l := newNetLab(t)
	p := l.serve(t,
		ServerTunnel{Name: "ipipou0", Local: at(10000), Device: "s0", Reply: true},
		ServerTunnel{Name: "ipipou1", Local: at(10001), Device: "s0", Auth: Auth{RemotePort: 4242}},
	)
	snd := l.sender(t)
	udp := l.listen(t, clientAddr)
	other := netip.AddrPortFrom(clientAddr.Addr(), 4243)
	conn := p.s.open[0].conn

	send(t, snd, clientAddr, at(10000), []byte{1, 2})
	p.expect(t, bound{0, clientAddr})
	answer(t, udp, at(10000), []byte{2, 1}) // after the reply the filter knows the peer
	if n := heard(t, conn); n != 1 {
		t.Errorf("%d packets passed the filter", n)
	}
	for range 50 {
		send(t, snd, clientAddr, at(10000), data(84))
	}
	send(t, snd, other, at(10000), data(84))
	p.expect(t, bound{0, other})
	if n := heard(t, conn); n != 1 {
		t.Errorf("%d packets passed the filter", n)
	}

	send(t, snd, other, at(10001), data(84))
	send(t, snd, other, at(10001), []byte{1})
	p.log.wait(t, "ipipou1: 198.51.100.7:4243 refused: source port")
	send(t, snd, clientAddr, at(10001), data(84))
	p.expect(t, bound{1, clientAddr})
	if n := heard(t, p.s.open[1].conn); n != 2 {
		t.Errorf("%d packets passed the filter", n)
	}
}

// runClient makes a client, sends and runs it till the end of the test.
func (l netLab) runClient(t testing.TB, cfg ClientConfig) *tap {
	t.Helper()
	log := newTap()
	cfg.Name, cfg.Device, cfg.Log = "ipipou0", "c0", log.logger()
	if !cfg.Local.IsValid() {
		cfg.Local = clientAddr
	}
	cfg.Remote = serverAddr
	var (
		c   *Client
		err error
	)
	within(t, l.c, func() { c, err = NewClient(cfg) })
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := get(t, "the end of Run", done); err != nil {
			t.Errorf("Run: %v", err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return log
}

// Client and server of ours, both signing; the server comes later, so that the
// client must try again.
func TestNetClient(t *testing.T) {
	l := newNetLab(t)
	pubC, privC := keyPair(t)
	pubS, privS := keyPair(t)
	secret := []byte("netprickle.com")
	up := make(chan struct{}, 1)
	log := l.runClient(t, ClientConfig{
		Auth: Auth{Key: privC, RemoteKey: pubS, Secret: secret, MaxSkew: time.Minute},
		OnUp: func() { up <- struct{}{} },
	})
	p := l.serve(t, ServerTunnel{
		Name: "ipipou0", Local: serverAddr, Device: "s0", Reply: true,
		Auth: Auth{Key: privS, RemoteKey: pubC, Secret: secret, MaxSkew: time.Minute, RemotePort: 4242, RemoteIP: clientAddr.Addr()},
	})
	p.expect(t, bound{0, clientAddr})
	get(t, "up", up)
	log.wait(t, "ipipou0: up, 198.51.100.1:10000 replies")
}

// Peers with keys and a token on one port that carries IPv4 and IPv6, one of them
// a client of ours, one that knows of no hints.
func TestNetShared(t *testing.T) {
	l := newNetLab(t)
	pubA, privA := keyPair(t)
	pubB, privB := keyPair(t)
	both := InnerIPv4 | InnerIPv6
	tunnel := func(name string, a Auth) ServerTunnel {
		return ServerTunnel{Name: name, Local: serverAddr, Device: "s0", Auth: a, Inner: both, Reply: true}
	}
	p := l.serve(t,
		tunnel("a", Auth{RemoteKey: pubA}),
		tunnel("b", Auth{RemoteKey: pubB}),
		tunnel("token", Auth{Token: []byte("hunter2")}),
	)
	snd := l.sender(t)
	for range 50 {
		send(t, snd, clientAddr, serverAddr, data(84))
		send(t, snd, clientAddr, serverAddr, data6(84))
	}
	// It sends once, as it waits for no reply.
	l.runClient(t, ClientConfig{Auth: Auth{Key: privA}, Inner: both, NoReply: true})
	p.expect(t, bound{0, clientAddr})

	other := netip.AddrPortFrom(clientAddr.Addr(), 4243)
	udp := l.listen(t, other)
	signed := Sign(privB, nil, time.Now(), [4]byte{1, 2, 3, 4})
	send(t, snd, other, serverAddr, signed)
	p.expect(t, bound{1, other})
	answer(t, udp, serverAddr, Reverse(signed))
	send(t, snd, other, serverAddr, []byte("hunter2"))
	p.expect(t, bound{2, other})
	answer(t, udp, serverAddr, []byte("2retnuh"))
	send(t, snd, clientAddr, serverAddr, signed)
	p.log.wait(t, "b: 198.51.100.7:4242 refused: replayed")
	if n := heard(t, p.s.shared); n != 4 {
		t.Errorf("%d packets passed the filter, want 4", n)
	}
}

func TestNetClientKeepalive(t *testing.T) {
	l := newNetLab(t)
	p := l.serve(t, ServerTunnel{Name: "ipipou0", Local: serverAddr, Auth: Auth{Token: []byte("hunter2")}})
	l.runClient(t, ClientConfig{Auth: Auth{Token: []byte("hunter2")}, Keepalive: 20 * time.Millisecond, NoReply: true})
	for range 5 {
		p.expect(t, bound{0, clientAddr})
	}
}

// The client's address changes under it.
func TestNetClientMoves(t *testing.T) {
	l := newNetLab(t)
	p := l.serve(t, ServerTunnel{Name: "ipipou0", Local: serverAddr, Auth: Auth{Token: []byte("hunter2")}, Reply: true})
	var (
		local atomic.Pointer[netip.AddrPort]
		up    = make(chan struct{}, 10)
		lost  = make(chan struct{}, 10)
	)
	here := clientAddr
	local.Store(&here)
	l.runClient(t, ClientConfig{
		Auth:      Auth{Token: []byte("hunter2")},
		Keepalive: 20 * time.Millisecond,
		Refresh: func() (netip.AddrPort, netip.AddrPort, error) {
			if a := *local.Load(); a.IsValid() {
				return a, serverAddr, nil
			}
			return netip.AddrPort{}, serverAddr, errors.New("no address")
		},
		OnUp:   func() { up <- struct{}{} },
		OnLost: func() { lost <- struct{}{} },
	})
	get(t, "up", up)
	local.Store(new(netip.AddrPort))
	get(t, "lost", lost)
	ip(t, "-n", l.c, "address", "add", "198.51.100.77/24", "dev", "c0")
	moved := netip.MustParseAddrPort("198.51.100.77:4242")
	local.Store(&moved)
	get(t, "up", up)
	for get(t, "the new address", p.bound).Peer != moved {
	}
}

// A server outlives its interface being down, and being another one.
func TestNetDeviceGoes(t *testing.T) {
	l := newNetLab(t)
	l.serve(t, ServerTunnel{Name: "ipipou0", Local: serverAddr, Device: "s0", Auth: Auth{Token: []byte("hunter2")}, Reply: true})
	up, lost := make(chan struct{}, 10), make(chan struct{}, 10)
	log := l.runClient(t, ClientConfig{
		Auth:      Auth{Token: []byte("hunter2")},
		Keepalive: 20 * time.Millisecond,
		OnUp:      func() { up <- struct{}{} },
		OnLost:    func() { lost <- struct{}{} },
	})
	get(t, "up", up)

	ip(t, "-n", l.s, "link", "set", "s0", "down")
	get(t, "lost", lost)
	ip(t, "-n", l.s, "link", "set", "s0", "up")
	get(t, "up", up)

	ip(t, "-n", l.s, "link", "del", "s0")
	get(t, "lost", lost)
	log.wait(t, "authentication not sent")
	l.plug(t)
	get(t, "up", up)
}

func TestNetStopWhileDeviceIsGone(t *testing.T) {
	l := newNetLab(t)
	p := l.serve(t, ServerTunnel{Name: "ipipou0", Local: serverAddr, Device: "s0"})
	ip(t, "-n", l.s, "link", "del", "s0")
	p.stop()
}

// What comes in by another device than the tunnel's is refused, also where one
// socket serves all devices.
func TestNetOtherDevice(t *testing.T) {
	l := newNetLab(t)
	ip(t, "-n", l.s, "link", "add", "s1", "type", "veth", "peer", "name", "s2")
	p := l.serve(t,
		ServerTunnel{Name: "ipipou0", Local: at(10000), Device: "s0", Auth: Auth{Token: []byte("a")}},
		ServerTunnel{Name: "ipipou1", Local: at(10001), Device: "s1", Auth: Auth{Token: []byte("a")}},
	)
	snd := l.sender(t)
	send(t, snd, clientAddr, at(10001), []byte("a"))
	p.log.wait(t, "ipipou1: 198.51.100.7:4242 refused: arrived on another interface")
	send(t, snd, clientAddr, at(10000), []byte("a"))
	p.expect(t, bound{0, clientAddr})
}

// A promiscuous device shows packets that are for another host, which only a tunnel
// takes whose packets are diverted: those come so too.
func TestNetPromiscuous(t *testing.T) {
	l := newNetLab(t)
	ip(t, "-n", l.s, "link", "set", "s0", "promisc", "on")
	p := l.serve(t,
		ServerTunnel{Name: "ipipou0", Local: serverAddr, Device: "s0", Auth: Auth{Token: []byte("a")}},
		ServerTunnel{Name: "ipipou1", Local: at(10001), Device: "s0", Auth: Auth{Token: []byte("a")}, Diverted: true},
	)
	snd := l.sender(t)
	server := serverAddr.Addr().String()
	ip(t, "-n", l.c, "neigh", "replace", server, "lladdr", "02:00:00:00:00:99", "dev", "c0")
	stray := netip.AddrPortFrom(clientAddr.Addr(), 1)
	send(t, snd, stray, serverAddr, []byte("a"))
	send(t, snd, stray, at(10001), []byte("a"))
	p.expect(t, bound{1, stray})
	ip(t, "-n", l.c, "neigh", "del", server, "dev", "c0")
	send(t, snd, clientAddr, serverAddr, []byte("a"))
	send(t, snd, clientAddr, at(10001), []byte("a"))
	p.expect(t, bound{0, clientAddr}, bound{1, clientAddr})
	if n := heard(t, p.s.shared); n != 4 {
		t.Errorf("%d packets passed the filter, want 4", n)
	}
}

func TestNetNoDevice(t *testing.T) {
	l := newNetLab(t)
	within(t, l.s, func() {
		bind := func(int, netip.AddrPort) error { return nil }
		for _, a := range []Auth{{}, {Token: []byte("a")}} {
			_, err := NewServer(ServerConfig{
				Tunnels: []ServerTunnel{{Name: "ipipou0", Local: serverAddr, Device: "nope0", Auth: a, Reply: true}}, Bind: bind,
			})
			if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "ipipou0") || !strings.Contains(err.Error(), "nope0") {
				t.Errorf("server: %v", err)
			}
		}
		for _, deaf := range []bool{false, true} {
			_, err := NewClient(ClientConfig{Name: "ipipou0", Local: clientAddr, Remote: serverAddr, Device: "nope0", NoReply: deaf})
			if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "ipipou0") || !strings.Contains(err.Error(), "nope0") {
				t.Errorf("client: %v", err)
			}
		}
	})
}

func TestNetSendError(t *testing.T) {
	l := newNetLab(t)
	within(t, l.c, func() {
		c, err := NewClient(ClientConfig{Name: "ipipou0", Local: clientAddr, Remote: netip.MustParseAddrPort("192.0.2.1:1")})
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		if err := c.Send(); !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%v", err)
		}
	})
}

func TestNetSystemTTL(t *testing.T) {
	l := newNetLab(t)
	within(t, l.c, func() {
		if err := os.WriteFile(ttlFile, []byte("77"), 0); err != nil {
			t.Error(err)
		}
		if got := systemTTL(0); got != 77 {
			t.Errorf("%d", got)
		}
		if got := systemTTL(3); got != 3 {
			t.Errorf("%d", got)
		}
	})
}

func TestNetWatchAddrs(t *testing.T) {
	l := newNetLab(t)
	// On the cable the kernel changes addresses and links by itself; lo is quiet.
	ip(t, "-n", l.c, "link", "del", "c0")
	ip(t, "-n", l.c, "link", "set", "lo", "up")
	var (
		c   <-chan struct{}
		err error
	)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	within(t, l.c, func() { c, err = WatchAddrs(ctx) })
	if err != nil {
		t.Fatal(err)
	}
	if cap(c) != 1 {
		t.Errorf("capacity %d", cap(c))
	}
	for _, args := range [][]string{
		{"address", "add", "198.51.100.77/24", "dev", "lo"},
		{"address", "add", "2001:db8::77/64", "dev", "lo"},
		{"link", "set", "lo", "mtu", "1400"},
	} {
		ip(t, append([]string{"-n", l.c}, args...)...)
		get(t, strings.Join(args, " "), c)
		// What one change yields more than once is not the next one's.
		for quiet := false; !quiet; {
			select {
			case <-c:
			case <-time.After(100 * time.Millisecond):
				quiet = true
			}
		}
	}
}
