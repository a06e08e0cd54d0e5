package authd

import (
	"crypto/rand"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// floodRate is in packets a second. A busy machine makes fewer.
const floodRate = 50000

// flood is a sender of packets from forged sources, in a thread of its own.
type flood struct {
	sent atomic.Int64
	quit chan struct{}
	done chan time.Duration // the CPU time that it took
}

// serveFlooded is serve without debugging lines, which would be one a packet.
func (l netLab) serveFlooded(t testing.TB, tunnels []ServerTunnel) *peerLab {
	t.Helper()
	log := newTap()
	return l.serveLogging(t, log, slog.New(slog.NewTextHandler(log, nil)), tunnels)
}

// flood sends to the server what next returns, floodRate a second, till the end
// of the test or until packets were sent, if that is not 0.
func (l netLab) flood(t testing.TB, packets int64, next func(i int64) (dst netip.AddrPort, payload []byte)) *flood {
	t.Helper()
	f := &flood{quit: make(chan struct{}), done: make(chan time.Duration, 1)}
	var (
		fd       int
		src, dst *net.Interface
		err      error
	)
	within(t, l.s, func() { dst, err = net.InterfaceByName("s0") })
	if err != nil {
		t.Fatal(err)
	}
	within(t, l.c, func() {
		if src, err = net.InterfaceByName("c0"); err == nil {
			fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: src.Index, Halen: 6}
	copy(to.Addr[:], dst.HardwareAddr)
	go func() {
		// Its CPU time is the thread's.
		runtime.LockOSThread()
		defer unix.Close(fd)
		before, begin := cpuTime(t, unix.RUSAGE_THREAD), time.Now()
		for i := int64(0); packets == 0 || i < packets; i++ {
			if i%64 == 0 {
				select {
				case <-f.quit:
					f.done <- cpuTime(t, unix.RUSAGE_THREAD) - before
					return
				default:
				}
				due := time.Duration(i) * time.Second / floodRate
				if early := due - time.Since(begin); early > 0 {
					time.Sleep(early)
				}
			}
			dst, payload := next(i)
			var a [4]byte
			rand.Read(a[:])
			a[0] = 1 + a[0]%200
			forged := netip.AddrPortFrom(netip.AddrFrom4(a), uint16(1+i%60000))
			// Full queues on the way are a flood's fate.
			if unix.Sendto(fd, BuildUDP(forged, dst, 64, payload), 0, to) == nil {
				f.sent.Add(1)
			}
		}
		f.done <- cpuTime(t, unix.RUSAGE_THREAD) - before
	}()
	return f
}

// stop ends f and returns the CPU time that it took.
func (f *flood) stop(t testing.TB) time.Duration {
	t.Helper()
	close(f.quit)
	return get(t, "the end of the flood", f.done)
}

func cpuTime(t testing.TB, who int) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(who, &u); err != nil {
		t.Error(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// garbage is n bytes, with a time that is now if timely.
func garbage(n int, timely bool) []byte {
	p := make([]byte, n)
	rand.Read(p)
	if timely {
		putTime(p[64:], time.Now().Unix())
	}
	return p
}

// dropped returns how many packets there was no room for since the last time.
func (p *peerLab) dropped(t testing.TB) int {
	t.Helper()
	st, err := p.s.shared.(*packetConn).c.GetsockoptTpacketStats(unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Drops)
}

// A packet that is refused in a flood makes no garbage.
func TestFloodAllocates(t *testing.T) {
	now := time.Now()
	l := newServerLab(t, ServerConfig{Now: func() time.Time { return now }, Tunnels: []ServerTunnel{
		{Name: "ipipou0", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(0))}},
		{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: []byte("sesame")}},
		{Name: "ipipou2", Local: at(10002), Auth: Auth{RemoteKey: public(peerKey(2))}},
		{Name: "ipipou3", Local: at(10002), Auth: Auth{RemoteKey: public(peerKey(3))}},
	}})
	l.s.log = slog.New(slog.DiscardHandler)
	l.s.folds.log = l.s.log
	n := 0
	for name, d := range map[string]Datagram{
		"signature":         {Dst: at(10000), Payload: garbage(SignedLen, true)},
		"one of signatures": {Dst: at(10002), Payload: garbage(SignedLen, true)},
		"token":             {Dst: at(10001), Payload: []byte("sesamo")},
		"length":            {Dst: at(10001), Payload: []byte("s")},
	} {
		refuse := func() {
			n++
			d.Src = netip.AddrPortFrom(host(n<<8), 1)
			l.s.checker.rate.all[byTime] = bucket{0, now}
			l.s.handle(l.shared, arrival{}, d, nil)
		}
		for range 2 * maxFolds {
			refuse()
		}
		if allocs := testing.AllocsPerRun(100, refuse); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
		if n := len(l.s.unproved[byTime]); n != 0 {
			t.Errorf("%s: %d wait", name, n)
		}
	}
}

// In a flood from forged sources, at the rate of floodRate if the machine is idle,
// clients are bound with their first try or, as packets may be lost, the second.
func TestNetFlood(t *testing.T) {
	const (
		perKind = 4
		shared  = 10003
	)
	var (
		tunnels []ServerTunnel
		secret  = []byte("netprickle.com")
		token   = []byte("sesame")
	)
	tunnel := func(port uint16, a Auth) {
		tunnels = append(tunnels, ServerTunnel{Name: fmt.Sprint("ipipou", len(tunnels)), Local: at(port), Device: "s0", Auth: a, Reply: true})
	}
	signer := func(i int) Auth { return Auth{RemoteKey: public(peerKey(i)), Secret: secret} }
	tunnel(10000, signer(0))
	tunnel(10001, signer(1))
	tunnel(10002, Auth{Token: token})
	for i := 3; i < 103; i++ {
		tunnel(shared, signer(i))
	}
	type client struct {
		name    string
		tunnel  int
		payload func() []byte
	}
	ours := func(i int) func() []byte {
		return func() []byte { return hinted(t, peerKey(i), string(secret), time.Now()) }
	}
	version1 := func(i int) func() []byte {
		return func() []byte {
			var salt [4]byte
			rand.Read(salt[:])
			return Sign(peerKey(i), secret, time.Now(), salt)
		}
	}
	clients := []client{
		{"ours", 0, ours(0)},
		{"version 1", 1, version1(1)},
		{"token", 2, func() []byte { return token }},
		{"ours, on a port of many", 50, ours(50)},
		{"version 1, on a port of many", 51, version1(51)},
	}
	for _, tt := range []struct {
		name   string
		class  class // of the garbage
		spared []client
	}{
		{"random", byNothing, clients},
		// Who takes the trouble to write the time competes with clients of
		// version 1 that come from elsewhere, not with ours.
		{"with the time", byTime, []client{clients[0], clients[2], clients[3]}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newNetLab(t)
			p := l.serveFlooded(t, tunnels)
			snd := l.sender(t)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			goroutines := runtime.NumGoroutine()

			f := l.flood(t, 0, func(i int64) (netip.AddrPort, []byte) {
				port := uint16(10000 + i%4)
				if port == 10002 {
					return at(port), garbage(len(token), false)
				}
				return at(port), garbage(SignedLen, tt.class == byTime)
			})
			begin := time.Now()
			wait(t, "a flood that uses up the budget of its class", func() bool {
				c := p.s.checker
				c.mu.Lock()
				defer c.mu.Unlock()
				return f.sent.Load() > floodRate && c.rate.all[tt.class].tokens < 100
			})
			src := clientAddr
			for range perKind {
				for _, c := range tt.spared {
					src = netip.AddrPortFrom(src.Addr(), src.Port()+1)
					want := bound{c.tunnel, src}
					if !p.try(t, snd, want, tunnels[c.tunnel].Local, c.payload) {
						t.Errorf("%s: not bound", c.name)
					}
				}
			}
			runtime.ReadMemStats(&after)
			if n := runtime.NumGoroutine(); n > goroutines+4 {
				t.Errorf("%d goroutines, %d before", n, goroutines)
			}
			if more := int64(after.HeapInuse) - int64(before.HeapInuse); more > 16<<20 {
				t.Errorf("%d bytes of heap more", more)
			}
			if n := len(p.log.lines()); n > 20*maxFolds {
				t.Errorf("%d lines logged", n)
			}
			t.Logf("%.0f packets/s", float64(f.sent.Load())/time.Since(begin).Seconds())
			f.stop(t)
		})
	}
}

// try reports whether what payload returns is bound when sent once or twice. A try
// does not count in which the socket had no room for some of the packets: a machine
// that is too busy to receive may have lost that one, and the sender is on the same.
func (p *peerLab) try(t testing.TB, snd *rawSender, want bound, dst netip.AddrPort, payload func() []byte) bool {
	t.Helper()
	for n, counted := 0, 0; n < 20 && counted < 2; n++ {
		p.dropped(t)
		if err := snd.send(want.Peer, dst, 64, payload()); err != nil {
			t.Fatal(err)
		}
		for timeout := time.After(2 * time.Second); ; {
			select {
			case got := <-p.bound:
				if got == want {
					return true
				}
				continue
			case <-timeout:
			}
			break
		}
		if p.dropped(t) == 0 {
			counted++
		}
	}
	return false
}

// wait waits for a condition that nothing tells of.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// What a flood costs the server: CPU seconds a second, all its threads with what
// the kernel does for them. That of the sender, which carries the packets as far
// as into the server's socket, is not in it.
func BenchmarkFlood(b *testing.B) {
	token := []byte("sesame")
	one := []ServerTunnel{
		{Name: "ipipou0", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(0))}},
		{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: token}},
	}
	var many []ServerTunnel
	for i := range 1000 {
		many = append(many, ServerTunnel{Name: fmt.Sprint("ipipou", i), Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(i))}})
	}
	for _, bb := range []struct {
		name    string
		tunnels []ServerTunnel
		port    uint16
		payload func() []byte
	}{
		{"random/1", one, 10000, func() []byte { return garbage(SignedLen, false) }},
		{"timely/1", one, 10000, func() []byte { return garbage(SignedLen, true) }},
		{"random/1000", many, 10000, func() []byte { return garbage(SignedLen, false) }},
		{"timely/1000", many, 10000, func() []byte { return garbage(SignedLen, true) }},
		{"token", one, 10001, func() []byte { return garbage(len(token), false) }},
		{"other port", one, 10007, func() []byte { return garbage(len(token), false) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			l := newNetLab(b)
			p := l.serveFlooded(b, bb.tunnels)
			p.dropped(b)
			before, begin := cpuTime(b, unix.RUSAGE_SELF), time.Now()
			f := l.flood(b, int64(b.N), func(int64) (netip.AddrPort, []byte) { return at(bb.port), bb.payload() })
			sender := get(b, "the end of the flood", f.done)
			took := time.Since(begin).Seconds()
			cpu := cpuTime(b, unix.RUSAGE_SELF) - before - sender
			drops := p.dropped(b)
			b.ReportMetric(float64(f.sent.Load())/took, "packets/s")
			b.ReportMetric(float64(drops)/took, "drops/s")
			b.ReportMetric(cpu.Seconds()/took, "cpu-s/s")
		})
	}
}
