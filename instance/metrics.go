package instance

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"
	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// Limits of who scrapes: connections at once, bytes of a request's header, and times.
const (
	maxScrapers   = 8
	scrapeHeader  = 4096
	scrapeRequest = 5 * time.Second
	scrapeAnswer  = time.Minute
	scrapeIdle    = 5 * time.Minute
)

// metrics serves the instance's metrics over HTTP, where it was asked for.
type metrics struct {
	listener net.Listener
	path     string // of a unix socket; "": TCP
}

// listenMetrics is listen, if metrics are asked for.
func (in *Instance) listenMetrics() (m metrics, err error) {
	if in.Config.Metrics == "" {
		return m, nil
	}
	if m, err = listenAt(in.Config.Metrics); err != nil {
		return m, &Error{plans.ExitGeneral, err}
	}
	in.Log.Info("metrics at " + in.Config.Metrics)
	return m, nil
}

// listenAt listens at ADDRESS:PORT or, of what has a slash, at a unix socket. One that
// a dead process has left there is replaced.
func listenAt(at string) (m metrics, err error) {
	if !strings.Contains(at, "/") {
		m.listener, err = net.Listen("tcp", at)
		if err != nil {
			return m, fmt.Errorf("--metrics %s: %w", at, unwrapped(err))
		}
		return m, nil
	}
	m.path = at
	if info, err := os.Lstat(at); err == nil && info.Mode()&fs.ModeSocket != 0 {
		name, done, err := short(at)
		if err != nil {
			return m, fmt.Errorf("--metrics: %w", err)
		}
		defer done()
		switch conn, err := net.DialTimeout("unix", name, requestTime); {
		case err == nil:
			conn.Close()
			return m, fmt.Errorf("--metrics %s: somebody listens there already", at)
		case !errors.Is(err, unix.ECONNREFUSED): // who has it is busy, or it is of another kind
			return m, fmt.Errorf("--metrics %s: somebody may listen there already: %w", at, unwrapped(err))
		}
		if err := os.Remove(at); err != nil {
			return m, fmt.Errorf("--metrics: %w", err)
		}
	}
	if m.listener, err = listenUnix(at); err != nil {
		return m, fmt.Errorf("--metrics: %w", err)
	}
	return m, nil
}

// serve answers with the report's metrics until it is closed.
func (m metrics) serve(log *slog.Logger, report func() Report) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer
		r := report()
		defer r.forget()
		expose(&b, r)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(b.Bytes())
	})
	server := http.Server{
		Handler: mux, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug), MaxHeaderBytes: scrapeHeader,
		ReadTimeout: scrapeRequest, WriteTimeout: scrapeAnswer, IdleTimeout: scrapeIdle,
	}
	if err := server.Serve(netutil.LimitListener(m.listener, maxScrapers)); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (m metrics) close() error {
	if m.listener == nil {
		return nil
	}
	err := m.listener.Close()
	if m.path != "" {
		err = errors.Join(err, removed(m.path))
	}
	return err
}

// A family is a metric with the values that a report has for it, each with its labels.
type family struct {
	name, kind, help string
	samples          func(r Report, add func(value float64, labels ...string))
}

// families are all metrics. They are documented in docs/metrics.md.
var families = []family{
	{"ipipou_build_info", "gauge", "1; the version of the process, and the name of its instance.", func(r Report, add func(float64, ...string)) {
		add(1, "name", r.Name, "version", r.Version)
	}},
	{"ipipou_start_time_seconds", "gauge", "When the instance was up, in Unix time.", func(r Report, add func(float64, ...string)) {
		add(stamp(r.Started))
	}},
	{"ipipou_host_read_success", "gauge", "1 if the host's counters could be read for this scrape, else 0, and they are missing.", func(r Report, add func(float64, ...string)) {
		add(truth(r.Fault == ""))
	}},
	{"ipipou_tunnel_info", "gauge", "1; what the tunnel is.", tunnels(func(t TunnelReport, add func(float64, ...string)) {
		add(1, "role", t.Role, "mode", string(t.Mode), "encap", string(t.Encap), "backend", string(t.Backend))
	})},
	{"ipipou_tunnel_up", "gauge", "1 if the tunnel's peer is bound, or has answered, and has not been lost since, else 0.", tunnels(func(t TunnelReport, add func(float64, ...string)) {
		if t.State != "" {
			add(truth(t.State == Up))
		}
	})},
	{"ipipou_tunnel_bound_timestamp_seconds", "gauge", "Since when the tunnel leads to the peer's present address, in Unix time.", tunnels(func(t TunnelReport, add func(float64, ...string)) {
		if !t.Bound.IsZero() {
			add(stamp(t.Bound))
		}
	})},
	{"ipipou_tunnel_last_authentication_timestamp_seconds", "gauge", "When an authentication was accepted last, in Unix time.", tunnels(func(t TunnelReport, add func(float64, ...string)) {
		if !t.Authenticated.IsZero() {
			add(stamp(t.Authenticated))
		}
	})},
	{"ipipou_tunnel_receive_bytes_total", "counter", "Bytes of inner packets that came from the peer.", traffic(func(t Traffic) uint64 { return t.RXBytes })},
	{"ipipou_tunnel_receive_packets_total", "counter", "Inner packets that came from the peer.", traffic(func(t Traffic) uint64 { return t.RXPackets })},
	{"ipipou_tunnel_transmit_bytes_total", "counter", "Bytes of inner packets that went to the peer.", traffic(func(t Traffic) uint64 { return t.TXBytes })},
	{"ipipou_tunnel_transmit_packets_total", "counter", "Inner packets that went to the peer.", traffic(func(t Traffic) uint64 { return t.TXPackets })},
	{"ipipou_tunnel_dropped_packets_total", "counter", "Packets that were dropped, by reason.", func(r Report, add func(float64, ...string)) {
		nodes(r, func(t TunnelReport, labels []string) { byReason(t.Drops, add, labels...) })
		byReason(r.Nobody.Drops, add, "tunnel", nobody)
	}},
	{"ipipou_auth_refused_total", "counter", "Authentications that were refused, by reason.", func(r Report, add func(float64, ...string)) {
		tunnels(func(t TunnelReport, add func(float64, ...string)) { byReason(t.Refused, add) })(r, add)
		byReason(r.Nobody.Refused, add, "tunnel", nobody)
	}},
}

// tunnels are the samples of each tunnel, labelled with it.
func tunnels(of func(t TunnelReport, add func(float64, ...string))) func(Report, func(float64, ...string)) {
	return func(r Report, add func(float64, ...string)) {
		said := map[string]bool{} // one with several nodes is one
		for _, t := range r.Tunnels {
			if !said[t.Tunnel] {
				said[t.Tunnel] = true
				of(t, func(value float64, labels ...string) {
					add(value, append([]string{"tunnel", t.Tunnel, "device", t.Device}, labels...)...)
				})
			}
		}
	}
}

// nodes calls f with each report of a tunnel and its labels, which are the peer's too
// where a tunnel has several: they are in the configuration, so that there are not more
// and more of them.
func nodes(r Report, f func(t TunnelReport, labels []string)) {
	peers := map[string]int{}
	for _, t := range r.Tunnels {
		peers[t.Tunnel]++
	}
	for _, t := range r.Tunnels {
		labels := []string{"tunnel", t.Tunnel, "device", t.Device}
		if peers[t.Tunnel] > 1 {
			labels = append(labels, "peer", t.Peer)
		}
		f(t, labels)
	}
}

// traffic are the samples of one of the tunnels' counters.
func traffic(of func(t Traffic) uint64) func(Report, func(float64, ...string)) {
	return func(r Report, add func(float64, ...string)) {
		nodes(r, func(t TunnelReport, labels []string) {
			if t.Traffic != nil {
				add(float64(of(*t.Traffic)), labels...)
			}
		})
	}
}

func byReason(counts map[string]uint64, add func(float64, ...string), labels ...string) {
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		add(float64(counts[reason]), append(slices.Clone(labels), "reason", reason)...)
	}
}

func stamp(t time.Time) float64 { return float64(t.Unix()) }

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// escaped is what a label's value wants.
var escaped = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// expose writes a report's metrics in Prometheus' text format, version 0.0.4
// (prometheus.io/docs/instrumenting/exposition_formats).
func expose(b *bytes.Buffer, r Report) {
	for _, f := range families {
		fmt.Fprintf(b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
		f.samples(r, func(value float64, labels ...string) {
			var pairs []string
			for i := 0; i < len(labels); i += 2 {
				pairs = append(pairs, labels[i]+`="`+escaped.Replace(strings.ToValidUTF8(labels[i+1], "?"))+`"`)
			}
			b.WriteString(f.name)
			if len(pairs) > 0 {
				b.WriteString("{" + strings.Join(pairs, ",") + "}")
			}
			fmt.Fprintf(b, " %s\n", strconv.FormatFloat(value, 'f', -1, 64))
		})
	}
}
