package authd

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// documented are the test vectors of a version in docs/protocol.md: a name and
// hexadecimal, which goes on in indented lines.
func documented(t testing.TB, version string) map[string][]byte {
	t.Helper()
	text, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "```vectors "+version+"\n")
	block, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatalf("no vectors of version %s", version)
	}
	vs := make(map[string][]byte)
	name := ""
	for line := range strings.Lines(block) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, " ") {
			name, words = words[0], words[1:]
		}
		for _, w := range words {
			b, err := hex.DecodeString(w)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			vs[name] = append(vs[name], b...)
		}
	}
	return vs
}

func TestDocumentedVersion1(t *testing.T) {
	v := documented(t, "1")
	client, server := ed25519.NewKeyFromSeed(v["client-seed"]), ed25519.NewKeyFromSeed(v["server-seed"])
	a := Auth{Key: client, Secret: v["secret"]}
	st, err := ParseStamp(v["signed"])
	if err != nil {
		t.Fatal(err)
	}
	signed, err := Payload(a, time.Unix(1700000000, 0), bytes.NewReader(st.Salt[hintLen:]))
	if err != nil {
		t.Fatal(err)
	}
	st, err = ParseStamp(v["signed-reply"])
	if err != nil {
		t.Fatal(err)
	}
	reply, err := Reply(Auth{Key: server, RemoteKey: public(client), Secret: v["secret"]}, signed, time.Unix(1700000001, 0), bytes.NewReader(st.Salt[:]))
	if err != nil {
		t.Fatal(err)
	}
	token, err := Payload(Auth{Token: []byte("sword-fish")}, time.Unix(0, 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string][]byte{
		"client-public": public(client), "server-public": public(server),
		"signed": signed, "signed-reversed": Reverse(signed), "signed-reply": reply,
		"token": token, "token-reversed": Reverse(token),
	} {
		if !bytes.Equal(got, v[name]) {
			t.Errorf("%s: %x, the document has %x", name, got, v[name])
		}
	}
}

// documented2 is what docs/protocol.md shows of version 2, as we make it.
type documented2 struct {
	client, server Auth
	hello          hello
	cookies        *cookies
	cookie         cookie
	raw            map[string][]byte
}

func newDocumented2(t testing.TB) documented2 {
	v := documented(t, "2")
	client, server := ed25519.NewKeyFromSeed(v["client-seed"]), ed25519.NewKeyFromSeed(v["server-seed"])
	d := documented2{
		client:  Auth{Key: client, RemoteKey: public(server), Secret: v["secret"], Challenge: true},
		server:  Auth{Key: server, RemoteKey: public(client), Secret: v["secret"], Challenge: true},
		cookies: newCookies(func() time.Duration { return 12345678901234 }),
		raw:     v,
	}
	copy(d.cookies.key[:], v["cookie-key"])
	d.hello = hello{newKeyID(public(client), v["secret"]), nonce(v["nonce"])}
	d.cookie = d.cookies.issue(clientAddr, documentedServer, d.hello)
	return d
}

var documentedServer = netip.MustParseAddrPort("203.0.113.9:10000")

func TestDocumentedVersion2(t *testing.T) {
	d := newDocumented2(t)
	c, p, a := challenge{d.hello.nonce, d.cookie}, proof{d.hello, d.cookie}, acceptance{d.hello.nonce, d.cookie.issued}
	for name, got := range map[string][]byte{
		"client-public": d.server.RemoteKey, "server-public": d.client.RemoteKey,
		"key-id": d.hello.id[:], "mac": d.cookie.mac[:],
		"hello": d.hello.build(), "challenge": c.build(), "proof": p.build(d.client.Key, d.client.Secret),
		"accepted": a.build(d.server.Key, d.server.Secret), "accepted-unsigned": a.build(nil, nil),
	} {
		if !bytes.Equal(got, d.raw[name]) {
			t.Errorf("%s: %x, the document has %x", name, got, d.raw[name])
		}
	}
	if h, err := parseHello(d.raw["hello"]); err != nil || h != d.hello {
		t.Errorf("parseHello: %v, %v", h, err)
	}
	if got, err := parseChallenge(d.raw["challenge"]); err != nil || got != c {
		t.Errorf("parseChallenge: %v, %v", got, err)
	}
	if got, err := parseProof(d.raw["proof"]); err != nil || got != p {
		t.Errorf("parseProof: %v, %v", got, err)
	}
	for name, want := range map[string]bool{"accepted": true, "accepted-unsigned": false} {
		if got, signed, err := parseAcceptance(d.raw[name]); err != nil || got != a || signed != want {
			t.Errorf("parseAcceptance of %s: %v, %t, %v", name, got, signed, err)
		}
	}
	if err := verify2(d.server.RemoteKey, d.server.Secret, d.raw["proof"]); err != nil {
		t.Errorf("the proof: %v", err)
	}
	if err := verify2(d.client.RemoteKey, d.client.Secret, d.raw["accepted"]); err != nil {
		t.Errorf("the acceptance: %v", err)
	}
}

// What a datagram is must be plain at sight, whatever the tunnel carries.
func TestVersion2LooksLikeNothingElse(t *testing.T) {
	d := newDocumented2(t)
	for name, b := range d.raw {
		if !strings.Contains("hello challenge proof accepted accepted-unsigned", name) {
			continue
		}
		if !isVersion2(b) || innerAll.looks(b) || innerAll.looks(Reverse(b)) || len(b) == SignedLen {
			t.Errorf("%s looks like something else", name)
		}
	}
	for _, b := range [][]byte{nil, {0xf0}, []byte(magic2), data(84), []byte("hunter2")} {
		if isVersion2(b) {
			t.Errorf("%x looks like version 2", b)
		}
	}
	for _, v := range vectors(t) {
		if isVersion2(v.Payload) {
			t.Errorf("%s looks like version 2", v.Name)
		}
	}
	if err := (Auth{Token: []byte(magic2 + "\x01")}).validate(); err == nil {
		t.Error("a token may look like version 2")
	}
}

// Every datagram cut short, made longer, or with one bit that is another, is
// refused: by its form, or by its signature or MAC.
func TestVersion2RefusesDamage(t *testing.T) {
	d := newDocumented2(t)
	sound := map[string]func([]byte) error{
		"hello": func(b []byte) error {
			h, err := parseHello(b)
			if err == nil && h != d.hello {
				err = ErrKeyID // another key, or an answer to somebody else
			}
			return err
		},
		"challenge": func(b []byte) error {
			c, err := parseChallenge(b)
			if err == nil && c.nonce != d.hello.nonce {
				err = ErrReply
			}
			if err == nil {
				err = d.cookies.check(clientAddr, documentedServer, d.hello, c.cookie)
			}
			return err
		},
		"proof": func(b []byte) error {
			if _, err := parseProof(b); err != nil {
				return err
			}
			return verify2(d.server.RemoteKey, d.server.Secret, b)
		},
		"accepted": func(b []byte) error {
			if _, signed, err := parseAcceptance(b); err != nil || !signed {
				return errors.Join(err, ErrUnsigned)
			}
			return verify2(d.client.RemoteKey, d.client.Secret, b)
		},
	}
	for name, check := range sound {
		good := d.raw[name]
		if err := check(good); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range good {
			if err := check(good[:n]); err == nil {
				t.Errorf("%s cut to %d bytes is good", name, n)
			}
		}
		if err := check(append(bytes.Clone(good), 0)); !errors.Is(err, ErrLength) {
			t.Errorf("%s and a byte: %v", name, err)
		}
		for i := range good {
			for bit := range 8 {
				b := bytes.Clone(good)
				b[i] ^= 1 << bit
				if err := check(b); err == nil {
					t.Errorf("%s with bit %d of byte %d changed is good", name, bit, i)
				}
			}
		}
	}
	if err := verify2(d.server.RemoteKey, []byte("another"), d.raw["proof"]); !errors.Is(err, ErrSignature) {
		t.Errorf("with another secret: %v", err)
	}
}

// What version 1 takes may be longer than 73 bytes, so that the bytes that are signed
// in version 2 could be one of its: of a time long to come, which would bind whoever
// sends it and refuse all that the client sends after it.
func TestVersion2IsNotVersion1(t *testing.T) {
	d := newDocumented2(t)
	for name, pub := range map[string]ed25519.PublicKey{"proof": d.server.RemoteKey, "accepted": d.client.RemoteKey} {
		signed, sig := d.raw[name][:len(d.raw[name])-ed25519.SignatureSize], d.raw[name][len(d.raw[name])-ed25519.SignatureSize:]
		for _, rest := range [][]byte{signed, slices.Concat([]byte(context2), signed)} {
			if err := VerifySignature(pub, d.client.Secret, slices.Concat(sig, rest)); !errors.Is(err, ErrSignature) {
				t.Errorf("the signature of %s, before %q, is one of version 1: %v", name, rest, err)
			}
		}
	}
}

// fuzz2 fuzzes a parser: what it takes, it builds again to the byte.
func fuzz2(f *testing.F, name string, again func([]byte) ([]byte, error)) {
	d := newDocumented2(f)
	for _, b := range d.raw {
		f.Add(b)
	}
	f.Add(d.raw[name][:len(d.raw[name])-1])
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := again(b)
		switch {
		case err != nil && !errors.Is(err, ErrLength) && !errors.Is(err, ErrMalformed):
			t.Errorf("%x: %v", b, err)
		case err == nil && !bytes.Equal(got, b[:len(got)]):
			t.Error(cmp.Diff(b, got))
		}
	})
}

func FuzzHello(f *testing.F) {
	fuzz2(f, "hello", func(b []byte) ([]byte, error) {
		h, err := parseHello(b)
		return h.build(), err
	})
}

func FuzzChallenge(f *testing.F) {
	fuzz2(f, "challenge", func(b []byte) ([]byte, error) {
		c, err := parseChallenge(b)
		return c.build(), err
	})
}

func FuzzProof(f *testing.F) {
	key := newDocumented2(f).client
	fuzz2(f, "proof", func(b []byte) ([]byte, error) {
		p, err := parseProof(b)
		return p.build(key.Key, key.Secret)[:proofLen-ed25519.SignatureSize], err
	})
}

func FuzzAccepted(f *testing.F) {
	fuzz2(f, "accepted", func(b []byte) ([]byte, error) {
		a, _, err := parseAcceptance(b)
		return a.build(nil, nil), err
	})
}
