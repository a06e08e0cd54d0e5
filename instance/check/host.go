package check

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// A Host is how the host is looked at; tests have others.
type Host struct {
	Root       fs.FS // its files, by their paths without the slash in front
	Exec       runner.Exec
	LookPath   func(program string) (string, error)
	Stat       func(path string) (fs.FileInfo, error)
	Writable   func(path string) bool
	BigEndian  bool
	Interfaces func() ([]Interface, error)
	Lookup     func(ctx context.Context, network, host string) ([]netip.Addr, error)
	// Synced reports whether something keeps the clock in step.
	Synced func() (bool, error)
	// PathMTU is what the kernel knows of the way between two addresses, in bytes.
	PathMTU func(from, to netip.Addr) (int, error)
	// Left tells whether an instance runs, and whether there is a journal of it.
	Left func(instance string) (runs, journal bool)
}

// An Interface is one of the host's.
type Interface struct {
	Name  string
	MTU   int
	Addrs []netip.Prefix
}

// This is the host that we run on.
func This() Host {
	return Host{
		Root:       os.DirFS("/"),
		Exec:       runner.Command(runner.DefaultTimeout),
		LookPath:   runner.LookPath,
		Stat:       os.Stat,
		Writable:   func(path string) bool { return unix.Access(path, unix.W_OK) == nil },
		BigEndian:  cpu.IsBigEndian,
		Interfaces: interfaces,
		Lookup:     net.DefaultResolver.LookupNetIP,
		Synced:     synced,
		PathMTU:    pathMTU,
		Left:       runner.Left,
	}
}

// interfaces lists them all: to ask for one by its name makes the kernel look for a
// module of that name (dev_load in net/core/dev_ioctl.c).
func interfaces() (all []Interface, err error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		i := Interface{Name: d.Name, MTU: d.MTU}
		addrs, err := d.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				i.Addrs = append(i.Addrs, p)
			}
		}
		all = append(all, i)
	}
	return all, nil
}

// synced asks the kernel's clock discipline, which whoever keeps the time steers
// (adjtimex(2)); to ask takes no privilege.
func synced() (bool, error) {
	var now unix.Timex
	if _, err := unix.Adjtimex(&now); err != nil {
		return false, err
	}
	return now.Status&unix.STA_UNSYNC == 0, nil
}

// pathMTU asks a UDP socket, which is connected and never sends. It knows the interface's
// MTU, a route's, and what a router's ICMP error said lately (ip(7), IP_MTU).
func pathMTU(from, to netip.Addr) (int, error) {
	family, level, probe, ask := unix.AF_INET, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU
	if to.Is6() {
		family, level, probe, ask = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU
	}
	s, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	// Else a socket that may fragment is told the interface's MTU (ip_sk_use_pmtu).
	if err := unix.SetsockoptInt(s, level, probe, unix.IP_PMTUDISC_DO); err != nil {
		return 0, err
	}
	if from.IsValid() {
		if err := unix.Bind(s, sockaddr(from, 0)); err != nil {
			return 0, err
		}
	}
	const discard = 9 // no packet goes there
	if err := unix.Connect(s, sockaddr(to, discard)); err != nil {
		return 0, err
	}
	return unix.GetsockoptInt(s, level, ask)
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// read is a file without the white space around it; "" if it can't be read.
func (h Host) read(path string) string {
	text, err := fs.ReadFile(h.Root, path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func (h Host) exists(path string) bool {
	_, err := fs.Stat(h.Root, path)
	return err == nil
}

// run runs a look to its end. What it says on stderr is in the error.
func (h Host) run(argv ...string) (stdout string, err error) {
	c := plans.Command{Argv: argv}
	stdout, stderr, err := h.Exec(c)
	if err != nil {
		return "", &runner.StepError{Command: c, Stderr: stderr, Err: err}
	}
	return stdout, nil
}

// notPermitted tells that a look wants more privileges.
func notPermitted(err error) bool {
	var step *runner.StepError
	return errors.Is(err, fs.ErrPermission) ||
		errors.As(err, &step) && (strings.Contains(step.Stderr, "Operation not permitted") || strings.Contains(step.Stderr, "you must be root"))
}
