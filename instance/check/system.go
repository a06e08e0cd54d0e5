package check

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A version is a kernel's: 5, 10.
type version [2]int

// The oldest kernels: with the sets that the gate is made of, and with the helpers that
// the BPF programs call.
var (
	forDrivers = version{5, 2}
	forBPF     = version{5, 10}
)

func (v version) String() string { return fmt.Sprintf("%d.%d", v[0], v[1]) }

func (v version) before(other version) bool { return slices.Compare(v[:], other[:]) < 0 }

// kernelVersion reads the beginning of a release: 6.1 of 6.1.0-18-cloud-amd64. Of what is none, it
// is 0.0.
func kernelVersion(release string) (v version) {
	for i, part := range strings.SplitN(release, ".", 3) {
		if i < len(v) {
			end := strings.IndexFunc(part, func(r rune) bool { return r < '0' || r > '9' })
			if end < 0 {
				end = len(part)
			}
			v[i], _ = strconv.Atoi(part[:end])
		}
	}
	return v
}

// The capabilities that plans may want (capabilities(7)).
var capNames = map[uint]string{
	unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE",
	unix.CAP_SYS_MODULE: "CAP_SYS_MODULE", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE",
}

func capSet(numbers ...uint) (set uint64) {
	for _, n := range numbers {
		set |= 1 << n
	}
	return set
}

// capList names the capabilities of a set.
func capList(set uint64) string {
	var names []string
	for n := uint(0); n < 64; n++ {
		if set&(1<<n) != 0 {
			names = append(names, cmp.Or(capNames[n], "capability "+strconv.Itoa(int(n))))
		}
	}
	return strings.Join(names, ", ")
}

// capabilities are those that count: of a user namespace's root, not those for which the
// kernel asks in the first one (capable() in kernel/capability.c).
func (h Host) capabilities() (set uint64, contained bool) {
	for line := range strings.Lines(h.read("proc/self/status")) {
		if value, isIt := strings.CutPrefix(line, "CapEff:"); isIt {
			set, _ = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	ids := strings.Fields(h.read("proc/self/uid_map"))
	if contained = len(ids) > 0 && !slices.Equal(ids, []string{"0", "0", "4294967295"}); contained {
		set &^= capSet(unix.CAP_SYS_MODULE, unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE)
	}
	return set, contained
}

// clock is the line of the clock.
func (h Host) clock() Line {
	synced, err := h.Synced()
	switch {
	case err != nil:
		return warning("clock", "can't be asked: "+err.Error(), "")
	case synced:
		return ok("clock", "kept in step")
	}
	return warning("clock", "not kept in step: an ed25519 authentication without challenge says what time it is, and a wrong one is refused",
		packages("systemd-timesyncd or chrony", "chrony", "chrony")+", or set auth-challenge on both ends")
}
