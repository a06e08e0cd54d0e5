package instance

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ipipou/datapath"
	"ipipou/plans"
)

// ReportFormat is the Format of the reports that this version writes and reads. Fields
// may be added to it; one that gets another meaning, or goes, makes another format.
const ReportFormat = 1

// A Daemon is what is known of an instance's process.
type Daemon string

// What a process can be. Of a Running one the report has everything. A Silent one holds the
// instance, and its answer could not be had: Why says why. A Dead one was killed, and has
// left things behind. Absent is one that is not there.
const (
	Running Daemon = "running"
	Silent  Daemon = "silent"
	Dead    Daemon = "dead"
	Absent  Daemon = "absent"
)

// A Report is how it stands with an instance: what `ipipou status --json` prints. What is
// not known is left out; times are in UTC, to the second (RFC 3339).
type Report struct {
	Format  int    `json:"format"`
	Name    string `json:"name"`
	Daemon  Daemon `json:"daemon"`
	Why     string `json:"why,omitempty"`
	Version string `json:"version,omitempty"` // of the process
	PID     int    `json:"pid,omitempty"`
	// Started is when the instance was up.
	Started time.Time `json:"started,omitzero"`
	// Backend is what carries the tunnels: kernel, bpf, or kernel+bpf.
	Backend string `json:"backend,omitempty"`
	// ConfirmBy is when all is undone, unless `ipipou confirm` comes before.
	ConfirmBy time.Time `json:"confirm_by,omitzero"`
	// Fault is why the host could not be asked: addresses and counters are missing then.
	Fault   string         `json:"fault,omitempty"`
	Tunnels []TunnelReport `json:"tunnels"`
	// Nobody is what came and was for no tunnel in particular.
	Nobody Dropped `json:"nobody,omitzero"`
	// Drift is what should be there and is not, a line each.
	Drift []string `json:"drift,omitempty"`
}

// A TunnelReport is how it stands with a tunnel; of one that BPF carries to several nodes
// there is one for each.
type TunnelReport struct {
	Tunnel  string        `json:"tunnel"` // DEVICE, or DEVICE/NUMBER where several have the device
	Device  string        `json:"device"`
	Role    string        `json:"role"` // server, client or static
	Mode    plans.Mode    `json:"mode"`
	Encap   plans.Encap   `json:"encap"`
	Backend plans.Backend `json:"backend,omitempty"` // kernel or bpf
	// State is waiting, up or lost, as the process has it, or down (there is no such
	// interface, where there should be one) or foreign (it is another's), as the host has it.
	State State     `json:"state,omitempty"`
	Since time.Time `json:"since,omitzero"` // of waiting, up, lost
	Local string    `json:"local"`          // outer ADDRESS or ADDRESS:PORT; [ADDRESS]:PORT@DEVICE if it is not there
	Peer  string    `json:"peer,omitempty"` // the other end's; "any": the routes choose
	// Bound is since when just that peer has the tunnel.
	Bound time.Time `json:"bound,omitzero"`
	// Authenticated is when an authentication was accepted last: a server's by us, a
	// client's by the server, if that replies.
	Authenticated time.Time `json:"authenticated,omitzero"`
	Inner         []Inner   `json:"inner"`
	Keepalive     float64   `json:"keepalive_seconds,omitempty"`
	Monitor       string    `json:"monitor,omitempty"` // auth or ping
	MonitorEvery  float64   `json:"monitor_seconds,omitempty"`
	Traffic       *Traffic  `json:"traffic,omitempty"` // nil: nothing is there that counts
	Dropped
}

// Inner is an inner address, with its prefix length if it has one, and the other end's.
type Inner struct {
	Address string `json:"address"`
	Peer    string `json:"peer,omitempty"`
}

// Traffic is what came from the peer and went to it. Bytes are those of inner packets.
type Traffic struct {
	RXPackets uint64 `json:"rx_packets"`
	RXBytes   uint64 `json:"rx_bytes"`
	TXPackets uint64 `json:"tx_packets"`
	TXBytes   uint64 `json:"tx_bytes"`
}

// Dropped are packets that were dropped, and authentications that were refused, by
// reason; reasons with none are left out.
type Dropped struct {
	Drops   map[string]uint64 `json:"drops,omitempty"`
	Refused map[string]uint64 `json:"refused,omitempty"`
}

// report is what the instance's own process says.
func (in *Instance) report() Report {
	r := Report{
		Format: ReportFormat, Name: in.Config.Name, Daemon: Running, Version: in.Version, PID: os.Getpid(),
		Started: second(in.started), ConfirmBy: second(in.confirm.deadline()),
	}
	r.look(newHost(), in.Config, in.values())
	standings := in.board.standings()
	for _, t := range in.Config.Tunnels {
		if s := standings[t.Title()]; deaf(t) && s.State == Waiting {
			s.State, s.Since = "", time.Time{} // it would wait for ever
			standings[t.Title()] = s
		}
	}
	for i := range r.Tunnels {
		r.Tunnels[i].stands(standings[r.Tunnels[i].Tunnel])
	}
	r.Nobody.Refused = standings[nobody].Refused
	return r
}

// status is the report with what has drifted, which takes longer to find out.
func (in *Instance) status() Report {
	r := in.report()
	c := in.Config
	c.Tunnels = slices.Clone(c.Tunnels)
	for i := range c.Tunnels {
		if t := &c.Tunnels[i]; t.RemoteHost != "" {
			t.RemoteIP = netip.Addr{} // the name may stand for another one since the start
		}
	}
	r.drifted(c)
	return r
}

// drifted adds what the configuration has and the host has not.
func (r *Report) drifted(c plans.Config) {
	drift, err := Drift(context.Background(), c)
	if err != nil {
		r.Drift = []string{"can't be told: " + strings.ReplaceAll(err.Error(), "\n", "; ")}
		return
	}
	for _, title := range slices.Sorted(maps.Keys(drift)) {
		for _, text := range drift[title] {
			if title != "" {
				text = title + ": " + text
			}
			r.Drift = append(r.Drift, text)
		}
	}
}

// deaf reports whether nobody tells a client that it is let in, and it does not look.
func deaf(t plans.Tunnel) bool {
	return t.Role == plans.Client && !t.Auth.Reply && t.Monitor == plans.NoMonitor
}

// second is a time as reports have it.
func second(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	return t.UTC().Truncate(time.Second)
}

// stands adds what only the process knows. A server's interface of the kernel's drivers is
// made when its peer is bound.
func (t *TunnelReport) stands(s standing) {
	if t.State == "" || t.State == State(absent) && s.State == Waiting {
		t.State = s.State
	}
	if t.State == s.State {
		t.Since = second(s.Since)
	}
	t.Bound, t.Authenticated = second(s.Bound), second(s.Authenticated)
	if t.Peer == "" && s.Peer.IsValid() && t.State != State(foreign) {
		t.Peer = shown(s.Peer)
	}
	t.Refused = s.Refused
}

// look fills in what the configuration and the host tell; vars are the values of what the
// configuration leaves to the host, as far as they are known.
func (r *Report) look(h *host, c plans.Config, vars map[string]string) {
	err := h.look(c.Tunnels)
	for _, t := range c.Tunnels {
		one := planned(t, vars)
		if err != nil {
			r.Tunnels = append(r.Tunnels, one)
			continue
		}
		var some []TunnelReport
		if some, err = h.links[t.Dev].reports(t, one); err != nil {
			r.Tunnels = append(r.Tunnels, one)
			continue
		}
		r.Tunnels = append(r.Tunnels, some...)
	}
	for _, s := range h.states { // one, for its instance has one
		_, r.Nobody = counted(s.Counts[0])
	}
	switch kernel, bpf := c.Backends(); {
	case kernel && bpf:
		r.Backend = string(plans.Kernel) + "+" + string(plans.BPF)
	case bpf:
		r.Backend = string(plans.BPF)
	case kernel:
		r.Backend = string(plans.Kernel)
	}
	if err != nil {
		r.Fault = err.Error()
		return
	}
	if table := c.GateTable(); table != "" && len(h.states) == 0 {
		r.Nobody.Drops = some(map[string]uint64{"gate": h.gateDrops(table)})
	}
}

// planned is what the configuration tells of a tunnel.
func planned(t plans.Tunnel, vars map[string]string) TunnelReport {
	r := TunnelReport{
		Tunnel: t.Title(), Device: t.Dev, Role: t.Role.String(), Mode: t.Mode, Encap: t.Encap, Backend: t.Backend,
		Local: configured(t), Inner: []Inner{}, Keepalive: float64(t.Auth.Keepalive), Monitor: string(t.Monitor),
	}
	if t.Backend == plans.Auto {
		r.Backend = ""
	}
	if at, err := local(t, vars); err == nil {
		r.Local = shown(at)
	}
	switch t.Monitor {
	case plans.MonitorAuth:
		r.MonitorEvery = r.Keepalive
	case plans.MonitorPing:
		r.MonitorEvery = t.MonitorEvery.Seconds()
	}
	for _, a := range t.Addrs {
		inner := Inner{Address: a.String()}
		if a.Peer.IsValid() {
			inner.Peer = a.Peer.String()
		}
		r.Inner = append(r.Inner, inner)
	}
	return r
}

// reports are the tunnel's, with what its interface tells: one or, where BPF carries it,
// one for each node.
func (l *link) reports(t plans.Tunnel, r TunnelReport) ([]TunnelReport, error) {
	switch l.backend {
	case absent, foreign:
		r.State = State(l.backend)
		return []TunnelReport{r}, nil
	case plans.Kernel:
		r.Backend = l.backend
		r.Local = end(l.tunnel.Local, l.tunnel.Encap.Source)
		r.Peer = end(l.tunnel.Remote, l.tunnel.Encap.Dest)
		r.Traffic = &Traffic{l.rx.Packets, l.rx.Bytes, l.tx.Packets, l.tx.Bytes}
		r.Drops = some(map[string]uint64{
			"rx-errors": l.rx.Errors, "rx-dropped": l.rx.Dropped,
			"tx-errors": l.tx.Errors, "tx-dropped": l.tx.Dropped, "tx-carrier-errors": l.tx.Carrier,
		})
		return []TunnelReport{r}, nil
	}
	r.Backend = l.backend
	r.Local = shown(l.state.Local[l.index])
	var all []TunnelReport
	for _, number := range t.Peers() {
		at, known := l.state.Peers[number]
		if !known {
			return nil, fmt.Errorf("%s: the maps have no peer %d: the instance was started with another configuration", t.Title(), number)
		}
		r.Peer = shown(at)
		r.Traffic, r.Dropped = counted(l.state.Counts[number])
		all = append(all, r)
	}
	return all, nil
}

// counted is what the BPF programs counted for a peer.
func counted(c datapath.Count) (*Traffic, Dropped) {
	by := map[string]uint64{}
	for i, n := range c {
		by[datapath.Counters[i]] = n
	}
	t := &Traffic{by["rx-packets"], by["rx-bytes"], by["tx-packets"], by["tx-bytes"]}
	for _, name := range datapath.Counters[:4] {
		delete(by, name)
	}
	return t, Dropped{Drops: some(by)}
}

// some are those that are not zero.
func some(counts map[string]uint64) map[string]uint64 {
	for reason, n := range counts {
		if n == 0 {
			delete(counts, reason)
		}
	}
	return counts
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

// forget gives back the memory that it took to make and to send a large report, which may
// be the last for days.
func (r *Report) forget() {
	if len(r.Tunnels) > 100 {
		debug.FreeOSMemory()
	}
}

// A sharing lets those who want the report while it is being made have the same one.
type sharing struct {
	mu   sync.Mutex
	made *making // nil: none is being made
}

type making struct {
	done   chan struct{}
	report Report
}

func (s *sharing) report(look func() Report) Report {
	s.mu.Lock()
	m := s.made
	if m != nil {
		s.mu.Unlock()
		<-m.done
		return m.report
	}
	m = &making{done: make(chan struct{})}
	s.made = m
	s.mu.Unlock()
	m.report = look()
	s.mu.Lock()
	s.made = nil
	s.mu.Unlock()
	close(m.done)
	return m.report
}
