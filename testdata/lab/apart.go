package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Apart runs this same program once more, with the same arguments and with ipipou built from this tree at hand (Bin), on
// this very kernel but in network, mount and PID namespaces of its own. All that it makes is seen by nobody else, and
// the kernel removes it when the program ends, however it does. IsApart tells the program where it is.
func Apart(ctx context.Context) (exit int, err error) {
	if os.Geteuid() != 0 {
		return 0, setupError{errors.New("must be root: namespaces want it")}
	}
	bin, err := buildBinary(ctx)
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(filepath.Dir(bin))
	// The child's Pdeathsig is about the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "IPIPOU_LAB=apart", "IPIPOU_BIN="+bin)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = cmd.Run()
	if exited := (*exec.ExitError)(nil); errors.As(err, &exited) && exited.Exited() {
		return exited.ExitCode(), nil
	} else if err != nil {
		return 0, fmt.Errorf("in namespaces of its own: %w", err)
	}
	return 0, nil
}

// IsApart reports whether this is the program that Apart started: the first process of its namespace, for no variable
// that somebody happens to have set must hide a host's /run.
func IsApart() bool { return os.Getenv("IPIPOU_LAB") == "apart" && os.Getpid() == 1 }

// needs are what it takes for tunnels by BPF between namespaces, and how that is found out, in order.
var needs = []struct{ what, command string }{
	{"IPv6", "ls /proc/sys/net/ipv6/conf"},
	{"veth devices", "ip link add v0 type veth peer name v1"},
	{"bridges", "ip link add br0 type bridge"},
	{"NAT by nft", "nft 'add table t; add chain t c { type nat hook postrouting priority 0; }; add rule t c masquerade'"},
	{"connection tracking", "conntrack -L"},
	{"TUN devices", "test -c /dev/net/tun || modprobe tun && ip tuntap add dev t0 mode tun"},
	{"clsact in tc", "tc qdisc add dev v0 clsact"},
	{"BPF in tc", "tc filter add dev v0 ingress bpf direct-action bytecode '1,6 0 0 0'"},
	{"BPF maps", "bpftool map show"},
}

// SettleApart gives the program a /proc and a /run of its own, and says what the host lacks.
func SettleApart() error {
	signal.Notify(make(chan os.Signal, 1), os.Interrupt) // from a terminal it comes here, too: Apart acts on it
	for _, m := range []struct {
		kind, where string
		flags       uintptr
	}{{"", "/", unix.MS_REC | unix.MS_PRIVATE}, {"proc", "/proc", 0}, {"tmpfs", "/run", 0}} {
		if err := unix.Mount(m.kind, m.where, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.where, err)
		}
	}
	for _, need := range needs {
		var failed *commandError
		if _, err := run("", "sh", "-c", need.command); errors.As(err, &failed) {
			why := strings.Join(strings.Fields(failed.stderr), " ")
			return fmt.Errorf("this host has no %s: `%s` ends with %q (%w)", need.what, need.command, why, failed.err)
		}
	}
	return nil
}
