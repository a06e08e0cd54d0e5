package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// text is the report as it is printed.
func text(t testing.TB, r Report) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Text(&b, false); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Of a host that has everything, nothing is but ok.
func TestHealthy(t *testing.T) {
	r := Look(t.Context(), healthy().Host, nil)
	for _, l := range r.Lines {
		if l.State != OK || l.Advice != "" {
			t.Errorf("%+v", l)
		}
	}
	if want := "kernel drivers: yes; BPF: yes"; !r.Works || r.Summary != want {
		t.Errorf("works %v, %q, want %q", r.Works, r.Summary, want)
	}
	var names []string
	for _, l := range r.Lines {
		names = append(names, l.Name)
	}
	want := strings.Fields("kernel privileges fou ipip nf_tables af_packet ip nft modprobe tun cls_bpf sch_ingress tc bpftool" +
		" sit ip_gre ip6_tunnel conntrack rp_filter forwarding·IPv4 forwarding·IPv6 firewall clock mtu")
	for i := range want {
		want[i] = strings.ReplaceAll(want[i], "·", " ")
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

// A change of the host, and the one line and the last that it changes.
type change struct {
	name    string
	do      func(f *fake)
	line    string // of the text, that there is in place of the healthy host's
	summary string // "": as before
	more    int    // lines beside it that may change
}

func (c change) test(t *testing.T, settings ...string) {
	t.Run(c.name, func(t *testing.T) {
		report := func(f *fake) Report {
			if len(settings) == 0 {
				return Look(t.Context(), f.Host, nil)
			}
			return Look(t.Context(), f.Host, config(t, settings...))
		}
		before := report(healthy())
		if !before.Works {
			t.Fatalf("before the change: %s", text(t, before))
		}
		f := healthy()
		c.do(f)
		after := report(f)
		var changed []string
		old := strings.Split(squeezeAll(text(t, before)), "\n")
		for line := range strings.SplitSeq(squeezeAll(text(t, after)), "\n") {
			if !slices.Contains(old, line) && line != after.Summary {
				changed = append(changed, line)
			}
		}
		re := regexp.MustCompile("^(" + c.line + ")$")
		if !slices.ContainsFunc(changed, re.MatchString) || len(changed) != 1+c.more {
			t.Errorf("changed lines:\n%s\nwant %s", strings.Join(changed, "\n"), c.line)
		}
		want := c.summary
		if want == "" {
			want = before.Summary
		}
		if after.Summary != want {
			t.Errorf("summary %q, want %q", after.Summary, want)
		}
		if lacking := strings.HasPrefix(c.line, "missing") && (len(settings) > 0 || !strings.Contains(want, "yes")); after.Works == lacking {
			t.Errorf("works %v", after.Works)
		}
	})
}

// squeeze leaves one blank between words, whatever the columns' widths.
func squeeze(line string) string { return strings.Join(strings.Fields(line), " ") }

// Each thing is taken away in turn, and that line says so, and no other.
func TestLacksInTurn(t *testing.T) {
	driver := func(name string) func(f *fake) { return func(f *fake) { f.without(name) } }
	program := func(name string) func(f *fake) { return func(f *fake) { f.uninstall(name) } }
	file := func(name, text string) func(f *fake) { return func(f *fake) { f.put(name, text) } }
	kernelPackages := `: install linux-image-amd64 \(Ubuntu linux-modules-extra-6\.1\.0-18-amd64\) on Debian, kernel-modules and kernel-modules-extra on Fedora, linux-lts or linux-virt on Alpine`
	gone := `neither in the kernel nor among its modules \(.*\)` + kernelPackages
	const noKernel, noBPF = "kernel drivers: no (%); BPF: yes", "kernel drivers: yes; BPF: no (%)"
	lacks := func(of, what string) string { return strings.ReplaceAll(of, "%", what) }
	capabilities := func(without ...uint) func(f *fake) {
		return func(f *fake) {
			f.put("proc/self/status", "CapEff:\t"+asHex(0x1ffffffffff&^capSet(without...))+"\n")
		}
	}
	for _, c := range []change{
		{"fou", driver("fou"), `missing fou ` + gone, lacks(noKernel, "fou"), 0},
		{"ipip", driver("ipip"), `missing ipip ` + gone, lacks(noKernel, "ipip"), 0},
		{"sit", driver("sit"), `missing sit ` + gone, "", 0},
		{"ip_gre", driver("ip_gre"), `missing ip_gre ` + gone, "", 0},
		{"ip6_tunnel", driver("ip6_tunnel"), `missing ip6_tunnel ` + gone, "", 0},
		{"tun", driver("tun"), `missing tun ` + gone, lacks(noBPF, "tun"), 0},
		{"cls_bpf", driver("cls_bpf"), `missing cls_bpf ` + gone, lacks(noBPF, "cls_bpf"), 0},
		{"sch_ingress", driver("sch_ingress"), `missing sch_ingress ` + gone, lacks(noBPF, "sch_ingress"), 0},
		{"nf_tables", driver("nf_tables"), `missing nf_tables ` + gone, lacks(noKernel, "nf_tables"), 1}, // and none in the way
		{"af_packet", file("proc/kallsyms", ""), `missing af_packet ` + gone, "kernel drivers: no (af_packet); BPF: no (af_packet)", 0},
		{"module file", func(f *fake) { delete(f.files, "lib/modules/"+release+"/kernel/net/ipv4/fou.ko.xz") }, `missing fou ` + gone, lacks(noKernel, "fou"), 0},
		{"loaded", file("sys/module/fou/initstate", "live"), `ok fou loaded \(UDP around a tunnel\)`, "", 0},
		{"built in", file("lib/modules/"+release+"/modules.builtin", "kernel/net/ipv4/fou.ko\n"), `ok fou built in \(UDP around a tunnel\)`, "", 0},
		{"without tunnels", file("boot/config-"+release, "CONFIG_NET_FOU=m\n# CONFIG_NET_FOU_IP_TUNNELS is not set\n"),
			`missing fou a module, not loaded yet, but tunnels can't use it \(CONFIG_NET_FOU_IP_TUNNELS is off\): take a kernel with it, or backend = "bpf"`, lacks(noKernel, "fou"), 0},
		{"forbidden", file("etc/modprobe.d/cis.conf", "blacklist fou\ninstall fou /bin/false\n"),
			`missing fou a module that may not be loaded: /etc/modprobe\.d/cis\.conf: install fou /bin/false \(.*\): allow it there`, lacks(noKernel, "fou"), 0},

		{"ip", program("ip"), `missing ip ip is not installed: install iproute2 on Debian, iproute on Fedora, iproute2 on Alpine`, "kernel drivers: no (ip); BPF: no (ip)", 0},
		{"nft", program("nft"), `missing nft nft is not installed: install nftables on Debian, nftables on Fedora, nftables on Alpine`, lacks(noKernel, "nft"), 1}, // nor can rules be listed
		{"tc", program("tc"), `missing tc tc is not installed: install iproute2 on Debian, iproute-tc on Fedora, iproute2-tc on Alpine`, lacks(noBPF, "tc"), 0},
		{"bpftool", program("bpftool"), `missing bpftool bpftool is not installed: install bpftool \(Ubuntu linux-tools-generic\) on Debian, bpftool on Fedora, bpftool on Alpine`, lacks(noBPF, "bpftool"), 0},
		{"conntrack", program("conntrack"), `warning conntrack conntrack is not installed: nothing here needs it, but to look what is tracked: install conntrack on Debian, conntrack-tools on Fedora, conntrack-tools on Alpine`, "", 0},
		{"nft that would load", func(f *fake) { delete(f.files, "sys/module/nfnetlink/initstate") },
			`ok nft /usr/sbin/nft \(to ask for its version would load nfnetlink\)`, "", 1}, // and conntrack
		{"modprobe", program("modprobe"), `missing modprobe modprobe is not installed: install kmod on Debian, kmod on Fedora, kmod on Alpine`, "kernel drivers: no (modprobe); BPF: no (modprobe)", 0},
		{"BusyBox's ip", func(f *fake) { f.failures["ip -V"] = "BusyBox v1.36.1 multi-call binary.\n\nUsage: ip" },
			`missing ip /usr/sbin/ip is BusyBox's, which can't do it: install iproute2 on Debian, .*`, "kernel drivers: no (ip); BPF: no (ip)", 0},
		{"BusyBox's modprobe", func(f *fake) {
			f.failures["modprobe --version"] = "modprobe: unrecognized option: version\nBusyBox v1.36.1"
		},
			`ok modprobe /usr/sbin/modprobe, BusyBox's`, "", 0},
		{"Ubuntu's bpftool", func(f *fake) { f.failures["bpftool version"] = "WARNING: bpftool not found for kernel 6.8.0\n\n" },
			`missing bpftool /usr/sbin/bpftool does not run: bpftool version: WARNING: bpftool not found for kernel 6\.8\.0: install .*`, lacks(noBPF, "bpftool"), 0},

		{"root", capabilities(12), `missing privileges lacks CAP_NET_ADMIN: run as root, or give a unit AmbientCapabilities=CAP_NET_ADMIN`, "kernel drivers: no (privileges); BPF: no (privileges)", 0},
		{"raw sockets", capabilities(13), `missing privileges lacks CAP_NET_RAW: .*`, "kernel drivers: no (privileges); BPF: no (privileges)", 0},
		{"BPF's privileges", capabilities(21), `warning privileges lacks CAP_SYS_ADMIN for BPF: .*AmbientCapabilities=CAP_SYS_ADMIN`, lacks(noBPF, "privileges"), 0},
		{"loading", capabilities(16), `missing privileges lacks CAP_SYS_MODULE: have them loaded at boot: name fou, ipip, tun in /etc/modules-load\.d/ipipou\.conf`, "kernel drivers: no (privileges); BPF: no (privileges)", 0},
		{"namespace", file("proc/self/uid_map", "0 1000 1\n"), `missing privileges lacks CAP_SYS_MODULE, CAP_SYS_ADMIN: this is a user namespace: .*`, "kernel drivers: no (privileges); BPF: no (privileges)", 0},

		{"no /dev/net/tun", func(f *fake) { delete(f.files, "dev/net/tun"); f.put("sys/module/tun/initstate", "live") },
			`missing tun loaded, but there is no /dev/net/tun: give it to the container .*`, lacks(noBPF, "tun"), 0},
		{"processor", func(f *fake) { f.BigEndian = true; f.Host.BigEndian = true }, `missing processor big-endian: .*backend = "kernel"`, lacks(noBPF, "processor"), 0},
		{"forwarding", file("proc/sys/net/ipv4/ip_forward", "1\n"), `ok forwarding IPv4 on`, "", 0},
		{"rp_filter", file("proc/sys/net/ipv4/conf/eth0/rp_filter", "1\n"), `warning rp_filter strict \(eth0\): .*: sysctl -w net\.ipv4\.conf\.all\.rp_filter=2 .*`, "", 0},
		{"clock", func(f *fake) { f.synced = false }, `warning clock not kept in step: .*: install systemd-timesyncd or chrony on Debian, chrony on Fedora, chrony on Alpine, or set auth-challenge on both ends`, "", 0},
		{"links", func(f *fake) { f.links = f.links[:1] }, `warning mtu no interface has an IPv4 address: bring one up`, "", 0},
		{"MTU", func(f *fake) { f.links[1].MTU = 1400 }, `ok mtu eth0 1400 \(1372 inside ipip over FOU\)`, "", 0},
		{"rules not permitted", func(f *fake) {
			f.failures["nft -j list ruleset"] = "Operation not permitted (you must be root)\nnetlink: Error: cache initialization failed"
		},
			`warning firewall nft's rules can't be listed: not permitted: run as root`, "", 0},
		{"old tables", func(f *fake) {
			f.put("proc/net/ip_tables_names", "nat\nfilter\n")
			f.failures["iptables-legacy -S"] = "modprobe: FATAL"
		}, `warning firewall the rules of the kernel's older tables \(iptables\) can't be listed: iptables-legacy -S: modprobe: FATAL: install iptables on Debian, iptables-legacy on Fedora, iptables-legacy on Alpine`, "", 0},
	} {
		c.test(t)
	}
}

// Old kernels, whose files have other names.
func TestKernelVersions(t *testing.T) {
	for release, want := range map[string]string{
		"4.19.0-26-amd64": "missing kernel 4.19.0-26-amd64: too old for kernel drivers (5.2) and BPF (5.10): upgrade the kernel",
		"5.4.0":           "warning kernel 5.4.0: too old for BPF (5.10): upgrade the kernel",
		"5.10.0-rc1":      "ok kernel 5.10.0-rc1",
		"10.0":            "ok kernel 10.0",
		"strange":         "missing kernel strange: too old for kernel drivers (5.2) and BPF (5.10): upgrade the kernel",
	} {
		f := healthy()
		f.put("proc/sys/kernel/osrelease", release)
		if got := squeeze(strings.SplitN(text(t, Look(t.Context(), f.Host, nil)), "\n", 2)[0]); got != want {
			t.Errorf("%s: %q, want %q", release, got, want)
		}
	}
}

// What a kernel without its modules says.
func TestNoModules(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(f *fake)
		want string
	}{
		{"none", func(f *fake) { delete(f.files, "proc/modules"); delete(f.files, "lib/modules/"+release+"/modules.dep") },
			"missing fou not in this kernel, which takes no modules (UDP around a tunnel): boot a kernel that has it, as those of distributions do (Debian linux-image-amd64, Fedora kernel, Alpine linux-lts)"},
		{"upgraded", func(f *fake) { delete(f.files, "lib/modules/"+release+"/modules.dep") },
			"missing fou not in the kernel, whose modules are not in /lib/modules/6.1.0-18-amd64 (UDP around a tunnel): reboot if the kernel was upgraded: there are modules of others"},
		{"locked", func(f *fake) { f.put("proc/sys/kernel/modules_disabled", "1\n") },
			"missing fou a module, but no more can be loaded until the next boot (sysctl kernel.modules_disabled) (UDP around a tunnel): allow it there"},
	} {
		f := healthy()
		c.do(f)
		if got := text(t, Look(t.Context(), f.Host, nil)); !strings.Contains("\n"+squeezeAll(got), "\n"+c.want+"\n") {
			t.Errorf("%s: no line %q in\n%s", c.name, c.want, got)
		}
	}
}

func squeezeAll(text string) string {
	var lines []string
	for line := range strings.SplitSeq(text, "\n") {
		lines = append(lines, squeeze(line))
	}
	return strings.Join(lines, "\n")
}

// No look names an interface, lists rules where that would load what makes them, or does
// anything but look.
func TestOnlyLooks(t *testing.T) {
	f := healthy()
	delete(f.files, "sys/module/nf_tables/initstate")
	delete(f.files, "sys/module/nfnetlink/initstate")
	for _, c := range [][]string{nil, {"server = true", `fou-dev = "eth0"`, `auth-token = "t"`, "forward = true", `forward-to = ["eth0"]`}} {
		if c == nil {
			Look(t.Context(), f.Host, nil)
		} else {
			Look(t.Context(), f.Host, config(t, c...))
		}
	}
	slices.Sort(f.asked)
	want := []string{"bpftool version", "ip -V", "modprobe --version", "tc -V"}
	if diff := cmp.Diff(want, slices.Compact(f.asked)); diff != "" {
		t.Error(diff)
	}
}

// What is printed for programs is what is printed for people.
func TestJSON(t *testing.T) {
	f := healthy()
	f.without("fou")
	r := Look(t.Context(), f.Host, nil)
	var b bytes.Buffer
	if err := r.JSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(r, back); diff != "" {
		t.Error(diff)
	}
	for _, part := range []string{`"name": "fou",`, `"state": "missing"`, `"works": true`, `"summary": "kernel drivers: no (fou); BPF: yes"`} {
		if !strings.Contains(b.String(), part) {
			t.Errorf("no %s in %s", part, b.String())
		}
	}
}

// Colours are where they are wanted alone.
func TestColours(t *testing.T) {
	r := Report{Lines: []Line{ok("ip", "6.1.0"), missing("nft", "not installed", "install it")}, Summary: "no"}
	var b bytes.Buffer
	if err := r.Text(&b, true); err != nil {
		t.Fatal(err)
	}
	want := "\x1b[32mok     \x1b[0m  ip   6.1.0\n\x1b[31mmissing\x1b[0m  nft  not installed: install it\nno\n"
	if b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if got := text(t, r); strings.Contains(got, "\x1b") {
		t.Errorf("colours in %q", got)
	}
}

func asHex(set uint64) string { return fmt.Sprintf("%016x", set) }
