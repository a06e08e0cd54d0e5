package authd

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
)

// Keygen makes an ed25519 key pair from 32 bytes of rand and returns the seed
// and the public key, each 32 bytes in standard base64 (RFC 4648, section 4),
// as --auth-key-b64 and --auth-remote-pubkey-b64 take them. It fails only if
// rand does.
func Keygen(rand io.Reader) (priv, pub string, err error) {
	var seed [ed25519.SeedSize]byte
	if _, err := io.ReadFull(rand, seed[:]); err != nil {
		return "", "", fmt.Errorf("drawing a key: %w", err)
	}
	key := ed25519.NewKeyFromSeed(seed[:])
	return base64.StdEncoding.EncodeToString(seed[:]),
		base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey)), nil
}
