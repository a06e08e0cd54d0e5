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
// [VerifySignature].
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
	Salt [4]byte // random
}

// Sign returns the payload of [SignedLen] bytes that proves possession of key
// and secret: signature || time || salt, where time || salt || secret is
// signed. The time is at's Unix seconds, the low 40 bits of them. It panics if key
// has not [ed25519.PrivateKeySize] bytes.
func Sign(key ed25519.PrivateKey, secret []byte, at time.Time, salt [4]byte) []byte {
	var sec [8]byte
	binary.BigEndian.PutUint64(sec[:], uint64(at.Unix()))

	msg := make([]byte, 0, timeLen+saltLen+len(secret))
	msg = append(msg, sec[8-timeLen:]...)
	msg = append(msg, salt[:]...)
	msg = append(msg, secret...)

	p := make([]byte, 0, SignedLen)
	p = append(p, ed25519.Sign(key, msg)...)
	return append(p, msg[:timeLen+saltLen]...)
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

// Payload returns what a client with a sends: its token, a payload signed with
// a salt from rand, or nothing. It fails if rand does or if a's key is no
// ed25519 key.
func Payload(a Auth, now time.Time, rand io.Reader) ([]byte, error) {
	switch {
	case a.Token != nil:
		return slices.Clone(a.Token), nil
	case a.Key != nil:
		return signFresh(a, now, rand)
	default:
		return []byte{}, nil
	}
}

// Reply returns what a server with a answers to a received payload it accepted:
// a payload of its own signature if it has both a key and the peer's, else the
// received bytes reversed. It fails as [Payload] does.
func Reply(a Auth, received []byte, now time.Time, rand io.Reader) ([]byte, error) {
	if a.Key != nil && a.RemoteKey != nil {
		return signFresh(a, now, rand)
	}
	return Reverse(received), nil
}

// signFresh signs with a random salt. One signature in a million looks like the
// head of an inner datagram, forwards or reversed, and a [Filter] would take it
// for data, so such a salt is drawn again. GRE's head is less likely, but as
// easily avoided.
func signFresh(a Auth, now time.Time, rand io.Reader) ([]byte, error) {
	if len(a.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("signing: not an ed25519 private key")
	}
	var p []byte
	for range 4 {
		var salt [saltLen]byte
		if _, err := io.ReadFull(rand, salt[:]); err != nil {
			return nil, fmt.Errorf("drawing a salt: %w", err)
		}
		p = Sign(a.Key, a.Secret, now, salt)
		if !looksLike(p, InnerIPv4, InnerGRE) && !looksLike(Reverse(p), InnerIPv4, InnerGRE) {
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
