package authd

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"slices"
	"testing"
	"time"
)

// What is signed is good for its key and secret as it stands, tells its time and
// salt, and is good for nothing once a bit of it or of the secret is another.
func FuzzSigned(f *testing.F) {
	key := vectors(f)["client"].key()
	public := key.Public().(ed25519.PublicKey)
	f.Add([]byte("secret"), int64(1700000000), uint32(7), []byte(nil), uint16(0))
	f.Fuzz(func(t *testing.T, secret []byte, sec int64, number uint32, more []byte, flip uint16) {
		salt := [4]byte{byte(number >> 24), byte(number >> 16), byte(number >> 8), byte(number)}
		p := Sign(key, slices.Concat(more, secret), time.Unix(sec, 0), salt)
		// A longer payload is signed with what it has more.
		p = append(p, more...)
		if err := VerifySignature(public, secret, p); err != nil {
			t.Fatalf("%x is not good: %v", p, err)
		}
		st, err := ParseStamp(p)
		if want := (Stamp{sec & (1<<40 - 1), salt}); err != nil || st != want {
			t.Errorf("stamp %v, want %v: %v", st, want, err)
		}
		if err := VerifySignature(public, append(bytes.Clone(secret), 0), p); !errors.Is(err, ErrSignature) {
			t.Errorf("another secret: %v", err)
		}
		p[int(flip/8)%len(p)] ^= 1 << (flip % 8)
		if err := VerifySignature(public, secret, p); !errors.Is(err, ErrSignature) {
			t.Errorf("another bit: %v", err)
		}
		for _, short := range [][]byte{p[:SignedLen-1], p[:64], nil} {
			_, err := ParseStamp(short)
			if !errors.Is(err, ErrLength) || !errors.Is(VerifySignature(public, secret, short), ErrLength) {
				t.Errorf("%d bytes: %v", len(short), err)
			}
		}
	})
}

// A client takes for an answer only what the server's key signed, and that once,
// or where it has no such key what it sent itself, reversed; a signature that it
// can't verify is none that proves anything.
func FuzzReply(f *testing.F) {
	vs := vectors(f)
	for _, v := range vs {
		f.Add([]byte(v.Payload))
		f.Add([]byte(v.Reversed))
	}
	server := vs["server"]
	f.Fuzz(func(t *testing.T, p []byte) {
		own := vs["client"].key()
		auths := []Auth{
			{Key: own, RemoteKey: ed25519.PublicKey(server.Public), Secret: server.Secret},
			{Key: own, Secret: server.Secret},
			{Token: []byte("hunter2")},
		}
		for i, a := range auths {
			l := newClientLab(t, ClientConfig{Now: newClock(server.Time).now, Auth: a})
			if err := l.c.Send(); err != nil {
				t.Fatal(err)
			}
			reversed := bytes.Equal(p, Reverse(l.out[0].Payload))
			signed := VerifySignature(ed25519.PublicKey(server.Public), server.Secret, p) == nil
			verified, err := l.c.verify(Datagram{serverAddr, clientAddr, p})
			switch i {
			case 0:
				if (err == nil) != signed {
					t.Errorf("signed %v: %v", signed, err)
				}
				if _, again := l.c.verify(Datagram{serverAddr, clientAddr, p}); again == nil {
					t.Error("taken twice")
				}
			case 1:
				if (err == nil) != (reversed || len(p) == SignedLen) || verified != reversed {
					t.Errorf("reversed %v: verified %v, %v", reversed, verified, err)
				}
			case 2:
				if (err == nil) != reversed {
					t.Errorf("reversed %v: %v", reversed, err)
				}
			}
		}
	})
}

// What looks like data of several kinds is what looks like data of one of them, so
// that no tunnel's data is heard for the sake of another's kind.
func FuzzInner(f *testing.F) {
	for _, word := range greKinds {
		f.Add(greData(word, 84))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		one := 0
		for _, in := range []Inner{InnerIPv4, InnerGRE, InnerIPv6} {
			if in.looks(p) {
				one++
			}
		}
		if one > 1 || innerAll.looks(p) != (one == 1) {
			t.Errorf("%x is data of %d kinds; of any: %v", p, one, innerAll.looks(p))
		}
	})
}
