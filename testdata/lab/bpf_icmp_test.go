package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A complaint is an ICMP error that comes in by the tunnel: about a packet, which is quoted, and with an MTU if it is
// that the packet was too large.
type complaint struct {
	about []byte
	mtu   int
}

// packet is the whole error, byte for byte but for its identification.
func (c complaint) packet(id uint16) []byte {
	quote := c.about[:min(len(c.about), 128)]
	if c.about[0]>>4 == 4 {
		h := header{src: net.IP(c.about[16:20]).String(), dst: net.IP(c.about[12:16]).String(), proto: 1, tos: 0xc0, id: id}
		if c.mtu > 0 {
			return h.packet(icmpPacket(3, 4, uint32(c.mtu), quote))
		}
		return h.packet(icmpPacket(3, 1, 0, quote))
	}
	h := header{src: net.IP(c.about[24:40]).String(), dst: net.IP(c.about[8:24]).String(), proto: 58}
	b := icmpPacket(1, 3, 0, quote)
	if c.mtu > 0 {
		b = icmpPacket(2, 0, uint32(c.mtu), quote)
	}
	copy(b[2:], []byte{0, 0})
	pseudo := binary.BigEndian.AppendUint32(slices.Concat(c.about[24:40], c.about[8:24]), uint32(len(b)))
	copy(b[2:], be16(int(checksum(pseudo, []byte{0, 0, 0, 58}, b))))
	return h.packet(b)
}

// is reports whether a packet is that error.
func (c complaint) is(b []byte) bool {
	return len(b) > 20 && bytes.Equal(b, c.packet(binary.BigEndian.Uint16(b[4:])))
}

// hears puts a packet on its way into the tunnel, and says what came back before the error about a later one.
func (h *hostile) hears(t testing.TB, out sender, packet []byte) [][]byte {
	t.Helper()
	time.Sleep(aWhile)
	out.send(t, packet)
	time.Sleep(aWhile)
	h.marks++
	last := complaint{about: header{src: "10.9.0.2", dst: "10.98.0.1", proto: 253, id: h.marks}.packet(nil)}
	out.send(t, last.about)
	before, _ := h.inside.takeUntil(t, "the last error", last.is)
	return before
}

// Whoever sends what can't go on is told at once and rightly; but nobody is told of errors, of groups, or twice of one
// packet.
func TestBPFErrors(t *testing.T) {
	t.Parallel()
	h := newHostileWire(t)
	h.port, h.peerPort = hostilePort, 6666
	static(t, h.dir, end{h.b, []string{"--static", "--backend", "bpf", "--mode", "any4", "--encap", "fou", "--fou-local", "192.0.2.2:5555@b0",
		"--fou-remote-port", "6666", "--tunl-ip", "10.9.0.2/24,fd09::2/64",
		"--routes", "10.9.1.0/24 via 192.0.2.1 onlink,fd09:1::/64 via ::192.0.2.1 onlink"}})
	h.listen(t)
	out := h.b.sender(t, "ipipou0")
	check := func(name string, packet []byte, mtu int, told bool) {
		t.Helper()
		got := h.hears(t, out, packet)
		if c := (complaint{packet, mtu}); told && (len(got) != 1 || !c.is(got[0])) {
			t.Errorf("%s: about\n% x\nheard\n% x\nwant\n% x", name, packet, got, c.packet(0))
		}
		if !told && len(got) > 0 {
			t.Errorf("%s: about\n% x\nheard\n% x\nwant nothing", name, packet, got)
		}
	}
	h4, h6 := header{src: "10.9.0.2", dst: "10.99.0.1", proto: 17}, header{src: "fd09::2", dst: "fd99::1", proto: 17}
	t.Run("unreachable", func(t *testing.T) {
		for _, n := range []int{0, 1, 7, 8, 9, 79, 80, 87, 88, 89, 99, 100, 101, 107, 108, 109, 1000} {
			payload := bytes.Repeat([]byte{0x5a}, n)
			check(fmt.Sprint("IPv4, ", n), h4.packet(payload), 0, true)
			check(fmt.Sprint("IPv6, ", n), h6.packet(payload), 0, true)
		}
		first, later, optioned := h4, h4, h4
		first.flags, later.flags, optioned.options = 0x2000, 0x0001, bytes.Repeat([]byte{1}, 40)
		check("the first fragment", first.packet(make([]byte, 64)), 0, true)
		check("with options", optioned.packet(make([]byte, 64)), 0, true)
		check("a later fragment", later.packet(make([]byte, 64)), 0, false)
		for kind := range 20 {
			h4 := h4
			h4.proto = 1
			check(fmt.Sprint("ICMP type ", kind), h4.packet(icmpPacket(byte(kind), 0, 0, make([]byte, 28))), 0,
				slices.Contains([]int{0, 8, 13, 14, 15, 16, 17, 18, 19}, kind))
			optioned := h4
			optioned.options = []byte{8, 8, 8, 8}
			check(fmt.Sprint("ICMP behind options, type ", kind), optioned.packet(icmpPacket(byte(kind), 0, 0, make([]byte, 28))), 0,
				slices.Contains([]int{0, 8, 13, 14, 15, 16, 17, 18, 19}, kind))
		}
		for _, kind := range []byte{0, 1, 2, 3, 4, 100, 127, 128, 129, 255} {
			h6 := h6
			h6.proto = 58
			check(fmt.Sprint("ICMPv6 type ", kind), h6.packet(icmpPacket(kind, 0, 0, make([]byte, 28))), 0, kind >= 128)
		}
		for _, dst := range []string{"224.0.0.1", "239.255.255.255", "255.255.255.255", "240.0.0.1"} {
			check("to "+dst, header{src: h4.src, dst: dst, proto: 17}.packet(make([]byte, 64)), 0, false)
		}
		for _, src := range []string{"0.0.0.0", "224.0.0.1", "255.255.255.255"} {
			check("from "+src, header{src: src, dst: h4.dst, proto: 17}.packet(make([]byte, 64)), 0, false)
		}
		check("to a group", header{src: h6.src, dst: "ff02::1", proto: 17}.packet(make([]byte, 64)), 0, false)
		check("from nobody", header{src: "::", dst: h6.dst, proto: 17}.packet(make([]byte, 64)), 0, false)
		check("from a group", header{src: "ff02::1", dst: h6.dst, proto: 17}.packet(make([]byte, 64)), 0, false)
	})
	t.Run("too large", func(t *testing.T) { h.tooLarge(t, check) })
	t.Run("not too many", func(t *testing.T) { h.seldom(t, out, h4.packet(make([]byte, 64))) })
}

// tooLarge has a router tell of smaller and smaller paths.
func (h *hostile) tooLarge(t *testing.T, check func(name string, packet []byte, mtu int, told bool)) {
	h4, h6 := header{src: "10.9.0.2", dst: "10.9.1.1", proto: 253, flags: 0x4000}, header{src: "fd09::2", dst: "fd09:1::1", proto: 253}
	// with has a packet of that size.
	with := func(h header, size int) []byte { return h.packet(make([]byte, size-len(h.packet(nil)))) }
	ours := header{src: h.local, dst: h.peer, proto: 17, flags: 0x4000}.packet(bareUDP(h.port, h.peerPort, with(h4, 1400)))
	tell := func(kind, code byte, value uint32, quote []byte) {
		t.Helper()
		router := header{src: "192.0.2.9", dst: h.local, proto: 1}
		h.from.send(t, h.ethernet(router.packet(icmpPacket(kind, code, value, quote))))
	}
	// What is none of ours, or says something else, is no news.
	optioned := bytes.Clone(ours[:20])
	optioned[0]++
	for name, f := range map[string]func(){
		"another's":      func() { tell(3, 4, 1000, edited(ours, 12, 192, 0, 2, 3)[:28]) },
		"another port":   func() { tell(3, 4, 1000, edited(ours, 20, 1, 1)[:28]) },
		"TCP":            func() { tell(3, 4, 1000, edited(ours, 9, 6)[:28]) },
		"options":        func() { tell(3, 4, 1000, append(optioned, ours[20:]...)[:32]) },
		"port":           func() { tell(3, 3, 1000, ours[:28]) },
		"time exceeded":  func() { tell(11, 0, 1000, ours[:28]) },
		"cut":            func() { tell(3, 4, 1000, ours[:23]) },
		"another's path": func() { tell(3, 4, 1000, edited(ours, 16, 192, 0, 2, 77)[:28]) },
	} {
		f()
		check("IPv4, not told: "+name, with(h4, 1400), 0, false)
		check("IPv6, not told: "+name, with(h6, 1400), 0, false)
	}
	// Below 552 and 1280 nobody is told to go: a sender would not, and the router may cut those.
	for _, c := range []struct{ path, mtu4, mtu6 int }{
		{1499, 1471, 1471}, {1400, 1372, 1372}, {1309, 1281, 1281}, {1308, 1280, 1280}, {1307, 1279, 1280}, {600, 572, 1280}, {68, 552, 1280}, {0, 552, 1280},
	} {
		tell(3, 4, uint32(c.path), ours[:28])
		name := fmt.Sprintf("path of %d: ", c.path)
		check(name+"IPv4 that fits", with(h4, c.mtu4), 0, false)
		check(name+"IPv4, a byte more", with(h4, c.mtu4+1), c.mtu4, true)
		check(name+"IPv6 that fits", with(h6, c.mtu6), 0, false)
		check(name+"IPv6, a byte more", with(h6, c.mtu6+1), c.mtu6, true)
	}
}

// seldom has the same error come as often as it may, which is once in a millisecond.
func (h *hostile) seldom(t *testing.T, out sender, packet []byte) {
	var last time.Time
	slots, started := 0, time.Now()
	for time.Since(started) < 300*time.Millisecond {
		out.send(t, packet)
		if now := time.Now(); now.Sub(last) >= time.Millisecond {
			slots, last = slots+1, now
		}
	}
	most := int(time.Since(started).Milliseconds()) + 2
	n := len(h.hears(t, out, packet))
	t.Logf("%d errors in %v", n, time.Since(started))
	if n < slots/2 || n > most {
		t.Errorf("%d errors, want %d to %d", n, slots/2, most)
	}
}

// A strait is a path whose middle is narrow from the beginning, with a container at one end:
//
//	c l0 10.60.0.9 ── lan0 a u0 10.0.1.2 ── r1 ─1400─ r2 ── 10.0.2.2 u0 b
type strait struct {
	a, b, c *NS
	dir     string
}

const straitMTU = 1400

func newStrait(t testing.TB) *strait {
	t.Helper()
	seeded(t)
	s := &strait{NewNS(t, "a"), NewNS(t, "b"), NewNS(t, "c"), t.TempDir()}
	r1, r2 := NewNS(t, "r1"), NewNS(t, "r2")
	for _, ns := range []*NS{r1, r2, s.a} {
		ns.Sysctl(t, map[string]string{
			"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1", "net/ipv4/icmp_ratelimit": "0", "net/ipv6/icmp/ratelimit": "0",
		})
	}
	r1.batch(t, veth("x0", 1, "u0", s.a), veth("m0", 2, "m0", r2), "addr add 10.0.1.1/24 dev x0", "addr add 10.0.9.1/24 dev m0",
		"link set x0 up", fmt.Sprintf("link set m0 mtu %d up", straitMTU), "route add 10.0.2.0/24 via 10.0.9.2 onlink dev m0")
	r2.batch(t, veth("x0", 3, "u0", s.b), "addr add 10.0.2.1/24 dev x0", "addr add 10.0.9.2/24 dev m0",
		"link set x0 up", fmt.Sprintf("link set m0 mtu %d up", straitMTU), "route add 10.0.1.0/24 via 10.0.9.1")
	s.a.batch(t, veth("lan0", 4, "l0", s.c), "addr add 10.0.1.2/24 dev u0", "addr add 10.60.0.1/24 dev lan0", "addr add fd60::1/64 dev lan0",
		"link set u0 up", "link set lan0 up", "route add default via 10.0.1.1")
	s.b.batch(t, "addr add 10.0.2.2/24 dev u0", "link set u0 up", "route add default via 10.0.2.1")
	s.c.batch(t, "addr add 10.60.0.9/24 dev l0", "addr add fd60::9/64 dev l0", "link set l0 up", "route add default via 10.60.0.1", "route add default via fd60::1")
	for _, ns := range []*NS{s.a, s.b, s.c, r1, r2} {
		ns.waitRunning(t)
	}
	return s
}

// start starts the tunnel at both ends.
func (s *strait) start(t testing.TB, encap string) []*Proc {
	t.Helper()
	// With another route the container has forgotten what it was told.
	for _, via := range []string{"10.60.0.1", "fd60::1"} {
		s.c.batch(t, "route del default via "+via, "route add default via "+via)
	}
	common := []string{"--static", "--backend", "bpf", "--mode", "any4", "--fou-dev", "u0", "--encap", encap}
	return static(t, s.dir,
		end{s.a, append(slices.Clone(common), "--fou-remote-ip", "10.0.2.2", "--tunl-ip", "10.9.0.1/24,fd09::1/64")},
		end{s.b, append(slices.Clone(common), "--fou-remote-ip", "10.0.1.2", "--tunl-ip", "10.9.0.2/24,fd09::2/64",
			"--routes", "10.60.0.0/24,fd60::/64")})
}

// Packets that are too large for the path are told so, at the end of the tunnel and behind it, and what is to get
// through does with the right size.
func TestBPFStrait(t *testing.T) {
	t.Parallel()
	s := newStrait(t)
	before := snapshots(t, s.a, s.b)
	for encap, room := range map[string]int{"fou": 28, "none": 20} {
		t.Run(encap, func(t *testing.T) {
			procs := s.start(t, encap)
			mtu := straitMTU - room
			s.flows(t, mtu, s.a, s.c)
			s.pings(t, mtu)
			stop(t, procs...)
		})
	}
	// Where a device can't do checksums, the kernel does what is still to be done of them: not within the quote of an
	// error, which is done.
	t.Run("checksums by software", func(t *testing.T) {
		s.a.noOffload(t, "lan0")
		procs := s.start(t, "fou")
		s.flows(t, straitMTU-28, s.c)
		stop(t, procs...)
	})
	sameStates(t, "in the end", s.dir, before)
}

// pings has one end's packets pass that just fit, and the other kind be told.
func (s *strait) pings(t *testing.T, mtu int) {
	for _, from := range []*NS{s.a, s.c, s.b} {
		for version, to := range map[int]string{4: "10.9.0.2", 6: "fd09::2"} {
			headers := map[int]int{4: 28, 6: 48}[version]
			if from == s.b {
				to = map[int]string{4: "10.60.0.9", 6: "fd60::9"}[version]
			}
			ping := func(size int, wait string) (string, error) {
				return from.Try("ping", "-n", "-c", "1", "-W", wait, "-M", "do", "-s", fmt.Sprint(size-headers), to)
			}
			// The first that is too large tells this end of the path; then each is told.
			told := regexp.MustCompile(fmt.Sprintf(`mtu ?[=:] ?%d\b`, mtu))
			Eventually(t, commandTimeout, func() error {
				_, err := ping(mtu+1, "0.5")
				if err == nil {
					t.Fatalf("%s to %s: a packet of %d passes", from.Name, to, mtu+1)
				}
				if !told.MatchString(err.Error()) {
					return fmt.Errorf("%s to %s: not told of an MTU of %d: %w", from.Name, to, mtu, err)
				}
				return nil
			})
			if out, err := ping(mtu, "10"); err != nil {
				t.Errorf("%s to %s: a packet of %d does not pass: %v\n%s", from.Name, to, mtu, err, out)
			}
		}
	}
}

// flows has TCP both ways between b and others: they are told of the path, and keep to it.
func (s *strait) flows(t *testing.T, mtu int, others ...*NS) {
	ears := map[*NS]*tap{}
	for _, ns := range others {
		ears[ns] = ns.Tap(t, map[*NS]string{s.a: "ipipou0", s.c: "l0"}[ns])
	}
	var all sync.WaitGroup
	for _, c := range []struct {
		from, to *NS
		addr     string
	}{{s.a, s.b, "10.9.0.2"}, {s.b, s.a, "10.9.0.1"}, {s.c, s.b, "10.9.0.2"}, {s.b, s.c, "10.60.0.9"},
		{s.a, s.b, "fd09::2"}, {s.b, s.a, "fd09::1"}, {s.c, s.b, "fd09::2"}, {s.b, s.c, "fd60::9"}} {
		if ears[c.from] == nil && ears[c.to] == nil {
			continue
		}
		all.Go(func() {
			what := fmt.Sprintf("%s to %s", c.from.Name, c.addr)
			f, err := openFlow(t, c.from, c.to, c.addr)
			if err == nil {
				err = f.push(200_000)
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
				return
			}
			for i, conn := range f {
				// The headers and a time stamp; whether the end has been told of it or only the other one.
				want := mtu - 40 - 12
				if strings.Contains(c.addr, ":") {
					want -= 20
				}
				if info := tcpInfo(t, conn); int(info.Snd_mss) != want {
					t.Errorf("%s, end %d: segments of %d, want %d; path MTU %d", what, i, info.Snd_mss, want, info.Pmtu)
				}
			}
		})
	}
	all.Wait()
	for ns, ear := range ears {
		heard := 0
		for _, b := range ear.all() {
			if ns == s.c {
				b = b[14:]
			}
			heard += rightError(t, ns.Name, b, mtu)
		}
		if heard == 0 {
			t.Errorf("%s has not been told", ns.Name)
		}
	}
}

// rightError checks an ICMP error of a packet too large: its sums and what it says. It returns 0 for any other packet.
func rightError(t testing.TB, who string, b []byte, mtu int) int {
	t.Helper()
	switch {
	case len(b) > 28 && b[0] == 0x45 && b[9] == 1 && b[20] == 3:
		if n := int(binary.BigEndian.Uint16(b[26:])); checksum(b[:20]) != 0 || checksum(b[20:]) != 0 || b[21] != 4 || n != mtu {
			t.Errorf("%s: an error that is not right, or of an MTU of %d: % x", who, n, b)
		}
		return 1
	case len(b) > 48 && b[0]>>4 == 6 && b[6] == 58 && b[40] == 2:
		pseudo := slices.Concat(b[8:40], []byte{0, 0}, b[4:6], []byte{0, 0, 0, 58})
		if n := int(binary.BigEndian.Uint32(b[44:])); checksum(pseudo, b[40:]) != 0 || n != mtu {
			t.Errorf("%s: an error that is not right, or of an MTU of %d: % x", who, n, b)
		}
		return 1
	}
	return 0
}

func tcpInfo(t testing.TB, conn net.Conn) (info *unix.TCPInfo) {
	t.Helper()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) })
	}
	if err != nil {
		t.Error(err)
		return &unix.TCPInfo{}
	}
	return info
}

// What no peer has is unreachable at once: of a server to whom none has come yet, and of one that has other peers.
func TestBPFUnreachable(t *testing.T) {
	t.Parallel()
	w := newHostileWire(t).wire
	server := []string{"-s", "--backend", "bpf", "--mode", "any4", "--fou-dev", "b0", "--auth-token", "a token of the lab's",
		"--tunl-ip", "10.9.0.2/24,fd09::2/64", "--verb", "3"}
	nodes := []string{"--static", "--backend", "bpf", "--mode", "any4", "--fou-local", "192.0.2.2@b0", "--tunl-ip", "10.9.0.2/24,fd09::2/64",
		"--routes", "10.9.1.0/24 via 192.0.2.1 onlink,fd09:1::/64 via ::192.0.2.1 onlink", "--verb", "3"}
	for name, args := range map[string][]string{"nobody is bound": server, "nobody has it": nodes} {
		t.Run(name, func(t *testing.T) {
			p := startIPIPOU(t, w.dir, w.b, args...)
			p.WaitLog(t, `waiting for an authentication|ipipou0: up`, commandTimeout)
			for _, to := range []string{"10.9.0.7", "fd09::7"} {
				for _, network := range []string{"udp", "tcp"} {
					time.Sleep(aWhile)
					// TCP does not listen while it is sending: it is the second try that is told, after a second.
					if err := w.b.Do(func() error { return reply(network, net.JoinHostPort(to, "80")) }); !errors.Is(err, syscall.EHOSTUNREACH) {
						t.Errorf("%s to %s: %v, want no route to host", network, to, err)
					}
				}
				time.Sleep(aWhile)
				out, err := w.b.Try("ping", "-n", "-c", "1", "-W", "5", to)
				if err == nil || !regexp.MustCompile(`(?i)host unreachable|address unreachable`).MatchString(out+err.Error()) {
					t.Errorf("ping %s: %v\n%s", to, err, out)
				}
			}
			stop(t, p)
		})
	}
}

// reply connects and waits for something.
func reply(network, to string) error {
	dialer := net.Dialer{Timeout: commandTimeout, Control: func(network, _ string, c syscall.RawConn) (err error) {
		// Or UDP keeps it to itself.
		c.Control(func(fd uintptr) {
			switch network {
			case "udp4":
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_RECVERR, 1)
			case "udp6":
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
			}
		})
		return err
	}}
	conn, err := dialer.Dial(network, to)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(commandTimeout))
	if _, err = conn.Write([]byte("hello")); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	return err
}
