package authd

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// routeTo is a message about a route, as the kernel has it; other attributes may be in front of its network.
func routeTo(kind uint16, to netip.Prefix, first uint16) []byte {
	b := make([]byte, 16+12)
	binary.NativeEndian.PutUint16(b[4:], kind)
	b[16], b[17] = unix.AF_INET, byte(to.Bits())
	attr := func(kind uint16, value []byte) {
		b = binary.NativeEndian.AppendUint16(b, 8)
		b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	}
	attr(unix.RTA_TABLE, []byte{254, 0, 0, 0})
	if first != 0 {
		attr(first, []byte{1, 2, 3, 4})
	}
	if to.Bits() > 0 {
		attr(unix.RTA_DST, to.Addr().AsSlice())
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestRouteFilter(t *testing.T) {
	servers := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("198.51.100.7")}
	many := make([]netip.Addr, maxRoutesTo)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})
	}
	for to, want := range map[string]bool{
		"0.0.0.0/0": true, "128.0.0.0/1": true, "203.0.113.0/24": true, "203.0.113.1/32": true, "198.51.100.6/31": true,
		"0.0.0.0/1": false, "203.0.113.2/32": false, "203.0.112.0/24": false, "198.51.100.8/29": false,
	} {
		prefix := netip.MustParsePrefix(to)
		for _, kind := range []uint16{unix.RTM_NEWROUTE, unix.RTM_DELROUTE} {
			for _, test := range []struct {
				to    []netip.Addr
				first uint16
				want  bool
			}{
				{servers, 0, want},
				{append(many[2:len(many):len(many)], servers...), 0, want},
				{append(many, servers...), 0, true}, // too many to tell apart
				{servers, unix.RTA_PRIORITY, true},  // not as we know it
				{nil, 0, prefix.Bits() == 0},
			} {
				vm, err := bpf.NewVM(routeFilter(test.to))
				if err != nil {
					t.Fatal(err)
				}
				if n, err := vm.Run(routeTo(kind, prefix, test.first)); err != nil || n > 0 != test.want {
					t.Errorf("%s of %d servers, attribute %d: %d bytes, want %v (%v)", to, len(test.to), test.first, n, test.want, err)
				}
			}
		}
	}
	vm, err := bpf.NewVM(routeFilter(servers))
	if err != nil {
		t.Fatal(err)
	}
	if n, err := vm.Run(routeMessage(unix.RTM_NEWRULE)); n == 0 || err != nil {
		t.Errorf("a rule: %d bytes (%v)", n, err)
	}
}

// The kernel tells of a route to a server, also of one that became one later, and of no other; and what its way is.
func TestNetRoutes(t *testing.T) {
	ns := newNetLab(t).c
	server, later := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("100.64.0.1")
	ask := func(to netip.Addr) (way Way, err error) {
		within(t, ns, func() { way, err = WayTo(clientAddr.Addr(), to, 0) })
		return way, err
	}
	var w *RouteWatch
	within(t, ns, func() {
		var err error
		if w, err = WatchRoutes(t.Context(), []netip.Addr{server}); err != nil {
			t.Error(err)
		}
	})
	do := func(line string) { ip(t, append([]string{"-n", ns}, strings.Fields(line)...)...) }
	if _, err := ask(server); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without a route: %v", err)
	}
	do("route add 100.64.0.0/24 dev c0")
	do("route add default via " + serverAddr.Addr().String())
	get(t, "a default route", w.Changed)
	direct, err := ask(serverAddr.Addr())
	if err != nil || direct.Gateway.IsValid() || direct.Device == 0 {
		t.Errorf("to a neighbour: %v, %v", direct, err)
	}
	if way, err := ask(server); err != nil || way != (Way{direct.Device, serverAddr.Addr()}) {
		t.Errorf("by default: %v, %v", way, err)
	}
	do("-4 route replace default via inet6 fe80::1 dev c0")
	get(t, "a default route by IPv6", w.Changed)
	if way, err := ask(server); err != nil || way != (Way{direct.Device, netip.MustParseAddr("fe80::1")}) {
		t.Errorf("by IPv6: %v, %v", way, err)
	}
	do("route add 100.64.0.0/28 dev c0")
	select {
	case <-w.Changed:
		t.Error("told of a route to nobody's server")
	default:
	}
	if err := w.To([]netip.Addr{later}); err != nil {
		t.Fatal(err)
	}
	do("route del 100.64.0.0/28 dev c0")
	get(t, "a route to another server", w.Changed)
}

func FuzzWay(f *testing.F) {
	f.Add(routeTo(unix.RTM_NEWROUTE, netip.MustParsePrefix("203.0.113.1/32"), unix.RTA_OIF))
	f.Add(routeTo(unix.RTM_NEWROUTE, netip.MustParsePrefix("203.0.113.1/32"), unix.RTA_GATEWAY))
	refusal := make([]byte, 36)
	binary.NativeEndian.PutUint32(refusal, 36)
	binary.NativeEndian.PutUint16(refusal[4:], unix.NLMSG_ERROR)
	code := -int32(unix.ENETUNREACH)
	binary.NativeEndian.PutUint32(refusal[16:], uint32(code))
	f.Add(refusal)
	f.Fuzz(func(t *testing.T, b []byte) {
		if way, err := parseWay(b); (err == nil) != (way.Device > 0) {
			t.Errorf("%v, %v", way, err)
		}
	})
}
