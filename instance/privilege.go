package instance

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// A capset is a set of capabilities, bit N for that of number N (capabilities(7)).
type capset uint64

func caps(numbers ...uint) (set capset) {
	for _, n := range numbers {
		set |= 1 << n
	}
	return set
}

// capabilities are the kernel's three sets of a thread, as capget(2) has them.
type capabilities struct{ effective, permitted, inheritable capset }

// words are the sets as the system calls take them: 32 bits of each, then the rest.
func (c capabilities) words() [2]unix.CapUserData {
	word := func(shift uint) unix.CapUserData {
		return unix.CapUserData{
			Effective: uint32(c.effective >> shift), Permitted: uint32(c.permitted >> shift), Inheritable: uint32(c.inheritable >> shift),
		}
	}
	return [2]unix.CapUserData{word(0), word(32)}
}

func current() (c capabilities, err error) {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var w [2]unix.CapUserData
	if err := unix.Capget(&head, &w[0]); err != nil {
		return c, err
	}
	join := func(low, high uint32) capset { return capset(low) | capset(high)<<32 }
	return capabilities{
		join(w[0].Effective, w[1].Effective), join(w[0].Permitted, w[1].Permitted), join(w[0].Inheritable, w[1].Inheritable),
	}, nil
}

// privileged tells beforehand what the kernel would refuse half-way.
func privileged(needed ...uint) error {
	have, err := current()
	if err != nil {
		return err
	}
	if want := caps(needed...); have.effective&want != want {
		return errors.New("not permitted: run as root, or with CAP_NET_ADMIN and CAP_NET_RAW (--print-only needs neither, static tunnels that are not pinged not the latter)")
	}
	return nil
}

// needs are the capabilities that the instance can't do without: its own, and those of
// the commands it runs. Before `up` is done there are some more.
//
//   - NET_ADMIN: all of ip, nft, tc, conntrack; also the system's forwarding.
//   - NET_RAW: authd's sockets, and the one that pings. Other static tunnels have none.
//   - NET_BIND_SERVICE: a UDP port that the kernel gives to nobody else, for
//     `ip fou add` asks as its caller (inet_bind), and BPF's is reserved by us.
//   - SYS_MODULE: modprobe, while coming up.
//   - SYS_ADMIN, with BPF: mount(2) and umount(2) of its file system, and maps by their
//     number (BPF_MAP_GET_FD_BY_ID). It stands for CAP_BPF and CAP_PERFMON too
//     (bpf_capable and perfmon_capable in include/linux/capability.h).
//   - SYS_RESOURCE, with BPF, while coming up: before Linux 5.11 maps count as locked
//     memory, and bpftool raises the limit.
func needs(c plans.Config, up bool, lowPorts uint16) (own, children capset) {
	own = caps(unix.CAP_NET_ADMIN)
	_, bpf := c.Backends()
	for _, t := range c.Tunnels {
		if rawSockets(t) {
			own |= caps(unix.CAP_NET_RAW)
		}
		if t.Encap != plans.None && t.FOUPort < lowPorts {
			own |= caps(unix.CAP_NET_BIND_SERVICE)
		}
	}
	children = own
	if !up {
		children |= caps(unix.CAP_SYS_MODULE)
	}
	if bpf || c.Undecided() {
		children |= caps(unix.CAP_SYS_ADMIN)
		if !up {
			children |= caps(unix.CAP_SYS_RESOURCE)
		}
	}
	return own, children
}

// Needed are the capabilities without which an instance of c does not come up, its own
// and its commands', bit N for that of number N (capabilities(7)).
func Needed(c plans.Config) uint64 {
	own, children := needs(c, false, lowPorts())
	return uint64(own | children)
}

// rawSockets reports whether we need some for the tunnel.
func rawSockets(t plans.Tunnel) bool {
	return t.Role != plans.Static || t.Monitor == plans.MonitorPing
}

// lowPorts is the first port that takes no capability to bind.
func lowPorts() uint16 {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	if err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 16); err == nil {
			return uint16(n)
		}
	}
	return 1024
}

// hooked reports whether the operator has commands of his own in the plans, or for a
// tunnel's states.
func hooked(c plans.Config) bool {
	return slices.ContainsFunc(c.Tunnels, func(t plans.Tunnel) bool {
		h := t.Hooks
		return len(h.PreUp)+len(h.PostUp)+len(h.PreDown)+len(h.PostDown)+len(t.StateHook) > 0
	})
}

// confine gives up, for good, what the instance does not need from now on; up: it is up
// by now. What its commands alone need is not in effect here. They run as our user:
// for root a program regains the bounding set, so that is cut too, and with
// no_new_privs it regains nothing that we have not. For other users they have what is
// ambient, which follows what is permitted.
//
// The operator's own commands are to run as they would from his shell, with sudo if need
// be. Where there are any, only the effective set is reduced.
func (in *Instance) confine(up bool) {
	own, children := needs(in.Config, up, lowPorts())
	err := confine(own, children, hooked(in.Config), up)
	switch {
	case errors.Is(err, syscall.ENOTSUP):
		in.Log.Debug("privileges are kept: this program was built with cgo, and so can't drop them on all threads")
	case err != nil:
		in.Log.Warn(fmt.Sprintf("privileges are kept: %v", err))
	case hooked(in.Config) && !up:
		in.Log.Info("the bounding set of capabilities stays, and no_new_privs is not set: hooks run as the operator would run them")
	default:
		in.Log.Debug("privileges", "own", fmt.Sprintf("%#x", own), "commands", fmt.Sprintf("%#x", children))
	}
}

// confine leaves this process own in effect and children permitted, last for good.
func confine(own, children capset, hooks, last bool) error {
	now, err := current()
	if err != nil {
		return err
	}
	if !hooks {
		if err := now.bound(children); err != nil {
			return err
		}
		if err := everywhere(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1); err != nil {
			return fmt.Errorf("no_new_privs: %w", err)
		}
		now.inheritable &= children
		if !last {
			children |= caps(unix.CAP_SETPCAP) // to cut the bounding set once more
		}
		now.permitted &= children
	}
	now.effective &= own
	return now.set()
}

// bound cuts the bounding set. Who may not, as a user with two ambient capabilities, has
// no_new_privs to keep programs from regaining any.
func (c capabilities) bound(keep capset) error {
	setpcap := caps(unix.CAP_SETPCAP)
	if c.permitted&setpcap == 0 {
		return nil
	}
	c.effective |= setpcap
	if err := c.set(); err != nil {
		return err
	}
	for n := uint(0); n < 64; n++ {
		has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(n), 0, 0, 0)
		if err != nil { // the kernel knows no more
			break
		}
		if has == 0 || keep&caps(n) != 0 {
			continue
		}
		if err := everywhere(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(n)); err != nil {
			return fmt.Errorf("bounding set: %w", err)
		}
	}
	return nil
}

// set gives the sets to all threads.
func (c capabilities) set() error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	words := c.words()
	if err := everywhere(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&words))); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// everywhere is a system call on all threads, each of which has capabilities of its own.
//
//go:uintptrescapes
func everywhere(trap, a, b uintptr) error {
	if _, _, errno := syscall.AllThreadsSyscall6(trap, a, b, 0, 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
