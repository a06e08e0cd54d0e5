package authd

import (
	"crypto/rand"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

func TestNetChallenge(t *testing.T) {
	l := newNetLab(t)
	ip(t, "-n", l.c, "address", "add", "198.51.100.77/24", "dev", "c0")
	pubC, privC := keyPair(t)
	pubS, privS := keyPair(t)
	p := l.serve(t, ServerTunnel{
		Name: "ipipou0", Local: serverAddr, Device: "s0",
		Auth: Auth{Key: privS, RemoteKey: pubC, Secret: []byte("s"), Challenge: true},
	})
	auth := Auth{Key: privC, RemoteKey: pubS, Secret: []byte("s"), Challenge: true}

	// By hand, to have a proof that the server never saw: it binds nobody else.
	sock := l.listen(t, netip.MustParseAddrPort("198.51.100.7:999"))
	d := newDialogue(auth)
	lost := proveTo(t, sock, d)
	snd := l.sender(t)
	for range 2 {
		send(t, snd, netip.MustParseAddrPort("198.51.100.66:999"), serverAddr, lost)
	}
	p.log.wait(t, "ipipou0: 198.51.100.66:999 refused: not a challenge that was given to this address")

	var local atomic.Pointer[netip.AddrPort]
	up := make(chan struct{}, 10)
	here, moved := clientAddr, netip.MustParseAddrPort("198.51.100.77:5000")
	local.Store(&here)
	l.runClient(t, ClientConfig{
		Auth:      auth,
		Keepalive: 20 * time.Millisecond,
		Refresh:   func() (netip.AddrPort, netip.AddrPort, error) { return *local.Load(), serverAddr, nil },
		OnUp:      func() { up <- struct{}{} },
	})
	get(t, "up", up)
	p.expect(t, bound{0, clientAddr})
	local.Store(&moved)
	for get(t, "the new address", p.bound).Peer != moved {
	}
	// What was caught is now too old even for where it is from.
	send(t, snd, netip.MustParseAddrPort("198.51.100.7:999"), serverAddr, lost)
	p.log.wait(t, "ipipou0: 198.51.100.7:999 refused: older than the newest accepted")
}

// proveTo asks the server for a challenge and returns the proof, unsent.
func proveTo(t *testing.T, sock *net.UDPConn, d *dialogue) []byte {
	t.Helper()
	ask, err := d.ask(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sock.WriteToUDPAddrPort(ask, serverAddr); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, bufLen)
	n, from, err := sock.ReadFromUDPAddrPort(buf)
	if err != nil || from != serverAddr {
		t.Fatalf("the challenge: from %s, %v", from, err)
	}
	proof, err := d.prove(buf[:n])
	if err != nil {
		t.Fatal(err)
	}
	return proof
}
