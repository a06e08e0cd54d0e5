package plans

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"strconv"
)

// Describe is the effective configuration, defaults included, as lines of TOML.
// Tokens, private keys and secrets are only in it if asked for.
func Describe(c Config, secrets bool) []string {
	var lines []string
	for _, t := range c.Tunnels {
		lines = append(lines, "[[tunnel]]")
		add := func(key string, value any) { lines = append(lines, fmt.Sprintf("%s = %v", key, value)) }
		hidden := func(key string, value []byte) {
			if len(value) == 0 {
				return
			}
			if secrets {
				add(key, strconv.Quote(string(value)))
			} else {
				lines = append(lines, "# "+key+" is set; --with-secrets shows it")
			}
		}
		text := func(key string, value string) {
			if value != "" {
				add(key, strconv.Quote(value))
			}
		}
		number := func(key string, value int) {
			if value != 0 {
				add(key, value)
			}
		}
		add(t.Mode.String(), true)
		add("number", t.Number)
		text("tunl-dev", t.Dev)
		text("tunl-ip", t.IP.String())
		text("tunl-peer-ip", t.PeerIP.String())
		if len(t.Routes) > 0 {
			add("routes", fmt.Sprintf("%q", t.Routes))
		}
		text("fou-dev", t.FOUDev)
		if t.FOUIP.IsValid() {
			text("fou-local-ip", t.FOUIP.String())
		}
		add("fou-local-port", t.FOUPort)
		text("fou-remote", t.RemoteHost)
		if t.RemoteIP.IsValid() {
			text("fou-remote-ip", t.RemoteIP.String())
		}
		number("fou-remote-port", int(t.RemotePort))
		if t.EncapCsum != nil {
			add("encap-csum", *t.EncapCsum)
		}
		if t.Mode == Server {
			text("fou-local-ip-alt", t.FOUIPAlt.String())
			add("force-fou-local-ip-alt", t.ForceAlt)
			text("nft-table", t.Table)
			add("no-nft-counter", !t.Counters)
			add("auth-by-remote-ip", t.Auth.ByRemoteIP)
			add("auth-by-remote-port", t.Auth.ByRemotePort)
			number("auth-lifetime", t.Auth.Lifetime)
		}
		number("auth-max-time-discrepancy", t.Auth.MaxSkew)
		number("auth-packet-ttl", int(t.Auth.TTL))
		number("keepalive", t.Auth.Keepalive)
		add("reply-on-auth-ok", t.Auth.Reply)
		hidden("auth-token", t.Auth.Token)
		if t.Auth.RemoteKey != nil {
			text("auth-remote-pubkey-b64", base64.StdEncoding.EncodeToString(t.Auth.RemoteKey))
		}
		if t.Auth.Key != nil {
			hidden("auth-key-b64", []byte(base64.StdEncoding.EncodeToString(t.Auth.Key.Seed())))
			lines = append(lines, "# its public key: "+base64.StdEncoding.EncodeToString(t.Auth.Key.Public().(ed25519.PublicKey)))
		}
		if t.Auth.Key != nil || t.Auth.RemoteKey != nil {
			hidden("auth-secret", t.Auth.Secret)
		}
	}
	return lines
}
