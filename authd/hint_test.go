package authd

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// peerKey is the key of the i-th of many peers.
func peerKey(i int) ed25519.PrivateKey {
	var seed [ed25519.SeedSize]byte
	binary.BigEndian.PutUint32(seed[:], uint32(i))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(key ed25519.PrivateKey) ed25519.PublicKey { return key.Public().(ed25519.PublicKey) }

// hintOf returns the hint of a payload at a time in Unix seconds.
func hintOf(pub ed25519.PublicKey, secret []byte, sec int64) [hintLen]byte {
	d := newHintDigest(pub, secret)
	return d.at(sec)
}

// Who lacks the secret knows no hint, though he knows the key.
func TestHintSecret(t *testing.T) {
	pub := public(peerKey(1))
	same := 0
	for sec := range int64(1000) {
		if hintOf(pub, []byte("s"), sec) == hintOf(pub, []byte("t"), sec) {
			same++
		}
	}
	if same > 1 {
		t.Errorf("%d of 1000 hints are the same with two secrets", same)
	}
}

// Named and search find just the keys whose hint it is, with the secret of each, in
// this second and in no other.
func TestKeyring(t *testing.T) {
	now := time.Unix(1700000000, 0)
	k := newKeyring()
	secret := func(i int) []byte { return []byte(strings.Repeat("s", i%50)) }
	var pubs []ed25519.PublicKey
	for i := range 2000 {
		pubs = append(pubs, public(peerKey(i)))
		k.add(pubs[i], secret(i), 10*i)
	}
	shared := 0
	for _, sec := range []int64{now.Unix(), now.Unix() + 1, now.Unix() - 10, now.Unix() + 10, now.Unix()} {
		for i := range pubs {
			hint := hintOf(pubs[i], secret(i), sec)
			st := Stamp{Time: sec, Salt: [4]byte{hint[0], hint[1], byte(i), 7}}
			if !k.near(st, now) {
				t.Fatalf("%d is not near", sec)
			}
			got := k.named(st, now)
			if !slices.Contains(got, 10*i) {
				t.Fatalf("key %d is not found", i)
			}
			shared += len(got) - 1
			if i%100 == 0 {
				if diff := cmp.Diff(k.search(st), got); diff != "" {
					t.Error(diff)
				}
			}
		}
	}
	// Of 2000 keys some 60 have a hint that another one has.
	if shared == 0 || shared > 5*200 {
		t.Errorf("%d times another key was named", shared)
	}
	if i, ok := k.tunnel(pubs[7]); i != 70 || !ok {
		t.Errorf("%d, %v", i, ok)
	}
	if _, ok := k.tunnel(nil); ok {
		t.Error("no key is known")
	}
}

// What is kept is bounded, whatever times payloads have.
func TestKeyringForgets(t *testing.T) {
	k := newKeyring()
	k.add(public(peerKey(1)), nil, 0)
	const begin = 1700000000
	for sec := int64(begin); sec < begin+1000; sec++ {
		now := time.Unix(sec, 0)
		for d := int64(-12); d <= 12; d++ {
			st := Stamp{Time: sec + d}
			if near := k.near(st, now); near != (d >= -10 && d <= 10) {
				t.Fatalf("%d s off is near: %v", d, near)
			} else if near {
				k.named(st, now)
			}
		}
		if n := len(k.seconds); n > 21 {
			t.Fatalf("hints of %d seconds", n)
		}
	}
	for _, sec := range []int64{0, 1<<40 - 1} {
		if k.near(Stamp{Time: sec}, time.Unix(begin, 0)) {
			t.Errorf("%d is near", sec)
		}
	}
}

// The wire format of a payload with a hint, put together by hand.
func TestPayloadHint(t *testing.T) {
	v := vectors(t)["hinted"]
	const at = 64 + 5
	if got := v.Payload[at : at+4]; !bytes.Equal(got, v.Salt) {
		t.Errorf("salt %x, want %x", got, v.Salt)
	}
	p, err := Payload(Auth{Key: v.key(), Secret: v.Secret}, time.Unix(v.Time, 999), bytes.NewReader(v.Salt[2:]))
	if err != nil || !bytes.Equal(p, v.Payload) {
		t.Errorf("%x, %v, want %x", p, err, v.Payload)
	}
	// A server that knows of no hints.
	if err := VerifySignature(ed25519.PublicKey(v.Public), v.Secret, p); err != nil {
		t.Error(err)
	}
}
