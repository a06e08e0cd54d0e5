package plans

import (
	"net/netip"
	"strings"
)

// metrics reads where metrics are served, "" for nowhere. A name is none of the
// addresses: what it stands for may not be this host's.
func (r *reader) metrics() string {
	at := r.text("metrics")
	switch {
	case !r.has("metrics"), strings.HasPrefix(at, "/") && !strings.HasSuffix(at, "/"):
		return at
	case strings.Contains(at, "/"):
		r.fail("metrics", "%q is no socket's full path, such as /run/ipipou/metrics.sock", at)
		return ""
	}
	full := at
	if strings.HasPrefix(at, ":") { // all of this host's addresses
		full = "[::]" + at
	}
	if a, err := netip.ParseAddrPort(full); err != nil || a.Port() == 0 {
		r.fail("metrics", "%q is no ADDRESS:PORT, such as 127.0.0.1:9586 or [::1]:9586, and no path of a unix socket", at)
	}
	return at
}
