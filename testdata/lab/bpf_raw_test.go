package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// everything is all protocols, as a packet socket wants them.
var everything = int(binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff}))

// packetSocket opens a socket for whole packets of a device: what is there of a link-layer header is part of them.
func (ns *NS) packetSocket(t testing.TB, dev string, protocol int) int {
	t.Helper()
	var fd int
	err := ns.Do(func() error {
		index, err := net.InterfaceByName(dev)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: index.Index})
	})
	if err != nil {
		t.Fatalf("in %s: packets of %s: %v", ns.Name, dev, err)
	}
	return fd
}

// A sender sends frames by a device, or bare packets by one that has no link layer.
type sender struct {
	fd, index int
	ns        *NS
}

func (ns *NS) sender(t testing.TB, dev string) sender {
	t.Helper()
	s := sender{fd: ns.packetSocket(t, dev, 0), ns: ns}
	t.Cleanup(func() { unix.Close(s.fd) })
	err := ns.Do(func() error {
		index, err := net.InterfaceByName(dev)
		if err == nil {
			s.index = index.Index
		}
		return err
	})
	if err != nil {
		t.Fatalf("in %s: %s: %v", ns.Name, dev, err)
	}
	return s
}

// send sends from one processor, for each has a queue of its own of what was received.
func (s sender) send(t testing.TB, frames ...[]byte) {
	t.Helper()
	err := pinned(func() error {
		for i, f := range frames {
			// What the kernel takes a bare packet for; frames say it themselves.
			to := &unix.SockaddrLinklayer{Ifindex: s.index, Protocol: binary.NativeEndian.Uint16([]byte{8, 0})}
			if len(f) > 0 && f[0]>>4 == 6 {
				to.Protocol = binary.NativeEndian.Uint16([]byte{0x86, 0xdd})
			}
			// What the program at the tunnel's end drops is told so.
			if err := unix.Sendto(s.fd, f, 0, to); err != nil && err != unix.ENOBUFS {
				return fmt.Errorf("frame %d, of %d bytes: %w", i, len(f), err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("in %s: %v", s.ns.Name, err)
	}
}

// pinned runs f on the first processor that this process may use.
func pinned(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		var all, first unix.CPUSet
		err := unix.SchedGetaffinity(0, &all)
		for i := 0; err == nil && first.Count() == 0; i++ {
			if all.IsSet(i) {
				first.Set(i)
			}
		}
		if err == nil {
			err = unix.SchedSetaffinity(0, &first)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// A tap hears all that a device receives, byte for byte.
type tap struct {
	fd    int
	mu    sync.Mutex
	heard [][]byte
	more  chan struct{} // closed and replaced when there is more
}

// Tap hears a device until the end of the test. Nothing may be lost meanwhile.
func (ns *NS) Tap(t testing.TB, dev string) *tap {
	t.Helper()
	p := &tap{fd: ns.packetSocket(t, dev, everything), more: make(chan struct{})}
	if err := unix.SetsockoptTimeval(p.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1<<17)
		for {
			select {
			case <-stop:
				return
			default:
			}
			n, from, err := unix.Recvfrom(p.fd, buf, 0)
			if err != nil || from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
				continue
			}
			p.mu.Lock()
			p.heard = append(p.heard, bytes.Clone(buf[:n]))
			close(p.more)
			p.more = make(chan struct{})
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
		stats, err := unix.GetsockoptTpacketStats(p.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil || stats.Drops > 0 {
			t.Errorf("in %s: %s: packets not heard: %+v (%v)", ns.Name, dev, stats, err)
		}
		unix.Close(p.fd)
	})
	return p
}

// take is what was heard since the last call, up to a packet that comes sooner or later.
func (p *tap) take(t testing.TB, last []byte) (before [][]byte) {
	t.Helper()
	before, _ = p.takeUntil(t, fmt.Sprintf("% x", last), func(b []byte) bool { return bytes.Equal(b, last) })
	return before
}

func (p *tap) takeUntil(t testing.TB, what string, is func([]byte) bool) (before [][]byte, last []byte) {
	t.Helper()
	late := time.After(commandTimeout)
	for seen := 0; ; {
		p.mu.Lock()
		heard, more := p.heard, p.more
		for ; seen < len(heard); seen++ {
			if is(heard[seen]) {
				p.heard = heard[seen+1:]
				p.mu.Unlock()
				return heard[:seen:seen], heard[seen]
			}
		}
		p.mu.Unlock()
		select {
		case <-more:
		case <-late:
			t.Fatalf("%d packets heard, not among them: %s", len(heard), what)
		}
	}
}

// all is what was heard and not taken.
func (p *tap) all() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.heard[:len(p.heard):len(p.heard)]
}

// unreachables are the ICMP errors among frames, less those that want excuses.
func unreachables(frames [][]byte, excused func(quote []byte) bool) (found []string) {
	for _, f := range frames {
		if len(f) < 14+28 || f[12] != 8 || f[13] != 0 || f[14] != 0x45 || f[23] != 1 || f[34] != 3 {
			continue
		}
		if excused == nil || !excused(f[42:]) {
			found = append(found, fmt.Sprintf("type 3 code %d about % x", f[35], f[42:]))
		}
	}
	return found
}

// header is an IPv4 or IPv6 header to be filled in.
type header struct {
	src, dst   string
	proto, ttl byte
	tos        byte
	id, flags  uint16
	options    []byte
}

// packet is the header, with what it has to say of what follows, and that.
func (h header) packet(payload []byte) []byte {
	src, dst := netip.MustParseAddr(h.src), netip.MustParseAddr(h.dst)
	if h.ttl == 0 {
		h.ttl = 64
	}
	if src.Is6() {
		b := binary.BigEndian.AppendUint32(nil, 6<<28|uint32(h.tos)<<20)
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
		b = append(b, h.proto, h.ttl)
		return append(append(append(b, src.AsSlice()...), dst.AsSlice()...), payload...)
	}
	size := 20 + len(h.options)
	b := []byte{0x40 | byte(size/4), h.tos}
	b = binary.BigEndian.AppendUint16(b, uint16(size+len(payload)))
	b = binary.BigEndian.AppendUint16(b, h.id)
	b = binary.BigEndian.AppendUint16(b, h.flags)
	b = append(b, h.ttl, h.proto, 0, 0)
	b = append(append(append(b, src.AsSlice()...), dst.AsSlice()...), h.options...)
	return append(rightIPv4(b), payload...)
}

// icmpPacket is an ICMP message about a packet.
func icmpPacket(kind, code byte, value uint32, quote []byte) []byte {
	b := append(binary.BigEndian.AppendUint32([]byte{kind, code, 0, 0}, value), quote...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// rightIPv4 gives an IPv4 packet's header its checksum.
func rightIPv4(b []byte) []byte {
	binary.BigEndian.PutUint16(b[10:], 0)
	binary.BigEndian.PutUint16(b[10:], checksum(b[:min(len(b), int(b[0]&15)*4)]))
	return b
}

// bareUDP is a UDP header without a checksum, and its payload.
func bareUDP(from, to uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
	return append(append(binary.BigEndian.AppendUint16(b, uint16(8+len(payload))), 0, 0), payload...)
}

// aWhile is how long nothing must happen where no condition can be waited for: the programs' pause between two ICMP
// errors, and more.
const aWhile = 5 * time.Millisecond

// seeded waits until the kernel has random numbers, as a machine that just booted has not: up to then `bpftool batch`
// does all it is told and ends as if it had failed. (It takes an errno for that of its last read which malloc left there
// after a getrandom that must not wait.)
func seeded(t testing.TB) {
	t.Helper()
	if _, err := unix.Getrandom(make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
}
