package check

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ipipou/plans"
)

// A server of two, a client and a static end.
var (
	serverConfig = []string{"server = true", `fou-dev = "eth0"`, `auth-token = "t"`, "[[tunnel]]", "number = 0", "[[tunnel]]", "number = 1"}
	clientConfig = []string{`fou-dev = "eth0"`, `fou-remote = "vpn.example.net:10000"`, `tunl-ip = "172.28.0.1"`,
		`auth-key-b64 = "pSgD4Ow1dt9KBD1SMcSJM4W3QAV6wmlbnSSC8tgVGL4="`, `auth-remote-pubkey-b64 = "FZ0xudU5Xt+oFwDuu28+AK8XvmFYR6X64jXUtURNyw8="`, `auth-secret = "s"`}
	staticConfig = []string{"static = true", `mode = "gre"`, "key = 42", `fou-local-ip = "192.0.2.1"`, `fou-remote-ip = "198.51.100.7"`, `tunl-ip = "10.9.0.1/30"`, `routes = ["default"]`,
		"forward = true", `forward-to = ["lan0"]`}
)

// Of a host that has everything, no line but ok, and only what concerns the configuration.
func TestHealthyInstance(t *testing.T) {
	for name, c := range map[string]struct {
		settings []string
		want     string
	}{
		"server": {serverConfig, `
ok backend the kernel's drivers: all that it takes are there
ok kernel 6.1.0-18-amd64
ok privileges all that it takes
ok fou a module, not loaded yet (UDP around a tunnel)
ok ipip a module, not loaded yet (mode ipip)
ok nf_tables loaded (the gate, and forwarding)
ok af_packet in the kernel (authentication)
ok ip 6.1.0 (/usr/sbin/ip)
ok nft 1.0.6 (/usr/sbin/nft)
ok modprobe 30 (/usr/sbin/modprobe)
ok outer interface eth0, 192.0.2.1
ok name ipipou0 to ipipou1: free
ok port UDP port 10000 to 10001: free
ok firewall lets in UDP port 10000 to 10001
ok mtu 1472 inside ipipou0, of 1500 on eth0
office will come up, carried by the kernel's drivers
`},
		"client": {clientConfig, `
ok backend the kernel's drivers: all that it takes are there
ok kernel 6.1.0-18-amd64
ok privileges all that it takes
ok fou a module, not loaded yet (UDP around a tunnel)
ok ipip a module, not loaded yet (mode ipip)
ok af_packet in the kernel (authentication)
ok ip 6.1.0 (/usr/sbin/ip)
ok modprobe 30 (/usr/sbin/modprobe)
ok outer interface eth0, 192.0.2.1
ok other end vpn.example.net is 198.51.100.1
ok name ipipou0: free
ok port UDP port 10000: free
ok firewall lets in UDP port 10000
ok clock kept in step
ok mtu 1472 inside ipipou0, of 1500 on eth0
office will come up, carried by the kernel's drivers
`},
		"static": {staticConfig, `
ok backend the kernel's drivers: all that it takes are there
ok kernel 6.1.0-18-amd64
ok privileges all that it takes
ok ip_gre a module, not loaded yet (mode gre)
ok nf_tables loaded (the gate, and forwarding)
ok ip 6.1.0 (/usr/sbin/ip)
ok nft 1.0.6 (/usr/sbin/nft)
ok modprobe 30 (/usr/sbin/modprobe)
ok outer interface eth0, 192.0.2.1
ok name ipipou0: free
ok rp_filter nowhere strict
ok forwarding IPv4 off; ipipou turns it on as long as it runs
ok firewall lets in IP protocol 47
ok mtu 1472 inside ipipou0, of 1500 on eth0
office will come up, carried by the kernel's drivers
`},
		"bpf": {append([]string{`backend = "bpf"`}, clientConfig...), `
ok backend BPF programs, as configured
ok kernel 6.1.0-18-amd64
ok privileges all that it takes
ok tun a module, not loaded yet (interfaces of BPF tunnels)
ok cls_bpf a module, not loaded yet (BPF programs on an interface)
ok sch_ingress a module, not loaded yet (BPF programs on an interface)
ok af_packet in the kernel (authentication)
ok ip 6.1.0 (/usr/sbin/ip)
ok bpftool 7.1.0 (/usr/sbin/bpftool)
ok tc 6.1.0 (/usr/sbin/tc)
ok modprobe 30 (/usr/sbin/modprobe)
ok outer interface eth0, 192.0.2.1
ok other end vpn.example.net is 198.51.100.1
ok name ipipou0: free
ok port UDP port 10000: free
ok clock kept in step
ok mtu 1472 inside ipipou0, of 1500 on eth0
office will come up, carried by BPF programs
`},
	} {
		r := Look(t.Context(), healthy().Host, config(t, c.settings...))
		if got := "\n" + squeezeAll(text(t, r)); got != c.want || !r.Works {
			t.Errorf("%s: works %v, got\n%s\nwant\n%s", name, r.Works, got, c.want)
		}
	}
}

// Each thing that a configuration needs is taken away, and what else a host lacks is not
// said.
func TestInstanceLacksInTurn(t *testing.T) {
	const needs = "office needs what is missing: "
	for _, c := range []change{
		{"nft", func(f *fake) { f.uninstall("nft") }, `missing nft nft is not installed: install nftables .*`, needs + "nft", 1}, // nor can rules be listed
		{"interface", func(f *fake) { f.links = f.links[:1] }, `missing outer interface eth0 does not exist: give another fou-dev: there are lo`, needs + "outer interface", 0},
		{"address", func(f *fake) { f.links[1].Addrs = f.links[1].Addrs[1:] }, `missing outer interface eth0 has no IPv4 address: .*`, needs + "outer interface", 0},
		{"interfaces", func(f *fake) {
			f.Interfaces = func() ([]Interface, error) { return nil, errors.New("netlinkrib: operation not permitted") }
		}, `missing interfaces can't be listed: netlinkrib: operation not permitted`, needs + "interfaces, outer interface", 1},
		{"name", func(f *fake) { f.links = append(f.links, Interface{Name: "ipipou1"}) },
			`missing name an interface ipipou1 exists already, and is not ours: give another tunl-dev or number, or remove it: ip link del dev ipipou1`, needs + "name", 1},
		{"running", func(f *fake) { f.runs = true; f.links = append(f.links, Interface{Name: "ipipou1"}) }, `ok name ipipou1 is up: office runs`, "", 1},
		{"dead", func(f *fake) { f.journal = true; f.links = append(f.links, Interface{Name: "ipipou1"}) },
			`ok name ipipou1 was left behind by a dead office, after which the next start cleans up`, "", 1},
		{"port", func(f *fake) { f.put("proc/net/udp", " sl\n 1: 010200C0:2711 00000000:0000 07\n") },
			`missing port UDP port 10001 of 192\.0\.2\.1 is taken: see who has it: ss -lunp 'sport = :10001', .*`, needs + "port", 1},
		{"port of all", func(f *fake) { f.put("proc/net/udp", " sl\n 1: 00000000:2710 00000000:0000 07\n") },
			`missing port UDP port 10000 of 192\.0\.2\.1 is taken: .*`, needs + "port", 1},
		{"port for IPv6", func(f *fake) {
			f.put("proc/net/udp6", " sl\n 1: 00000000000000000000000000000000:2710 00000000000000000000000000000000:0000 07\n")
		},
			`warning port UDP port 10000 is taken for IPv6, and perhaps for IPv4 too: .*`, "", 1},
		{"firewall", func(f *fake) { f.answers["nft -j list ruleset"] = ruleset1 },
			`missing firewall drops UDP port 10001: chain inet filter input has policy drop, and no rule lets it in: nft insert rule inet filter input udp dport 10001 accept, .*`, needs + "firewall", 1},
		{"firewall for all", func(f *fake) { f.answers["nft -j list ruleset"] = strings.ReplaceAll(ruleset1, "10000", "9") },
			`missing firewall drops UDP port 10000: chain inet filter input has policy drop, and no rule lets it in \(and so for 1 more\): nft insert rule .*`, needs + "firewall", 0},
		{"fou", func(f *fake) { f.without("fou") }, `ok backend BPF programs, for the kernel lacks fou`, "office will come up, carried by BPF programs", 5},
		{"root", func(f *fake) { f.put("proc/self/status", "CapEff:\t0000000000000000\n") }, `missing privileges lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_MODULE: run as root, .*`, needs + "privileges", 0},
		{"MTU", func(f *fake) { f.links[1].MTU = 1400 }, `ok mtu 1372 inside ipipou0, of 1400 on eth0`, "", 0},
	} {
		c.test(t, serverConfig...)
	}
	for _, c := range []change{
		{"resolver", func(f *fake) {
			f.Lookup = healthy().Lookup
			f.Host.Lookup = nobody
		}, `missing other end lookup vpn\.example\.net: no such host: correct fou-remote, or .*`, needs + "other end", 0},
		{"path", func(f *fake) { f.pathMTU = 1400 }, `warning mtu 1472 inside ipipou0 is too much for the way to 198\.51\.100\.1, which takes 1400 .*: set mtu = 1372 on both ends`, "", 0},
		{"clock", func(f *fake) { f.synced = false }, `warning clock not kept in step: .*`, "", 0},
		{"neither backend", func(f *fake) { f.without("fou"); f.uninstall("bpftool") },
			`missing backend none: the kernel lacks fou, and BPF can't stand in: bpftool is not installed: one of the two will do`, needs + "backend, fou", 1},
	} {
		c.test(t, clientConfig...)
	}
	change{"address given", func(f *fake) { f.links[1].Addrs = f.links[1].Addrs[1:] },
		`missing outer address no interface has 192\.0\.2\.1: give another fou-local-ip`, needs + "outer address", 0}.test(t, append([]string{`fou-local-ip = "192.0.2.1"`}, serverConfig...)...)
	for _, c := range []change{ // one tunnel by each
		{"bpftool", func(f *fake) { f.uninstall("bpftool") }, `missing bpftool .*`, needs + "bpftool", 0},
		{"fou", func(f *fake) { f.without("fou") }, `missing fou .*`, needs + "fou", 0},
		{"kernel", func(f *fake) {
			for name, file := range f.files {
				f.files[strings.ReplaceAll(name, release, "5.4.0")] = file
			}
			f.put("proc/sys/kernel/osrelease", "5.4.0")
		}, `missing kernel 5\.4\.0: too old for BPF programs \(5\.10\): upgrade the kernel`, needs + "kernel", 0},
	} {
		c.test(t, `static = true`, `fou-dev = "eth0"`, "[[tunnel]]", "number = 0", `encap = "fou"`, `backend = "bpf"`, `fou-remote = "198.51.100.7:1"`, `tunl-ip = "10.9.0.1/30"`,
			"[[tunnel]]", "number = 1", `encap = "fou"`, `backend = "kernel"`, `fou-remote = "198.51.100.8:1"`, `tunl-ip = "10.9.1.1/30"`)
	}
	for _, c := range []change{
		{"read-only", func(f *fake) { f.readOnly = true }, `missing forwarding IPv4 off, and /proc/sys/net/ipv4/ip_forward can't be written from here: .*`, needs + "forwarding IPv4", 0},
		{"forwards", func(f *fake) { f.put("proc/sys/net/ipv4/ip_forward", "1") }, `ok forwarding IPv4 on`, "", 0},
		{"rp_filter", func(f *fake) { f.put("proc/sys/net/ipv4/conf/all/rp_filter", "1") }, `warning rp_filter strict \(all\): .*`, "", 0},
		{"address", func(f *fake) { f.links = f.links[:1] }, `missing outer address no interface has 192\.0\.2\.1: give another fou-local-ip`, needs + "outer address", 0},
		{"address of another interface", func(f *fake) { f.links[1].Addrs, f.links[0].Addrs = nil, f.links[1].Addrs }, `ok outer interface lo, 192\.0\.2\.1`, "", 1}, // and its MTU
		{"no stand-in", func(f *fake) { f.without("ip_gre") },
			`missing backend none: the kernel lacks ip_gre, and BPF can't stand in: ipipou0: mode gre is not carried: .*`, needs + "backend, ip_gre", 1},
	} {
		c.test(t, staticConfig...)
	}
}

// What a host lacks beside what the configuration takes is not said.
func TestInstanceNeedsNoMore(t *testing.T) {
	f := healthy()
	for _, name := range []string{"tc", "bpftool", "conntrack"} {
		f.uninstall(name)
	}
	for _, name := range []string{"sit", "ip_gre", "ip6_tunnel", "tun", "cls_bpf", "sch_ingress"} {
		f.without(name)
	}
	f.synced = false
	f.put("proc/sys/net/ipv4/conf/all/rp_filter", "1")
	c := config(t, serverConfig...)
	if diff := cmp.Diff(text(t, Look(t.Context(), healthy().Host, c)), text(t, Look(t.Context(), f.Host, c))); diff != "" {
		t.Error(diff)
	}
}

// Who may read and write a file is said, with what to do.
func TestSources(t *testing.T) {
	path := filepath.Join(t.TempDir(), "office.toml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c := config(t, serverConfig...)
	c.Sources = []plans.Source{{Path: path, Secret: true}}
	for mode, want := range map[fs.FileMode]string{
		0o600: `ok file \S+/office\.toml is for its owner`,
		0o644: `warning file \S+/office\.toml holds a secret and is open to everybody \(mode 0644\): chmod 600 \S+/office\.toml`,
		0o602: `warning file \S+/office\.toml can be written by others \(mode 0602\), who so decide .*: chmod 600 \S+/office\.toml`,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if got := squeezeAll(text(t, Look(t.Context(), healthy().Host, c))); !regexp.MustCompile("(?m)^" + want + "$").MatchString(got) {
			t.Errorf("mode %o: no line %s in\n%s", mode, want, got)
		}
	}
}

// Ranges of names and ports are short.
func TestRanges(t *testing.T) {
	r := newRanges()
	for _, name := range []string{"ipipou9", "vpn", "ipipou1", "ipipou0", "a007", "ipipou2"} {
		r.name(name)
	}
	if got, want := r.String(), "a007, ipipou0 to ipipou2, ipipou9, vpn"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// The kernel's table of sockets, of either byte order.
func TestSockets(t *testing.T) {
	const text = "  sl  local_address rem_address\n  7: 010200C0:2710 00000000:0000 07\n 8: 0A0B0C0D0E0F:1 \n 9: x:y\n"
	for bigEndian, want := range map[bool]string{false: "192.0.2.1:10000", true: "1.2.0.192:10000"} {
		if got := sockets(text, bigEndian); len(got) != 1 || got[0] != netip.MustParseAddrPort(want) {
			t.Errorf("big-endian %v: %v, want %s", bigEndian, got, want)
		}
	}
	six := sockets("x B80D0120000000000000000001000000:0035 0", false)
	if len(six) != 1 || six[0] != netip.MustParseAddrPort("[2001:db8::1]:53") {
		t.Errorf("IPv6: %v", six)
	}
}

// Whatever the files hold, they are read without a fault.
func FuzzFiles(f *testing.F) {
	f.Add("kernel/net/ipv4/fou.ko.xz: kernel/net/ipv4/ip_tunnel.ko\n", "1: 010200C0:2710 0", "ffff t fou_x\t[fou]\nCONFIG_A=y", "iproute2-6.1.0, libbpf")
	f.Fuzz(func(t *testing.T, modules, udp, lines, said string) {
		for name := range moduleFiles(modules) {
			if strings.ContainsAny(name, "/-\n") {
				t.Errorf("module %q", name)
			}
		}
		sockets(udp, false)
		symbolsIn(strings.NewReader(lines), map[string]bool{"fou_x": true})
		settingsIn(strings.NewReader(lines))
		kernelVersion(lines)
		if v := versionIn(said); v == "" || strings.ContainsAny(v, "\n\x1b") {
			t.Errorf("version %q of %q", v, said)
		}
	})
}
