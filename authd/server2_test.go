package authd

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// mixed are tunnels of one port: two that challenge, one that does not, and one
// with a token; and one that does not on a port of its own.
func mixed() []ServerTunnel {
	key := func(i int, challenge bool) Auth {
		return Auth{RemoteKey: public(peerKey(i)), Secret: []byte("s"), Challenge: challenge}
	}
	tunnels := []ServerTunnel{
		{Name: "ipipou0", Local: at(10000), Auth: key(0, true), TTL: 9},
		{Name: "ipipou1", Local: at(10000), Auth: key(1, true)},
		{Name: "ipipou2", Local: at(10000), Auth: key(2, false)},
		{Name: "ipipou3", Local: at(10000), Auth: Auth{Token: []byte("hunter2")}},
		{Name: "ipipou4", Local: at(10004), Auth: key(4, false)},
		{Name: "ipipou5", Local: at(10005), Auth: key(5, true)},
		{Name: "ipipou6", Local: at(10006), Auth: Auth{RemoteIP: clientAddr.Addr()}},
	}
	tunnels[0].Auth.Key = peerKey(1000)
	return tunnels
}

func v1Payload(t *testing.T, i int) []byte {
	t.Helper()
	p, err := Payload(Auth{Key: peerKey(i), Secret: []byte("s")}, time.Now(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// talk lets a client's dialogue and the server answer each other to the end, and
// returns the proof.
func (l *serverLab) talk(t *testing.T, d *dialogue, src, local netip.AddrPort) (proof []byte, err error) {
	t.Helper()
	err = errors.New("not accepted")
	l.out.onSend = func(to Datagram) {
		if to.Src != local || to.Dst != src {
			t.Errorf("answered from %s to %s", to.Src, to.Dst)
		}
		if type2(to.Payload) == acceptedMsg {
			_, err = d.accepted(allowed, to.Payload)
			return
		}
		var perr error
		if proof, perr = d.prove(to.Payload); perr != nil {
			t.Error(perr)
		}
		l.shared.in <- BuildUDP(src, local, 64, proof)
	}
	ask, aerr := d.ask(rand.Reader)
	if aerr != nil {
		t.Fatal(aerr)
	}
	l.shared.in <- BuildUDP(src, local, 64, ask)
	l.serve(t)
	l.out.onSend = nil
	return proof, err
}

func TestServerChallenges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: mixed(), Store: FileStore{Dir: t.TempDir()}})
		client := func(i int, server bool) *dialogue {
			a := Auth{Key: peerKey(i), Secret: []byte("s")}
			if server {
				a.RemoteKey = public(peerKey(1000))
			}
			return newDialogue(a)
		}
		elsewhere := netip.AddrPortFrom(clientAddr.Addr(), 999)
		var proofs [][]byte
		for _, tt := range []struct {
			d     *dialogue
			src   netip.AddrPort
			local netip.AddrPort
		}{
			{client(0, true), clientAddr, at(10000)}, {client(1, false), clientAddr, at(10000)},
			{client(0, true), elsewhere, at(10000)}, {client(5, false), clientAddr, at(10005)},
		} {
			p, err := l.talk(t, tt.d, tt.src, tt.local)
			if err != nil {
				t.Errorf("%s at %s: %v", tt.src, tt.local, err)
			}
			proofs = append(proofs, p)
		}
		want := []bound{{0, clientAddr}, {1, clientAddr}, {0, elsewhere}, {5, clientAddr}}
		if diff := cmp.Diff(want, l.bound, addrs); diff != "" {
			t.Error(diff)
		}
		if !l.log.has("ipipou0: 198.51.100.7:4242 authenticated by a signed challenge") {
			t.Error(l.log.lines())
		}

		// Nothing that was said can be said again.
		sent := len(l.out.out)
		for _, src := range []netip.AddrPort{clientAddr, elsewhere, documentedServer} {
			for _, p := range proofs {
				l.shared.in <- BuildUDP(src, at(10000), 64, p)
			}
		}
		l.serve(t)
		if len(l.bound) != len(want) || len(l.out.out) != sent {
			t.Errorf("bound %v, answered %v", l.bound[len(want):], l.out.out[sent:])
		}
	})
}

func TestServerTellsVersionsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: mixed()})
		to := func(port uint16, payload []byte) { l.shared.in <- BuildUDP(clientAddr, at(port), 64, payload) }
		hello := func(i int) []byte {
			b, err := newDialogue(Auth{Key: peerKey(i), Secret: []byte("s")}).ask(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		// Those that want version 1 get it, beside others that do not.
		to(10000, v1Payload(t, 2))
		to(10000, []byte("hunter2"))
		to(10004, v1Payload(t, 4))
		l.serve(t)
		anyOrder := cmpopts.SortSlices(func(a, b bound) bool { return a.Tunnel < b.Tunnel })
		if diff := cmp.Diff([]bound{{2, clientAddr}, {3, clientAddr}, {4, clientAddr}}, l.bound, addrs, anyOrder); diff != "" {
			t.Error(diff)
		}
		l.bound = nil

		to(10000, v1Payload(t, 1))
		to(10005, v1Payload(t, 5))
		to(10004, hello(4))
		l.open[6].in <- BuildUDP(clientAddr, at(10006), 64, hello(4))
		to(10000, hello(2))
		to(10000, append([]byte(magic2), 9))
		to(10000, challenge{}.build())
		to(10000, acceptance{}.build(peerKey(0), []byte("s")))
		to(10000, proof{}.build(peerKey(0), []byte("s")))
		cut := hello(0)
		to(10000, cut[:len(cut)-1])
		l.serve(t)
		if l.bound != nil || l.out.out != nil {
			t.Errorf("bound %v, answered %v", l.bound, l.out.out)
		}
		for _, s := range []string{
			"ipipou1: 198.51.100.7:4242 refused: version 1, and this tunnel wants --auth-challenge: set it on the client too",
			"ipipou5: 198.51.100.7:4242 refused: version 1, and this tunnel wants --auth-challenge: set it on the client too",
			"ipipou4: 198.51.100.7:4242 refused: version 2, and no tunnel here has --auth-challenge: set it on the server too",
			"ipipou6: 198.51.100.7:4242 refused: version 2, and no tunnel here has --auth-challenge: set it on the server too",
			"port 10000: 198.51.100.7:4242 refused: its key and secret are of no tunnel here that has --auth-challenge",
			"port 10000: 198.51.100.7:4242 refused: malformed packet: a type that is not for a server",
			"port 10000: 198.51.100.7:4242 refused: wrong payload length: 39 bytes",
		} {
			if !l.log.has(s) {
				t.Errorf("not logged: %s", s)
			}
		}
		if t.Failed() {
			t.Log(strings.Join(l.log.lines(), "\n"))
		}
	})
}

// Only what bound is accepted, and one that failed to bind may be tried anew.
func TestServerAcceptsWhatIsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newServerLab(t, ServerConfig{Tunnels: mixed()})
		l.fail = errors.New("no room")
		d := newDialogue(Auth{Key: peerKey(5), Secret: []byte("s")})
		if _, err := l.talk(t, d, clientAddr, at(10005)); err == nil {
			t.Error("accepted, though it could not be bound")
		}
		l.fail = nil
		if _, err := l.talk(t, d, clientAddr, at(10005)); err != nil {
			t.Error(err)
		}
	})
}

func TestNewServerRefusesChallenges(t *testing.T) {
	for name, a := range map[string]Auth{
		"nobody's key": {Challenge: true},
		"a token":      {Challenge: true, Token: []byte("t")},
	} {
		cfg := ServerConfig{Tunnels: []ServerTunnel{{Name: "a", Local: at(1), Auth: a}}, Bind: func(int, netip.AddrPort) error { return nil }}
		if _, err := newServer(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	ids := make(keyIDs)
	all := mixed()
	if err := errors.Join(ids.add(keyID{1}, 0, all), ids.add(keyID{2}, 1, all)); err != nil {
		t.Error(err)
	}
	if err := ids.add(keyID{1}, 1, all); err == nil || !strings.Contains(err.Error(), "ipipou0") {
		t.Errorf("the same id: %v", err)
	}
	// It is told by its type, so one pair of keys is no danger.
	log := newTap()
	same := Auth{Key: peerKey(1), RemoteKey: public(peerKey(1)), Challenge: true}
	if _, err := newServer(ServerConfig{Log: log.logger(), Tunnels: []ServerTunnel{{Name: "a", Local: at(1), Auth: same}},
		Bind: func(int, netip.AddrPort) error { return nil }}); err != nil || log.lines() != nil {
		t.Errorf("%v, %v", err, log.lines())
	}
}
