package lab

import (
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A statusRow is a line of `ipipou status`: its columns by their names, and the drops by their reasons.
type statusRow struct {
	cell  map[string]string
	drops map[string]int
}

// status is what `ipipou status` prints in the namespace. No two rows have the same tunnel.
func status(t testing.TB, ns *NS, args ...string) map[string]statusRow {
	t.Helper()
	out := ns.Run(t, append([]string{Bin(t), "status"}, args...)...)
	_, table, _ := strings.Cut(out, "\n") // behind the line about the instance
	lines := strings.Split(strings.TrimSuffix(table, "\n"), "\n")
	names := strings.Fields(lines[0])
	rows := map[string]statusRow{}
	for _, line := range lines[1:] {
		words := strings.Fields(line)
		if len(words) < len(names) {
			t.Fatalf("%d columns are named and not all filled:\n%s", len(names), out)
		}
		row := statusRow{cell: map[string]string{}, drops: map[string]int{}}
		for i, name := range names {
			row.cell[name] = words[i]
		}
		for _, word := range words[len(names)-1:] {
			if reason, n, ok := strings.Cut(word, "="); ok {
				row.drops[reason], _ = strconv.Atoi(n)
			}
		}
		rows[row.cell["TUNNEL"]] = row
	}
	return rows
}

func (r statusRow) number(t testing.TB, column string) int {
	t.Helper()
	n, err := strconv.Atoi(r.cell[column])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// isAt checks the row's columns.
func (r statusRow) isAt(t testing.TB, want map[string]string) {
	t.Helper()
	for column, text := range want {
		if r.cell[column] != text {
			t.Errorf("%s: %s is %s, want %s", r.cell["TUNNEL"], column, r.cell[column], text)
		}
	}
}

// counts checks what has been counted since the row was as before: packets and bytes received and sent, and drops.
func (r statusRow) counts(t testing.TB, before statusRow, want [4]int, drops map[string]int) {
	t.Helper()
	for i, column := range []string{"RX-PACKETS", "RX-BYTES", "TX-PACKETS", "TX-BYTES"} {
		if n := r.number(t, column) - before.number(t, column); n != want[i] {
			t.Errorf("%s: %s grew by %d, want %d", r.cell["TUNNEL"], column, n, want[i])
		}
	}
	grown := map[string]int{}
	for reason, n := range r.drops {
		if n != before.drops[reason] {
			grown[reason] = n - before.drops[reason]
		}
	}
	if !maps.Equal(grown, drops) {
		t.Errorf("%s: drops grew by %v, want %v", r.cell["TUNNEL"], grown, drops)
	}
}

// What was sent is what is counted, for the peer who sent it, to whom it was sent, or of whom it pretended to be; what is
// nobody's is nobody's. The pinned maps are not in the mount namespace that the command finds.
func TestBPFStatus(t *testing.T) {
	t.Parallel()
	p := newHub(t)
	// The kernel's own multicasts would be counted too.
	for _, ns := range []*NS{p.Srv, p.C1} {
		ns.Sysctl(t, map[string]string{"net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1"})
	}
	of := func(ns *NS, i int) map[string]statusRow { return status(t, ns, "--config", p.config[i]) }
	at := func(peer, inner string) map[string]string {
		return map[string]string{"BACKEND": "bpf", "LOCAL": SrvAddr + ":10000", "PEER": peer, "INNER": inner}
	}
	want := map[string]string{"STATE": "down", "LOCAL": ":10000@s0", "PEER": "-", "INNER": "172.28.0.0>172.28.0.1", "RX-BYTES": "-"}
	if rows := of(p.Srv, 0); len(rows) != 2 {
		t.Errorf("before the start: %v", rows)
	} else {
		rows["ipipou0/0"].isAt(t, want)
	}
	p.startServer(t)
	rows := of(p.Srv, 0)
	rows["ipipou0/0"].isAt(t, at("-", "172.28.0.0>172.28.0.1"))
	p.startClient(t, 0)
	p.startClient(t, 1)
	before, client := of(p.Srv, 0), of(p.C1, 1)
	before["ipipou0/0"].isAt(t, at(RtrAddr+":10000", "172.28.0.0>172.28.0.1"))
	before["ipipou0/1"].isAt(t, at(RtrAddr+":10001", "172.28.0.0>172.28.0.3"))
	client["ipipou0"].isAt(t, map[string]string{"BACKEND": "bpf", "LOCAL": C1Addr + ":10000", "PEER": SrvAddr + ":10000"})

	inner, fence := p.Srv.ListenUDP(t, "172.28.0.0:2000"), p.Srv.ListenUDP(t, SrvAddr+":2001")
	atClient := p.C1.ListenUDP(t, "172.28.0.1:2000")
	datagram := func(from, to string, size int) []byte { return IPv4UDP(from, to, make([]byte, size-28)) }
	peers := []*NS{p.C1, p.C2}
	for i, count := range []int{7, 5} {
		for range count {
			peers[i].sendPackets(t, datagram(clientInner[i]+":1000", "172.28.0.0:2000", 400))
			receiveOne(t, inner)
		}
	}
	for range 3 {
		p.Srv.sendPackets(t, datagram("172.28.0.0:1000", "172.28.0.1:2000", 300))
		receiveOne(t, atClient)
	}
	outer := func(from string, inner []byte) []byte { return IPv4UDP(from, SrvAddr+":10000", inner) }
	p.Bad.sendPackets(t,
		outer(BadAddr+":4444", datagram("172.28.0.1:1000", "172.28.0.0:2000", 100)),   // pretends to be the first client
		outer(RtrAddr+":10001", datagram("172.28.0.1:1000", "172.28.0.0:2000", 100)),  // with the other's outer address
		outer(BadAddr+":4444", datagram("172.28.0.3:1000", "172.28.0.0:2000", 100)),   // the second
		outer(BadAddr+":4444", datagram("172.28.0.77:1000", "172.28.0.0:2000", 100)),  // nobody of ours
		outer(RtrAddr+":10000", datagram("172.28.0.77:1000", "172.28.0.0:2000", 100)), // so does a peer
		outer(BadAddr+":4444", []byte("neither IPv4 nor IPv6, as if it were an authentication")),
		fragments(outer(BadAddr+":4444", datagram("172.28.0.1:1000", "172.28.0.0:2000", 100)))[0],
		IPv4UDP(BadAddr+":2001", SrvAddr+":2001", []byte("all of them are there")),
	)
	receiveOne(t, fence)

	after := of(p.Srv, 0)
	if len(after) != 3 {
		t.Errorf("rows %v", after)
	}
	after["ipipou0/0"].counts(t, before["ipipou0/0"], [4]int{7, 2800, 3, 900}, map[string]int{"stranger": 2})
	after["ipipou0/1"].counts(t, before["ipipou0/1"], [4]int{5, 2000, 0, 0}, map[string]int{"stranger": 1})
	after["nobody"].counts(t, before["nobody"], [4]int{}, map[string]int{"source": 2, "no-data": 1, "fragment": 1})
	of(p.C1, 1)["ipipou0"].counts(t, client["ipipou0"], [4]int{3, 900, 7, 2800}, map[string]int{})

	// Nor does it take the daemon, or another's configuration for this one.
	kill(t, p.server)
	if rows := of(p.Srv, 0); fmt.Sprint(rows) != fmt.Sprint(after) {
		t.Errorf("after the daemon was killed: %v, want %v", rows, after)
	}
	other := status(t, p.Srv, "--static", "--fou-local", SrvAddr, "--fou-remote", RtrAddr, "--tunl-ip", "10.9.0.1/30")
	other["ipipou0"].isAt(t, map[string]string{"BACKEND": "foreign", "PEER": "-", "RX-PACKETS": "-"})
	p.startServer(t)
	stop(t, p.client[0], p.client[1], p.server)
	if rows := of(p.Srv, 0); rows["ipipou0/0"].cell["BACKEND"] != "down" {
		t.Errorf("after the end: %v", rows)
	}
}

// With the kernel's drivers it is their interfaces that tell.
func TestKernelStatus(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	p.startServer(t)
	p.startClient(t, 0)
	of := func() map[string]statusRow { return status(t, p.Srv, "--config", p.config[0]) }
	before := of()
	before["ipipou0"].isAt(t, map[string]string{
		"BACKEND": "kernel", "LOCAL": SrvAddr + ":10000", "PEER": RtrAddr + ":10000", "INNER": "172.28.0.0>172.28.0.1",
	})
	before["ipipou1"].isAt(t, map[string]string{"BACKEND": "down", "LOCAL": ":10001@s0", "PEER": "-", "INNER": "172.28.0.2>172.28.0.3"})
	inner := p.Srv.ListenUDP(t, "172.28.0.0:2000")
	for range 7 {
		p.C1.sendPackets(t, IPv4UDP("172.28.0.1:1000", "172.28.0.0:2000", make([]byte, 372)))
		receiveOne(t, inner)
	}
	of()["ipipou0"].counts(t, before["ipipou0"], [4]int{7, 2800, 0, 0}, map[string]int{})
	stop(t, p.client[0], p.server)
}

func receiveOne(t testing.TB, conn *net.UDPConn) {
	t.Helper()
	conn.SetReadDeadline(time.Now().Add(commandTimeout))
	if _, err := conn.Read(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
}
