package plans

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// Bases of the defaults that come from a tunnel's number.
var (
	tunnelBase  = netip.AddrFrom4([4]byte{172, 28, 0, 0})
	altBase     = netip.AddrFrom4([4]byte{172, 29, 0, 0})
	fouPortBase = 10000
)

// tunnel reads and validates one tunnel.
func (r *reader) tunnel() (Tunnel, error) {
	t := Tunnel{Role: r.role(), Counters: !r.flag("no-nft-counter")}
	r.number(&t)
	r.backend(&t)
	m := r.shape(&t)
	r.ends(&t, m)
	r.inner(&t, m)
	r.routes(&t, m)
	r.network(&t, m)
	r.hooks(&t)
	r.bpfShape(&t)
	if t.Role == Static {
		r.open()
	} else {
		r.auth(&t)
	}
	r.monitor(&t)
	r.table(&t)
	if r.has("queue-number") || r.has("nfq-max-len") {
		r.note(Warn, "there is no packet queue any more: queue-number and nfq-max-len have no effect but for the default number")
	}
	return t, r.err
}

// role is what is said, or else what the other settings can only mean.
func (r *reader) role() Role {
	switch {
	case r.flag("server"):
		return Server
	case r.flag("static"):
		return Static
	case r.has("server") || r.authentication() != "":
		return Client
	case r.has("mode") || r.has("encap") || r.has("node"):
		return Static
	}
	return Client
}

// authentication is a setting that is about authentication, "" if none is given.
func (r *reader) authentication() string {
	for _, o := range Options {
		if o.Group == "Authentication" && r.has(o.Name) {
			if on, isBool := r.s[o.Name].Value.(bool); !isBool || on {
				return o.Name
			}
		}
	}
	return ""
}

// open refuses on a static tunnel what would make it look authenticated.
func (r *reader) open() {
	for _, name := range []string{r.authentication(), "fou-local-ip-alt", "force-fou-local-ip-alt"} {
		if name != "" && r.has(name) {
			r.fail(name, "a static tunnel authenticates nobody: leave it out, or give --server or --client")
		}
	}
}

// number applies the Python tool's rule that a small queue number is the
// tunnel's number where that isn't given.
func (r *reader) number(t *Tunnel) {
	t.Number = r.integer("number", 0, 0, 65535)
	queue := r.integer("queue-number", 0, 0, 65535)
	if t.Role == Server && t.Number == 0 && queue <= 999 {
		t.Number = queue
	}
	r.integer("nfq-max-len", 0, 0, 1<<30)
}

// ends reads the outer path: the endpoints of both sides.
func (r *reader) ends(t *Tunnel, m linkMode) {
	t.FOUIP = r.outer("fou-local-ip", m)
	t.FOUDev = r.device("fou-dev")
	if t.FOUDev == "" && !t.FOUIP.IsValid() {
		r.fail("fou-local", "a local address or a device is needed: give --fou-dev DEV or --fou-local IP[@DEV]")
	}
	if t.Encap == None {
		for _, name := range []string{"fou-local-port", "fou-remote-port"} {
			if r.has(name) {
				r.fail(name, `there are no ports without UDP: leave it out, or give encap = "fou" or "gue"`)
			}
		}
	} else {
		r.localPort(t)
	}
	r.remote(t, m)
	if t.Role != Server {
		return
	}
	t.FOUIPAlt = r.outer("fou-local-ip-alt", m)
	if !t.FOUIPAlt.IsValid() {
		t.FOUIPAlt = plus(altBase, t.Number)
	}
	if t.FOUIPAlt == t.FOUIP {
		r.fail("fou-local-ip-alt", "is the local address itself; it must be another one")
	}
	t.ForceAlt = r.flag("force-fou-local-ip-alt")
}

func (r *reader) localPort(t *Tunnel) {
	port := r.integer("fou-local-port", 0, 1, 65535)
	if port == 0 {
		port = fouPortBase + t.Number
		if port > 65535 {
			r.fail("number", "%d makes the port 10000 + %d, out of range 1 to 65535: give --fou-local-port", t.Number, t.Number)
		}
	}
	t.FOUPort = uint16(port)
}

func (r *reader) remote(t *Tunnel, m linkMode) {
	host := r.text("fou-remote-ip")
	if _, err := netip.ParseAddr(host); err == nil {
		t.RemoteIP = r.outer("fou-remote-ip", m)
	} else if t.RemoteHost = host; host != "" && !hostname(host) {
		r.fail("fou-remote-ip", "%q is neither an %s address nor a host name", host, m.outer())
	}
	port := r.integer("fou-remote-port", 0, 1, 65535)
	if port == 0 && t.Role == Static {
		port = int(t.FOUPort)
	}
	t.RemotePort = uint16(port)
	known := t.RemoteIP.IsValid() || t.RemoteHost != ""
	t.Auth.ByRemoteIP, t.Auth.ByRemotePort = r.flag("auth-by-remote-ip"), r.flag("auth-by-remote-port")
	t.Refresh = r.duration("refresh")
	switch {
	case t.Role == Client && !known:
		r.fail("fou-remote", "a client needs its server's address: give --fou-remote HOST:PORT")
	case t.Role == Client && port == 0:
		r.fail("fou-remote-port", "a client needs its server's port: give --fou-remote HOST:PORT")
	case t.Auth.ByRemoteIP && !known:
		r.fail("auth-by-remote-ip", "needs --fou-remote-ip")
	case t.Auth.ByRemotePort && port == 0:
		r.fail("auth-by-remote-port", "needs --fou-remote-port")
	case t.Mode == "isatap" && known:
		r.fail("fou-remote-ip", "mode isatap finds the other ends by their addresses: leave it out")
	case t.Role == Static && !known && !m.oneToMany && t.Mode != "isatap":
		r.fail("fou-remote", "mode %s needs a remote address; without one, where routes choose it, want mode %s",
			t.Mode, modeNames(func(m linkMode) bool { return m.oneToMany }))
	case t.RemoteIP.IsValid() && t.RemoteIP == t.FOUIP && t.Role == Static:
		r.fail("fou-remote-ip", "%s is the local address itself", t.RemoteIP)
	case t.Refresh > 0 && t.RemoteHost == "":
		r.fail("refresh", "there is no name to resolve: give --fou-remote a host name, or leave refresh out")
	case t.Refresh > 0 && t.Role == Server:
		r.fail("refresh", "a server learns its peer's address by authentication: leave it out")
	}
}

func (r *reader) auth(t *Tunnel) {
	a := &t.Auth
	a.MaxSkew = r.integer("auth-max-time-discrepancy", 0, 0, 1<<30)
	a.TTL = uint8(r.integer("auth-packet-ttl", 0, 1, 255))
	a.Lifetime = r.integer("auth-lifetime", 0, 0, 1<<30)
	a.Keepalive = r.integer("keepalive", 0, 0, 1<<30)
	a.Reply = r.flag("reply-on-auth-ok")
	if kind := r.text("auth-key-type"); r.has("auth-key-type") && kind != "ed25519" {
		r.fail("auth-key-type", "%q is not supported, want ed25519", kind)
	}
	tokenName := r.token(a)
	keyName, data := r.source("auth-key-b64", "auth-key-file")
	if keyName != "" && r.err == nil {
		key, err := ParsePrivateKey(data)
		if err != nil {
			r.fail(keyName, "%v", err)
		}
		a.Key = key
	}
	remoteName, data := r.source("auth-remote-pubkey-b64", "auth-remote-pubkey-file")
	if remoteName != "" && r.err == nil {
		key, err := ParsePublicKey(data)
		if err != nil {
			r.fail(remoteName, "%v", err)
		}
		a.RemoteKey = key
	}
	for _, name := range []string{keyName, remoteName} {
		if tokenName != "" && name != "" {
			r.fail(name, "contradicts %s: authenticate by key or by token, not both", tokenName)
		}
	}
	a.Secret = []byte(DefaultSecret)
	if name, secret := r.source("auth-secret", "auth-secret-file"); name != "" {
		a.Secret = secret
	}
	t.files = secretFiles{token: r.text("auth-token-file"), key: r.text("auth-key-file"), secret: r.text("auth-secret-file")}
	r.challenge(t)
	r.weaknesses(t, keyName)
}

// challenge reads whether the peer signs what the server challenges it by.
func (r *reader) challenge(t *Tunnel) {
	a := &t.Auth
	if !r.flag("auth-challenge") {
		return
	}
	switch {
	case t.Role == Server && a.RemoteKey == nil:
		r.fail("auth-challenge", "a challenge is for the client to sign, and nothing here verifies it: give --auth-remote-pubkey-b64")
	case t.Role == Client && a.Key == nil:
		r.fail("auth-challenge", "a challenge has to be signed: give --auth-key-b64 or --auth-key-file")
	case a.MaxSkew > 0:
		r.note(Info, "auth-max-time-discrepancy has no effect with auth-challenge, which needs no clock")
	}
	a.Challenge, a.Reply = true, true
}

func (r *reader) token(a *Auth) string {
	name, data := r.source("auth-token", "auth-token-b64", "auth-token-file")
	if name == "auth-token-b64" {
		data = r.base64(name)
	}
	switch {
	case name == "":
	case len(data) == 0:
		r.fail(name, "an empty token authenticates everybody; leave it out if that is meant")
	case len(data) > 1472:
		r.fail(name, "%d bytes do not fit a datagram, want at most 1472", len(data))
	case len(data) > 548:
		r.note(Warn, "a token of %d bytes may not pass every path, 548 do", len(data))
	}
	a.Token = data
	return name
}

// weaknesses names what is allowed but hardly meant.
func (r *reader) weaknesses(t *Tunnel, keyName string) {
	a := &t.Auth
	if (a.Key != nil || a.RemoteKey != nil) && string(a.Secret) == DefaultSecret {
		r.note(Warn, "the default secret is in use, which everybody knows: give --auth-secret or --auth-secret-file on both sides")
	}
	if t.Role == Client {
		if a.RemoteKey != nil && a.Key == nil {
			r.fail("auth-remote-pubkey-b64", "a client proves itself with its own key: give --auth-key-b64 or --auth-key-file")
		}
		return
	}
	switch open := a.Token == nil && a.RemoteKey == nil; {
	case open && a.Key != nil && !a.ByRemoteIP && !a.ByRemotePort:
		r.fail(keyName, "signs replies, but nothing here verifies the client: give --auth-remote-pubkey-b64")
	case open && !a.ByRemoteIP && !a.ByRemotePort:
		r.note(Warn, "no authentication: whoever sends a packet becomes the peer")
	case open:
		r.note(Warn, "authentication by address only: whoever can forge it becomes the peer")
	}
	if a.Token == nil && a.RemoteKey == nil && a.Lifetime > 0 {
		// Its next packet of any kind would let it in again.
		r.note(Info, "auth-lifetime has no effect where authentication is by address only")
		a.Lifetime = 0
	}
}

func (r *reader) table(t *Tunnel) {
	t.Table = r.text("nft-table")
	if r.has("nft-table") {
		if !nftName(t.Table) {
			r.fail("nft-table", "%q can't be the name of an nft table: want a letter, then letters, digits and _ - .", t.Table)
		}
		return
	}
	t.Table = strings.Map(func(c rune) rune {
		if nftRune(c) {
			return c
		}
		return '_'
	}, t.Dev)
	// A name of one's own choosing may be a word of nft's language.
	if !strings.HasPrefix(t.Table, "ipipou") {
		t.Table = "ipipou-" + t.Table
	}
}

func nftRune(c rune) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '.'
}

func nftName(s string) bool {
	letter := s != "" && ('a' <= s[0]|0x20 && s[0]|0x20 <= 'z')
	return letter && len(s) < 128 && !strings.ContainsFunc(s, func(c rune) bool { return !nftRune(c) })
}

// hostname accepts names of RFC 1123 and the underscore that people use.
func hostname(s string) bool {
	return len(s) <= 253 && !strings.HasPrefix(s, "-") && !strings.ContainsFunc(s, func(c rune) bool {
		return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_')
	})
}

// plus adds to an IPv4 address.
func plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(n))
	return netip.AddrFrom4(b)
}
