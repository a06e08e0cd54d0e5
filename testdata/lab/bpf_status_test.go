package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"path/filepath"
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
	r.dropped(t, before, drops)
}

// dropped checks what has been dropped since the row was as before.
func (r statusRow) dropped(t testing.TB, before statusRow, drops map[string]int) {
	t.Helper()
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
	after["nobody"].dropped(t, before["nobody"], map[string]int{"source": 2, "no-data": 1, "fragment": 1})
	of(p.C1, 1)["ipipou0"].counts(t, client["ipipou0"], [4]int{3, 900, 7, 2800}, map[string]int{})

	// Nor does it take the daemon, or another's configuration for this one.
	kill(t, p.server)
	if rows := of(p.Srv, 0); fmt.Sprint(rows) != fmt.Sprint(after) {
		t.Errorf("after the daemon was killed: %v, want %v", rows, after)
	}
	other := status(t, p.Srv, "--static", "--fou-local", SrvAddr, "--fou-remote", RtrAddr, "--tunl-ip", "10.9.0.1/30")
	other["ipipou0"].isAt(t, map[string]string{"STATE": "foreign", "PEER": "-", "RX-PACKETS": "-"})
	p.startServer(t)
	stop(t, p.client[0], p.client[1], p.server)
	if rows := of(p.Srv, 0); rows["ipipou0/0"].cell["STATE"] != "down" {
		t.Errorf("after the end: %v", rows)
	}
}

// A report is what a test reads of `ipipou status --json`.
type report struct {
	Name, Daemon, Backend string
	Tunnels               []struct {
		Tunnel, State, Local, Peer string
		Since, Bound               time.Time
		Authenticated              time.Time
		Traffic                    struct {
			RXPackets int `json:"rx_packets"`
			RXBytes   int `json:"rx_bytes"`
			TXPackets int `json:"tx_packets"`
			TXBytes   int `json:"tx_bytes"`
		}
		Drops, Refused map[string]int
	}
	Nobody struct{ Drops, Refused map[string]int }
}

func (p *pair) report(t testing.TB, ns *NS, name string) report {
	t.Helper()
	return instanceReport(t, p.dir, ns, name)
}

// instanceReport is what the instance of that name says of itself.
func instanceReport(t testing.TB, dir string, ns *NS, name string) report {
	t.Helper()
	out := ns.Run(t, "env", "IPIPOU_RUN_DIR="+filepath.Join(dir, ns.Name)+"/run", Bin(t), "status", name, "--json")
	var document struct{ Instances []report }
	if err := json.Unmarshal([]byte(out), &document); err != nil || len(document.Instances) != 1 {
		t.Fatalf("%v in\n%s", err, out)
	}
	return document.Instances[0]
}

// A living instance knows more: who is bound since when, and who was refused, for what reason. Its metrics say the same.
func TestBPFReport(t *testing.T) {
	t.Parallel()
	p := newHub(t)
	edit(t, p.config[0], "server = true\n", "server = true\nmetrics = \"127.0.0.1:9586\"\n")
	p.startServer(t)
	begun := time.Now().Add(-time.Second) // reports have whole seconds
	p.startClient(t, 0)
	r := p.report(t, p.Srv, "server")
	if r.Daemon != "running" || r.Backend != "bpf" || len(r.Tunnels) != 2 {
		t.Fatalf("%+v", r)
	}
	bound, waiting := r.Tunnels[0], r.Tunnels[1]
	if bound.State != "up" || bound.Peer != RtrAddr+":10000" || bound.Bound.Before(begun) || bound.Authenticated.Before(bound.Bound) {
		t.Errorf("bound: %+v", bound)
	}
	if waiting.State != "waiting" || waiting.Peer != "" || !waiting.Bound.IsZero() || !waiting.Authenticated.IsZero() {
		t.Errorf("waiting: %+v", waiting)
	}
	if c := p.report(t, p.C1, "client0"); c.Tunnels[0].State != "up" || c.Tunnels[0].Peer != SrvAddr+":10000" || c.Tunnels[0].Authenticated.Before(begun) {
		t.Errorf("client: %+v", c)
	}

	inner, from := p.Srv.ListenUDP(t, "172.28.0.0:2000"), p.server.Len()
	for range 7 {
		p.C1.sendPackets(t, IPv4UDP("172.28.0.1:1000", "172.28.0.0:2000", make([]byte, 372)))
		receiveOne(t, inner)
	}
	p.Bad.SendUDP(t, BadAddr+":4444", SrvAddr+":10000", make([]byte, 73))
	p.Bad.SendUDP(t, BadAddr+":4445", SrvAddr+":10000", make([]byte, 50))
	p.server.WaitLogFrom(t, from, `:4445 refused`, commandTimeout)
	p.server.WaitLogFrom(t, from, `:4444 refused`, commandTimeout)
	after := p.report(t, p.Srv, "server")
	now, before := after.Tunnels[0].Traffic, bound.Traffic
	if now.RXPackets != before.RXPackets+7 || now.RXBytes != before.RXBytes+2800 {
		t.Errorf("%+v, were %+v", now, before)
	}
	if n := after.Nobody.Refused; n["signature"] != 1 || n["length"] != 1 {
		t.Errorf("refused %v", n)
	}
	if n := after.Nobody.Drops["no-data"] - r.Nobody.Drops["no-data"]; n != 2 {
		t.Errorf("%d authentications were dropped behind the packet socket, want 2", n)
	}
	served := p.Srv.Run(t, "sh", "-c", `printf 'GET /metrics HTTP/1.0\r\n\r\n' | socat -t 20 - tcp:127.0.0.1:9586`)
	for _, line := range []string{
		`ipipou_tunnel_up{tunnel="ipipou0/0",device="ipipou0"} 1`,
		`ipipou_tunnel_up{tunnel="ipipou0/1",device="ipipou0"} 0`,
		fmt.Sprintf(`ipipou_tunnel_receive_packets_total{tunnel="ipipou0/0",device="ipipou0"} %d`, now.RXPackets),
		`ipipou_auth_refused_total{tunnel="nobody",reason="signature"} 1`,
	} {
		if !strings.Contains(served, "\n"+line+"\n") {
			t.Errorf("no %s in\n%s", line, served)
		}
	}
	stop(t, p.client[0], p.server)
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
	before["ipipou1"].isAt(t, map[string]string{"STATE": "down", "LOCAL": ":10001@s0", "PEER": "-", "INNER": "172.28.0.2>172.28.0.3"})
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
