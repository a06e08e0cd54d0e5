package authd

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Why a datagram is refused. Errors of this package wrap one of these where
// they refuse one, and never hold bytes of a token, a secret or a payload.
var (
	ErrRemoteIP   = errors.New("source address is not the allowed one")
	ErrRemotePort = errors.New("source port is not the allowed one")
	ErrDevice     = errors.New("arrived on another interface than the tunnel's")
	ErrLength     = errors.New("wrong payload length")
	ErrToken      = errors.New("wrong token")
	ErrSkew       = errors.New("time discrepancy too large")
	ErrReplayed   = errors.New("replayed: this very time and salt were accepted before")
	ErrOlder      = errors.New("older than the newest accepted")
	ErrRate       = errors.New("too many authentications")
	ErrSignature  = errors.New("bad signature")
	ErrMalformed  = errors.New("malformed packet")
	ErrReply      = errors.New("reply does not match what was sent")
	ErrVersion1   = errors.New("version 1, and this tunnel wants --auth-challenge: set it on the client too")
	ErrVersion2   = errors.New("version 2, and no tunnel here has --auth-challenge: set it on the server too")
	ErrKeyID      = errors.New("its key and secret are of no tunnel here that has --auth-challenge")
	ErrCookie     = errors.New("not a challenge that was given to this address and key since the start")
	ErrProved     = errors.New("replayed: this very challenge was met before")
	ErrExpired    = errors.New("the challenge was given too long ago")
	ErrUnsigned   = errors.New("not signed, and --auth-remote-pubkey-b64 wants it: give the server its --auth-key-b64")
)

// refusals is what [refusal] looks for, each with its name for [Reason].
var refusals = []struct {
	err  error
	name string
}{
	{ErrRemoteIP, "remote-ip"}, {ErrRemotePort, "remote-port"}, {ErrDevice, "device"},
	{ErrLength, "length"}, {ErrToken, "token"}, {ErrSkew, "skew"},
	{ErrReplayed, "replayed"}, {ErrOlder, "older"}, {ErrRate, "rate"},
	{ErrSignature, "signature"}, {ErrMalformed, "malformed"}, {ErrReply, "reply"},
	{ErrVersion1, "version-1"}, {ErrVersion2, "version-2"}, {ErrKeyID, "key-id"},
	{ErrCookie, "cookie"}, {ErrProved, "proved"}, {ErrExpired, "expired"}, {ErrUnsigned, "unsigned"},
}

// refusal reduces an error to its sentinel, or nil if it has none.
func refusal(err error) error {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return r.err
		}
	}
	return nil
}

// Reason is a word for why a datagram was refused: "signature" of an error that wraps
// [ErrSignature], and so on; "other" of one that wraps no such error. Logs and metrics
// tell refusals apart by it.
func Reason(err error) string {
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "other"
}

// Auth is how one tunnel's peer proves itself, or how we prove ourselves to it.
//
// As a server's: with RemoteKey the peer signs, with Token it sends the token,
// with neither whatever comes from RemoteIP and RemotePort is the peer
// ("address-only"). As a client's: Token is sent, or a signature by Key, or an
// empty payload.
type Auth struct {
	Token      []byte             // nil: no token
	Key        ed25519.PrivateKey // own signing key; nil: none
	RemoteKey  ed25519.PublicKey  // nil: none
	Secret     []byte             // signed along, never sent
	RemoteIP   netip.Addr         // valid: only this source address may authenticate
	RemotePort uint16             // non-zero: only this source port
	MaxSkew    time.Duration      // between the payload's time and ours; 0: not checked

	// Challenge is version 2 of the protocol, and only that. A server's
	// tunnel wants RemoteKey with it, a client Key. MaxSkew means nothing then.
	Challenge bool
}

// addressOnly reports whether a server with a needs no proof but the source.
func (a Auth) addressOnly() bool { return a.Token == nil && a.RemoteKey == nil }

// checkSource checks what a server with a demands of the sender's address.
func (a *Auth) checkSource(src netip.AddrPort) error {
	if a.RemoteIP.IsValid() && src.Addr() != a.RemoteIP {
		return ErrRemoteIP
	}
	if a.RemotePort != 0 && src.Port() != a.RemotePort {
		return ErrRemotePort
	}
	return nil
}

// scheme names for the log what a server with a goes by.
func (a Auth) scheme() string {
	switch {
	case a.Challenge:
		return "challenge"
	case a.RemoteKey != nil:
		return "ed25519"
	case a.Token != nil:
		return "token"
	default:
		return "address"
	}
}

func (a Auth) schemeInWords() string {
	if a.Challenge {
		return "a signed challenge"
	}
	return a.scheme()
}

// validate catches what crypto/ed25519 would panic on and what would quietly
// authenticate more than the operator meant.
func (a Auth) validate() error {
	if a.Token != nil && len(a.Token) == 0 {
		return errors.New("the token is empty")
	}
	if isVersion2(a.Token) {
		return errors.New("the token begins as version 2 of the protocol does: choose another")
	}
	if a.Challenge && a.Token != nil {
		return errors.New("a challenge is signed by a key, and there is a token")
	}
	if len(a.Token) > maxPayload {
		return fmt.Errorf("the token is longer than %d bytes", maxPayload)
	}
	if a.Key != nil && len(a.Key) != ed25519.PrivateKeySize {
		return errors.New("the key is not an ed25519 private key")
	}
	if a.RemoteKey != nil && len(a.RemoteKey) != ed25519.PublicKeySize {
		return errors.New("the remote key is not an ed25519 public key")
	}
	if a.RemoteIP.IsValid() && !a.RemoteIP.Is4() {
		return errors.New("the remote address is not IPv4")
	}
	if a.MaxSkew < 0 {
		return errors.New("the largest time discrepancy is negative")
	}
	return nil
}

// sameKeys reports whether both ends use one key pair, with which anybody can
// send a reply back as an authentication.
func (a Auth) sameKeys() bool {
	return a.Key != nil && a.RemoteKey != nil && bytes.Equal(a.Key.Public().(ed25519.PublicKey), a.RemoteKey)
}
