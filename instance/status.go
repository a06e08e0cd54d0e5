package instance

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"ipipou/datapath"
	"ipipou/plans"
	"ipipou/runner"
)

// none stands in a column that has nothing to say, for those who count columns.
const none = "-"

// What carries an interface, as it is found.
const (
	down    = "down"    // there is no such interface
	foreign = "foreign" // of that name there is another thing
)

// A row is one line of the table.
type row struct {
	tunnel, backend, local, peer, inner string
	// What came from the peer and went to it; bytes are those of inner packets.
	rxPackets, rxBytes, txPackets, txBytes string
	drops                                  string // by reason, those that are not zero
}

// Status shows what carries the instance's tunnels on this host, and what was counted.
// It asks the host alone, so the instance's process need not be there.
func Status(c plans.Config, w io.Writer) error {
	h := &host{exec: runner.Command(runner.DefaultTimeout), links: map[string]*link{}, states: map[int]*datapath.State{}}
	var rows []row
	for _, t := range c.Tunnels {
		more, err := h.rows(t)
		if err != nil {
			return err
		}
		rows = append(rows, more...)
	}
	for _, program := range slices.Sorted(maps.Keys(h.states)) { // one, for its instance has one
		nobody := row{tunnel: "nobody", backend: string(plans.BPF)}
		rows = append(rows, nobody.counted(h.states[program].Counts[0]))
	}
	var b bytes.Buffer
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "TUNNEL\tBACKEND\tLOCAL\tPEER\tINNER\tRX-PACKETS\tRX-BYTES\tTX-PACKETS\tTX-BYTES\tDROPS")
	for _, r := range rows {
		cells := []string{r.tunnel, r.backend, r.local, r.peer, r.inner, r.rxPackets, r.rxBytes, r.txPackets, r.txBytes, r.drops}
		for i, cell := range cells {
			cells[i] = cmp.Or(cell, none)
		}
		fmt.Fprintln(table, strings.Join(cells, "\t"))
	}
	table.Flush()
	_, err := w.Write(b.Bytes())
	return err
}

// rows are the lines of a tunnel: one, or where BPF carries it one for each node.
func (h *host) rows(t plans.Tunnel) ([]row, error) {
	l, err := h.link(t)
	if err != nil {
		return nil, err
	}
	r := row{tunnel: t.Title(), backend: l.backend, inner: inside(t)}
	switch l.backend {
	case down:
		r.local = configured(t)
	case string(plans.Kernel):
		r.local = end(l.tunnel.Local, l.tunnel.Encap.Source)
		r.peer = end(l.tunnel.Remote, l.tunnel.Encap.Dest)
		r = r.statistics(l.rx, l.tx)
	case string(plans.BPF):
		r.local = shown(l.state.Local[l.index])
		var rows []row
		for _, number := range t.Peers() {
			at, known := l.state.Peers[number]
			if !known {
				return nil, fmt.Errorf("%s: the maps have no peer %d: the instance was started with another configuration", t.Title(), number)
			}
			r.peer = shown(at)
			rows = append(rows, r.counted(l.state.Counts[number]))
		}
		return rows, nil
	}
	return []row{r}, nil
}

// counted is the row with what the BPF programs counted.
func (r row) counted(c datapath.Count) row {
	var drops []string
	for i, n := range c {
		switch text := strconv.FormatUint(n, 10); datapath.Counters[i] {
		case "rx-packets":
			r.rxPackets = text
		case "rx-bytes":
			r.rxBytes = volume(n)
		case "tx-packets":
			r.txPackets = text
		case "tx-bytes":
			r.txBytes = volume(n)
		default:
			if n > 0 {
				drops = append(drops, datapath.Counters[i]+"="+text)
			}
		}
	}
	r.drops = strings.Join(drops, " ")
	return r
}

// statistics is the row with what the kernel's driver counted.
func (r row) statistics(rx, tx statistics) row {
	var drops []string
	for _, d := range []struct {
		name string
		n    uint64
	}{
		{"rx-errors", rx.Errors}, {"rx-dropped", rx.Dropped},
		{"tx-errors", tx.Errors}, {"tx-dropped", tx.Dropped}, {"tx-carrier-errors", tx.Carrier},
	} {
		if d.n > 0 {
			drops = append(drops, fmt.Sprintf("%s=%d", d.name, d.n))
		}
	}
	r.rxPackets, r.rxBytes = strconv.FormatUint(rx.Packets, 10), volume(rx.Bytes)
	r.txPackets, r.txBytes = strconv.FormatUint(tx.Packets, 10), volume(tx.Bytes)
	r.drops = strings.Join(drops, " ")
	return r
}

// inside are the tunnel's inner addresses, each with the other end's if it has one:
// 172.28.0.0>172.28.0.1.
func inside(t plans.Tunnel) string {
	var words []string
	for _, a := range t.Addrs {
		word := a.String()
		if a.Peer.IsValid() {
			word += ">" + a.Peer.String()
		}
		words = append(words, word)
	}
	return strings.Join(words, ",")
}

// configured is the outer end of a tunnel that is not there, in the form of
// --fou-local where its address is still to be asked for.
func configured(t plans.Tunnel) string {
	if t.FOUIP.IsValid() {
		return shown(netip.AddrPortFrom(t.FOUIP, t.FOUPort))
	}
	port := ""
	if t.FOUPort != 0 {
		port = ":" + strconv.Itoa(int(t.FOUPort))
	}
	return port + "@" + t.FOUDev
}

// end is an outer end as ip(8) has it; `any` is the other end of a tunnel whose routes
// choose it.
func end(address string, port uint16) string {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	return shown(netip.AddrPortFrom(a, port))
}

// shown is an outer end, whose port is 0 without UDP; "" if there is none.
func shown(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// volume is a number of bytes: as it is, and from a million on in MB and so on.
func volume(n uint64) string {
	if n < 1e6 {
		return strconv.FormatUint(n, 10)
	}
	f, units := float64(n)/1e6, []string{"MB", "GB", "TB", "PB", "EB"}
	for f >= 999.95 && len(units) > 1 { // it would be shown as 1000.0
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.1f%s", f, units[0])
}
