package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Inner IPv6 addresses of the two GRE tunnels, and their keys.
var (
	serverInner6 = [2]string{"fd00:28::1", "fd00:29::1"}
	clientInner6 = [2]string{"fd00:28::2", "fd00:29::2"}
	greKeys      = [2]uint32{70, 4294967295}
)

// newGREPair is a pair whose tunnels are GRE with keys of their own, and carry IPv6 too.
func newGREPair(t testing.TB) *pair {
	t.Helper()
	p := newPair(t, "mode = \"gre\"\n", "mode = \"gre\"\n")
	var server []string
	for i, key := range greKeys {
		number := fmt.Sprintf("number = %d\n", i)
		server = append(server, number, number+
			fmt.Sprintf("key = %d\ntunl-ip = [%q, \"%s/64\"]\n", key, serverInner[i], serverInner6[i]))
		tunlIP := fmt.Sprintf("tunl-ip = %q\n", clientInner[i])
		edit(t, p.config[i+1], tunlIP, fmt.Sprintf("key = %d\ntunl-ip = [%q, \"%s/64\"]\n", key, clientInner[i], clientInner6[i]))
	}
	edit(t, p.config[0], server...)
	return p
}

// edit replaces text in a file.
func edit(t testing.TB, path string, oldNew ...string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(strings.NewReplacer(oldNew...).Replace(string(text))), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// works6 is works for the IPv6 inside, with packets as large as can be.
func (p *pair) works6(t testing.TB, i int) {
	t.Helper()
	p.works(t, i)
	p.Srv.fullPing(t, fmt.Sprint("ipipou", i), clientInner6[i])
	[]*NS{p.C1, p.C2}[i].fullPing(t, fmt.Sprint("ipipou", i), serverInner6[i])
}

// noAlternate checks that no tunnel had to go to an alternate local address.
func (p *pair) noAlternate(t testing.TB) {
	t.Helper()
	if out := p.Srv.Run(t, "ip", "-4", "-o", "addr"); strings.Contains(out, "172.29.") {
		t.Errorf("an alternate address is on the server:\n%s", out)
	}
	if n := count(p.server.Logs(), "alternate local address"); n > 0 {
		t.Errorf("%d lines of the server's log speak of an alternate local address", n)
	}
}

// greOf puts an IPv4 packet into GRE with a key.
func greOf(key uint32, inner []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0x20, 0, 8, 0}, key), inner...)
}

// greStrangers sends what must not come out of a tunnel, and then what must. peers are where the clients are seen.
func (p *pair) greStrangers(t testing.TB, when string, peers [2]string) {
	t.Helper()
	srv := netip.MustParseAddr(SrvAddr)
	inside := p.Srv.ListenUDP(t, "0.0.0.0:2000")
	defer inside.Close()
	for i, key := range greKeys {
		peer, port := netip.MustParseAddrPort(peers[i]), fmt.Sprint(":", 10000+i)
		data := func(what string) []byte {
			what = fmt.Sprintf("%s, %s, to ipipou%d", when, what, i)
			return greOf(key, IPv4UDP(clientInner[i]+":1000", serverInner[i]+":2000", []byte(what)))
		}
		p.Bad.sendPackets(t,
			ipv4(47, peer.Addr(), srv, data("bare GRE from the peer's address")),
			IPv4UDP(BadAddr+port, SrvAddr+port, data("UDP from another address")),
			IPv4UDP(fmt.Sprintf("%s:%d", peer.Addr(), peer.Port()+7), SrvAddr+port, data("UDP from another port")),
			IPv4UDP(peers[i], fmt.Sprintf("%s:%d", SrvAddr, 10001-i), data("UDP to the other tunnel's port")),
			IPv4UDP(peers[1-i], fmt.Sprintf("%s:%d", SrvAddr, 10001-i), data("the other client's UDP with this one's key")),
		)
	}
	// What is sent later arrives later: what a peer sends, its address forged.
	for i, peer := range peers {
		data := greOf(greKeys[i], IPv4UDP(clientInner[i]+":1000", serverInner[i]+":2000", []byte("a peer")))
		p.Bad.SendUDP(t, peer, fmt.Sprint(SrvAddr, ":", 10000+i), data)
	}
	inside.SetReadDeadline(time.Now().Add(commandTimeout))
	for buf, left := make([]byte, 200), 2; left > 0; {
		n, err := inside.Read(buf)
		if err != nil {
			t.Fatalf("%s: %d peers' packets are missing: %v", when, left, err)
		}
		if got := string(buf[:n]); got == "a peer" {
			left--
		} else {
			t.Errorf("a stranger's packet came out of a tunnel: %s", got)
		}
	}
}

// Two clients behind one address have GRE tunnels with keys, by which the kernel tells them apart.
func TestGRE(t *testing.T) {
	t.Parallel()
	p := newGREPair(t)
	before := snapshots(t, p.Srv, p.C1, p.C2)
	p.start(t)
	peers := [2]string{RtrAddr + ":10000", RtrAddr + ":10001"}
	for i := range 2 {
		p.works6(t, i)
	}
	p.noAlternate(t)
	var all sync.WaitGroup
	for i, ns := range []*NS{p.C1, p.C2} {
		for _, addrs := range [][2]string{{clientInner[i], serverInner[i]}, {clientInner6[i], serverInner6[i]}} {
			all.Go(func() {
				if err := both(ns, p.Srv, addrs[0], addrs[1], 500_000); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	p.greStrangers(t, "at one address", peers)
	for _, to := range []string{RtrAddr2 + ":4000", RtrAddr + ":4001", RtrAddr3 + ":4002"} {
		n := p.server.Len()
		p.NATForce(t, C1Addr, to)
		p.client[0].Signal(t, syscall.SIGUSR1)
		p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+to, commandTimeout)
		peers[0] = to
		for i := range 2 {
			p.works6(t, i)
		}
		p.greStrangers(t, "after a move to "+to, peers)
	}
	p.noAlternate(t)
	stop(t, p.client[0], p.client[1], p.server)
	for _, proc := range []*Proc{p.server, p.client[0], p.client[1]} {
		if n := count(proc.Logs(), "WARN|ERROR"); n > 0 {
			t.Errorf("%s: %d warnings or errors", proc, n)
		}
	}
	sameStates(t, "in the end", p.dir, before)
}
