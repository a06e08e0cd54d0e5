package authd

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// The datagrams of version 2 of the wire protocol, to the byte; docs/protocol.md
// says what they are for and has examples.
//
//	hello     head (8) || key id (8) || nonce (8) || zeros (16)
//	challenge head (8) || nonce (8) || cookie (24)
//	proof     head (8) || key id (8) || nonce (8) || cookie (24) || signature (64)
//	accepted  head (8) || nonce (8) || issued (8) [|| signature (64)]
//
//	head      f0 69 70 69 70 6f 75 || type (1): 1, 2, 3, 4 as above
//	cookie    issued (8, big-endian) || MAC (16)
//	key id    SHA-256("ipipou key id" || public key (32) || secret)[:8]
//
// A signature is Ed25519ctx (RFC 8032, 5.1) with the context "ipipou version 2", of all
// of the datagram before it || secret. With a label instead of a context it would be
// a signature of version 1 too, which is of any bytes followed by the secret: sent as
// such it would bind who sends it, wherever the same key and secret are in use.
// A hello is as long as a challenge, so that a forged source is sent no more than
// was sent in its name.
const (
	magic2  = "\xf0ipipou" // the nibble f is neither IPv4's, IPv6's nor GRE's
	head2   = len(magic2) + 1
	nonce2  = 8
	cookie2 = 8 + 16

	helloLen     = challengeLen
	challengeLen = head2 + nonce2 + cookie2
	proofLen     = head2 + 8 + nonce2 + cookie2 + ed25519.SignatureSize
	acceptedLen  = head2 + nonce2 + 8

	context2 = "ipipou version 2"
	idLabel2 = "ipipou key id"
)

// message2 is the type of a datagram of version 2.
type message2 byte

const (
	helloMsg message2 = 1 + iota
	challengeMsg
	proofMsg
	acceptedMsg
)

// isVersion2 tells the versions apart at sight: version 1 begins with 64 random
// bytes, or with a token, which must not begin like this.
func isVersion2(payload []byte) bool {
	return len(payload) >= head2 && string(payload[:len(magic2)]) == magic2
}

// type2 returns the type of a payload that isVersion2.
func type2(payload []byte) message2 { return message2(payload[len(magic2)]) }

// begin2 begins a datagram.
func begin2(t message2, size int) []byte {
	return append(append(make([]byte, 0, size), magic2...), byte(t))
}

// checkLen returns why a datagram is not of type t and of one of lens.
func checkLen(payload []byte, t message2, lens ...int) error {
	if !isVersion2(payload) || type2(payload) != t || !slices.Contains(lens, len(payload)) {
		return lengthError(len(payload))
	}
	return nil
}

// keyID names a key and its secret in a datagram, so that a server finds them
// without trying all it has.
type keyID [8]byte

func newKeyID(pub ed25519.PublicKey, secret []byte) keyID {
	h := sha256.Sum256(slices.Concat([]byte(idLabel2), pub, secret))
	return keyID(h[:])
}

// nonce is what a client makes anew for each hello, to know what answers it.
type nonce [nonce2]byte

// cookie is a server's challenge to one address and port. Only the server that
// made it can tell whether it is its own.
type cookie struct {
	issued uint64 // nanoseconds of the server's own clock, which begins with its process
	mac    [16]byte
}

func (c cookie) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, c.issued)
	return append(b, c.mac[:]...)
}

func parseCookie(b []byte) cookie {
	return cookie{binary.BigEndian.Uint64(b), [16]byte(b[8:])}
}

// hello is a client's wish to be challenged.
type hello struct {
	id    keyID
	nonce nonce
}

func (h hello) build() []byte {
	b := begin2(helloMsg, helloLen)
	b = append(b, h.id[:]...)
	b = append(b, h.nonce[:]...)
	return append(b, make([]byte, helloLen-len(b))...)
}

// parseHello is strict about the zeros, so that a later version may mean
// something by them.
func parseHello(b []byte) (h hello, err error) {
	if err := checkLen(b, helloMsg, helloLen); err != nil {
		return h, err
	}
	const filled = head2 + 8 + nonce2
	if [helloLen - filled]byte(b[filled:]) != [helloLen - filled]byte{} {
		return h, errPadding
	}
	return hello{keyID(b[head2:]), nonce(b[head2+8:])}, nil
}

var errPadding = fmt.Errorf("%w: a hello that does not end with zeros", ErrMalformed)

// challenge answers a hello.
type challenge struct {
	nonce  nonce
	cookie cookie
}

func (c challenge) build() []byte {
	b := begin2(challengeMsg, challengeLen)
	return c.cookie.append(append(b, c.nonce[:]...))
}

func parseChallenge(b []byte) (challenge, error) {
	if err := checkLen(b, challengeMsg, challengeLen); err != nil {
		return challenge{}, err
	}
	return challenge{nonce(b[head2:]), parseCookie(b[head2+nonce2:])}, nil
}

// proof is a signed challenge, which alone authenticates.
type proof struct {
	hello
	cookie cookie
}

func (p proof) build(key ed25519.PrivateKey, secret []byte) []byte {
	b := begin2(proofMsg, proofLen)
	b = append(b, p.id[:]...)
	b = append(b, p.nonce[:]...)
	return sign2(p.cookie.append(b), key, secret)
}

// parseProof does not verify the signature; verify2 does.
func parseProof(b []byte) (proof, error) {
	if err := checkLen(b, proofMsg, proofLen); err != nil {
		return proof{}, err
	}
	at := head2 + 8 + nonce2
	return proof{hello{keyID(b[head2:]), nonce(b[head2+8:])}, parseCookie(b[at:])}, nil
}

// acceptance tells a client that its proof was accepted and that it is bound.
type acceptance struct {
	nonce  nonce
	issued uint64 // that of the proof's cookie
}

// build signs if there is a key.
func (a acceptance) build(key ed25519.PrivateKey, secret []byte) []byte {
	b := begin2(acceptedMsg, acceptedLen+ed25519.SignatureSize)
	b = append(b, a.nonce[:]...)
	b = binary.BigEndian.AppendUint64(b, a.issued)
	if key == nil {
		return b
	}
	return sign2(b, key, secret)
}

func parseAcceptance(b []byte) (a acceptance, signed bool, err error) {
	if err := checkLen(b, acceptedMsg, acceptedLen, acceptedLen+ed25519.SignatureSize); err != nil {
		return a, false, err
	}
	return acceptance{nonce(b[head2:]), binary.BigEndian.Uint64(b[head2+nonce2:])}, len(b) > acceptedLen, nil
}

var options2 = &ed25519.Options{Context: context2}

// sign2 appends the signature of b.
func sign2(b []byte, key ed25519.PrivateKey, secret []byte) []byte {
	sig, err := key.Sign(nil, slices.Concat(b, secret), options2)
	if err != nil {
		panic(err) // of a context that is too long, as it says
	}
	return append(b, sig...)
}

// verify2 checks the signature at the end of a datagram that was parsed.
func verify2(pub ed25519.PublicKey, secret, b []byte) error {
	end := len(b) - ed25519.SignatureSize
	if ed25519.VerifyWithOptions(pub, slices.Concat(b[:end], secret), b[end:], options2) != nil {
		return ErrSignature
	}
	return nil
}
