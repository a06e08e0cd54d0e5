package authd

import (
	"net/netip"
	"strings"
	"testing"
)

func TestNewServerSharing(t *testing.T) {
	var (
		keyA, keyB = public(peerKey(1)), public(peerKey(2))
		a          = ServerTunnel{Name: "a", Local: at(1), Auth: Auth{RemoteKey: keyA}}
		token      = ServerTunnel{Name: "token", Local: at(1), Auth: Auth{Token: []byte("hunter2")}}
	)
	b := func(edit func(*ServerTunnel)) ServerTunnel {
		t := ServerTunnel{Name: "b", Local: at(1), Auth: Auth{RemoteKey: keyB}}
		edit(&t)
		return t
	}
	none := func(t *ServerTunnel) { t.Auth = Auth{RemoteIP: clientAddr.Addr()} }
	for name, tt := range map[string]struct {
		tunnels []ServerTunnel
		want    []string // in the error; nil: none
	}{
		"two keys":        {[]ServerTunnel{a, b(func(*ServerTunnel) {})}, nil},
		"both diverted":   {[]ServerTunnel{b(func(t *ServerTunnel) { t.Diverted = true }), {Name: "token", Local: at(1), Auth: token.Auth, Diverted: true}}, nil},
		"key and token":   {[]ServerTunnel{a, token}, nil},
		"other kinds":     {[]ServerTunnel{a, b(func(t *ServerTunnel) { t.Inner = InnerGRE })}, nil},
		"nobody, then b":  {[]ServerTunnel{b(none), a}, []string{"a: ", "198.51.100.1:1 is the endpoint of b too", "b has neither a remote key nor a token", "a port of its own"}},
		"a, then nobody":  {[]ServerTunnel{a, b(none)}, []string{"b: ", "the endpoint of a too", "b has neither", "give it one, or"}},
		"another port":    {[]ServerTunnel{a, b(func(t *ServerTunnel) { none(t); t.Local = at(2) })}, nil},
		"another device":  {[]ServerTunnel{a, b(func(t *ServerTunnel) { t.Device = "eth1" })}, []string{"b: ", "the endpoint of a too", `"" and not "eth1"`, "give both the same"}},
		"one diverted":    {[]ServerTunnel{a, b(func(t *ServerTunnel) { t.Diverted = true })}, []string{"b: ", "the endpoint of a too", "the BPF data path carries only one", "give both the same backend"}},
		"the same key":    {[]ServerTunnel{a, token, b(func(t *ServerTunnel) { t.Auth.RemoteKey = keyA })}, []string{"b: ", "a has the same remote key on 198.51.100.1:1", "give each peer a key of its own"}},
		"another secret":  {[]ServerTunnel{a, b(func(t *ServerTunnel) { t.Auth = Auth{RemoteKey: keyA, Secret: []byte("s")} })}, []string{"b: ", "a has the same remote key"}},
		"key, other port": {[]ServerTunnel{a, b(func(t *ServerTunnel) { t.Local, t.Auth.RemoteKey = at(2), keyA })}, nil},
		"the same token":  {[]ServerTunnel{token, a, b(func(t *ServerTunnel) { t.Auth = Auth{Token: []byte("hunter2")} })}, []string{"b: ", "token has the same token on 198.51.100.1:1", "give each peer a token of its own"}},
		"token's length":  {[]ServerTunnel{token, b(func(t *ServerTunnel) { t.Auth = Auth{Token: []byte("hunter3")} })}, nil},
		"no such kind":    {[]ServerTunnel{b(func(t *ServerTunnel) { t.Inner = 8 })}, []string{"b: ", "0x8 is no kind of data"}},
	} {
		_, err := newServer(ServerConfig{Tunnels: tt.tunnels, Bind: func(int, netip.AddrPort) error { return nil }})
		if (err == nil) != (tt.want == nil) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, s := range tt.want {
			if !strings.Contains(err.Error(), s) || i == 0 && !strings.HasPrefix(err.Error(), s) {
				t.Errorf("%s: %v: not %q", name, err, s)
			}
		}
		if err != nil && strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: told a secret: %v", name, err)
		}
	}
}

// A peer that moved is no longer looked for where it was.
func TestEndpointBound(t *testing.T) {
	e := newEndpoint(ServerTunnel{Local: at(1)})
	one, two := clientAddr, netip.MustParseAddrPort("203.0.113.9:9")
	e.bound(7, one)
	e.bound(8, one)
	e.bound(7, one)
	e.bound(7, two)
	if got := e.here[one]; len(got) != 1 || got[0] != 8 {
		t.Errorf("%v", got)
	}
	e.bound(8, two)
	if got := e.here[two]; len(e.here) != 1 || len(got) != 2 {
		t.Errorf("%v", e.here)
	}
}
