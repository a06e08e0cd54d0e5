package plans

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
)

// ParsePrivateKey reads an ed25519 private key: the 32-byte seed in standard
// base64, or an OpenSSH private key file without a passphrase. Its errors hold
// nothing of the key.
func ParsePrivateKey(text []byte) (ed25519.PrivateKey, error) {
	if bytes.Contains(text, []byte("-----BEGIN")) {
		key, err := ssh.ParseRawPrivateKey(text)
		var locked *ssh.PassphraseMissingError
		switch {
		case errors.As(err, &locked):
			return nil, errors.New("the key has a passphrase; want one without (ssh-keygen -p)")
		case err != nil:
			return nil, errors.New("not a private key that OpenSSH wrote")
		}
		k, ok := key.(*ed25519.PrivateKey)
		switch {
		case !ok:
			return nil, errors.New("not an ed25519 key")
		case !k.Equal(ed25519.NewKeyFromSeed(k.Seed())):
			// What it signed would be good for no public key, and give it away.
			return nil, errors.New("the key is damaged: its public half belongs to another private one")
		}
		return *k, nil
	}
	seed, err := decode32(string(text))
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// ParsePublicKey reads an ed25519 public key: 32 bytes in standard base64, or
// an "ssh-ed25519 AAAA… comment" line.
func ParsePublicKey(text []byte) (ed25519.PublicKey, error) {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("ssh-")) {
		key, _, _, _, err := ssh.ParseAuthorizedKey(text)
		if err != nil {
			return nil, errors.New("not a public key that OpenSSH wrote")
		}
		if c, ok := key.(ssh.CryptoPublicKey); ok {
			if k, ok := c.CryptoPublicKey().(ed25519.PublicKey); ok {
				return k, nil
			}
		}
		return nil, errors.New("not an ed25519 key")
	}
	key, err := decode32(string(text))
	return ed25519.PublicKey(key), err
}

func decode32(text string) ([]byte, error) {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil {
		return nil, errors.New("not standard base64")
	}
	if len(b) != 32 {
		return nil, fmt.Errorf("want 32 bytes in base64, have %d", len(b))
	}
	return b, nil
}
