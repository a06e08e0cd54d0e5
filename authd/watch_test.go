package authd

import (
	"encoding/binary"
	"strings"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// ruleMessage is a message of nftables about a thing in a table.
func ruleMessage(kind uint16, table string) []byte {
	attr := binary.NativeEndian.AppendUint16(nil, uint16(4+len(table)+1))
	attr = binary.NativeEndian.AppendUint16(attr, unix.NFTA_TABLE_NAME)
	attr = append(append(attr, table...), 0)
	for len(attr)%4 > 0 {
		attr = append(attr, 0)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+4+len(attr)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|kind)
	b = append(b, make([]byte, 16+4-6)...)
	return append(b, attr...)
}

func TestDeletes(t *testing.T) {
	join := func(all ...[]byte) (b []byte) {
		for _, m := range all {
			b = append(b, m...)
		}
		return b
	}
	ours := ruleMessage(unix.NFT_MSG_DELTABLE, "ipipou0")
	for name, test := range map[string]struct {
		b    []byte
		want bool
	}{
		"a table of ours":      {ours, true},
		"a rule of ours":       {ruleMessage(unix.NFT_MSG_DELRULE, "ipipou0"), true},
		"an element of ours":   {ruleMessage(unix.NFT_MSG_DELSETELEM, "ipipou0"), false},
		"a new rule of ours":   {ruleMessage(unix.NFT_MSG_NEWRULE, "ipipou0"), false},
		"another's":            {ruleMessage(unix.NFT_MSG_DELTABLE, "ipipou"), false},
		"after another's":      {join(ruleMessage(unix.NFT_MSG_DELTABLE, "filter"), ours), true},
		"nothing":              {nil, false},
		"cut off":              {ours[:len(ours)-1], true},
		"cut off in the name":  {binary.NativeEndian.AppendUint32(nil, 22), false},
		"a length of no sense": {append(make([]byte, 4), ours[4:]...), true},
	} {
		if got := deletes(test.b, []string{"ipipou0"}); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func FuzzDeletes(f *testing.F) {
	f.Add(ruleMessage(unix.NFT_MSG_DELTABLE, "ipipou0"))
	f.Add(ruleMessage(unix.NFT_MSG_NEWRULE, "filter"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What is behind a message of ours does not hide it.
		ours := ruleMessage(unix.NFT_MSG_DELCHAIN, "ipipou0")
		if !deletes(append(ours, b...), []string{"ipipou0"}) {
			t.Error("a deletion was not seen")
		}
		if deletes(b, []string{"ipipou0"}) && !deletes(append(b[:len(b):len(b)], ours...), []string{"ipipou0"}) {
			t.Error("a deletion was hidden by another one")
		}
	})
}

// routeMessage is a message of rtnetlink with a body of 16 bytes.
func routeMessage(kind uint16, body ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 32)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, make([]byte, 10)...)
	return append(append(b, body...), make([]byte, 16-len(body))...)
}

func TestLossFilter(t *testing.T) {
	vm, err := bpf.NewVM(lossFilter())
	if err != nil {
		t.Fatal(err)
	}
	route := func(kind uint16, protocol byte) []byte {
		return routeMessage(kind, unix.AF_INET, 24, 0, 0, 254, protocol)
	}
	link := func(flags, changed uint32) []byte {
		b := binary.NativeEndian.AppendUint32([]byte{unix.AF_UNSPEC, 0, 0, 0, 7, 0, 0, 0}, flags)
		return routeMessage(unix.RTM_NEWLINK, binary.NativeEndian.AppendUint32(b, changed)...)
	}
	for name, test := range map[string]struct {
		b    []byte
		want bool
	}{
		"ip route del":            {route(unix.RTM_DELROUTE, unix.RTPROT_BOOT), true},
		"a route of a daemon's":   {route(unix.RTM_DELROUTE, unix.RTPROT_BGP), false},
		"a route of the kernel's": {route(unix.RTM_DELROUTE, unix.RTPROT_KERNEL), false},
		"ip route add":            {route(unix.RTM_NEWROUTE, unix.RTPROT_BOOT), false},
		"ip rule del":             {routeMessage(unix.RTM_DELRULE), true},
		"ip rule add":             {routeMessage(unix.RTM_NEWRULE), false},
		"ip address del":          {routeMessage(unix.RTM_DELADDR), true},
		"ip address add":          {routeMessage(unix.RTM_NEWADDR), false},
		"ip link set up":          {link(unix.IFF_UP|unix.IFF_RUNNING, unix.IFF_UP|unix.IFF_RUNNING), true},
		"ip link set down":        {link(0, unix.IFF_UP), true},
		"a carrier lost":          {link(unix.IFF_UP, unix.IFF_RUNNING), false},
		"ip link del":             {routeMessage(unix.RTM_DELLINK), false},
		"cut off":                 {route(unix.RTM_DELROUTE, unix.RTPROT_BOOT)[:18], false},
	} {
		if n, err := vm.Run(test.b); err != nil || n > 0 != test.want {
			t.Errorf("%s: %d bytes, want %v (%v)", name, n, test.want, err)
		}
	}
}

// The kernel tells of each of these.
func TestNetWatchLost(t *testing.T) {
	ns := newNetLab(t).s
	var lost <-chan struct{}
	within(t, ns, func() {
		var err error
		if lost, err = WatchLost(t.Context()); err != nil {
			t.Error(err)
		}
	})
	for _, lines := range []string{
		"route add 10.77.0.0/24 dev s0; route del 10.77.0.0/24",
		"-6 route add fd77::/64 dev s0; -6 route del fd77::/64",
		"-4 rule add lookup 10000 pref 29002; -4 rule del lookup 10000 pref 29002",
		"-6 rule add lookup 10000 pref 29002; -6 rule del lookup 10000 pref 29002",
		"address add 10.77.0.1/24 dev s0; address del 10.77.0.1/24 dev s0",
		"link set s0 down",
	} {
		for line := range strings.SplitSeq(lines, "; ") {
			ip(t, append([]string{"-n", ns}, strings.Fields(line)...)...)
		}
		get(t, lines, lost)
	}
}
