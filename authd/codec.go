package authd

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// SignedLen is the length in bytes of an ed25519 payload: signature (64), Unix
// seconds (5, big-endian), salt (4). Longer ones are valid; see
// [VerifySignature]. What our clients put into the salt, [Payload] says.
const SignedLen = ed25519.SignatureSize + timeLen + saltLen

const (
	timeLen = 5
	saltLen = 4

	// maxPayload is what an Ethernet frame leaves: 1500 - 20 - 8.
	maxPayload = 1472
)

// Stamp is what makes a signed payload unlike every other of the same key.
type Stamp struct {
	Time int64   // Unix seconds, 40 bits on the wire
	Salt [4]byte // random, but for what Payload says
}

// Sign returns the payload of [SignedLen] bytes that proves possession of key
// and secret: signature || time || salt, where time || salt || secret is
// signed. The time is at's Unix seconds, the low 40 bits of them. It panics if key
// has not [ed25519.PrivateKeySize] bytes.
func Sign(key ed25519.PrivateKey, secret []byte, at time.Time, salt [4]byte) []byte {
	msg := make([]byte, timeLen, timeLen+saltLen+len(secret))
	putTime(msg, at.Unix())
	msg = append(msg, salt[:]...)
	msg = append(msg, secret...)

	p := make([]byte, 0, SignedLen)
	p = append(p, ed25519.Sign(key, msg)...)
	return append(p, msg[:timeLen+saltLen]...)
}

// putTime writes the low 40 bits of Unix seconds to the first 5 bytes of b.
func putTime(b []byte, sec int64) {
	var all [8]byte
	binary.BigEndian.PutUint64(all[:], uint64(sec))
	copy(b, all[8-timeLen:])
}

// ParseStamp returns the time and salt of a signed payload, unverified.
// It returns [ErrLength] for a payload shorter than [SignedLen].
func ParseStamp(payload []byte) (Stamp, error) {
	if len(payload) < SignedLen {
		return Stamp{}, fmt.Errorf("%w: %d bytes, a signed payload has %d", ErrLength, len(payload), SignedLen)
	}
	var sec [8]byte
	copy(sec[8-timeLen:], payload[ed25519.SignatureSize:])
	return Stamp{
		Time: int64(binary.BigEndian.Uint64(sec[:])),
		Salt: [4]byte(payload[ed25519.SignatureSize+timeLen:]),
	}, nil
}

// VerifySignature checks that the first 64 bytes of payload are pub's signature
// of the rest followed by secret. It returns [ErrLength] for a payload shorter
// than [SignedLen], else [ErrSignature].
func VerifySignature(pub ed25519.PublicKey, secret, payload []byte) error {
	if len(payload) < SignedLen {
		return fmt.Errorf("%w: %d bytes, a signed payload has %d", ErrLength, len(payload), SignedLen)
	}
	if len(pub) != ed25519.PublicKeySize {
		return ErrSignature
	}
	sig, rest := payload[:ed25519.SignatureSize], payload[ed25519.SignatureSize:]
	if !ed25519.Verify(pub, slices.Concat(rest, secret), sig) {
		return ErrSignature
	}
	return nil
}

// Payload returns what a client with a sends: its token, a signed payload, or
// nothing. It fails if rand does or if a's key is no ed25519 key.
//
// The salt of a signed one is a hint at the key (2 bytes) and 2 bytes from rand:
//
//	signature (64) || time (5) || SHA-256(digest (32) || time (5))[:2] || random (2)
//	digest = SHA-256("ipipou hint" || public key (32) || secret)
//
// To a server that knows no hints these 4 bytes are a salt as any other, and to
// one that does, a salt without a hint is: it stays version 1 to the byte.
//
// Two payloads of one key and second are equal once in 65536 times, and then the
// second is a replay; a [Client] sees to it that its own are not.
func Payload(a Auth, now time.Time, rand io.Reader) ([]byte, error) {
	switch {
	case a.Token != nil:
		return slices.Clone(a.Token), nil
	case a.Key != nil:
		return signFresh(a, now, true, rand)
	default:
		return []byte{}, nil
	}
}

// Reply returns what a server with a answers to a received payload it accepted:
// a payload of its own signature if it has both a key and the peer's, else the
// received bytes reversed. The salt of a signature is all random: a client has one
// server's replies to verify and needs no hint. It fails as [Payload] does.
func Reply(a Auth, received []byte, now time.Time, rand io.Reader) ([]byte, error) {
	if a.Key != nil && a.RemoteKey != nil {
		return signFresh(a, now, false, rand)
	}
	return Reverse(received), nil
}

// signFresh signs with a salt that is random, behind a hint if hinted. One
// signature in a million looks like the head of an inner datagram, forwards or
// reversed, and a [Filter] would take it for data, so such a salt is drawn again.
// GRE's and IPv6's heads are less likely, but as easily avoided.
func signFresh(a Auth, now time.Time, hinted bool, rand io.Reader) ([]byte, error) {
	if len(a.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("signing: not an ed25519 private key")
	}
	var (
		salt  [saltLen]byte
		drawn = salt[:]
	)
	if hinted {
		digest := newHintDigest(a.Key.Public().(ed25519.PublicKey), a.Secret)
		hint := digest.at(now.Unix())
		drawn = salt[copy(salt[:], hint[:]):]
	}
	var p []byte
	for range 4 {
		if _, err := io.ReadFull(rand, drawn); err != nil {
			return nil, fmt.Errorf("drawing a salt: %w", err)
		}
		p = Sign(a.Key, a.Secret, now, salt)
		if !innerAll.looks(p) && !innerAll.looks(Reverse(p)) {
			break
		}
	}
	return p, nil
}

// Reverse returns a copy of b with its bytes in reverse order, never nil.
func Reverse(b []byte) []byte {
	r := append(make([]byte, 0, len(b)), b...)
	slices.Reverse(r)
	return r
}
