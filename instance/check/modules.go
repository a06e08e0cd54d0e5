package check

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A driver is a part of the kernel's that may be a module.
type driver struct {
	symbol string // a function of it, which /proc/kallsyms names even where nothing else does
	option string // of the kernel's configuration
	use    string
}

var drivers = map[string]driver{
	"fou":         {"__fou_build_header", "NET_FOU", "UDP around a tunnel"},
	"fou6":        {"fou6_build_header", "IPV6_FOU", "UDP over IPv6 around a tunnel"},
	"ipip":        {"ipip_tunnel_xmit", "NET_IPIP", "mode ipip"},
	"sit":         {"sit_tunnel_xmit", "IPV6_SIT", "modes sit, any4 and isatap"},
	"ip_gre":      {"ipgre_xmit", "NET_IPGRE", "mode gre"},
	"ip6_tunnel":  {"ip6_tnl_start_xmit", "IPV6_TUNNEL", "modes ip6ip6, ipip6 and any6"},
	"ip6_gre":     {"ip6gre_tunnel_xmit", "IPV6_GRE", "mode gre6"},
	"ip_vti":      {"vti_tunnel_xmit", "NET_IPVTI", "mode vti"},
	"nf_tables":   {"nft_do_chain", "NF_TABLES", "the gate, and forwarding"},
	"nfnetlink":   {"nfnetlink_subsys_register", "NETFILTER_NETLINK", "what nft talks to"},
	"af_packet":   {"packet_rcv", "PACKET", "authentication"},
	"tun":         {"tun_net_xmit", "TUN", "interfaces of BPF tunnels"},
	"cls_bpf":     {"cls_bpf_classify", "NET_CLS_BPF", "BPF programs on an interface"},
	"sch_ingress": {"clsact_init", "NET_SCH_INGRESS", "BPF programs on an interface"},
}

// A presence is how far a driver is there.
type presence int

const (
	absent presence = iota
	loadable
	present
)

// A kernel is what its files tell of it, and the programs that talk to it. What was asked
// is remembered.
type kernel struct {
	Host
	release  string
	builtin  map[string]string // module to its file, as in modules.builtin
	files    map[string]string // the same of those that can be loaded, as in modules.dep
	symbols  map[string]bool   // those of drivers
	settings map[string]string // of its configuration, without CONFIG_; nil: not known
	programs map[string]Line   // those that were looked for
}

func (h Host) kernel() *kernel {
	k := &kernel{Host: h, release: h.read("proc/sys/kernel/osrelease"), programs: map[string]Line{}}
	k.builtin = moduleFiles(h.read(k.dir("modules.builtin")))
	k.files = moduleFiles(h.read(k.dir("modules.dep")))
	k.settings = k.configuration()
	return k
}

func (k *kernel) dir(name string) string { return path.Join("lib/modules", k.release, name) }

// moduleFiles are the files that are named first in each line of modules.builtin or
// modules.dep (modules.dep(5)), by the modules' names.
func moduleFiles(text string) map[string]string {
	files := map[string]string{}
	for line := range strings.Lines(text) {
		file, _, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, ending, ok := strings.Cut(path.Base(file), ".")
		if ok && strings.HasPrefix(ending, "ko") { // .ko.xz, .ko.zst
			files[strings.ReplaceAll(name, "-", "_")] = file
		}
	}
	return files
}

// driver tells how far a driver is there, and in which way.
func (k *kernel) driver(name string) (p presence, how string) {
	if k.exists("sys/module/" + name + "/initstate") {
		return present, "loaded"
	}
	if k.builtin[name] != "" || k.exists("sys/module/"+name) || k.settings[drivers[name].option] == "y" {
		return present, "built in"
	}
	if k.symbol(drivers[name].symbol) {
		return present, "in the kernel"
	}
	file := k.files[name]
	switch {
	case file == "" || !k.exists(k.dir(strings.TrimPrefix(file, "/"))) && !k.exists(strings.TrimPrefix(file, "/")):
		return absent, k.why()
	case k.read("proc/sys/kernel/modules_disabled") == "1":
		return absent, "a module, but no more can be loaded until the next boot (sysctl kernel.modules_disabled)"
	}
	if by := k.forbidden(name); by != "" {
		return absent, "a module that may not be loaded: " + by
	}
	return loadable, "a module, not loaded yet"
}

// why is the reason for which there is no module.
func (k *kernel) why() string {
	switch {
	case !k.exists("proc/modules"):
		return "not in this kernel, which takes no modules"
	case !k.exists(k.dir("modules.dep")):
		return "not in the kernel, whose modules are not in /" + k.dir("")
	}
	return "neither in the kernel nor among its modules"
}

// forbidden is the line of modprobe.d(5) that has a command in place of the module, as
// for those that are not to be loaded. (A blacklist is for aliases only.)
func (k *kernel) forbidden(name string) string {
	for _, dir := range []string{"etc/modprobe.d", "run/modprobe.d", "usr/lib/modprobe.d", "lib/modprobe.d"} {
		files, _ := fs.Glob(k.Root, dir+"/*.conf")
		for _, f := range files {
			for line := range strings.Lines(k.read(f)) {
				words := strings.Fields(line)
				if len(words) > 2 && words[0] == "install" && strings.ReplaceAll(words[1], "-", "_") == name &&
					slices.Contains([]string{"false", "true"}, path.Base(words[2])) {
					return fmt.Sprintf("/%s: %s", f, strings.TrimSpace(line))
				}
			}
		}
	}
	return ""
}

// symbol reports whether the running kernel has a function. The file is large, so it is
// read when nothing else has told, and once.
func (k *kernel) symbol(name string) bool {
	if k.symbols == nil {
		wanted := map[string]bool{}
		for _, d := range drivers {
			wanted[d.symbol] = true
		}
		k.symbols = map[string]bool{}
		if f, err := k.Root.Open("proc/kallsyms"); err == nil {
			defer f.Close()
			k.symbols = symbolsIn(f, wanted)
		}
	}
	return k.symbols[name]
}

// symbolsIn are those of the wanted symbols that the text has: an address, a type and a
// name a line, and the module in brackets if it is one's.
func symbolsIn(r io.Reader, wanted map[string]bool) map[string]bool {
	found := map[string]bool{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		_, rest, _ := strings.Cut(lines.Text(), " ")
		_, name, _ := strings.Cut(rest, " ")
		if name, _, _ = strings.Cut(name, "\t"); wanted[name] {
			found[name] = true
		}
	}
	return found
}

// configuration is the kernel's, from wherever it is kept.
func (k *kernel) configuration() map[string]string {
	for _, file := range []string{"proc/config.gz", k.dir("config"), "boot/config-" + k.release} {
		f, err := k.Root.Open(file)
		if err != nil {
			continue
		}
		defer f.Close()
		var r io.Reader = f
		if strings.HasSuffix(file, ".gz") {
			if r, err = gzip.NewReader(f); err != nil {
				continue
			}
		}
		return settingsIn(r)
	}
	return nil
}

// settingsIn are the lines CONFIG_NAME=VALUE of a kernel's configuration.
func settingsIn(r io.Reader) map[string]string {
	settings := map[string]string{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if name, value, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "CONFIG_"), "="); ok {
			settings[name] = value
		}
	}
	return settings
}

// look is the line of a driver.
func (k *kernel) look(name string) Line {
	p, how := k.driver(name)
	found := how + " (" + drivers[name].use + ")"
	if p == absent {
		return missing(name, found, k.remedy(name))
	}
	// The port opens, and no interface can use it.
	if value, known := k.settings["NET_FOU_IP_TUNNELS"]; name == "fou" && len(k.settings) > 0 && (!known || value != "y") {
		return missing(name, how+", but tunnels can't use it (CONFIG_NET_FOU_IP_TUNNELS is off)", "take a kernel with it, or backend = \"bpf\"")
	}
	if name == "tun" && p == present && !k.exists("dev/net/tun") {
		return missing(name, how+", but there is no /dev/net/tun", "give it to the container (docker run --device /dev/net/tun), or mknod /dev/net/tun c 10 200")
	}
	return ok(name, found)
}

// remedy is where a driver is to be had.
func (k *kernel) remedy(name string) string {
	p, how := k.driver(name)
	switch {
	case p == absent && strings.HasPrefix(how, "a module"):
		return "allow it there"
	case !k.exists("proc/modules"):
		return "boot a kernel that has it, as those of distributions do (Debian linux-image-amd64, Fedora kernel, Alpine linux-lts)"
	case !k.exists(k.dir("modules.dep")):
		if others, _ := fs.Glob(k.Root, "lib/modules/*"); len(others) > 0 {
			return "reboot if the kernel was upgraded: there are modules of others"
		}
		return "install the modules of this very kernel; in a container, load it on its host"
	}
	return packages("linux-image-amd64 (Ubuntu linux-modules-extra-"+k.release+")", "kernel-modules and kernel-modules-extra", "linux-lts or linux-virt")
}
