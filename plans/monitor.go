package plans

import (
	"net/netip"
	"time"
)

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
		r.pinged(*t)
	default:
		r.fail("monitor", "%q is none of auth, ping", t.Monitor)
	}
	if t.Monitor != MonitorPing && r.has("monitor-interval") {
		r.fail("monitor-interval", "is for --monitor ping; with auth, --keepalive says how often")
	}
}

// pinged checks that there is one other end, and that its inner address is known.
func (r *reader) pinged(t Tunnel) {
	_, to := t.Pinged()
	switch {
	case to.IsValid() && t.hasRemote():
	case !t.hasRemote():
		r.fail("monitor", "ping asks the one other end of a tunnel, and the routes of %s lead to several", t.Dev)
	case t.Role == Static:
		r.fail("monitor", "ping asks the other end's inner address: give it as tunl-peer-ip, and tunl-ip without a prefix length")
	default:
		r.fail("monitor", "ping asks the other end's inner address, which is not known where tunl-ip has a prefix length: leave that out, or give one more tunl-ip without, and tunl-peer-ip")
	}
}

// Pinged are the inner addresses, ours and the other end's, between which the tunnel is
// pinged; invalid if the other end's is not known.
func (t Tunnel) Pinged() (from, to netip.Addr) {
	for _, a := range t.Addrs {
		if a.Peer.IsValid() {
			return a.IP, a.Peer
		}
	}
	return netip.Addr{}, netip.Addr{}
}
