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

// Thousands of peers are looked through a few times in an interval, and nobody waits longer than that for his.
func TestKeepalivesTogether(t *testing.T) {
	const peers, every = 1000, 10 * time.Second
	tunnels := make([]ServerTunnel, peers)
	for i := range tunnels {
		tunnels[i].Keepalive = every
	}
	k := newKeeping(tunnels)
	start := time.Unix(1000, 0)
	last := make([]time.Time, peers)
	for i := range tunnels {
		last[i] = start.Add(time.Duration(i) * every / peers)
		k.bound(i, clientAddr, last[i])
	}
	looks := 0
	for now := start.Add(every); now.Before(start.Add(10 * every)); looks++ {
		sent, again := k.due(now)
		for i := range sent {
			if since := now.Sub(last[i]); since < every*9/10 || since > every {
				t.Fatalf("tunnel %d is sent one after %v, want some %v", i, since, every)
			}
			last[i] = now
		}
		now = again
	}
	if looks > 10*10 {
		t.Errorf("%d looks at all peers in ten intervals", looks)
	}
}

// Where nothing can be sent, the end does not wait for all who are due.
func TestKeepalivesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWire()
		tunnels := make([]ServerTunnel, 100)
		for i := range tunnels {
			tunnels[i] = ServerTunnel{Name: "a", Local: netip.AddrPortFrom(serverAddr.Addr(), uint16(1+i)), Auth: Auth{Token: []byte("one")}, Keepalive: 10 * time.Second}
		}
		s, err := newServer(ServerConfig{Tunnels: tunnels, Bind: func(int, netip.AddrPort) error { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		s.senders[""] = w
		ctx, cancel := context.WithCancel(t.Context())
		tried := 0
		w.onSend = func(Datagram) {
			tried++
			time.Sleep(sendFor)
			cancel()
		}
		for i := range tunnels {
			s.keeping.bound(i, clientAddr, s.now())
		}
		s.keepalives(ctx)
		if tried != 1 {
			t.Errorf("tried %d times, want 1", tried)
		}
	})
}
