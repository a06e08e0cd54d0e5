package authd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// hinted is what our client sends, plain what any other does.
func hinted(t testing.TB, key ed25519.PrivateKey, secret string, at time.Time) []byte {
	t.Helper()
	p, err := Payload(Auth{Key: key, Secret: []byte(secret)}, at, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// plain has a salt whose hint is none of the tests' keys': it would be by chance.
func plain(key ed25519.PrivateKey, secret string, at time.Time, n byte) []byte {
	return Sign(key, []byte(secret), at, [4]byte{0xff, 0xff, 0xff, n})
}

// shop is tunnels on one endpoint, with their checker and without a server.
type shop struct {
	*checker
	e        *endpoint
	clk      *clock
	verified int // signatures
}

func newShop(t testing.TB, auths ...Auth) *shop {
	t.Helper()
	clk := newClock(1700000000)
	s := &shop{checker: newChecker(auths, clk.now), e: newEndpoint(ServerTunnel{Local: at(1)}), clk: clk}
	var all []ServerTunnel
	for i, a := range auths {
		all = append(all, ServerTunnel{Name: fmt.Sprint("ipipou", i), Auth: a})
		if err := s.e.add(i, all); err != nil {
			t.Fatal(err)
		}
	}
	s.verify = func(key ed25519.PublicKey, secret, p []byte) error {
		s.verified++
		return VerifySignature(key, secret, p)
	}
	return s
}

// keys are n peers.
func keys(n int) []Auth {
	var as []Auth
	for i := range n {
		as = append(as, Auth{RemoteKey: public(peerKey(i)), Secret: []byte("s")})
	}
	return as
}

// ask is decide. It counts the signatures of it, and says whether it was left to search.
func (s *shop) ask(src netip.AddrPort, payload []byte) (tunnel, verified int, searched bool, err error) {
	s.verified = 0
	q := &quest{at: s.e, src: src, payload: payload}
	tunnel, err = s.decide(q)
	return tunnel, s.verified, s.verified > 0 && (q.class == byTime || q.class == byNothing), err
}

// state is all that may be remembered of accepted payloads.
func (s *shop) states() map[string]ReplayState {
	m := make(map[string]ReplayState)
	for id, st := range s.replay {
		m[id] = st.clone()
	}
	return m
}

func TestFindCosts(t *testing.T) {
	s := newShop(t, keys(500)...)
	now := s.clk.now
	for i := range 100 {
		src := netip.AddrPortFrom(host(i), 1)
		payload := hinted(t, peerKey(i), "s", now())
		// The keys that a hint names by chance are few.
		st, _ := ParseStamp(payload)
		most := len(s.e.keys.named(st, now()))
		tunnel, n, searched, err := s.ask(src, payload)
		if tunnel != i || err != nil || n > most || most > 2 || searched {
			t.Fatalf("%d, hinted: tunnel %d, %d verified, searched %v: %v", i, tunnel, n, searched, err)
		}
		s.moved(s.e, i, src)
		tunnel, n, searched, err = s.ask(src, plain(peerKey(i), "s", now(), 1))
		if tunnel != i || err != nil || n != 1 || searched {
			t.Errorf("%d, bound: tunnel %d, %d verified, searched %v: %v", i, tunnel, n, searched, err)
		}
		// A clock that is wrong by more than hints are kept for.
		tunnel, n, searched, err = s.ask(netip.AddrPortFrom(host(i), 2), hinted(t, peerKey(i), "s", now().Add(time.Hour)))
		if tunnel != i || err != nil || n > 2 || !searched {
			t.Errorf("%d, far: tunnel %d, %d verified, searched %v: %v", i, tunnel, n, searched, err)
		}
		s.clk.add(time.Second)
	}
	tunnel, n, searched, err := s.ask(clientAddr, plain(peerKey(400), "s", now(), 2))
	if tunnel != 400 || err != nil || n < 1 || n > 500 || !searched {
		t.Errorf("tunnel %d, %d verified, searched %v: %v", tunnel, n, searched, err)
	}
	before := s.states()
	tunnel, n, searched, err = s.ask(clientAddr, plain(peerKey(1000), "s", now().Add(2*time.Hour), 2))
	if tunnel != nobody || !errors.Is(err, ErrSignature) || n != 500 || !searched || !strings.Contains(err.Error(), "500 of 500 keys tried") {
		t.Errorf("a stranger: tunnel %d, %d verified, searched %v: %v", tunnel, n, searched, err)
	}
	if diff := cmp.Diff(before, s.states()); diff != "" {
		t.Error(diff)
	}
}

// A source that is the peer of many makes no datagram cost more than a few.
func TestFindManyAtOneSource(t *testing.T) {
	const many = 20
	s := newShop(t, keys(many)...)
	for i := range many {
		s.moved(s.e, i, clientAddr)
	}
	s.ask(clientAddr, plain(peerKey(99), "s", s.clk.now(), 0))
	q := &quest{at: s.e, src: clientAddr, payload: plain(peerKey(99), "s", s.clk.now(), 0)}
	s.verified = 0
	if _, err := s.find(q); err != errProve || q.class != bySource {
		t.Errorf("class %d: %v", q.class, err)
	}
	if _, err := s.prove(q); err != errProve || q.class != byTime || s.verified != maxLikely {
		t.Errorf("class %d, %d verified: %v", q.class, s.verified, err)
	}
	for i := range many {
		if tunnel, _, _, err := s.ask(clientAddr, plain(peerKey(i), "s", s.clk.now(), 1)); tunnel != i || err != nil {
			t.Errorf("%d: tunnel %d, %v", i, tunnel, err)
		}
		// The hint says which of them.
		if tunnel, n, _, err := s.ask(clientAddr, hinted(t, peerKey(i), "s", s.clk.now())); tunnel != i || err != nil || n != 1 {
			t.Errorf("%d: tunnel %d, %d verified, %v", i, tunnel, n, err)
		}
	}
}

// Garbage of a class uses up what there is for that, and nothing else.
func TestFindFlood(t *testing.T) {
	const n = 100
	bound := netip.MustParseAddrPort("203.0.113.9:9")
	flood := func(s *shop, k class, payload func(i int) []byte, src func(i int) netip.AddrPort) (verified int, last error) {
		// Their number is all that matters.
		verify := s.verify
		defer func() { s.verify = verify }()
		s.verify = func(ed25519.PublicKey, []byte, []byte) error {
			s.verified++
			return ErrSignature
		}
		for i := range 4 * int(budgets[k].burst) / n {
			_, v, _, err := s.ask(src(i), payload(i))
			verified, last = verified+v, err
		}
		return verified, last
	}
	anywhere := func(i int) netip.AddrPort { return netip.AddrPortFrom(host(i<<8), 1) }
	for _, k := range []class{byTime, byNothing} {
		s := newShop(t, keys(n)...)
		s.moved(s.e, 5, bound)
		now := s.clk.now()
		when := map[class]time.Time{byTime: now, byNothing: now.Add(time.Hour)}
		forged := plain(peerKey(1000), "s", when[k], 1)
		garbage := func(int) []byte { return forged }
		verified, err := flood(s, k, garbage, anywhere)
		if most := int(budgets[k].burst); verified < most-n || verified > most || !errors.Is(err, ErrRate) {
			t.Errorf("class %d: %d verified, %v", k, verified, err)
		}
		if got := s.rate.all; got[byHint].tokens != 0 || got[bySource].tokens != 0 {
			t.Errorf("class %d: others' budgets are touched: %v", k, got)
		}
		// From new places, so they would be searched for.
		for other, at := range when {
			src := netip.AddrPortFrom(clientAddr.Addr(), uint16(other))
			i, _, _, err := s.ask(src, plain(peerKey(7+int(other)), "s", at, 1))
			if other == k && (i != nobody || !errors.Is(err, ErrRate)) || other != k && (i != 7+int(other) || err != nil) {
				t.Errorf("class %d of flood %d: tunnel %d: %v", other, k, i, err)
			}
		}
		if i, _, _, err := s.ask(clientAddr, hinted(t, peerKey(17), "s", now)); i != 17 || err != nil {
			t.Errorf("hinted: tunnel %d: %v", i, err)
		}
		if i, _, _, err := s.ask(bound, plain(peerKey(5), "s", now, 1)); i != 5 || err != nil {
			t.Errorf("bound: tunnel %d: %v", i, err)
		}
		s.clk.add(time.Second)
		if verified, _ := flood(s, k, garbage, anywhere); verified < int(budgets[k].rate)-n || verified > int(budgets[k].rate) {
			t.Errorf("class %d: %d verified a second later", k, verified)
		}
	}

	// What needs no key tried is not free either.
	s := newShop(t, keys(n)...)
	for i := range s.auths {
		s.auths[i].MaxSkew = time.Minute
	}
	for i := range 200 {
		s.ask(anywhere(i), plain(peerKey(1), "s", s.clk.now().Add(time.Hour), 1))
	}
	if took := budgets[byNothing].burst - s.rate.all[byNothing].tokens; s.verified != 0 || took < 200*n*lookCost {
		t.Errorf("%d verified, took %v", s.verified, took)
	}
}

// One prefix uses up nothing but its own, and that of one class.
func TestFindPrefix(t *testing.T) {
	s := newShop(t, keys(10)...)
	stranger := func(n byte) []byte { return plain(peerKey(1000), "s", s.clk.now(), n) }
	for range 2 * prefixBurst {
		s.ask(clientAddr, stranger(1))
	}
	near := netip.AddrPortFrom(clientAddr.Addr().Next(), 1)
	if i, _, _, err := s.ask(near, plain(peerKey(1), "s", s.clk.now(), 1)); i != nobody || !errors.Is(err, ErrRate) {
		t.Errorf("the same prefix: tunnel %d: %v", i, err)
	}
	if i, _, _, err := s.ask(near, hinted(t, peerKey(2), "s", s.clk.now())); i != 2 || err != nil {
		t.Errorf("hinted: tunnel %d: %v", i, err)
	}
	if i, _, _, err := s.ask(netip.MustParseAddrPort("203.0.113.9:9"), plain(peerKey(1), "s", s.clk.now(), 1)); i != 1 || err != nil {
		t.Errorf("another prefix: tunnel %d: %v", i, err)
	}
}

// Who saw what was accepted can give garbage its time and hint, and another salt.
// That uses up nothing that those need who have a hint of their own.
func TestFindHintThatWasSeen(t *testing.T) {
	s := newShop(t, keys(2)...)
	p := hinted(t, peerKey(0), "s", s.clk.now())
	if i, _, _, err := s.ask(clientAddr, p); i != 0 || err != nil {
		t.Fatal(i, err)
	}
	left := s.rate.all[byHint].tokens
	for i := range 100 {
		forged := bytes.Clone(p)
		forged[0]++
		forged[len(forged)-1] += byte(i + 1)
		if _, _, _, err := s.ask(netip.AddrPortFrom(host(i<<8), 1), forged); err == nil {
			t.Fatal("accepted")
		}
	}
	if s.rate.all[byHint].tokens != left {
		t.Errorf("%v of %v left", s.rate.all[byHint].tokens, left)
	}
	again := Sign(peerKey(0), []byte("s"), s.clk.now(), [4]byte{p[69], p[70], p[71] + 1, p[72]})
	if i, _, _, err := s.ask(netip.MustParseAddrPort("203.0.113.9:9"), again); i != 0 || err != nil {
		t.Errorf("another of the same second: %d, %v", i, err)
	}
}

// Replays of a hinted payload do not use up what there is for good ones.
func TestFindReplayFlood(t *testing.T) {
	s := newShop(t, keys(10)...)
	p := hinted(t, peerKey(3), "s", s.clk.now())
	for i := range 2 * prefixBurst {
		tunnel, _, _, err := s.ask(netip.AddrPortFrom(host(i<<8), 1), p)
		if tunnel != 3 || (err == nil) != (i == 0) || i > 0 && !errors.Is(err, ErrReplayed) {
			t.Fatalf("%d: tunnel %d, %v", i, tunnel, err)
		}
	}
	if left := s.rate.all[byHint].tokens; left != budgets[byHint].burst-1 {
		t.Errorf("%v left", left)
	}
}

// The rate of a prefix is asked once by token and once by class, and that of tokens
// does not keep out who has a key.
func TestFindRate(t *testing.T) {
	token := bytes.Repeat([]byte("t"), SignedLen)
	s := newShop(t, append(keys(3), Auth{Token: token})...)
	// As long as the token, so both are looked for.
	if i, _, _, err := s.ask(clientAddr, hinted(t, peerKey(2), "s", s.clk.now())); i != 2 || err != nil {
		t.Errorf("tunnel %d: %v", i, err)
	}
	for _, k := range []class{byToken, byHint} {
		if got := s.rate.prefix(k, clientAddr.Addr()).tokens; got != prefixBurst-1 {
			t.Errorf("class %d: %v left", k, got)
		}
	}
	s.empty(byToken, clientAddr)
	if i, _, _, err := s.ask(clientAddr, hinted(t, peerKey(0), "s", s.clk.now())); i != 0 || err != nil {
		t.Errorf("a key, without tokens' rate: tunnel %d: %v", i, err)
	}
	if i, _, _, err := s.ask(clientAddr, token); i != nobody || !errors.Is(err, ErrRate) && !errors.Is(err, ErrSignature) {
		t.Errorf("the token: tunnel %d: %v", i, err)
	}
	s.empty(byHint, clientAddr)
	if i, n, _, err := s.ask(clientAddr, hinted(t, peerKey(1), "s", s.clk.now())); i != nobody || n != 0 || !errors.Is(err, ErrRate) {
		t.Errorf("a key, without its class's: tunnel %d, %d verified: %v", i, n, err)
	}
}

// Of what is sent twice, and searched for, the second is a replay.
func TestSearchReplay(t *testing.T) {
	s := newShop(t, keys(10)...)
	p := plain(peerKey(3), "s", s.clk.now(), 1)
	qs := []*quest{{at: s.e, src: clientAddr, payload: p}, {at: s.e, src: clientAddr, payload: p}}
	for _, q := range qs {
		if _, err := s.find(q); err != errProve {
			t.Fatal(err)
		}
	}
	if i, err := s.prove(qs[0]); i != 3 || err != nil {
		t.Errorf("tunnel %d: %v", i, err)
	}
	if i, err := s.prove(qs[1]); i != 3 || !errors.Is(err, ErrReplayed) {
		t.Errorf("tunnel %d: %v", i, err)
	}
	// Accepted while it was searched for.
	q := &quest{at: s.e, src: clientAddr, payload: plain(peerKey(4), "s", s.clk.now(), 1)}
	if _, err := s.find(q); err != errProve {
		t.Fatal(err)
	}
	s.seen[4].accept(q.stamp)
	if i, ok := s.e.keys.tunnel(public(peerKey(4))); !ok || !errors.Is(s.settle(q, i), ErrReplayed) {
		t.Error("accepted twice")
	}
}

// Another's payload with the very time and salt of an accepted one is no replay.
func TestFindSameStamp(t *testing.T) {
	s := newShop(t, keys(3)...)
	for i := range 3 {
		src := netip.AddrPortFrom(clientAddr.Addr(), uint16(1+i))
		if got, _, _, err := s.ask(src, plain(peerKey(i), "s", s.clk.now(), 1)); got != i || err != nil {
			t.Errorf("tunnel %d: %v", got, err)
		}
	}
}

// If no key is tried because all refuse the payload for one thing, that is told.
func TestSearchReason(t *testing.T) {
	as := keys(3)
	for i := range as {
		as[i].MaxSkew = time.Minute
	}
	s := newShop(t, as...)
	i, n, _, err := s.ask(clientAddr, plain(peerKey(1), "s", s.clk.now().Add(time.Hour), 1))
	if i != nobody || n != 0 || err != ErrSkew {
		t.Errorf("tunnel %d, %d verified: %v", i, n, err)
	}
	// The hint says whose clock it is.
	i, n, _, err = s.ask(clientAddr, hinted(t, peerKey(1), "s", s.clk.now().Add(-10*time.Second)))
	if i != 1 || n != 1 || err != nil {
		t.Errorf("tunnel %d, %d verified: %v", i, n, err)
	}
	s.auths[1].MaxSkew = 5 * time.Second
	i, n, _, err = s.ask(clientAddr, hinted(t, peerKey(1), "s", s.clk.now().Add(9*time.Second)))
	if i != 1 || n != 1 || !errors.Is(err, ErrSkew) || !strings.Contains(err.Error(), "9 s ahead") {
		t.Errorf("tunnel %d, %d verified: %v", i, n, err)
	}
}

// sharedStep is a datagram to a shared port, and what becomes of it.
type sharedStep struct {
	name     string
	src      netip.AddrPort
	payload  []byte
	bound    int    // -1: refused, or data
	log      string // that is logged; "": nothing is refused
	verified int    // signatures; -1: as it happens
}

func TestServerShared(t *testing.T) {
	var (
		a, b, c, stranger = peerKey(1), peerKey(2), peerKey(3), peerKey(4)
		auth              = func(k ed25519.PrivateKey, secret string) Auth {
			return Auth{RemoteKey: public(k), Secret: []byte(secret)}
		}
		likeData = edit(data6(84), 8, 1, 2, 3)
	)
	fixed := auth(c, "s")
	fixed.RemoteIP = clientAddr.Addr()
	tunnels := []ServerTunnel{
		{Name: "a", Local: at(10000), Auth: auth(a, "of a"), Inner: InnerIPv4},
		{Name: "b", Local: at(10000), Auth: auth(b, "s"), Inner: InnerIPv4 | InnerIPv6, Reply: true},
		{Name: "hunter", Local: at(10000), Auth: Auth{Token: []byte("hunter2")}, Reply: true},
		{Name: "fish", Local: at(10000), Auth: Auth{Token: []byte("sword-fish"), RemotePort: 4242}},
		{Name: "c", Local: at(10000), Auth: fixed},
		{Name: "tricky", Local: at(10000), Auth: Auth{Token: likeData}},
		{Name: "alone", Local: at(10001), Auth: auth(a, "of a")},
	}
	from := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: tunnels})
		verified := 0
		l.s.checker.verify = func(key ed25519.PublicKey, secret, p []byte) error {
			verified++
			return VerifySignature(key, secret, p)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.s.Serve(ctx) }()

		now := time.Now()
		firstB, plainA := hinted(t, b, "s", now), plain(a, "of a", now, 1)
		for _, st := range []sharedStep{
			{"hinted", clientAddr, firstB, 1, "", 1},
			{"plain", from("203.0.113.9:9"), plainA, 0, "", -1},
			{"token", from("203.0.113.9:10"), []byte("hunter2"), 2, "", 0},
			{"token of another length", clientAddr, []byte("sword-fish"), 3, "", 0},
			{"token from a wrong port", from("198.51.100.7:4243"), []byte("sword-fish"), -1, "fish: 198.51.100.7:4243 refused: source port is not the allowed one", 0},
			{"wrong token", clientAddr, []byte("hunter3"), -1, "port 10000: 198.51.100.7:4242 refused: wrong token", 0},
			{"wrong length", clientAddr, []byte("hunter"), -1, "port 10000: 198.51.100.7:4242 refused: wrong payload length: 6 bytes", 0},
			{"empty", from("203.0.113.11:1"), nil, -1, "port 10000: 203.0.113.11:1 refused: wrong payload length: 0 bytes", 0},
			{"token like data", clientAddr, likeData, 5, "", 0},
			{"data as long", from("203.0.113.12:1"), data6(84), -1, "port 10000: 203.0.113.12:1 refused: wrong token", 0},
			{"data", clientAddr, data(100), -1, "", 0},
			{"IPv6 data", clientAddr, data6(100), -1, "", 0},
			{"wrong key", from("203.0.113.13:1"), plain(stranger, "s", now, 2), -1, "port 10000: 203.0.113.13:1 refused: bad signature: 2 of 3 keys tried", 2},
			{"wrong key, hinted", from("203.0.113.14:1"), hinted(t, stranger, "s", now), -1, "port 10000: 203.0.113.14:1 refused: bad signature: 2 of 3 keys tried", 2},
			{"wrong secret", from("203.0.113.15:1"), hinted(t, a, "s", now), -1, "port 10000: 203.0.113.15:1 refused: bad signature: 2 of 3 keys tried", 2},
			{"replay from where the peer is", clientAddr, firstB, -1, "b: 198.51.100.7:4242 refused: replayed", 1},
			{"replay by its hint", from("203.0.113.16:1"), firstB, -1, "b: 203.0.113.16:1 refused: replayed", 1},
			{"replay from the peer's place", from("203.0.113.9:9"), plainA, -1, "a: 203.0.113.9:9 refused: replayed", 1},
			{"replay that is searched for", from("203.0.113.17:1"), plainA, -1, "a: 203.0.113.17:1 refused: replayed", -1},
			{"older, by its hint", from("203.0.113.18:1"), hinted(t, b, "s", now.Add(-5*time.Second)), -1, "b: 203.0.113.18:1 refused: older than the newest accepted, by 5 s", 1},
			{"older, from the peer's place", from("203.0.113.9:9"), plain(a, "of a", now.Add(-5*time.Second), 2), -1, "a: 203.0.113.9:9 refused: older than the newest accepted, by 5 s", 1},
			{"older, to be searched for", from("203.0.113.19:1"), plain(a, "of a", now.Add(-5*time.Second), 2), -1, "port 10000: 203.0.113.19:1 refused: older than the newest accepted", 0},
			{"from a wrong address", from("203.0.113.20:1"), hinted(t, c, "s", now), -1, "c: 203.0.113.20:1 refused: source address is not the allowed one", 1},
			{"from a wrong address, plain", from("203.0.113.21:1"), plain(c, "s", now, 1), -1, "port 10000: 203.0.113.21:1 refused: bad signature", 2},
			{"from the allowed address", clientAddr, hinted(t, c, "s", now), 4, "", -1},
			{"one of two at a place", clientAddr, plain(b, "s", now, 3), 1, "", -1},
			{"the other of two at a place", clientAddr, plain(c, "s", now, 3), 4, "", -1},
			{"two behind an address", from("203.0.113.30:1001"), hinted(t, a, "of a", now), 0, "", 1},
			{"two behind an address", from("203.0.113.30:1002"), hinted(t, b, "s", now), 1, "", 1},
			{"two behind an address, again", from("203.0.113.30:1001"), plain(a, "of a", now, 4), 0, "", 1},
			{"two behind an address, again", from("203.0.113.30:1002"), plain(b, "s", now, 4), 1, "", 1},
			{"their ports exchanged", from("203.0.113.30:1002"), hinted(t, a, "of a", now), 0, "", 2},
			{"their ports exchanged", from("203.0.113.30:1001"), plain(b, "s", now, 5), 1, "", -1},
			{"roams, hinted", from("203.0.113.40:1"), hinted(t, b, "s", now), 1, "", 1},
			{"roams, plain", from("203.0.113.41:1"), plain(b, "s", now, 6), 1, "", -1},
			{"and is there", from("203.0.113.41:1"), plain(b, "s", now, 7), 1, "", 1},
			{"token roams", from("203.0.113.42:1"), []byte("hunter2"), 2, "", 0},
		} {
			was, verifiedBefore, warned := len(l.bound), verified, len(l.log.lines())
			l.shared.in <- BuildUDP(st.src, at(10000), 64, st.payload)
			synctest.Wait()
			var want []bound
			if st.bound >= 0 {
				want = []bound{{st.bound, st.src}}
			}
			if diff := cmp.Diff(want, append([]bound(nil), l.bound[was:]...), addrs); diff != "" {
				t.Errorf("%s: %s", st.name, diff)
			}
			told := strings.Join(l.log.lines()[warned:], "\n")
			if st.log != "" && !strings.Contains(told, st.log) || st.log == "" && strings.Contains(told, "WARN") {
				t.Errorf("%s: logged %s", st.name, told)
			}
			if n := verified - verifiedBefore; st.verified >= 0 && n != st.verified {
				t.Errorf("%s: %d signatures verified, want %d", st.name, n, st.verified)
			}
		}
		// A payload of a shared port does not do for another port of the same key.
		l.shared.in <- BuildUDP(clientAddr, at(10001), 64, plainA)
		synctest.Wait()
		if !l.log.has("alone: 198.51.100.7:4242 refused: replayed") {
			t.Errorf("%q", l.log.lines())
		}
		cut := BuildUDP(clientAddr, at(10000), 64, []byte("hunter2"))
		l.shared.in <- cut[:len(cut)-1]
		synctest.Wait()
		if !l.log.has("port 10000: 198.51.100.7:4242 refused: malformed packet") {
			t.Errorf("%q", l.log.lines())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, d := range l.out.out {
			if d.Src != at(10000) {
				t.Errorf("replied from %v", d.Src)
			}
		}
		for _, s := range l.log.lines() {
			if strings.Contains(s, "hunter2") || strings.Contains(s, "sword") {
				t.Errorf("told a secret: %s", s)
			}
		}
	})
}

// While one is searched for, others are found; and not more wait than proveLen, of
// which the newest are kept.
func TestServerSearches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "a", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(1))}},
			{Name: "b", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(2))}},
		}})
		release := make(chan struct{})
		garbage := plain(peerKey(9), "", time.Now(), 1)
		l.s.checker.verify = func(key ed25519.PublicKey, secret, p []byte) error {
			if bytes.Equal(p, garbage) {
				<-release
			}
			return VerifySignature(key, secret, p)
		}
		for i := range proveLen + 2 {
			l.shared.in <- BuildUDP(netip.AddrPortFrom(host(i), 1), at(10000), 64, garbage)
		}
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, hinted(t, peerKey(2), "", time.Now()))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.s.Serve(ctx) }()
		synctest.Wait()
		if diff := cmp.Diff([]bound{{1, clientAddr}}, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		if !l.log.has("refused: too many authentications") {
			t.Errorf("%q", l.log.lines())
		}
		close(release)
		synctest.Wait()
		if !l.log.has("refused: bad signature: 2 of 2 keys tried") {
			t.Errorf("%q", l.log.lines())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A bind that failed says nothing of where the peer is.
func TestServerSharedBindFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: []ServerTunnel{
			{Name: "a", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(1))}},
			{Name: "b", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(2))}},
		}})
		l.fail = errors.New("no such device")
		l.shared.in <- BuildUDP(clientAddr, at(10000), 64, hinted(t, peerKey(2), "", time.Now()))
		l.serve(t)
		if e := l.s.endpoints[at(10000)]; len(l.bound) != 1 || len(e.here) != 0 {
			t.Errorf("bound %v, peers at %v", l.bound, e.here)
		}
	})
}

// Nothing is anybody's but what the key signed or the token is, and no signature
// is good twice.
func FuzzShared(f *testing.F) {
	vs := vectors(f)
	for _, v := range vs {
		f.Add([]byte(v.Payload), uint16(4242))
		f.Add([]byte(v.Reversed), uint16(1))
	}
	f.Add([]byte("hunter2"), uint16(4242))
	f.Add(make([]byte, SignedLen), uint16(1))
	longToken := bytes.Repeat([]byte{7}, SignedLen)
	f.Add(longToken, uint16(4242))
	v, w := vs["client"], vs["server"]
	auths := []Auth{
		{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret},
		{RemoteKey: ed25519.PublicKey(w.Public), Secret: w.Secret, MaxSkew: time.Minute},
		{Token: []byte("hunter2"), RemotePort: 4242},
		{Token: longToken},
		{RemoteKey: public(peerKey(1)), RemotePort: 4242},
	}
	f.Fuzz(func(t *testing.T, p []byte, port uint16) {
		s := newShop(t, auths...)
		src := netip.AddrPortFrom(clientAddr.Addr(), port)
		s.moved(s.e, 4, clientAddr)
		want, good := nobody, true
		for i, a := range auths {
			switch {
			case a.Token != nil && bytes.Equal(p, a.Token),
				a.RemoteKey != nil && VerifySignature(a.RemoteKey, a.Secret, p) == nil:
				want = i
				if a.RemotePort != 0 && a.RemotePort != port {
					good = false
				}
				if st, err := ParseStamp(p); err == nil && checkSkew(a.MaxSkew, s.clk.now(), st) != nil {
					good = false
				}
			}
		}
		before := s.states()
		got, _, _, err := s.ask(src, p)
		if (err == nil) != (want != nobody && good) || err == nil && got != want {
			t.Fatalf("tunnel %d: %v; it is %d's, good %v", got, err, want, good)
		}
		if got != nobody && got != want {
			t.Fatalf("told to be tunnel %d's: %v; it is %d's", got, err, want)
		}
		if err != nil {
			if diff := cmp.Diff(before, s.states()); diff != "" {
				t.Fatal(diff)
			}
			return
		}
		again, _, _, err := s.ask(netip.AddrPortFrom(serverAddr.Addr(), port), p)
		if auths[want].Token != nil {
			if again != want || err != nil {
				t.Fatalf("tunnel %d: %v", again, err)
			}
		} else if again != want || !errors.Is(err, ErrReplayed) {
			t.Fatalf("a second time: tunnel %d, %v", again, err)
		}
	})
}

// What a datagram costs, with ever more tunnels on its endpoint.
func BenchmarkFind(b *testing.B) {
	for _, n := range []int{1, 100, 1000, 10000} {
		s := newShop(b, keys(n)...)
		last := n - 1
		here := netip.AddrPortFrom(host(1), 1)
		s.moved(s.e, last, here)
		now := s.clk.now()
		long := bytes.Repeat([]byte("t"), SignedLen)
		for _, bb := range []struct {
			name    string
			src     netip.AddrPort
			payload []byte
			want    int
		}{
			{"hinted", clientAddr, hinted(b, peerKey(last), "s", now), last},
			{"bound", here, plain(peerKey(last), "s", now, 1), last},
			{"hinted, clock wrong", clientAddr, hinted(b, peerKey(last), "s", now.Add(time.Hour)), last},
			{"searched", clientAddr, plain(peerKey(last), "s", now, 1), last},
			{"stranger's", clientAddr, plain(peerKey(n), "s", now, 1), nobody},
			{"wrong length", clientAddr, long[1:], nobody},
		} {
			b.Run(fmt.Sprintf("%s/%d", bb.name, n), func(b *testing.B) {
				verified := 0
				for b.Loop() {
					// As if it were the first.
					*s.seen[last] = ReplayState{}
					s.rate.prefixes = [prefixBuckets]bucket{}
					s.rate.all = [classes]bucket{}
					got, v, _, _ := s.ask(bb.src, bb.payload)
					if got != bb.want && n > 1 {
						b.Fatalf("tunnel %d", got)
					}
					verified += v
				}
				if n == 1 {
					return // not counted: there is nothing to find
				}
				b.ReportMetric(float64(verified)/float64(b.N), "signatures/op")
			})
		}
		// A stranger's, when searches are used up.
		b.Run(fmt.Sprintf("flood/%d", n), func(b *testing.B) {
			p := plain(peerKey(n), "s", now, 1)
			for b.Loop() {
				s.rate.all[byTime] = bucket{0, now}
				s.ask(clientAddr, p)
			}
		})
		// Once a second the hints are made anew.
		b.Run(fmt.Sprintf("second/%d", n), func(b *testing.B) {
			st := Stamp{Time: now.Unix()}
			for b.Loop() {
				clear(s.e.keys.seconds)
				s.e.keys.named(st, now)
			}
		})
	}
}
