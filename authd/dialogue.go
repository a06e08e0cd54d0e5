package authd

import (
	"crypto/ed25519"
	"fmt"
	"io"
	"slices"
)

// dialogue is a client's side of version 2: what it asked and proved, and so what
// may answer it. It has no clock and no socket, and is not safe for concurrent use.
type dialogue struct {
	auth   Auth
	id     keyID
	asked  []nonce      // of hellos without a challenge, the oldest first
	proved []acceptance // what would accept a proof that was sent
}

func newDialogue(a Auth) *dialogue {
	return &dialogue{auth: a, id: newKeyID(a.Key.Public().(ed25519.PublicKey), a.Secret)}
}

// ask returns a new hello. It fails if rand does.
func (d *dialogue) ask(rand io.Reader) ([]byte, error) {
	h := hello{id: d.id}
	if _, err := io.ReadFull(rand, h.nonce[:]); err != nil {
		return nil, fmt.Errorf("drawing a nonce: %w", err)
	}
	d.asked = newest(append(d.asked, h.nonce))
	return h.build(), nil
}

// prove returns the proof that a challenge is for. A hello is worth one, so that
// nobody makes us sign more often than we ask.
func (d *dialogue) prove(payload []byte) ([]byte, error) {
	c, err := parseChallenge(payload)
	if err != nil {
		return nil, err
	}
	i := slices.Index(d.asked, c.nonce)
	if i < 0 {
		return nil, ErrReply
	}
	d.asked = slices.Delete(d.asked, i, i+1)
	d.proved = newest(append(d.proved, acceptance{c.nonce, c.cookie.issued}))
	return proof{hello{d.id, c.nonce}, c.cookie}.build(d.auth.Key, d.auth.Secret), nil
}

// accepted returns nil if payload says that a proof of ours was accepted, and
// whether a key of the server's proves it. It asks allow before it verifies: who
// sees what is sent can forge as many as he likes.
func (d *dialogue) accepted(allow func() bool, payload []byte) (verified bool, err error) {
	a, signed, err := parseAcceptance(payload)
	if err != nil {
		return false, err
	}
	i := slices.Index(d.proved, a)
	if i < 0 {
		return false, ErrReply
	}
	if d.auth.RemoteKey != nil {
		if !signed {
			return false, ErrUnsigned
		}
		if !allow() {
			return false, ErrRate
		}
		if err := verify2(d.auth.RemoteKey, d.auth.Secret, payload); err != nil {
			return false, err
		}
	}
	d.proved = slices.Delete(d.proved, i, i+1)
	return d.auth.RemoteKey != nil || !signed, nil
}
