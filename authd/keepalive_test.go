package authd

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// A server sends keepalives to who is bound, where he is now, and only as long as he may be.
func TestServerKeepalive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		s, err := newServer(ServerConfig{
			Tunnels: []ServerTunnel{
				{Name: "a", Local: serverAddr, Auth: Auth{Token: []byte("one")}, Keepalive: 10 * time.Second, Lifetime: time.Minute},
				{Name: "b", Local: netip.AddrPortFrom(serverAddr.Addr(), 7), Auth: Auth{Token: []byte("two")}},
			},
			Bind: func(int, netip.AddrPort) error { return nil },
		})
		if err != nil {
			t.Fatal(err)
		}
		s.senders[""] = w
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.keepalives(ctx)
		seen := 0
		sent := func(during time.Duration, want int, to netip.AddrPort) {
			t.Helper()
			time.Sleep(during)
			synctest.Wait()
			out := w.out[seen:]
			seen += len(out)
			if len(out) != want {
				t.Errorf("%d keepalives in %v, want %d", len(out), during, want)
			}
			for _, d := range out {
				if d.Dst != to || d.Src != serverAddr || len(d.Payload) > 0 {
					t.Errorf("sent %v", d)
				}
			}
		}
		moved := netip.AddrPortFrom(clientAddr.Addr(), clientAddr.Port()+1)
		sent(time.Hour, 0, clientAddr)
		s.accept(accepted{tunnel: 1, peer: clientAddr, payload: []byte("two")})
		sent(time.Hour, 0, clientAddr)
		s.accept(accepted{tunnel: 0, peer: clientAddr, payload: []byte("one")})
		sent(35*time.Second, 3, clientAddr)
		s.accept(accepted{tunnel: 0, peer: moved, payload: []byte("one")})
		sent(35*time.Second, 3, moved)
		s.accept(accepted{tunnel: 0, peer: moved, payload: []byte("one")}) // a keepalive of his
		sent(time.Hour, 6, moved)
	})
}
