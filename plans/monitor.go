package plans

import "time"

// Monitor is how a tunnel's path is watched.
type Monitor string

// The ways: not at all, by keepalives that have to be answered, by ICMP echo requests
// through the tunnel.
const (
	NoMonitor   Monitor = ""
	MonitorAuth Monitor = "auth"
	MonitorPing Monitor = "ping"
)

const (
	// defaultKeepalive, in seconds, is that of a client whose keepalives are watched: less
	// than the 30 s after which many NATs forget a UDP mapping (RFC 4787, REQ-5, asks for
	// two minutes).
	defaultKeepalive = 25
	defaultPing      = 10 * time.Second
)

// monitor reads how the tunnel is watched; after its authentication.
func (r *reader) monitor(t *Tunnel) {
	t.Monitor = Monitor(r.text("monitor"))
	t.MonitorEvery = r.duration("monitor-interval")
	t.StateHook = r.commands("state-hook")
	switch t.Monitor {
	case NoMonitor:
		if r.has("monitor") {
			r.fail("monitor", `"" is none of auth, ping`)
		}
	case MonitorAuth:
		if t.Role != Client {
			r.fail("monitor", "only a client is answered when it authenticates, want ping")
		}
		t.Auth.Reply = true
		if t.Auth.Keepalive == 0 {
			t.Auth.Keepalive = defaultKeepalive
		}
	case MonitorPing:
		if t.MonitorEvery == 0 {
			t.MonitorEvery = defaultPing
		}
	default:
		r.fail("monitor", "%q is none of auth, ping", t.Monitor)
	}
	if t.Monitor != MonitorPing && r.has("monitor-interval") {
		r.fail("monitor-interval", "is for --monitor ping; with auth, --keepalive says how often")
	}
}
