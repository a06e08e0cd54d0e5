package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"ipipou/plans"
)

// A fake is a host made of files and answers.
type fake struct {
	Host
	files    fstest.MapFS
	answers  map[string]string // of commands
	failures map[string]string // what they say on stderr where they fail
	links    []Interface
	runs     bool
	journal  bool
	synced   bool
	readOnly bool
	pathMTU  int
	asked    []string
}

const release = "6.1.0-18-amd64"

// healthy is a host that has everything: Debian's kernel, with the tunnels' drivers as
// modules that are not loaded.
func healthy() *fake {
	f := &fake{
		files: fstest.MapFS{},
		answers: map[string]string{
			"ip -V":               "ip utility, iproute2-6.1.0, libbpf 1.1.2\n",
			"tc -V":               "tc utility, iproute2-6.1.0, libbpf 1.1.2\n",
			"nft --version":       "nftables v1.0.6 (Lester Gooch #5)\n",
			"conntrack --version": "conntrack v1.4.7 (conntrack-tools)\n",
			"bpftool version":     "bpftool v7.1.0\nusing libbpf v1.1\nfeatures: libbpf_strict\n",
			"modprobe --version":  "kmod version 30\n+ZSTD +XZ -ZLIB +LIBCRYPTO -EXPERIMENTAL\n",
			"nft -j list ruleset": `{"nftables": [{"metainfo": {"version": "1.0.6"}}]}`,
			"iptables-legacy -S":  "-P INPUT ACCEPT\n",
			"other program":       "",
		},
		failures: map[string]string{},
		links: []Interface{
			{"lo", 65536, []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8"), netip.MustParsePrefix("::1/128")}},
			{"eth0", 1500, []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("2001:db8::1/64")}},
		},
		synced: true, pathMTU: 1500,
	}
	for name, text := range map[string]string{
		"proc/sys/kernel/osrelease":                   release + "\n",
		"proc/self/status":                            "Name:\tipipou\nCapEff:\t000001ffffffffff\n",
		"proc/self/uid_map":                           "         0          0 4294967295\n",
		"proc/modules":                                "virtio_net 1 0 - Live 0x0\n",
		"proc/net/udp":                                "  sl  local_address rem_address   st\n  1: 00000000:0044 00000000:0000 07\n",
		"proc/net/udp6":                               "  sl  local_address rem_address   st\n",
		"proc/sys/net/ipv4/ip_forward":                "0\n",
		"proc/sys/net/ipv4/conf/all/rp_filter":        "0\n",
		"proc/sys/net/ipv4/conf/eth0/rp_filter":       "0\n",
		"proc/sys/net/ipv6/conf/all/forwarding":       "0\n",
		"proc/kallsyms":                               "0000000000000000 T packet_rcv_fanout\n0000000000000000 t packet_rcv\t[af_packet]\n",
		"sys/module/nf_tables/initstate":              "live\n",
		"sys/module/nfnetlink/initstate":              "live\n",
		"dev/net/tun":                                 "",
		"boot/config-" + release:                      "CONFIG_NET_FOU=m\nCONFIG_NET_FOU_IP_TUNNELS=y\n# CONFIG_X is not set\n",
		"lib/modules/" + release + "/modules.builtin": "kernel/net/packet/nothing.ko\n",
	} {
		f.put(name, text)
	}
	dep := ""
	for name, dir := range map[string]string{
		"fou": "net/ipv4", "fou6": "net/ipv6", "ipip": "net/ipv4", "sit": "net/ipv6", "ip_gre": "net/ipv4", "ip6_tunnel": "net/ipv6", "ip6_gre": "net/ipv6",
		"tun": "drivers/net", "cls_bpf": "net/sched", "sch_ingress": "net/sched", "nf_tables": "net/netfilter", "nfnetlink": "net/netfilter",
	} {
		path := "kernel/" + dir + "/" + name + ".ko.xz"
		dep += path + ": kernel/net/ipv4/ip_tunnel.ko.xz\n"
		f.put("lib/modules/"+release+"/"+path, "")
	}
	f.put("lib/modules/"+release+"/modules.dep", dep)
	f.Host = Host{
		Root: f.files, Exec: f.exec, LookPath: f.lookPath, Stat: os.Stat,
		Writable:   func(string) bool { return !f.readOnly },
		Interfaces: func() ([]Interface, error) { return f.links, nil },
		Lookup: func(_ context.Context, network, host string) ([]netip.Addr, error) {
			if host != "vpn.example.net" {
				return nil, fmt.Errorf("lookup %s: no such host", host)
			}
			return []netip.Addr{netip.MustParseAddr(map[string]string{"ip4": "198.51.100.1", "ip6": "2001:db8:1::1"}[network])}, nil
		},
		Synced:  func() (bool, error) { return f.synced, nil },
		PathMTU: func(_, _ netip.Addr) (int, error) { return f.pathMTU, nil },
		Left:    func(string) (bool, bool) { return f.runs, f.journal },
	}
	return f
}

func (f *fake) put(name, text string) { f.files[name] = &fstest.MapFile{Data: []byte(text)} }

// without takes a driver away: the file, and the line that names it.
func (f *fake) without(name string) {
	dep := "lib/modules/" + release + "/modules.dep"
	var lines []string
	for line := range strings.Lines(string(f.files[dep].Data)) {
		if !strings.Contains(line, "/"+name+".ko") {
			lines = append(lines, line)
		}
	}
	f.put(dep, strings.Join(lines, ""))
	delete(f.files, "sys/module/"+name+"/initstate")
}

// uninstall takes a program away.
func (f *fake) uninstall(name string) {
	for command := range f.answers {
		if strings.HasPrefix(command, name+" ") {
			delete(f.answers, command)
		}
	}
}

func (f *fake) lookPath(name string) (string, error) {
	for command := range f.answers {
		if strings.HasPrefix(command, name+" ") {
			return "/usr/sbin/" + name, nil
		}
	}
	switch name {
	case "ip", "tc", "nft", "conntrack", "bpftool", "modprobe", "iptables-legacy", "ip6tables-legacy":
		return "", errors.New(name + " is not installed")
	}
	return "/usr/bin/" + name, nil
}

func (f *fake) exec(c plans.Command) (stdout, stderr string, err error) {
	command := strings.Join(c.Argv, " ")
	f.asked = append(f.asked, command)
	if said, fails := f.failures[command]; fails {
		return "", said, errors.New("exit status 1")
	}
	answer, known := f.answers[command]
	if !known {
		return "", command + ": unknown", errors.New("exit status 127")
	}
	return answer, "", nil
}

// config makes a configuration of lines of TOML.
func config(t testing.TB, lines ...string) *plans.Config {
	t.Helper()
	f, err := plans.Load("./office.toml", func(string) ([]byte, error) { return []byte(strings.Join(lines, "\n")), nil })
	if err != nil {
		t.Fatal(err)
	}
	c, err := plans.Resolve([]string{"./office.toml"}, []plans.File{f}, plans.Settings{}, func(string) ([]byte, error) { return nil, fs.ErrNotExist })
	if err != nil {
		t.Fatal(err)
	}
	c.Sources = nil // there is no such file
	return &c
}

// nobody is a resolver that knows nothing.
func nobody(_ context.Context, _, host string) ([]netip.Addr, error) {
	return nil, fmt.Errorf("lookup %s: no such host", host)
}
