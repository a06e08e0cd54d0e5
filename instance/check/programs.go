package check

import (
	"fmt"
	"regexp"
	"strings"

	"ipipou/runner"
)

// A program is one that plans call, and how it is asked for its version.
type program struct {
	argv []string
	// The packages that have it.
	debian, fedora, alpine string
}

var programs = map[string]program{
	"ip":         {[]string{"ip", "-V"}, "iproute2", "iproute", "iproute2"},
	"tc":         {[]string{"tc", "-V"}, "iproute2", "iproute-tc", "iproute2-tc"},
	"nft":        {[]string{"nft", "--version"}, "nftables", "nftables", "nftables"},
	"conntrack":  {[]string{"conntrack", "--version"}, "conntrack", "conntrack-tools", "conntrack-tools"},
	"bpftool":    {[]string{"bpftool", "version"}, "bpftool (Ubuntu linux-tools-generic)", "bpftool", "bpftool"},
	"modprobe":   {[]string{"modprobe", "--version"}, "kmod", "kmod", "kmod"},
	"sysctl":     {nil, "procps", "procps-ng", "procps-ng"},
	"mount":      {nil, "mount", "util-linux", "mount"},
	"umount":     {nil, "mount", "util-linux", "umount"},
	"mountpoint": {nil, "util-linux", "util-linux", "util-linux-misc"},
}

// packages names what to install.
func packages(debian, fedora, alpine string) string {
	return fmt.Sprintf("install %s on Debian, %s on Fedora, %s on Alpine", debian, fedora, alpine)
}

// program is the line of a program.
func (k *kernel) program(name string) Line {
	l, known := k.programs[name]
	if !known {
		l = k.installed(name)
		k.programs[name] = l
	}
	return l
}

func (k *kernel) installed(name string) Line {
	p, known := programs[name]
	advice := "install it, or correct the name"
	if known {
		advice = packages(p.debian, p.fedora, p.alpine)
	}
	path, err := k.LookPath(name)
	if err != nil {
		return missing(name, err.Error(), advice)
	}
	if p.argv == nil {
		return ok(name, path)
	}
	if p, _ := k.driver("nfnetlink"); (name == "nft" || name == "conntrack") && p == loadable {
		// They open their sockets whatever they are asked, and the kernel loads what is behind.
		return ok(name, path+" (to ask for its version would load nfnetlink)")
	}
	stdout, err := k.run(p.argv...)
	said := stdout
	if step, failed := err.(*runner.StepError); failed {
		said = step.Stderr
	}
	switch {
	case strings.Contains(said, "BusyBox") && name != "modprobe":
		// Its ip knows no tunnels in UDP, its tc no BPF.
		return missing(name, path+" is BusyBox's, which can't do it", advice)
	case err != nil && name == "modprobe" && strings.Contains(said, "BusyBox"):
		return ok(name, path+", BusyBox's")
	case err != nil:
		// As Ubuntu's bpftool where the package of the running kernel is not there.
		return missing(name, path+" does not run: "+oneLine(err.Error()), advice)
	}
	return ok(name, versionIn(stdout)+" ("+path+")")
}

var number = regexp.MustCompile(`\bv?(\d+(\.\d+)*[-\w.]*)`)

// versionIn is the first word of a program's answer that looks like a version: of
// `ip utility, iproute2-6.1.0, libbpf 1.1.2` it is 6.1.0.
func versionIn(said string) string {
	line, _, _ := strings.Cut(said, "\n")
	if _, after, named := strings.Cut(line, "iproute2-"); named {
		line = after
	}
	if m := number.FindStringSubmatch(line); m != nil {
		return m[1]
	}
	return "of an unknown version"
}

// oneLine is a text without line breaks and what else could disturb a terminal.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }), "; ")
}
