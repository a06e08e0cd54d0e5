package lab

import (
	"fmt"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bpfModes are the wire formats that the BPF programs know, and what they carry.
var bpfModes = []struct {
	mode, encap    string
	inner4, inner6 bool
	mtu            int
	kernel         bool // its drivers know it too
}{
	{"ipip", "fou", true, false, 1472, true},
	{"sit", "fou", false, true, 1472, true},
	{"any4", "fou", true, true, 1472, false},
	{"ipip", "none", true, false, 1480, true},
	{"sit", "none", false, true, 1480, true},
	{"any4", "none", true, true, 1480, true},
}

// ends are the program's arguments at both ends of a wire.
func (w *wire) ends(mode, encap, backendA, backendB string, inner4, inner6 bool) []end {
	args := func(dev, remote, backend string, n int) []string {
		addrs := ""
		if inner4 {
			addrs += fmt.Sprintf(",10.9.0.%d/24", n)
		}
		if inner6 {
			addrs += fmt.Sprintf(",fd09::%d/64", n)
		}
		return []string{"--static", "--backend", backend, "--mode", mode, "--encap", encap, "--fou-dev", dev, "--fou-remote", remote, "--tunl-ip", addrs[1:]}
	}
	return []end{{w.a, args("a0", "192.0.2.2", backendA, 1)}, {w.b, args("b0", "192.0.2.1", backendB, 2)}}
}

// carries checks that full packets pass, and TCP and UDP both ways.
func (w *wire) carries(t testing.TB, dev string, inner4, inner6 bool, size int64) {
	t.Helper()
	for _, pair := range [][2]string{{"10.9.0.1", "10.9.0.2"}, {"fd09::1", "fd09::2"}} {
		if is6 := pair[0][0] == 'f'; is6 && !inner6 || !is6 && !inner4 {
			continue
		}
		w.a.fullPing(t, dev, pair[1])
		w.b.fullPing(t, dev, pair[0])
		if err := both(w.a, w.b, pair[0], pair[1], size); err != nil {
			t.Error(err)
		}
		if pair[0][0] != 'f' {
			BulkUDP(t, w.a, w.b, pair[1], 500, 1400)
			BulkUDP(t, w.b, w.a, pair[0], 500, 64)
		}
	}
}

// Every wire format between two BPF ends: IPv4 and IPv6 inside, full packets, TCP both ways.
func TestBPFModes(t *testing.T) {
	for _, m := range bpfModes {
		t.Run(m.mode+" "+m.encap, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			before := snapshots(t, w.a, w.b)
			procs := static(t, w.dir, w.ends(m.mode, m.encap, "bpf", "bpf", m.inner4, m.inner6)...)
			if mtu := w.a.mtu(t, "ipipou0"); mtu != m.mtu {
				t.Errorf("the MTU is %d, want %d", mtu, m.mtu)
			}
			w.carries(t, "ipipou0", m.inner4, m.inner6, 5_000_000)
			stop(t, procs...)
			sameStates(t, "after the tunnel", w.dir, before)
		})
	}
}

// Most network cards get packets that are cut in pieces and have their checksums already; between two ends of a veth
// they usually have neither.
func TestBPFSegments(t *testing.T) {
	for _, encap := range []string{"fou", "none"} {
		t.Run(encap, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			for ns, dev := range map[*NS]string{w.a: "a0", w.b: "b0"} {
				ns.noOffload(t, dev)
			}
			procs := static(t, w.dir, w.ends("any4", encap, "bpf", "bpf", true, true)...)
			w.carries(t, "ipipou0", true, true, 5_000_000)
			stop(t, procs...)
		})
	}
}

// noOffload leaves to the kernel what network cards do: checksums and segments (ethtool -K tx off tso off gso off).
func (ns *NS) noOffload(t testing.TB, dev string) {
	t.Helper()
	const setChecksums, setTSO, setGSO = 0x17, 0x1f, 0x24 // linux/ethtool.h
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, what := range []uint32{setGSO, setTSO, setChecksums} {
			value := [2]uint32{what, 0}
			var request struct {
				name [unix.IFNAMSIZ]byte
				data unsafe.Pointer
				_    [16]byte
			}
			copy(request.name[:], dev)
			request.data = unsafe.Pointer(&value)
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
				return errno
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("in %s: offloads of %s: %v", ns.Name, dev, err)
	}
}

// A BPF end and one of the kernel's drivers, in each wire format that both know.
func TestKernelToBPF(t *testing.T) {
	t.Parallel()
	for _, m := range bpfModes {
		if !m.kernel {
			continue
		}
		t.Run(m.mode+" "+m.encap, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			before := snapshots(t, w.a, w.b)
			procs := static(t, w.dir, w.ends(m.mode, m.encap, "bpf", "kernel", m.inner4, m.inner6)...)
			w.carries(t, "ipipou0", m.inner4, m.inner6, 4_000_000)
			stop(t, procs...)
			sameStates(t, "after the tunnel", w.dir, before)
		})
	}
}

// Tunnels that somebody made by hand at the other end.
func TestPlainKernelToBPF(t *testing.T) {
	t.Parallel()
	for mode, command := range map[string]string{
		"ipip": "tunnel add t0 mode ipip local 192.0.2.2 remote 192.0.2.1 dev b0",
		"sit":  "tunnel add t0 mode sit local 192.0.2.2 remote 192.0.2.1 ttl 64 dev b0",
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWire(t)
			is6 := mode == "sit"
			procs := static(t, w.dir, w.ends(mode, "none", "bpf", "kernel", !is6, is6)[:1]...)
			addr := map[bool]string{false: "10.9.0.2/24", true: "fd09::2/64"}[is6]
			w.b.batch(t, command, "addr add "+addr+" dev t0", "link set t0 up")
			pair := map[bool][2]string{false: {"10.9.0.1", "10.9.0.2"}, true: {"fd09::1", "fd09::2"}}[is6]
			w.a.fullPing(t, "ipipou0", pair[1])
			w.b.fullPing(t, "t0", pair[0])
			if err := both(w.a, w.b, pair[0], pair[1], 4_000_000); err != nil {
				t.Error(err)
			}
			stop(t, procs...)
		})
	}
}

// Authenticated tunnels of which one end is BPF and one the kernel's FOU, behind the NAT, two at once.
func TestKernelPeersOfBPF(t *testing.T) {
	t.Parallel()
	const kernel = "backend = \"kernel\"\n"
	for name, p := range map[string]func(testing.TB) *pair{
		"BPF server": func(t testing.TB) *pair { return newPair(t, bpf, kernel) },
		"BPF hub": func(t testing.TB) *pair {
			p := newHub(t)
			edit(t, p.config[1], bpf, kernel)
			edit(t, p.config[2], bpf, kernel)
			return p
		},
		"kernel server":  func(t testing.TB) *pair { return newPair(t, kernel, bpf) },
		"auto is kernel": func(t testing.TB) *pair { return newPair(t, "", bpf) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := p(t)
			before := snapshots(t, p.Srv, p.C1, p.C2)
			p.start(t)
			if name == "auto is kernel" {
				p.server.WaitLog(t, "backend: the kernel's drivers", commandTimeout)
			}
			p.works(t, 0)
			p.works(t, 1)
			size := int64(2_000_000)
			if name == "BPF hub" {
				size *= 10
			}
			var all sync.WaitGroup
			for i, ns := range []*NS{p.C1, p.C2} {
				all.Go(func() {
					if err := both(ns, p.Srv, clientInner[i], p.serverInner(i), size); err != nil {
						t.Errorf("client %d: %v", i, err)
					}
				})
			}
			all.Wait()
			for i, ns := range []*NS{p.C1, p.C2} {
				BulkUDP(t, ns, p.Srv, p.serverInner(i), 500, 1400)
				BulkUDP(t, p.Srv, ns, clientInner[i], 500, 1400)
			}
			stop(t, p.client[0], p.client[1], p.server)
			sameStates(t, "after the tunnels", p.dir, before)
		})
	}
}
