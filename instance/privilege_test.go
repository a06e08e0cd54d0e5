package instance

import (
	"testing"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// What is kept is what the tunnels need, and less once they are up.
func TestNeeds(t *testing.T) {
	net, raw, low := caps(unix.CAP_NET_ADMIN), caps(unix.CAP_NET_RAW), caps(unix.CAP_NET_BIND_SERVICE)
	module, admin, memory := caps(unix.CAP_SYS_MODULE), caps(unix.CAP_SYS_ADMIN), caps(unix.CAP_SYS_RESOURCE)
	of := func(role plans.Role, b plans.Backend, encap plans.Encap, port uint16) plans.Tunnel {
		return plans.Tunnel{Role: role, Backend: b, Encap: encap, FOUPort: port}
	}
	pinged := of(plans.Static, plans.Kernel, plans.None, 0)
	pinged.Monitor = plans.MonitorPing
	for _, c := range []struct {
		name            string
		tunnel          plans.Tunnel
		own, coming, up capset
	}{
		{"server", of(plans.Server, plans.Kernel, plans.FOU, 10000), net | raw, net | raw | module, net | raw},
		{"low port", of(plans.Client, plans.Kernel, plans.FOU, 443), net | raw | low, net | raw | low | module, net | raw | low},
		{"static", of(plans.Static, plans.Kernel, plans.None, 0), net, net | module, net},
		{"pinged", pinged, net | raw, net | raw | module, net | raw},
		{"bpf", of(plans.Static, plans.BPF, plans.FOU, 10000), net, net | module | admin | memory, net | admin},
		{"auto", of(plans.Client, plans.Auto, plans.FOU, 10000), net | raw, net | raw | module | admin | memory, net | raw | admin},
	} {
		config := plans.Config{Tunnels: []plans.Tunnel{c.tunnel}}
		for _, up := range []bool{false, true} {
			want := c.coming
			if up {
				want = c.up
			}
			if own, children := needs(config, up, 1024); own != c.own || children != want {
				t.Errorf("%s, up %v: %#x and %#x, want %#x and %#x", c.name, up, own, children, c.own, want)
			}
		}
	}
}
