package lab

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"syscall"
	"testing"
	"time"
)

// sendPackets sends whole IPv4 packets from one thread, so in order.
func (ns *NS) sendPackets(t testing.TB, packets ...[]byte) {
	t.Helper()
	err := ns.Do(func() error {
		conn, err := rawSocket()
		if err != nil {
			return err
		}
		defer conn.Close()
		for _, p := range packets {
			if err := conn.send(p, [4]byte(p[16:20])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("in %s: send: %v", ns.Name, err)
	}
}

// fragments cuts an IPv4 packet in two.
func fragments(p []byte) [][]byte {
	src, dst := netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
	cut := func(flags byte, offset int, payload []byte) []byte {
		f := ipv4(p[9], src, dst, payload)
		f[4], f[5], f[6], f[7] = 0x12, 0x34, flags, byte(offset/8)
		f[10], f[11] = 0, 0
		sum := checksum(f[:20])
		f[10], f[11] = byte(sum>>8), byte(sum)
		return f
	}
	const first = 24
	return [][]byte{cut(0x20, 0, p[20:20+first]), cut(0, first, p[20+first:])}
}

// strangers are packets that carry well-formed tunnel data, from whom they must not be taken. bare are those without
// UDP, which the ipip driver would take by their outer addresses alone.
func strangers(peers [2]string) (fou, bare [][]byte) {
	for i := range 2 {
		inner := IPv4UDP(clientInner[i]+":1000", serverInner[i]+":2000", []byte("stranger"))
		port, other := fmt.Sprintf(":%d", 10000+i), fmt.Sprintf(":%d", 10001-i)
		alt := fmt.Sprintf("172.29.0.%d", i)
		peer := netip.MustParseAddrPort(peers[i])
		for _, way := range [][2]string{
			{BadAddr + ":4444", SrvAddr + port},
			{BadAddr + port, SrvAddr + port},
			// To the alternate address, as its own router would forward them.
			{BadAddr + port, alt + port},
			{peers[i], alt + port},
			// The right address with a wrong port, and the right ones of the other tunnel.
			{fmt.Sprintf("%s:%d", peer.Addr(), peer.Port()+7), SrvAddr + port},
			{peers[i], SrvAddr + other},
		} {
			fou = append(fou, IPv4UDP(way[0], way[1], inner))
		}
		fou = append(fou, fragments(IPv4UDP(BadAddr+port, SrvAddr+port, inner))[0])
		for _, to := range []string{SrvAddr, alt} {
			bare = append(bare, ipv4(4, peer.Addr(), netip.MustParseAddr(to), inner))
		}
	}
	return fou, bare
}

// A stranger's tunnel data reaches no interface and no socket: before a client has authenticated, while some have,
// after the daemon was killed, and when it is back.
func TestStrangers(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	// What the driver takes and has no tunnel for goes to tunl0, if that is up.
	p.Srv.Run(t, "ip", "link", "set", "tunl0", "up")
	before := p.Srv.Snapshot(t)
	p.Bad.Run(t, "ip", "route", "add", "172.29.0.0/16", "via", SrvAddr)
	inner, fence := p.Srv.ListenUDP(t, "0.0.0.0:2000"), p.Srv.ListenUDP(t, SrvAddr+":2001")
	peers := [2]string{RtrAddr + ":10000", RtrAddr + ":10001"}

	shutOut := func(when string, devices ...string) {
		t.Helper()
		var was []Counters
		for _, dev := range devices {
			was = append(was, p.Srv.Counters(t, dev))
		}
		dropped := p.Srv.dropped(t)
		fou, bare := strangers(peers)
		p.Bad.sendPackets(t, fou...)
		if len(devices) > 1 {
			p.Bad.sendPackets(t, bare...)
		}
		// The rest of a packet whose beginning was dropped.
		p.Bad.sendPackets(t, fragments(fou[1])[1])
		p.Bad.sendPackets(t, IPv4UDP(BadAddr+":2001", SrvAddr+":2001", []byte("all of them are there")))
		fence.SetReadDeadline(time.Now().Add(commandTimeout))
		if _, err := fence.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		for i, dev := range devices {
			if now := p.Srv.Counters(t, dev); now.RX != was[i].RX {
				t.Errorf("%s: strangers' packets reached %s: received %+v, before them %+v", when, dev, now.RX, was[i].RX)
			}
		}
		if n := p.Srv.dropped(t) - dropped; n != len(fou) {
			t.Errorf("%s: the gate dropped %d packets, of the strangers' %d", when, n, len(fou))
		}
		inner.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		for buf := make([]byte, 100); ; {
			n, from, err := inner.ReadFrom(buf)
			if e, ok := err.(net.Error); ok && e.Timeout() {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			t.Errorf("%s: a listener inside the tunnel received %q of %v", when, buf[:n], from)
		}
	}

	p.startServer(t)
	shutOut("before any authentication", "tunl0")
	for i := range 2 {
		p.startClient(t, i)
		if got := p.server.WaitLog(t, fmt.Sprintf(`ipipou%d: peer bound at (\S+)`, i), commandTimeout)[1]; got != peers[i] {
			t.Fatalf("client %d is seen at %s, expected %s", i, got, peers[i])
		}
	}
	shutOut("while clients are bound", "tunl0", "ipipou0", "ipipou1")
	// The data of the client itself does arrive there.
	from := []byte("a peer")
	p.C1.SendUDP(t, clientInner[0]+":1000", serverInner[0]+":2000", from)
	inner.SetReadDeadline(time.Now().Add(commandTimeout))
	if n, _, err := inner.ReadFrom(make([]byte, 100)); err != nil || n != len(from) {
		t.Fatalf("the client's data does not arrive: %d bytes, %v", n, err)
	}

	kill(t, p.server)
	shutOut("after the daemon was killed", "tunl0", "ipipou0", "ipipou1")
	p.works(t, 0)
	p.works(t, 1)

	p.startServer(t)
	p.server.WaitLog(t, `WARN an earlier server died and left \d+ things behind: undoing them first`, commandTimeout)
	if n := count(p.server.Logs(), `ERROR`); n > 0 {
		t.Errorf("%d errors while undoing what was left", n)
	}
	shutOut("after the restart", "tunl0")
	for i := range 2 {
		n := p.server.Len()
		p.client[i].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, fmt.Sprintf(`ipipou%d: peer bound at %s`, i, regexp.QuoteMeta(peers[i])), commandTimeout)
		p.works(t, i)
	}
	stop(t, p.client[0], p.client[1], p.server)
	SameState(t, "the server in the end", before, p.Srv.Snapshot(t))
	noJournal(t, p.dir, p.Srv)
}
