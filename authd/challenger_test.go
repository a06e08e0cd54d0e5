package authd

import (
	"bytes"
	"crypto/rand"
	"errors"
	"net/netip"
	"testing"
	"time"
)

// challengeLab is both sides of version 2 without a socket between them.
type challengeLab struct {
	*checker
	clk  *clock
	e    *endpoint
	keys []Auth // the clients', by tunnel
}

// newChallengeLab has n tunnels on one endpoint.
func newChallengeLab(t testing.TB, n int) *challengeLab {
	l := &challengeLab{clk: newClock(1700000000), e: newEndpoint(ServerTunnel{Local: serverAddr})}
	for i := range n {
		key := peerKey(i)
		l.keys = append(l.keys, Auth{Key: key, Secret: []byte("s"), Challenge: true})
		l.e.ids[newKeyID(public(key), []byte("s"))] = i
	}
	l.restart()
	return l
}

// restart is what a new process knows.
func (l *challengeLab) restart() {
	auths := make([]Auth, len(l.keys))
	for i, a := range l.keys {
		auths[i] = Auth{RemoteKey: public(a.Key), Secret: a.Secret, Challenge: true}
	}
	l.checker = newChecker(auths, l.clk.now)
}

// prove returns what the client of tunnel i answers to a challenge at src.
func (l *challengeLab) prove(t testing.TB, i int, src netip.AddrPort) []byte {
	t.Helper()
	d := newDialogue(l.keys[i])
	ask, err := d.ask(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, c, err := l.ask(l.e, src, ask)
	if tunnel != i || err != nil {
		t.Fatalf("challenging %d: %d, %v", i, tunnel, err)
	}
	p, err := d.prove(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// ask returns what a hello is answered.
func (l *challengeLab) ask(e *endpoint, src netip.AddrPort, hello []byte) (tunnel int, answer []byte, err error) {
	q := quest{at: e, src: src, payload: hello}
	tunnel, err = l.find(&q)
	if err == errChallenge {
		err = nil
	}
	return tunnel, q.challenge, err
}

// screened is a proof whose signature is to be verified, or why it is not.
func (l *challengeLab) screened(e *endpoint, src netip.AddrPort, p []byte) (*quest, error) {
	q := &quest{at: e, src: src, payload: p}
	_, err := l.find(q)
	if err == errProve {
		err = nil
	}
	return q, err
}

// admit does all that a server does to a proof.
func (l *challengeLab) admit(src netip.AddrPort, p []byte) (tunnel int, err error) {
	q, err := l.screened(l.e, src, p)
	if err != nil {
		return nobody, err
	}
	return l.checker.prove(q)
}

func TestChallengeNamesItsTunnel(t *testing.T) {
	l := newChallengeLab(t, 50)
	for i := range l.keys {
		if tunnel, err := l.admit(clientAddr, l.prove(t, i, clientAddr)); tunnel != i || err != nil {
			t.Errorf("the client of %d: %d, %v", i, tunnel, err)
		}
	}
	stranger := newDialogue(Auth{Key: peerKey(99), Secret: []byte("s")})
	ask, _ := stranger.ask(rand.Reader)
	if i, answer, err := l.ask(l.e, clientAddr, ask); i != nobody || answer != nil || !errors.Is(err, ErrKeyID) {
		t.Errorf("a stranger: %d, %x, %v", i, answer, err)
	}
	other := newDialogue(Auth{Key: peerKey(1), Secret: []byte("another")})
	ask, _ = other.ask(rand.Reader)
	if _, _, err := l.ask(l.e, clientAddr, ask); !errors.Is(err, ErrKeyID) {
		t.Errorf("another secret: %v", err)
	}
}

// What the kernel drops for its source, nobody asked for.
func TestNobodyIsChallengedWhoCantBe(t *testing.T) {
	l := newChallengeLab(t, 1)
	ask, _ := newDialogue(l.keys[0]).ask(rand.Reader)
	for _, src := range []string{
		"127.0.0.1:53", "0.0.0.0:53", "0.1.2.3:53", "224.0.0.1:53", "255.255.255.255:53", "198.51.100.7:0",
		serverAddr.String(), netip.AddrPortFrom(serverAddr.Addr(), 53).String(),
	} {
		if _, answer, err := l.ask(l.e, netip.MustParseAddrPort(src), ask); answer != nil || !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %x, %v", src, answer, err)
		}
	}
	if _, _, err := l.ask(l.e, netip.MustParseAddrPort("169.254.1.2:53"), ask); err != nil {
		t.Errorf("a link's address: %v", err)
	}
}

// A proof binds once, and only who received the challenge.
func TestProofIsForOneAddressAndOnce(t *testing.T) {
	l := newChallengeLab(t, 2)
	elsewhere := []netip.AddrPort{
		netip.AddrPortFrom(clientAddr.Addr(), clientAddr.Port()+1),
		netip.AddrPortFrom(clientAddr.Addr().Next(), clientAddr.Port()),
	}
	never := l.prove(t, 0, clientAddr) // caught on its way
	for _, src := range elsewhere {
		if _, err := l.admit(src, never); !errors.Is(err, ErrCookie) {
			t.Errorf("from %s: %v", src, err)
		}
	}
	l.clk.add(time.Second)
	p := l.prove(t, 0, clientAddr)
	if _, err := l.admit(clientAddr, p); err != nil {
		t.Fatal(err)
	}
	if _, err := l.admit(clientAddr, p); !errors.Is(err, ErrProved) {
		t.Errorf("sent again: %v", err)
	}
	if _, err := l.admit(clientAddr, never); !errors.Is(err, ErrOlder) {
		t.Errorf("the older one: %v", err)
	}
	if _, err := l.admit(elsewhere[0], p); !errors.Is(err, ErrCookie) {
		t.Errorf("sent again from elsewhere: %v", err)
	}
	// At the same instant, and it is newer all the same.
	if _, err := l.admit(elsewhere[0], l.prove(t, 0, elsewhere[0])); err != nil {
		t.Errorf("roaming: %v", err)
	}
	if _, err := l.admit(clientAddr, l.prove(t, 1, clientAddr)); err != nil {
		t.Errorf("another tunnel's client: %v", err)
	}
}

func TestProofAcceptedMeanwhile(t *testing.T) {
	l := newChallengeLab(t, 1)
	p := l.prove(t, 0, clientAddr)
	var quests []*quest
	for range 2 {
		q, err := l.screened(l.e, clientAddr, p)
		if err != nil {
			t.Fatal(err)
		}
		quests = append(quests, q)
	}
	for i, want := range []error{nil, ErrProved} {
		if _, err := l.checker.prove(quests[i]); !errors.Is(err, want) {
			t.Errorf("time %d: %v", i+1, err)
		}
	}
}

func TestCookieIsForOneClientAndTime(t *testing.T) {
	l := newChallengeLab(t, 2)
	p := l.prove(t, 0, clientAddr)
	l.clk.add(cookieAge)
	if _, err := l.screened(l.e, clientAddr, p); err != nil {
		t.Errorf("at its full age: %v", err)
	}
	l.clk.add(time.Second)
	if _, err := l.screened(l.e, clientAddr, p); !errors.Is(err, ErrExpired) {
		t.Errorf("too old: %v", err)
	}

	p = l.prove(t, 0, clientAddr)
	good, err := parseProof(p)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*proof){
		"another key":      func(p *proof) { p.id = newKeyID(public(peerKey(1)), []byte("s")) },
		"another nonce":    func(p *proof) { p.nonce[0]++ },
		"another time":     func(p *proof) { p.cookie.issued++ },
		"another MAC":      func(p *proof) { p.cookie.mac[15]++ },
		"in the year 2554": func(p *proof) { p.cookie.issued = 1<<64 - 1 },
	} {
		bad := good
		change(&bad)
		if _, err := l.screened(l.e, clientAddr, bad.build(l.keys[0].Key, []byte("s"))); !errors.Is(err, ErrCookie) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := *l.e
	other.local = netip.AddrPortFrom(serverAddr.Addr(), 10001)
	if _, err := l.screened(&other, clientAddr, p); !errors.Is(err, ErrCookie) {
		t.Errorf("at another port: %v", err)
	}
	l.restart()
	if _, err := l.screened(l.e, clientAddr, p); !errors.Is(err, ErrCookie) {
		t.Errorf("after a restart: %v", err)
	}
}

func TestChallengeDemandsTheSource(t *testing.T) {
	l := newChallengeLab(t, 1)
	l.auths[0].RemotePort = clientAddr.Port()
	p := l.prove(t, 0, clientAddr)
	elsewhere := netip.AddrPortFrom(clientAddr.Addr(), clientAddr.Port()+1)
	ask := newDialogue(l.keys[0])
	b, _ := ask.ask(rand.Reader)
	if i, answer, err := l.ask(l.e, elsewhere, b); i != 0 || answer != nil || !errors.Is(err, ErrRemotePort) {
		t.Errorf("a hello: %d, %x, %v", i, answer, err)
	}
	if _, err := l.screened(l.e, elsewhere, p); !errors.Is(err, ErrRemotePort) {
		t.Errorf("a proof: %v", err)
	}
}

// As with version 1, what is refused for its form or its key costs no memory.
func TestVersion2GarbageMakesNoGarbage(t *testing.T) {
	l := newChallengeLab(t, 1)
	ask, err := newDialogue(Auth{Key: peerKey(99)}).ask(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	unpadded := bytes.Clone(ask)
	unpadded[helloLen-1] = 1
	version1 := newEndpoint(ServerTunnel{Local: serverAddr})
	for name, q := range map[string]quest{
		"another's key":       {at: l.e, payload: ask},
		"its end":             {at: l.e, payload: unpadded},
		"its length":          {at: l.e, payload: ask[:helloLen-1]},
		"a proof by no key":   {at: l.e, payload: proof{}.build(peerKey(99), nil)},
		"a type of no use":    {at: l.e, payload: challenge{}.build()},
		"where none is meant": {at: version1, payload: ask},
	} {
		q.src = clientAddr
		if allocs := testing.AllocsPerRun(100, func() { _, err = l.find(&q) }); allocs != 0 || err == nil || refusal(err) == nil {
			t.Errorf("%s: %v, %v allocations", name, err, allocs)
		}
	}
}

// What hellos may do is counted apart.
func TestHellosAreLimited(t *testing.T) {
	l := newChallengeLab(t, 1)
	p := l.prove(t, 0, clientAddr)
	d := newDialogue(l.keys[0])
	limited := false
	for range 100_000 {
		ask, _ := d.ask(rand.Reader)
		_, answer, err := l.ask(l.e, clientAddr, ask)
		if limited = errors.Is(err, ErrRate); limited {
			if answer != nil {
				t.Error("answered all the same")
			}
			break
		}
	}
	if !limited {
		t.Error("hellos without end are answered")
	}
	if _, err := l.admit(clientAddr, p); err != nil {
		t.Errorf("a proof meanwhile: %v", err)
	}
}

func allowed() bool { return true }

func TestDialogue(t *testing.T) {
	d := newDocumented2(t)
	a := newDialogue(d.client)
	if p, err := a.prove(d.raw["challenge"]); p != nil || !errors.Is(err, ErrReply) {
		t.Errorf("a challenge that was not asked for: %x, %v", p, err)
	}
	ask, err := a.ask(bytes.NewReader(d.raw["nonce"]))
	if err != nil || !bytes.Equal(ask, d.raw["hello"]) {
		t.Fatalf("%x, %v", ask, err)
	}
	if _, err := a.accepted(allowed, d.raw["accepted"]); !errors.Is(err, ErrReply) {
		t.Errorf("accepted before it is proved: %v", err)
	}
	// Late, after as many others as are remembered.
	for range keepSent - 1 {
		if _, err := a.ask(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if p, err := a.prove(d.raw["challenge"]); err != nil || !bytes.Equal(p, d.raw["proof"]) {
		t.Errorf("%x, %v", p, err)
	}
	if _, err := a.prove(d.raw["challenge"]); !errors.Is(err, ErrReply) {
		t.Errorf("a second proof for one hello: %v", err)
	}
	if _, err := a.accepted(allowed, d.raw["accepted-unsigned"]); !errors.Is(err, ErrUnsigned) {
		t.Errorf("not signed: %v", err)
	}
	forged := bytes.Clone(d.raw["accepted"])
	forged[len(forged)-1] ^= 1
	if _, err := a.accepted(allowed, forged); !errors.Is(err, ErrSignature) {
		t.Errorf("forged: %v", err)
	}
	if _, err := a.accepted(func() bool { return false }, d.raw["accepted"]); !errors.Is(err, ErrRate) {
		t.Errorf("of too many: %v", err)
	}
	if verified, err := a.accepted(allowed, d.raw["accepted"]); !verified || err != nil {
		t.Errorf("accepted: %t, %v", verified, err)
	}
	if _, err := a.accepted(allowed, d.raw["accepted"]); !errors.Is(err, ErrReply) {
		t.Errorf("accepted twice: %v", err)
	}
	for range keepSent + 1 {
		if _, err := a.ask(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.asked) != keepSent {
		t.Errorf("%d hellos are remembered", len(a.asked))
	}
	if _, err := a.ask(bytes.NewReader(nil)); err == nil {
		t.Error("a nonce without randomness")
	}
}

// A client without the server's key takes what who saw its proof may send.
func TestDialogueWithoutTheServersKey(t *testing.T) {
	for name, verified := range map[string]bool{"accepted": false, "accepted-unsigned": true} {
		d := newDocumented2(t)
		d.client.RemoteKey = nil
		a := newDialogue(d.client)
		if _, err := a.ask(bytes.NewReader(d.raw["nonce"])); err != nil {
			t.Fatal(err)
		}
		if _, err := a.prove(d.raw["challenge"]); err != nil {
			t.Fatal(err)
		}
		if got, err := a.accepted(allowed, d.raw[name]); got != verified || err != nil {
			t.Errorf("%s: %t, %v", name, got, err)
		}
	}
}

// Whatever comes, only the documented proof passes.
func FuzzScreen(f *testing.F) {
	for _, b := range newDocumented2(f).raw {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !isVersion2(b) {
			return // find sees to that
		}
		d := newDocumented2(t)
		c := newChecker([]Auth{d.server}, newClock(0).now)
		c.cookies = d.cookies
		q := &quest{at: newEndpoint(ServerTunnel{Local: documentedServer}), src: clientAddr, payload: b}
		q.at.ids[d.hello.id] = 0
		_, err := c.find2(q)
		if err == errProve {
			_, err = c.prove(q)
		}
		if (err == nil) != bytes.Equal(b, d.raw["proof"]) || len(q.challenge) > len(b) || (err == errChallenge) != (q.challenge != nil) {
			t.Errorf("%x: %v, answered by %x", b, err, q.challenge)
		}
	})
}
