package authd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// What somebody caught and sends again, from elsewhere or from the same place,
// binds nobody: not at once, not after newer ones, not after a restart, not when
// the server's clock was set back; nor does a client whose own clock was, and the
// log says what to do then.
func TestServerResent(t *testing.T) {
	const secret = "s"
	elsewhere := []netip.AddrPort{clientAddr, netip.AddrPortFrom(clientAddr.Addr(), 1), netip.MustParseAddrPort("203.0.113.9:9")}
	tunnels := []ServerTunnel{{Name: "ipipou0", Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(0)), Secret: []byte(secret)}}}
	shared := slices.Clone(tunnels)
	for i := 1; i < 6; i++ {
		shared = append(shared, ServerTunnel{Name: fmt.Sprint("ipipou", i), Local: at(10000), Auth: Auth{RemoteKey: public(peerKey(i)), Secret: []byte(secret)}})
	}
	kinds := map[string]func(at time.Time, n byte) []byte{
		"ours":      func(at time.Time, _ byte) []byte { return hinted(t, peerKey(0), secret, at) },
		"version 1": func(at time.Time, n byte) []byte { return plain(peerKey(0), secret, at, n) },
	}
	for ports, ts := range map[string][]ServerTunnel{"a port of its own": tunnels, "a port of many": shared} {
		for kind, sign := range kinds {
			t.Run(kind+" on "+ports, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var (
						clk   = newClock(1700000000)
						start = clk.now()
						store = FileStore{Dir: t.TempDir()}
						caught, older,
						newer = sign(start, 1), sign(start.Add(-time.Second), 2), sign(start.Add(3*time.Second), 3)
					)
					// run sends each payload from everywhere to a server that is
					// started anew.
					run := func(payloads ...[]byte) (got []bound, log []string) {
						l := newServerLab(t, ServerConfig{Tunnels: ts, Store: store, Now: clk.now})
						ctx, cancel := context.WithCancel(t.Context())
						done := make(chan error)
						go func() { done <- l.s.Serve(ctx) }()
						for _, p := range payloads {
							for _, src := range elsewhere {
								l.shared.in <- BuildUDP(src, at(10000), 64, p)
								synctest.Wait()
							}
						}
						cancel()
						if err := <-done; err != nil {
							t.Error(err)
						}
						return l.bound, l.log.lines()
					}
					step := func(what string, want int, payloads ...[]byte) []string {
						t.Helper()
						got, log := run(payloads...)
						var all []bound
						for range want {
							// The first that sends it, which is the peer.
							all = append(all, bound{0, clientAddr})
						}
						if diff := cmp.Diff(all, got, addrs); diff != "" {
							t.Errorf("%s: %s", what, diff)
						}
						return log
					}
					step("one and then a newer one", 2, caught, newer, caught)
					step("after a restart", 0, caught, newer)
					clk.add(-time.Hour)
					step("the server's clock set back", 0, caught, newer)
					clk.add(48 * time.Hour)
					step("days later", 0, caught, newer)
					log := strings.Join(step("the client's clock set back", 0, older), "\n")
					if !strings.Contains(log, "older than the newest accepted") {
						t.Error(log)
					}
					// Whose it is can be told by the hint or if there is one only.
					if told := strings.Contains(log, "by 4 s: sent again by somebody, or the sender's clock was set back: then set it right"); told != (kind == "ours" || len(ts) == 1) {
						t.Errorf("told %v: %s", told, log)
					}
					step("the client's clock right again", 1, sign(clk.now(), 4))
				})
			})
		}
	}
}

// Whatever bytes come in: bound is who sent the token, or what the key signed, to
// the right port, and once.
func FuzzHandle(f *testing.F) {
	v := vectors(f)["client"]
	tunnels := []ServerTunnel{
		{Name: "a", Local: at(10000), Auth: Auth{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret}},
		{Name: "b", Local: at(10001), Auth: Auth{Token: []byte("hunter2")}},
		{Name: "c", Local: at(10002), Auth: Auth{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret}},
		{Name: "d", Local: at(10002), Auth: Auth{RemoteKey: public(peerKey(1))}},
		{Name: "e", Local: at(10002), Auth: Auth{Token: []byte("sword-fish")}},
		{Name: "f", Local: at(10003)},
	}
	for _, payload := range [][]byte{v.Payload, v.Reversed, []byte("hunter2"), []byte("sword-fish"), nil, data(84)} {
		for _, tun := range tunnels {
			f.Add(BuildUDP(clientAddr, tun.Local, 64, payload))
		}
	}
	f.Add(withOptions(BuildUDP(clientAddr, at(10001), 64, []byte("hunter2")), 4))
	f.Add([]byte{0x45})
	signed := func(a Auth, p []byte) bool { return VerifySignature(a.RemoteKey, a.Secret, p) == nil }
	f.Fuzz(func(t *testing.T, pkt []byte) {
		l := newServerLab(t, ServerConfig{Tunnels: tunnels, Now: newClock(v.Time).now})
		d, err := ParseUDP(pkt)
		want := nobody
		for i, tun := range tunnels {
			a := tun.Auth
			if err != nil || tun.Local != d.Dst {
				continue
			}
			if a.addressOnly() || a.Token != nil && bytes.Equal(a.Token, d.Payload) || a.RemoteKey != nil && signed(a, d.Payload) {
				want = i
			}
		}
		for again := range 2 {
			var conn packetReceiver = l.shared
			if err == nil && d.Dst == at(10003) {
				conn = l.open[5]
			}
			l.s.handle(conn, arrival{}, d, err)
			got := nobody
			for settled := false; !settled; {
				select {
				case q := <-l.s.unproved[byHint]:
					l.s.prove(q)
				case q := <-l.s.unproved[bySource]:
					l.s.prove(q)
				case q := <-l.s.unproved[byTime]:
					l.s.prove(q)
				case q := <-l.s.unproved[byNothing]:
					l.s.prove(q)
				case i := <-l.s.unbound.tunnels:
					if a := l.s.unbound.take(i); a.peer != d.Src {
						t.Fatalf("%v bound, %v sent it", a.peer, d.Src)
					}
					got = i
				default:
					settled = true
				}
			}
			if again > 0 && want != nobody && tunnels[want].Auth.RemoteKey != nil {
				want = nobody
			}
			if got != want {
				t.Fatalf("tunnel %d authenticated, want %d", got, want)
			}
		}
	})
}
