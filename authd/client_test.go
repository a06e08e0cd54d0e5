package authd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/bpf"

	"github.com/google/go-cmp/cmp"
)

// wire is both sockets of a client or server under test.
type wire struct {
	in      chan []byte // packets to receive
	from    arrival     // of all of them
	out     []Datagram
	at      []time.Duration // when those were sent
	start   time.Time
	mu      sync.Mutex
	fail    error
	filters [][]bpf.Instruction
	onSend  func(Datagram)
	device  string // that all packets arrive on
	closed  int
}

func newWire() *wire {
	return &wire{in: make(chan []byte, 4096), start: time.Now()}
}

func (w *wire) recv(ctx context.Context, buf []byte) (n int, from arrival, err error) {
	select {
	case <-ctx.Done():
		return 0, w.from, ctx.Err()
	case p, ok := <-w.in:
		if !ok {
			return 0, w.from, errors.New("broken socket")
		}
		return copy(buf, p), w.from, nil
	}
}

func (w *wire) send(src, dst netip.AddrPort, ttl uint8, payload []byte) error {
	w.mu.Lock()
	err := w.fail
	w.mu.Unlock()
	if err != nil {
		return err
	}
	d := Datagram{src, dst, payload}
	w.out = append(w.out, d)
	w.at = append(w.at, time.Since(w.start))
	if w.onSend != nil {
		w.onSend(d)
	}
	return nil
}

// breaks makes sends fail from now on.
func (w *wire) breaks(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

func (w *wire) setFilter(f []bpf.Instruction) error {
	w.filters = append(w.filters, f)
	return nil
}

func (w *wire) arrivedOn(_ int, device string) bool { return device == "" || device == w.device }
func (w *wire) Close() error                        { w.closed++; return nil }

// clientLab is a client on a wire, in a bubble of synctest.
type clientLab struct {
	*wire
	c        *Client
	log      *tap
	again    chan struct{}
	up, lost int
}

func newClientLab(t *testing.T, cfg ClientConfig) *clientLab {
	t.Helper()
	l := &clientLab{wire: newWire(), log: newTap(), again: make(chan struct{})}
	cfg.Name, cfg.Local, cfg.Remote = "ipipou0", clientAddr, serverAddr
	cfg.Log = l.log.logger()
	cfg.OnUp, cfg.OnLost = func() { l.up++ }, func() { l.lost++ }
	c, err := newClient(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.out = l.wire
	if !cfg.NoReply {
		c.in = l.wire
	}
	l.c = c
	return l
}

// run sends, runs for d and returns when all has ended.
func (l *clientLab) run(t *testing.T, d time.Duration, script func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	defer cancel()
	if err := l.c.Send(); err != nil && l.fail == nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- l.c.Run(ctx, l.again) }()
	if script != nil {
		script()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func (l *clientLab) reply(payload []byte) {
	l.in <- BuildUDP(serverAddr, clientAddr, 64, payload)
}

func seconds(ds []time.Duration) []int {
	var s []int
	for _, d := range ds {
		s = append(s, int(d/time.Second))
	}
	return s
}

func TestClientSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{Auth: Auth{Token: []byte("hunter2")}})
		l.run(t, time.Hour, nil)
		if diff := cmp.Diff([]int{0, 1, 3, 7, 15, 31, 63}, seconds(l.at)); diff != "" {
			t.Error(diff)
		}
		want := []string{`level=INFO msg="ipipou0: 198.51.100.1:10000 does not reply (it may not have --reply-on-auth-ok)"`}
		if diff := cmp.Diff(want, l.log.lines()); diff != "" {
			t.Error(diff)
		}
		if l.up != 0 || l.lost != 0 {
			t.Errorf("up %d, lost %d", l.up, l.lost)
		}
	})
}

// The longest reply is heard, in the longest IP header.
func TestClientLongestReply(t *testing.T) {
	for _, n := range []int{1, replyBuf, maxPayload} {
		synctest.Test(t, func(t *testing.T) {
			token := bytes.Repeat([]byte("token"), n)[:n]
			l := newClientLab(t, ClientConfig{Auth: Auth{Token: token}})
			pkt := BuildUDP(serverAddr, clientAddr, 64, Reverse(token))
			pkt = slices.Insert(pkt, ipHeaderLen, make([]byte, 15*4-ipHeaderLen)...) // ends of options
			pkt[0] = 4<<4 | 15
			binary.BigEndian.PutUint16(pkt[2:], uint16(len(pkt)))
			l.in <- pkt
			l.run(t, time.Hour, nil)
			if l.up != 1 {
				t.Errorf("%d bytes: up %d times, want once: %q", n, l.up, l.log.lines())
			}
		})
	}
}

func TestClientUpLostUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{Auth: Auth{Token: []byte("hunter2")}, Keepalive: 25 * time.Second})
		l.onSend = func(d Datagram) {
			if s := time.Since(l.start); s < 40*time.Second || s > 90*time.Second {
				l.reply(Reverse(d.Payload))
			}
		}
		l.run(t, 101*time.Second, nil)
		if diff := cmp.Diff([]int{0, 25, 50, 51, 53, 57, 65, 75, 100}, seconds(l.at)); diff != "" {
			t.Error(diff)
		}
		want := []string{
			`level=INFO msg="ipipou0: up, 198.51.100.1:10000 replies"`,
			`level=WARN msg="ipipou0: lost, 3 authentications without a reply of 198.51.100.1:10000"`,
			`level=INFO msg="ipipou0: up, 198.51.100.1:10000 replies"`,
		}
		if diff := cmp.Diff(want, l.log.lines()); diff != "" {
			t.Error(diff)
		}
		if l.up != 2 || l.lost != 1 {
			t.Errorf("up %d, lost %d", l.up, l.lost)
		}
		if d := l.out[0]; d.Src != clientAddr || d.Dst != serverAddr || string(d.Payload) != "hunter2" {
			t.Errorf("sent %v", d)
		}
	})
}

func TestClientAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{})
		l.onSend = func(Datagram) { l.reply(nil) }
		l.run(t, time.Minute, func() {
			time.Sleep(10 * time.Second)
			l.again <- struct{}{}
			time.Sleep(10 * time.Second)
			l.again <- struct{}{}
			close(l.again)
		})
		if diff := cmp.Diff([]int{0, 10, 20}, seconds(l.at)); diff != "" {
			t.Error(diff)
		}
		if l.up != 1 {
			t.Errorf("up %d", l.up)
		}
	})
}

func TestClientDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{NoReply: true, ExpectReply: true, Keepalive: 20 * time.Second})
		l.run(t, 50*time.Second, nil)
		if diff := cmp.Diff([]int{0, 20, 40}, seconds(l.at)); diff != "" {
			t.Error(diff)
		}
		if ls := l.log.lines(); ls != nil {
			t.Errorf("%q", ls)
		}
	})
}

// Replies that seem to be for another host are the diverted ones, if that is so.
func TestClientDiverted(t *testing.T) {
	for _, tt := range []struct{ diverted, otherHost, up bool }{
		{false, false, true}, {false, true, false}, {true, false, true}, {true, true, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newClientLab(t, ClientConfig{Diverted: tt.diverted})
			l.from.otherHost = tt.otherHost
			l.onSend = func(Datagram) { l.reply(nil) }
			l.run(t, time.Second, nil)
			if up := l.up == 1; up != tt.up || up != (l.log.lines() != nil) {
				t.Errorf("%+v: up %v, %q", tt, up, l.log.lines())
			}
		})
	}
}

func TestClientSendFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{ExpectReply: true})
		l.onSend = func(Datagram) { l.reply(nil) }
		l.breaks(errors.New("network is unreachable"))
		l.run(t, 100*time.Second, func() {
			time.Sleep(5500 * time.Millisecond)
			l.breaks(errors.New("message too long"))
			time.Sleep(3 * time.Second)
			l.breaks(nil)
		})
		// Run takes it that the first was sent.
		if diff := cmp.Diff([]int{16}, seconds(l.at)); diff != "" {
			t.Error(diff)
		}
		want := []string{
			`level=WARN msg="ipipou0: authentication not sent, will try again" error="network is unreachable"`,
			`level=WARN msg="ipipou0: lost, 3 authentications without a reply of 198.51.100.1:10000"`,
			`level=WARN msg="ipipou0: authentication not sent, will try again" error="message too long"`,
			`level=INFO msg="ipipou0: up, 198.51.100.1:10000 replies"`,
		}
		if diff := cmp.Diff(want, l.log.lines()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestClientRefresh(t *testing.T) {
	moved := netip.MustParseAddrPort("203.0.113.5:4242")
	synctest.Test(t, func(t *testing.T) {
		var l *clientLab
		l = newClientLab(t, ClientConfig{Refresh: func() (local, remote netip.AddrPort, err error) {
			switch s := time.Since(l.start); {
			case s < 10*time.Second:
				return clientAddr, serverAddr, nil
			case s < 20*time.Second:
				return local, remote, errors.New("no address")
			default:
				return moved, serverAddr, nil
			}
		}})
		l.onSend = func(d Datagram) {
			l.in <- BuildUDP(d.Dst, d.Src, 64, nil)
			l.in <- BuildUDP(d.Dst, netip.MustParseAddrPort("192.0.2.1:1"), 64, nil)
		}
		l.run(t, 30*time.Second, func() {
			time.Sleep(15 * time.Second)
			l.again <- struct{}{}
			time.Sleep(10 * time.Second)
		})
		// 15, 16 and 18 fail.
		if diff := cmp.Diff([]int{0, 22}, seconds(l.at)); diff != "" {
			t.Error(diff)
		}
		if d := l.out[1]; d.Src != moved {
			t.Errorf("from %v", d.Src)
		}
		want := [][]bpf.Instruction{Filter(FilterSpec{
			Dst: []netip.Addr{moved.Addr()}, Ports: []uint16{moved.Port()}, Src: serverAddr,
		})}
		if diff := cmp.Diff(want, l.filters); diff != "" {
			t.Error(diff)
		}
		if l.up != 2 || l.lost != 1 {
			t.Errorf("up %d, lost %d", l.up, l.lost)
		}
		if !l.log.has("endpoints: no address") {
			t.Errorf("%q", l.log.lines())
		}
	})
}

func TestClientRefreshNonsense(t *testing.T) {
	l := newClientLab(t, ClientConfig{Refresh: func() (local, remote netip.AddrPort, err error) {
		return netip.MustParseAddrPort("[::1]:1"), serverAddr, nil
	}})
	if err := l.c.Send(); err == nil || len(l.out) != 0 {
		t.Errorf("%v, %v", err, l.out)
	}
}

func TestClientBrokenSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{})
		close(l.in)
		err := l.c.Run(t.Context(), nil)
		if err == nil || !strings.Contains(err.Error(), "ipipou0: broken socket") {
			t.Errorf("%v", err)
		}
	})
}

func TestClientVerifySigned(t *testing.T) {
	vs := vectors(t)
	v := vs["server"]
	good := v.Payload
	sign := func(sec int64, salt byte) []byte {
		return Sign(v.key(), v.Secret, time.Unix(sec, 0), [4]byte{salt})
	}
	clk := newClock(v.Time)
	l := newClientLab(t, ClientConfig{Now: clk.now, Auth: Auth{
		Key: vs["client"].key(), RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret, MaxSkew: 5 * time.Second,
	}})
	if err := l.c.Send(); err != nil {
		t.Fatal(err)
	}
	forged := append([]byte{good[0] ^ 1}, good[1:]...)
	for i, tt := range []struct {
		payload []byte
		want    error
	}{
		{forged, ErrSignature},
		{vs["client"].Payload, ErrSignature},
		{good, nil},
		{good, ErrReplayed},
		{sign(v.Time, 1), nil},
		{sign(v.Time-1, 2), ErrOlder},
		{sign(v.Time+6, 2), ErrSkew},
		{sign(v.Time+5, 2), nil},
		// Reversed, what we sent is no proof of the key.
		{Reverse(l.out[0].Payload), ErrSkew},
		{nil, ErrLength},
	} {
		verified, err := l.c.verify(Datagram{serverAddr, clientAddr, tt.payload})
		if !errors.Is(err, tt.want) || !verified {
			t.Errorf("%d: %v, %v, want %v", i, verified, err, tt.want)
		}
	}
	if l.c.hear(Datagram{serverAddr, clientAddr, good}) {
		t.Error("heard a replay")
	}
	if !l.log.has("reply of 198.51.100.1:10000 ignored: older than") {
		t.Errorf("%q", l.log.lines())
	}
}

func TestClientVerifyReversed(t *testing.T) {
	vs := vectors(t)
	l := newClientLab(t, ClientConfig{Auth: Auth{Key: vs["client"].key(), Secret: []byte("s")}})
	for range keepSent + 1 {
		if err := l.c.Send(); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(payload []byte) bool { return l.c.hear(Datagram{serverAddr, clientAddr, payload}) }
	for i, d := range l.out {
		// The first is one too long ago. It counts, as it could be signed.
		verified, err := l.c.verify(Datagram{serverAddr, clientAddr, Reverse(d.Payload)})
		if verified != (i > 0) || err != nil {
			t.Errorf("%d: %v, %v", i, verified, err)
		}
	}
	if hear(Reverse(vs["longer"].Payload)) || hear(nil) || hear([]byte("hunter2")) {
		t.Error("heard nonsense")
	}
	if hear(l.out[3].Payload[:72]) {
		t.Error("heard 72 bytes")
	}
	for range 2 {
		if !hear(vs["server"].Payload) {
			t.Error("a signed reply does not count")
		}
	}
	n := 0
	for _, s := range l.log.lines() {
		if strings.Contains(s, "give --auth-remote-pubkey-b64 to verify replies") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d hints", n)
	}
	if l.c.hear(Datagram{netip.MustParseAddrPort("192.0.2.1:10000"), clientAddr, Reverse(l.out[8].Payload)}) {
		t.Error("heard a stranger")
	}
	if l.c.hear(Datagram{serverAddr, netip.MustParseAddrPort("192.0.2.1:4242"), Reverse(l.out[8].Payload)}) {
		t.Error("heard what was for another address")
	}
}

// The server would refuse a salt of this second that it has accepted.
func TestClientSalts(t *testing.T) {
	key := vectors(t)["client"].key()
	clk := newClock(1700000000)
	l := newClientLab(t, ClientConfig{Now: clk.now, Auth: Auth{Key: key, Secret: []byte("s")}})
	l.c.rand = strings.NewReader("aaaaaabbaabbccaa")
	for range 3 {
		if err := l.c.Send(); err != nil {
			t.Fatal(err)
		}
	}
	clk.add(time.Second)
	if err := l.c.Send(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range l.out {
		st, err := ParseStamp(d.Payload)
		if err != nil || st.hint() != hintOf(public(key), []byte("s"), st.Time) {
			t.Errorf("%v, %v", st, err)
		}
		got = append(got, string(st.Salt[hintLen:]))
	}
	if diff := cmp.Diff([]string{"aa", "bb", "cc", "aa"}, got); diff != "" {
		t.Error(diff)
	}
	// A token is the same each time.
	l = newClientLab(t, ClientConfig{Now: clk.now, Auth: Auth{Token: []byte("hunter2")}})
	for range 2 {
		if err := l.c.Send(); err != nil {
			t.Fatal(err)
		}
	}
}

// A token that looks like data when reversed has its reply passed.
func TestClientFilterToken(t *testing.T) {
	gre := func(n int) []byte { return greData(0x20000800, n) }
	for _, tt := range []struct {
		inner Inner
		data  func(n int) []byte
	}{{InnerIPv4, data}, {InnerGRE, gre}, {InnerIPv6, data6}, {InnerIPv4 | InnerIPv6, data}, {InnerIPv4 | InnerIPv6, data6}} {
		l := newClientLab(t, ClientConfig{Auth: Auth{Token: Reverse(tt.data(48))}, Inner: tt.inner})
		s := l.c.filter(clientAddr, serverAddr)
		if !passes(t, s, BuildUDP(serverAddr, clientAddr, 64, tt.data(48))) {
			t.Errorf("%d: the reply does not pass", tt.inner)
		}
		if passes(t, s, BuildUDP(serverAddr, clientAddr, 64, tt.data(49))) {
			t.Errorf("%d: data passes", tt.inner)
		}
	}
}

func TestNewClientRefuses(t *testing.T) {
	ok := ClientConfig{Name: "ipipou0", Local: clientAddr, Remote: serverAddr}
	for name, f := range map[string]func(*ClientConfig){
		"no local":     func(c *ClientConfig) { c.Local = netip.AddrPort{} },
		"IPv6":         func(c *ClientConfig) { c.Remote = netip.MustParseAddrPort("[::1]:1") },
		"port 0":       func(c *ClientConfig) { c.Remote = netip.AddrPortFrom(serverAddr.Addr(), 0) },
		"unspecified":  func(c *ClientConfig) { c.Local = netip.MustParseAddrPort("0.0.0.0:1") },
		"short key":    func(c *ClientConfig) { c.Auth.Key = make([]byte, 1) },
		"two ways":     func(c *ClientConfig) { c.Auth = Auth{Key: make([]byte, 64), Token: []byte("x")} },
		"no such data": func(c *ClientConfig) { c.Inner = 0x80 },
		"bad interval": func(c *ClientConfig) { c.Keepalive = -1 },
	} {
		cfg := ok
		f(&cfg)
		if _, err := NewClient(cfg); err == nil || !strings.HasPrefix(err.Error(), "ipipou0: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A path that is told to be dead has the client authenticate at once, and again, until it is told otherwise.
func TestClientPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newClientLab(t, ClientConfig{Auth: Auth{Token: []byte("hello")}})
		l.onSend = func(d Datagram) { l.reply(Reverse(d.Payload)) }
		l.run(t, time.Hour, func() {
			time.Sleep(100 * time.Second)
			l.c.Path(true)
			time.Sleep(10 * time.Second)
			l.c.Path(false)
		})
		if d := cmp.Diff([]int{0, 100, 101, 103, 107}, seconds(l.at)); d != "" {
			t.Error(d)
		}
	})
}

// A server's keepalive is no reply and no reason to warn, but to who sends nothing himself.
func TestClientEmptyDatagram(t *testing.T) {
	for _, test := range []struct {
		auth Auth
		up   int
	}{{Auth{Token: []byte("hello")}, 0}, {Auth{}, 1}} {
		synctest.Test(t, func(t *testing.T) {
			refused := 0
			l := newClientLab(t, ClientConfig{Auth: test.auth, OnRefused: func(string) { refused++ }})
			l.run(t, time.Minute, func() { l.reply(nil) })
			if l.up != test.up || refused > 0 || l.log.has("WARN") {
				t.Errorf("up %d times, want %d; %d refused; %q", l.up, test.up, refused, l.log.lines())
			}
		})
	}
}
