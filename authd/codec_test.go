package authd

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// hexBytes is hexadecimal in JSON.
type hexBytes []byte

func (h *hexBytes) UnmarshalText(b []byte) (err error) {
	*h, err = hex.DecodeString(string(b))
	return err
}

// vector is one of testdata/vectors.json, which testdata/vectors.sh makes.
type vector struct {
	Name, Comment                                        string
	Seed, Public, Secret, Salt, Token, Payload, Reversed hexBytes
	Time                                                 int64
}

func vectors(t testing.TB) map[string]vector {
	t.Helper()
	b, err := os.ReadFile("testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	var vs []vector
	if err := json.Unmarshal(b, &vs); err != nil {
		t.Fatal(err)
	}
	m := make(map[string]vector)
	for _, v := range vs {
		m[v.Name] = v
	}
	return m
}

func (v vector) key() ed25519.PrivateKey { return ed25519.NewKeyFromSeed(v.Seed) }

func TestVectors(t *testing.T) {
	for name, v := range vectors(t) {
		t.Run(name, func(t *testing.T) {
			if got := Reverse(v.Payload); !bytes.Equal(got, v.Reversed) {
				t.Errorf("Reverse: %x, want %x", got, v.Reversed)
			}
			if v.Seed == nil {
				var a Auth
				if len(v.Token) > 0 {
					a.Token = v.Token
				}
				got, err := Payload(a, time.Unix(5, 0), nil)
				if err != nil || !bytes.Equal(got, v.Payload) {
					t.Errorf("Payload: %x, %v, want %x", got, err, v.Payload)
				}
				got, err = Reply(a, v.Payload, time.Unix(5, 0), nil)
				if err != nil || !bytes.Equal(got, v.Reversed) {
					t.Errorf("Reply: %x, %v, want %x", got, err, v.Reversed)
				}
				return
			}

			if got := v.key().Public().(ed25519.PublicKey); !bytes.Equal(got, v.Public) {
				t.Fatalf("public key %x, want %x", got, v.Public)
			}
			if err := VerifySignature(ed25519.PublicKey(v.Public), v.Secret, v.Payload); err != nil {
				t.Errorf("VerifySignature: %v", err)
			}
			st, err := ParseStamp(v.Payload)
			if diff := cmp.Diff(Stamp{Time: v.Time, Salt: [4]byte(v.Salt)}, st); diff != "" || err != nil {
				t.Errorf("ParseStamp: %v %s", err, diff)
			}
			if len(v.Payload) != SignedLen {
				return // we do not send such
			}
			at := time.Unix(v.Time, 999)
			if got := Sign(v.key(), v.Secret, at, [4]byte(v.Salt)); !bytes.Equal(got, v.Payload) {
				t.Errorf("Sign: %x, want %x", got, v.Payload)
			}
			a := Auth{Key: v.key(), Secret: v.Secret}
			got, err := Payload(a, at, bytes.NewReader(v.Salt[hintLen:]))
			if err != nil || bytes.Equal(got, v.Payload) != strings.HasPrefix(name, "hinted") {
				t.Errorf("Payload: %x, %v, the vector is %x", got, err, v.Payload)
			}
			if st, err := ParseStamp(got); err != nil || st.hint() != hintOf(public(v.key()), v.Secret, v.Time) {
				t.Errorf("Payload: %v, %v: not the hint", st, err)
			}
			// Without the peer's key a server that has its own does not sign.
			got, err = Reply(a, v.Payload, at, bytes.NewReader(v.Salt))
			if err != nil || !bytes.Equal(got, v.Reversed) {
				t.Errorf("Reply without remote key: %x, %v, want %x", got, err, v.Reversed)
			}
			a.RemoteKey = ed25519.PublicKey(v.Public)
			got, err = Reply(a, []byte("whatever"), at, bytes.NewReader(v.Salt))
			if err != nil || !bytes.Equal(got, v.Payload) {
				t.Errorf("Reply with both keys: %x, %v, want %x", got, err, v.Payload)
			}
		})
	}
}

func TestVerifySignatureRefuses(t *testing.T) {
	v := vectors(t)["client"]
	pub := ed25519.PublicKey(v.Public)
	for i := range v.Payload {
		p := bytes.Clone(v.Payload)
		p[i] ^= 1
		if err := VerifySignature(pub, v.Secret, p); !errors.Is(err, ErrSignature) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	if err := VerifySignature(pub, []byte("other"), v.Payload); !errors.Is(err, ErrSignature) {
		t.Errorf("other secret: %v", err)
	}
	if err := VerifySignature(pub[1:], v.Secret, v.Payload); !errors.Is(err, ErrSignature) {
		t.Errorf("short key: %v", err)
	}
	if err := VerifySignature(pub, v.Secret, append(bytes.Clone(v.Payload), 0)); !errors.Is(err, ErrSignature) {
		t.Errorf("one byte more: %v", err)
	}
	for n := range SignedLen {
		if err := VerifySignature(pub, v.Secret, v.Payload[:n]); !errors.Is(err, ErrLength) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if _, err := ParseStamp(v.Payload[:n]); !errors.Is(err, ErrLength) {
			t.Errorf("stamp of %d bytes: %v", n, err)
		}
	}
}

func TestPayloadFails(t *testing.T) {
	a := Auth{Key: vectors(t)["client"].key()}
	if _, err := Payload(a, time.Unix(1, 0), iotest.ErrReader(errors.New("empty"))); err == nil {
		t.Error("no randomness, no error")
	}
	a.Key = a.Key[1:]
	if _, err := Payload(a, time.Unix(1, 0), strings.NewReader("salt")); err == nil {
		t.Error("short key, no error")
	}
}

// A payload that looks like data, forwards or reversed, would not get through the
// filter, so its salt is drawn again. Reversed, the salt is the first four bytes
// and the time the next five: of an IPv4 header the version in the salt's last,
// the length in its hint; of IPv6 the version there too, the length in the time;
// GRE's header in the salt, the length in the time.
func TestPayloadAvoidsInner(t *testing.T) {
	key := vectors(t)["client"].key()
	for _, tt := range []struct {
		inner Inner
		key   ed25519.PrivateKey
		from  int64   // the first of some seconds
		hint  []byte  // that is wanted, one of which has it
		last  [2]byte // of the salt: then it looks like data
	}{
		{InnerIPv4, key, 1700000000, []byte{SignedLen, 0}, [2]byte{0, 0x45}},
		{InnerGRE, vectors(t)["server"].key(), (SignedLen - 4) << 24, []byte{0, 8}, [2]byte{0, 0}},
		{InnerIPv6, key, (SignedLen - 40) << 8, nil, [2]byte{0, 0x60}},
	} {
		key, pub, sec := tt.key, tt.key.Public().(ed25519.PublicKey), tt.from
		hint := hintOf(pub, nil, sec)
		for !bytes.HasPrefix(hint[:], tt.hint) {
			sec++
			hint = hintOf(pub, nil, sec)
		}
		at := time.Unix(sec, 0)
		bad := [4]byte{hint[0], hint[1], tt.last[0], tt.last[1]}
		if p := Reverse(Sign(key, nil, at, bad)); !tt.inner.looks(p) {
			t.Fatalf("%x does not look like data", p)
		}
		p, err := Payload(Auth{Key: key}, at, bytes.NewReader(append(tt.last[:], 3, 4)))
		if err != nil {
			t.Fatal(err)
		}
		if st, _ := ParseStamp(p); st.Salt != [4]byte{hint[0], hint[1], 3, 4} {
			t.Errorf("salt %x", st.Salt)
		}
	}
}

func TestKeygen(t *testing.T) {
	v := vectors(t)["client"]
	priv, pub, err := Keygen(bytes.NewReader(v.Seed))
	if err != nil {
		t.Fatal(err)
	}
	if want := base64.StdEncoding.EncodeToString(v.Seed); priv != want {
		t.Errorf("private %s, want %s", priv, want)
	}
	if want := base64.StdEncoding.EncodeToString(v.Public); pub != want {
		t.Errorf("public %s, want %s", pub, want)
	}
	if _, _, err := Keygen(strings.NewReader("short")); err == nil {
		t.Error("too little randomness, no error")
	}
}
