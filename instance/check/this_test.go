package check

import (
	"net"
	"net/netip"
	"slices"
	"testing"
)

// The looks at this very host, whatever it is like.
func TestThisHost(t *testing.T) {
	h := This()
	k := h.kernel()
	if kernelVersion(k.release).before(version{3, 0}) {
		t.Errorf("kernel %q", k.release)
	}
	all, err := h.Interfaces()
	lo := slices.IndexFunc(all, func(i Interface) bool { return i.Name == "lo" })
	if err != nil || lo < 0 || all[lo].MTU < 1500 {
		t.Errorf("interfaces %v (%v)", all, err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	if mtu, err := h.PathMTU(local, local); err != nil || mtu != min(all[lo].MTU, largest) {
		t.Errorf("path MTU %d (%v)", mtu, err)
	}
	if _, err := h.Synced(); err != nil {
		t.Errorf("clock: %v", err)
	}
	if mine, _ := h.capabilities(); mine == 0 && h.Writable("/proc/sys/net/ipv4/ip_forward") {
		t.Error("root without capabilities")
	}

	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if found := sockets(h.read("proc/net/udp"), h.BigEndian); !slices.Contains(found, at) {
		t.Errorf("no %s among the sockets", at)
	}
	c := config(t, "server = true", `fou-local-ip = "127.0.0.1"`, `auth-token = "t"`)
	c.Tunnels[0].FOUPort = at.Port()
	report := Look(t.Context(), h, c)
	if !slices.ContainsFunc(report.Lines, func(l Line) bool { return l.Name == "port" && l.State == Missing }) || report.Works {
		t.Errorf("%s is not said to be taken:\n%s", at, text(t, report))
	}
}
