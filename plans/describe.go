package plans

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
		list := func(key string, values []string) {
			if len(values) > 0 {
				add(key, tomlList(values))
			}
		}
		add(t.Role.String(), true)
		add("number", t.Number)
		if t.Backend != Auto {
			text("backend", string(t.Backend))
		}
		text("mode", string(t.Mode))
		text("encap", string(t.Encap))
		text("key", t.Key)
		text("ttl", t.TTL)
		text("tos", t.TOS)
		if t.PMTU != nil {
			add("pmtudisc", *t.PMTU)
		}
		number("mtu", t.MTU)
		text("tunl-dev", t.Dev)
		list("tunl-ip", strs(t.Addrs, Address.String))
		list("tunl-peer-ip", strs(t.Addrs, func(a Address) string {
			if a.Peer.IsValid() {
				return a.Peer.String()
			}
			return ""
		}))
		list("routes", strs(t.Routes, Route.String))
		if t.Bridge != nil {
			text("bridge", t.Bridge.Name+" "+strings.Join(strs(t.Bridge.Addrs, netip.Prefix.String), ","))
		}
		if t.Forward {
			add("forward", true)
			list("forward-to", append(slices.Clone(t.ForwardDevs), strs(t.ForwardNets, netip.Prefix.String)...))
			add("masquerade", t.Masquerade)
		}
		for _, h := range []struct {
			key   string
			lines [][]string
		}{{"pre-up", t.Hooks.PreUp}, {"post-up", t.Hooks.PostUp}, {"pre-down", t.Hooks.PreDown}, {"post-down", t.Hooks.PostDown}, {"state-hook", t.StateHook}} {
			if len(h.lines) > 0 {
				add(h.key, "["+strings.Join(strs(h.lines, tomlList), ", ")+"]")
			}
		}
		text("monitor", string(t.Monitor))
		if t.MonitorEvery > 0 {
			text("monitor-interval", t.MonitorEvery.String())
		}
		text("fou-dev", t.FOUDev)
		if t.FOUIP.IsValid() {
			text("fou-local-ip", t.FOUIP.String())
		}
		number("fou-local-port", int(t.FOUPort))
		text("fou-remote-ip", t.RemoteHost)
		if t.RemoteIP.IsValid() {
			text("fou-remote-ip", t.RemoteIP.String())
		}
		number("fou-remote-port", int(t.RemotePort))
		if t.Refresh > 0 {
			text("refresh", t.Refresh.String())
		}
		if t.EncapCsum != nil {
			add("encap-csum", *t.EncapCsum)
		}
		if t.Role == Static {
			continue
		}
		if t.Role == Server {
			if t.Backend != BPF {
				text("fou-local-ip-alt", t.FOUIPAlt.String())
				add("force-fou-local-ip-alt", t.ForceAlt)
				text("nft-table", t.Table)
				add("no-nft-counter", !t.Counters)
			}
			add("auth-by-remote-ip", t.Auth.ByRemoteIP)
			add("auth-by-remote-port", t.Auth.ByRemotePort)
			number("auth-lifetime", t.Auth.Lifetime)
		}
		number("auth-max-time-discrepancy", t.Auth.MaxSkew)
		number("auth-packet-ttl", int(t.Auth.TTL))
		number("keepalive", t.Auth.Keepalive)
		add("reply-on-auth-ok", t.Auth.Reply)
		if t.Auth.Challenge {
			add("auth-challenge", true)
		}
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

// strs are the values as text, without those that have none.
func strs[T any](values []T, text func(T) string) []string {
	var out []string
	for _, v := range values {
		if s := text(v); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func tomlList(words []string) string {
	return "[" + strings.Join(strs(words, strconv.Quote), ", ") + "]"
}

// String is the route in the words of ip-route(8).
func (r Route) String() string {
	s := destination(r.To)
	if r.To.Bits() == 0 {
		s = r.To.String()
	}
	if r.Via.IsValid() {
		s += " via " + r.Via.String()
	}
	if r.Onlink {
		s += " onlink"
	}
	if r.Metric != 0 {
		s += " metric " + strconv.Itoa(r.Metric)
	}
	if r.Table != 0 {
		s += " table " + strconv.Itoa(r.Table)
	}
	return s
}
