package authd

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"
)

// A hint says in two bytes whose a signed payload is, so that a server of many
// keys on one endpoint need not try them all. It stands in the salt, of which
// version 1 says only that it is 4 bytes that are signed:
//
//	hint (2) || random (2)
//
//	digest = SHA-256("ipipou hint" || the signer's public key (32) || secret)
//	hint   = the first 2 bytes of SHA-256(digest (32) || time (5))
//
// with the time as it stands in the payload: Unix seconds, big-endian. To the
// byte this is version 1: a server that knows no hints sees a salt, and one that
// does finds a payload without a hint too, by trying, as it finds one whose hint
// means another key by chance (1 key in 65536). It proves nothing; the signature
// does.
//
// To who knows the public key and the secret it tells whose a packet is, as the
// signature does; everybody knows the default secret. To who lacks either it is
// as random as the salt was, but that it is equal in payloads of one second.
const hintLen = 2

// hintLabel makes these digests unlike all others that are made of a key.
const hintLabel = "ipipou hint"

// hintDigest is of a key and its secret, what a hint is made of besides the time.
// A server makes it once a key, as secrets are of any length.
type hintDigest [sha256.Size]byte

func newHintDigest(pub ed25519.PublicKey, secret []byte) hintDigest {
	return sha256.Sum256(slices.Concat([]byte(hintLabel), pub, secret))
}

// at returns the hint of a payload at a time in Unix seconds.
func (d *hintDigest) at(sec int64) [hintLen]byte {
	// Of a constant size, so that it stays on the stack: a server does this
	// for each key and second.
	var msg [len(d) + timeLen]byte
	putTime(msg[copy(msg[:], d[:]):], sec)
	sum := sha256.Sum256(msg[:])
	return [hintLen]byte(sum[:])
}

// hint returns what is the hint, if the payload's sender puts one there.
func (s Stamp) hint() [hintLen]byte { return [hintLen]byte(s.Salt[:]) }

// hintSpan is how far a payload's time may be from ours for the hints of that
// second to be kept. With 10,000 keys those of a second take a millisecond to
// make, and 80 kB. Whatever times payloads have, they are made once for each
// second that passes.
const hintSpan = 10 * time.Second

// keyring is the keys of an endpoint. It finds the tunnels that a hint names. It
// is not safe for concurrent use.
type keyring struct {
	digests []hintDigest       // of the keys, each with its tunnel's secret
	tunnels []int              // of the keys
	byKey   map[string]int     // the same
	seconds map[int64][]uint64 // hint<<32 | index into digests, sorted
}

func newKeyring() keyring {
	return keyring{byKey: make(map[string]int), seconds: make(map[int64][]uint64)}
}

func (k *keyring) add(pub ed25519.PublicKey, secret []byte, tunnel int) {
	k.digests = append(k.digests, newHintDigest(pub, secret))
	k.tunnels = append(k.tunnels, tunnel)
	k.byKey[string(pub)] = tunnel
}

// few is how many keys' hints take no longer to make than to look up.
const few = 4

// quick reports whether named looks st's hint up.
func (k *keyring) quick(st Stamp, now time.Time) bool {
	return len(k.digests) <= few || k.near(st, now)
}

// near reports whether the hints of st's second are kept.
func (k *keyring) near(st Stamp, now time.Time) bool {
	return withinLimit(hintSpan, st.Time-now.Unix())
}

// named returns the tunnels that st's hint names, or none if it would not be quick.
func (k *keyring) named(st Stamp, now time.Time) []int {
	if len(k.digests) <= few {
		return k.search(st)
	}
	if !k.near(st, now) {
		return nil
	}
	t, ok := k.seconds[st.Time]
	if !ok {
		t = k.fill(st.Time, now)
	}
	hint := st.hint()
	lo := uint64(binary.BigEndian.Uint16(hint[:])) << 32
	i, _ := slices.BinarySearch(t, lo)
	var named []int
	for ; i < len(t) && t[i]>>32 == lo>>32; i++ {
		named = append(named, k.tunnels[uint32(t[i])])
	}
	return named
}

// fill makes the hints of a second, and forgets those of seconds gone by.
func (k *keyring) fill(sec int64, now time.Time) []uint64 {
	for s := range k.seconds {
		if !k.near(Stamp{Time: s}, now) {
			delete(k.seconds, s)
		}
	}
	t := make([]uint64, len(k.digests))
	for i := range k.digests {
		hint := k.digests[i].at(sec)
		t[i] = uint64(binary.BigEndian.Uint16(hint[:]))<<32 | uint64(i)
	}
	slices.Sort(t)
	k.seconds[sec] = t
	return t
}

// search returns the tunnels that st's hint names, by making all hints anew.
func (k *keyring) search(st Stamp) []int {
	var named []int
	for i := range k.digests {
		if k.digests[i].at(st.Time) == st.hint() {
			named = append(named, k.tunnels[i])
		}
	}
	return named
}

// tunnel returns the one of pub.
func (k *keyring) tunnel(pub ed25519.PublicKey) (tunnel int, ok bool) {
	tunnel, ok = k.byKey[string(pub)]
	return tunnel, ok
}
