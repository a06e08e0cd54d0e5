package authd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/bpf"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// bound is a call of Bind.
type bound struct {
	Tunnel int
	Peer   netip.AddrPort
}

// serverLab is a server on wires, in a bubble of synctest.
type serverLab struct {
	s      *Server
	log    *tap
	shared *wire
	open   map[int]*wire
	out    *wire
	bound  []bound
	fail   error // of Bind
}

func newServerLab(t *testing.T, cfg ServerConfig) *serverLab {
	t.Helper()
	l := &serverLab{log: newTap(), shared: newWire(), out: newWire(), open: make(map[int]*wire)}
	cfg.Log = l.log.logger()
	if cfg.Bind == nil {
		cfg.Bind = func(i int, p netip.AddrPort) error {
			l.bound = append(l.bound, bound{i, p})
			return l.fail
		}
	}
	s, err := newServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.shared = l.shared
	for i, tun := range s.tunnels {
		s.senders[tun.Device] = l.out
		if tun.Auth.addressOnly() {
			l.open[i] = newWire()
			s.open[i] = &openTunnel{conn: l.open[i]}
		}
	}
	l.s = s
	return l
}

// serve serves until the bubble has nothing more to do.
func (l *serverLab) serve(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- l.s.Serve(ctx) }()
	synctest.Wait()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func at(port uint16) netip.AddrPort { return netip.AddrPortFrom(serverAddr.Addr(), port) }

func TestServer(t *testing.T) {
	vs := vectors(t)
	v, own := vs["client"], vs["server"]
	signed := Auth{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret}
	both := signed
	both.Key = own.key()
	tunnels := []ServerTunnel{
		{Name: "ipipou0", Local: at(10000), Auth: signed, Reply: true},
		{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: []byte("hunter2")}, Reply: true, TTL: 9},
		{Name: "ipipou2", Local: at(10002), Auth: Auth{RemoteIP: clientAddr.Addr()}, Reply: true},
		{Name: "ipipou3", Local: at(10003), Auth: Auth{Token: []byte("secret!")}},
	}
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: tunnels})
		to := func(w *wire, port uint16, payload []byte) { w.in <- BuildUDP(clientAddr, at(port), 64, payload) }
		to(l.shared, 10000, v.Payload)
		to(l.shared, 10000, v.Payload)
		to(l.shared, 10000, data(84)) // a filter that passes too much
		to(l.shared, 9999, v.Payload)
		to(l.shared, 10001, []byte("hunter2"))
		to(l.shared, 10001, []byte("hunter3"))
		to(l.shared, 10002, nil) // not of this socket
		to(l.shared, 10003, []byte("secret!"))
		cut := BuildUDP(clientAddr, at(10003), 64, []byte("secret!"))
		l.shared.in <- cut[:len(cut)-1]
		l.serve(t)

		// Signatures are verified apart, so what is of one port only is in order.
		slices.SortFunc(l.bound, func(a, b bound) int { return a.Tunnel - b.Tunnel })
		slices.SortFunc(l.out.out, func(a, b Datagram) int { return a.Src.Compare(b.Src) })
		want := []bound{{0, clientAddr}, {1, clientAddr}, {3, clientAddr}}
		if diff := cmp.Diff(want, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		replies := []Datagram{
			{at(10000), clientAddr, v.Reversed},
			{at(10001), clientAddr, []byte("2retnuh")},
		}
		if diff := cmp.Diff(replies, l.out.out, addrs); diff != "" {
			t.Error(diff)
		}
		var warned []string
		for _, s := range l.log.lines() {
			if strings.Contains(s, "WARN") {
				warned = append(warned, s)
			}
			if strings.Contains(s, "hunter") || strings.Contains(s, "secret!") {
				t.Errorf("told a secret: %s", s)
			}
		}
		slices.Sort(warned)
		refused := []string{
			`level=WARN msg="ipipou0: 198.51.100.7:4242 refused: replayed: this very time and salt were accepted before"`,
			`level=WARN msg="ipipou1: 198.51.100.7:4242 refused: wrong token"`,
			`level=WARN msg="ipipou3: 198.51.100.7:4242 refused: malformed packet: UDP length 15, IP length 35, 34 bytes there"`,
		}
		if diff := cmp.Diff(refused, warned); diff != "" {
			t.Error(diff)
		}
		for _, s := range []string{
			"ipipou0: 198.51.100.7:4242 authenticated by ed25519",
			"ipipou1: 198.51.100.7:4242 authenticated by token",
		} {
			if !l.log.has(s) {
				t.Errorf("not logged: %s", s)
			}
		}
	})
	// With a key of its own the server signs.
	synctest.Test(t, func(t *testing.T) {
		tunnels[0].Auth = both
		l := newServerLab(t, ServerConfig{Tunnels: tunnels})
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, v.Payload)
		l.serve(t)
		if len(l.out.out) != 1 {
			t.Fatalf("%d replies", len(l.out.out))
		}
		p := l.out.out[0].Payload
		if err := VerifySignature(ed25519.PublicKey(own.Public), v.Secret, p); err != nil || len(p) != SignedLen {
			t.Errorf("%d bytes: %v", len(p), err)
		}
		if st, err := ParseStamp(p); err != nil || st.Time != time.Now().Unix() {
			t.Errorf("%v, %v", st, err)
		}
	})
}

func TestServerBindFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Reply: true},
		}})
		l.fail = errors.New("no such device")
		l.open[0].in <- BuildUDP(clientAddr, at(10000), 64, nil)
		l.serve(t)
		if len(l.bound) != 1 || len(l.out.out) != 0 || len(l.open[0].filters) != 0 {
			t.Errorf("bound %v, replied %v, %d filters", l.bound, l.out.out, len(l.open[0].filters))
		}
	})
}

func TestServerReplyFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Reply: true},
		}})
		l.out.breaks(errors.New("network is unreachable"))
		l.open[0].in <- BuildUDP(clientAddr, at(10000), 64, nil)
		l.serve(t)
		if !l.log.has(`level=WARN msg="ipipou0: 198.51.100.7:4242 bound, but the reply failed: network is unreachable"`) {
			t.Errorf("%q", l.log.lines())
		}
	})
}

func TestServerAddressOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Reply: true},
		}})
		w := l.open[0]
		other := netip.MustParseAddrPort("203.0.113.9:9")
		send := func(src netip.AddrPort, payload []byte) {
			w.in <- BuildUDP(src, at(10000), 64, payload)
			// One after the other, as the worker is not the receiver.
			synctest.Wait()
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.s.Serve(ctx) }()

		send(clientAddr, data(84)) // binds, as anything does
		send(clientAddr, data(84)) // and then it is data
		send(clientAddr, []byte{1, 2})
		send(other, data(84))
		send(clientAddr, data(84))
		if err := l.s.setPeer(0, netip.AddrPort{}); err != nil {
			t.Error(err)
		}
		if err := l.s.setPeer(0, netip.AddrPort{}); err != nil {
			t.Error(err)
		}
		send(clientAddr, data(84))
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}

		want := []bound{{0, clientAddr}, {0, clientAddr}, {0, other}, {0, clientAddr}, {0, clientAddr}}
		if diff := cmp.Diff(want, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		// Only what was no data is answered.
		if diff := cmp.Diff([]Datagram{{at(10000), clientAddr, []byte{2, 1}}}, l.out.out, addrs); diff != "" {
			t.Error(diff)
		}
		var filters [][]bpf.Instruction
		for _, peer := range []netip.AddrPort{clientAddr, other, clientAddr, {}, clientAddr} {
			filters = append(filters, Filter(openFilter(l.s.tunnels[0], peer)))
		}
		if diff := cmp.Diff(filters, w.filters); diff != "" {
			t.Error(diff)
		}
	})
}

// A token may look like data. Then the filter passes what is as long, and what
// else is as long is no wrong token of another tunnel.
func TestServerTokenLikeData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		token := edit(data(24), 8, 1, 2, 3)
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Auth: Auth{Token: token}},
			{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: []byte("hunter2")}},
		}})
		spec := l.s.sharedFilter([]int{0, 1})
		for _, pkt := range [][]byte{
			BuildUDP(clientAddr, at(10000), 64, token),
			BuildUDP(clientAddr, at(10000), 64, data(24)),
			BuildUDP(clientAddr, at(10000), 64, data(25)),
			BuildUDP(clientAddr, at(10001), 64, data(24)),
		} {
			if passes(t, spec, pkt) {
				l.shared.in <- pkt
			}
		}
		if n := len(l.shared.in); n != 3 {
			t.Errorf("%d packets pass", n)
		}
		l.serve(t)
		if diff := cmp.Diff([]bound{{0, clientAddr}}, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		if !l.log.has("ipipou0: 198.51.100.7:4242 refused: wrong token") || l.log.has("ipipou1") {
			t.Errorf("%q", l.log.lines())
		}
	})
}

// With both kinds of tunnels on one socket each has its own data, and a token that
// looks like the other's data gets through.
func TestServerGRE(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		likeIPv4, likeGRE := edit(data(24), 8, 1, 2, 3), edit(greData(0x20000800, 40), 4, 1, 2, 3)
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Auth: Auth{Token: bytes.Repeat([]byte("hunter2 "), 5)}},
			{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: likeIPv4}, Inner: InnerGRE},
			{Name: "ipipou2", Local: at(10002), Auth: Auth{Token: likeGRE}, Inner: InnerGRE},
		}})
		for _, port := range []uint16{10000, 10001, 10002} {
			for _, payload := range [][]byte{data(84), greData(0x20000800, 84), greData(0x000086dd, 84)} {
				if passes(t, l.s.sharedFilter([]int{0, 1, 2}), BuildUDP(clientAddr, at(port), 64, payload)) {
					t.Errorf("port %d: %x passes", port, payload[:4])
				}
			}
		}
		for _, pkt := range [][]byte{
			BuildUDP(clientAddr, at(10001), 64, likeIPv4),
			BuildUDP(clientAddr, at(10002), 64, likeGRE),
			BuildUDP(clientAddr, at(10002), 64, greData(0x20000800, 40)),
			// Data that is as long as another tunnel's token.
			BuildUDP(clientAddr, at(10000), 64, data(40)),
			BuildUDP(clientAddr, at(10001), 64, greData(0x20000800, 40)),
		} {
			if !passes(t, l.s.sharedFilter([]int{0, 1, 2}), pkt) {
				t.Errorf("%x does not pass", pkt)
			}
			l.shared.in <- pkt
		}
		// A filter that passes too much.
		l.shared.in <- BuildUDP(clientAddr, at(10001), 64, greData(0x200086dd, 84))
		l.serve(t)
		if diff := cmp.Diff([]bound{{1, clientAddr}, {2, clientAddr}}, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		var refused []string
		for _, s := range l.log.lines() {
			if strings.Contains(s, "refused") {
				refused = append(refused, s)
			}
		}
		want := []string{`level=WARN msg="ipipou2: 198.51.100.7:4242 refused: wrong token"`}
		if diff := cmp.Diff(want, refused); diff != "" {
			t.Error(diff)
		}
	})
}

// On an address-only tunnel data authenticates, and is not answered.
func TestServerAddressOnlyGRE(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Reply: true, Inner: InnerGRE},
		}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.s.Serve(ctx) }()
		pkt := BuildUDP(clientAddr, at(10000), 64, greData(0x20000800, 84))
		for range 3 {
			l.open[0].in <- pkt
			synctest.Wait()
		}
		l.open[0].in <- BuildUDP(clientAddr, at(10000), 64, nil)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]bound{{0, clientAddr}, {0, clientAddr}}, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]Datagram{{at(10000), clientAddr, nil}}, l.out.out, addrs, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
		if passes(t, openFilter(l.s.tunnels[0], clientAddr), pkt) || !passes(t, openFilter(l.s.tunnels[0], netip.AddrPort{}), pkt) {
			t.Error("the filter does not tell the peer's data from others'")
		}
	})
}

func TestServerDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "ipipou0", Local: at(10000), Device: "eth0", Auth: Auth{Token: []byte("a")}},
			{Name: "ipipou1", Local: at(10001), Device: "eth1", Auth: Auth{Token: []byte("a")}},
		}})
		l.shared.device = "eth1"
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, []byte("a"))
		l.shared.in <- BuildUDP(clientAddr, at(10001), 64, []byte("a"))
		l.serve(t)
		if diff := cmp.Diff([]bound{{1, clientAddr}}, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		if !l.log.has("ipipou0: 198.51.100.7:4242 refused: arrived on another interface") {
			t.Errorf("%q", l.log.lines())
		}
	})
}

// Packets that seem to be for another host authenticate to the tunnels whose
// packets are diverted, and to others they do not even do so wrongly.
func TestServerDiverted(t *testing.T) {
	tunnels := []ServerTunnel{
		{Name: "ipipou0", Local: at(10000), Auth: Auth{Token: []byte("a")}},
		{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: []byte("a")}, Diverted: true},
		{Name: "ipipou2", Local: at(10002)},
		{Name: "ipipou3", Local: at(10003), Diverted: true},
	}
	for otherHost, want := range map[bool][]bound{
		false: {{0, clientAddr}, {1, clientAddr}, {2, clientAddr}, {3, clientAddr}},
		true:  {{1, clientAddr}, {3, clientAddr}},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := newServerLab(t, ServerConfig{Tunnels: tunnels})
			for i, w := range []*wire{l.shared, l.shared, l.open[2], l.open[3]} {
				w.from.otherHost = otherHost
				w.in <- BuildUDP(clientAddr, tunnels[i].Local, 64, []byte("a"))
			}
			cut := BuildUDP(clientAddr, at(10000), 64, []byte("a"))
			l.shared.in <- cut[:len(cut)-1]
			l.serve(t)
			slices.SortFunc(l.bound, func(a, b bound) int { return a.Tunnel - b.Tunnel })
			if diff := cmp.Diff(want, l.bound, addrs); diff != "" {
				t.Error(diff)
			}
			if refused := l.log.has("ipipou0: "); refused == otherHost {
				t.Errorf("for another host %v: %q", otherHost, l.log.lines())
			}
		})
	}
}

// What waits to be bound is replaced by what is newer, a tunnel at a time.
func TestServerWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		block := make(chan struct{})
		var got []bound
		l := newServerLab(t, ServerConfig{
			Tunnels: []ServerTunnel{
				{Name: "ipipou0", Local: at(10000), Auth: Auth{Token: []byte("a")}, Reply: true},
				{Name: "ipipou1", Local: at(10001), Auth: Auth{Token: []byte("a")}},
			},
			Bind: func(i int, peer netip.AddrPort) error {
				<-block
				got = append(got, bound{i, peer})
				return nil
			},
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.s.Serve(ctx) }()
		src := func(i int) netip.AddrPort { return netip.AddrPortFrom(host(i), 1) }
		const last = 150
		for i := range last + 1 {
			l.shared.in <- BuildUDP(src(i), at(10000), 64, []byte("a"))
			synctest.Wait()
		}
		l.shared.in <- BuildUDP(src(0), at(10001), 64, []byte("a"))
		synctest.Wait()
		close(block)
		synctest.Wait()
		if diff := cmp.Diff([]bound{{0, src(0)}, {0, src(last)}, {1, src(0)}}, got, addrs); diff != "" {
			t.Error(diff)
		}
		if len(l.out.out) != 2 {
			t.Errorf("%d replies", len(l.out.out))
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestServerBrokenSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{{Name: "ipipou0", Local: at(10000)}}})
		close(l.open[0].in)
		if err := l.s.Serve(t.Context()); err == nil || err.Error() != "ipipou0: broken socket" {
			t.Errorf("%v", err)
		}
		if err := l.s.Close(); err != nil || l.open[0].closed != 1 || l.shared.closed != 1 || l.out.closed != 1 {
			t.Error("not all closed")
		}
	})
}

// What was accepted before a restart is refused after it.
func TestServerRestart(t *testing.T) {
	v := vectors(t)["client"]
	store := FileStore{Dir: t.TempDir()}
	cfg := ServerConfig{
		Tunnels: []ServerTunnel{{
			Name: "ipipou0", Local: at(10000),
			Auth: Auth{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret},
		}},
		Store: store,
	}
	forged := bytes.Clone(v.Payload)
	forged[64]++ // a later time
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, cfg)
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, forged)
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, v.Payload)
		l.serve(t)
		if len(l.bound) != 1 {
			t.Errorf("bound %v", l.bound)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, cfg)
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, v.Payload)
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, Sign(v.key(), v.Secret, time.Unix(v.Time-3, 0), [4]byte{}))
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, Sign(v.key(), v.Secret, time.Unix(v.Time+1, 0), [4]byte{}))
		l.serve(t)
		if len(l.bound) != 1 {
			t.Errorf("bound %v", l.bound)
		}
		if !l.log.has("refused: replayed") || !l.log.has("refused: older than the newest accepted, by 3 s") {
			t.Errorf("%q", l.log.lines())
		}
	})
	got, err := store.Load(replayID(ed25519.PublicKey(v.Public)))
	want := ReplayState{Time: v.Time + 1, Salts: [][4]byte{{}}}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
}

// badStore neither loads nor saves.
type badStore struct{}

func (badStore) Load(string) (ReplayState, error) { return ReplayState{}, errors.New("damaged") }
func (badStore) Save(string, ReplayState) error   { return errors.New("disk full") }

func TestServerBadStore(t *testing.T) {
	v := vectors(t)["client"]
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{
			Tunnels: []ServerTunnel{{
				Name: "ipipou0", Local: at(10000),
				Auth: Auth{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret},
			}},
			Store: badStore{},
		})
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, v.Payload)
		l.serve(t)
		if len(l.bound) != 1 || !l.log.has("error=damaged") || !l.log.has("disk full") {
			t.Errorf("bound %v, %q", l.bound, l.log.lines())
		}
	})
}

func TestNewServerRefuses(t *testing.T) {
	bind := func(int, netip.AddrPort) error { return nil }
	key := ed25519.PublicKey(make([]byte, 32))
	for name, tunnels := range map[string][]ServerTunnel{
		"none":     nil,
		"IPv6":     {{Name: "bad", Local: netip.MustParseAddrPort("[::1]:1")}},
		"no port":  {{Name: "bad", Local: at(0)}},
		"twice":    {{Name: "good", Local: at(1)}, {Name: "bad", Local: at(1)}},
		"auth":     {{Name: "bad", Local: at(1), Auth: Auth{Token: []byte{}}}},
		"two ways": {{Name: "bad", Local: at(1), Auth: Auth{Token: []byte("x"), RemoteKey: key}}},
	} {
		_, err := NewServer(ServerConfig{Tunnels: tunnels, Bind: bind})
		if err == nil || tunnels != nil && !strings.HasPrefix(err.Error(), "bad: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewServer(ServerConfig{Tunnels: []ServerTunnel{{Name: "a", Local: at(1)}}}); err == nil {
		t.Error("no Bind")
	}
}

func TestServerSameKeys(t *testing.T) {
	v := vectors(t)["client"]
	l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{{
		Name: "ipipou0", Local: at(1),
		Auth: Auth{Key: v.key(), RemoteKey: ed25519.PublicKey(v.Public)},
	}}})
	if !l.log.has("ipipou0: both ends have the same key") {
		t.Errorf("%q", l.log.lines())
	}
}
