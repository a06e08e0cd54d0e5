package authd

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"time"
)

// cookieAge is how long a cookie may be proved. It is far more than any path
// takes, and bounds how long a proof that was kept back on its way may bind the
// address it was made for.
const cookieAge = 30 * time.Second

// cookies makes and knows the cookies of one process, and remembers none: what
// they are for is in their MAC. A key of its own makes the cookies of an earlier
// process void. It is not safe for concurrent use.
type cookies struct {
	key   [sha256.Size]byte
	clock func() time.Duration // since the start, never backwards
	last  uint64               // issued
}

func newCookies(clock func() time.Duration) *cookies {
	c := &cookies{clock: clock}
	rand.Read(c.key[:])
	return c
}

// issue makes a cookie for what h asks from src at local. No two are of one time,
// so that of two proofs one is always the newer.
func (c *cookies) issue(src, local netip.AddrPort, h hello) cookie {
	c.last = max(uint64(c.clock()), c.last+1)
	return cookie{c.last, c.mac(src, local, h, c.last)}
}

// check returns why k is not a cookie of ours for what h asks from src at local.
func (c *cookies) check(src, local netip.AddrPort, h hello, k cookie) error {
	want := c.mac(src, local, h, k.issued)
	if !hmac.Equal(k.mac[:], want[:]) {
		return ErrCookie
	}
	if time.Duration(uint64(c.clock())-k.issued) > cookieAge {
		return ErrExpired
	}
	return nil
}

// mac is the first half of HMAC-SHA256 (RFC 2104) over
//
//	source address (4) || port (2) || local address (4) || port (2) ||
//	key id (8) || nonce (8) || issued (8)
func (c *cookies) mac(src, local netip.AddrPort, h hello, issued uint64) [16]byte {
	msg := make([]byte, 0, 36)
	for _, a := range []netip.AddrPort{src, local} {
		ip := a.Addr().As4()
		msg = binary.BigEndian.AppendUint16(append(msg, ip[:]...), a.Port())
	}
	msg = append(msg, h.id[:]...)
	msg = append(msg, h.nonce[:]...)
	msg = binary.BigEndian.AppendUint64(msg, issued)
	mac := hmac.New(sha256.New, c.key[:])
	mac.Write(msg)
	return [16]byte(mac.Sum(nil))
}
