package lab

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// peerSocket is a UDP socket at the peer's end, whose packets have not the form that frames of a test have.
func (h *hostile) peerSocket(t testing.TB) int {
	t.Helper()
	var fd int
	err := h.a.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}, Port: int(h.peerPort)}); err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 2}, Port: int(h.port)})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// Where a packet lies in memory, and who has done its checksum, does not matter; where several are in one, as UDP's
// segmentation and GRO have it, none of them comes out in the others' place.
func TestBPFSocketBuffers(t *testing.T) {
	t.Parallel()
	h := newHostile(t, true)
	fd := h.peerSocket(t)
	send := func(b []byte, flags int) [][]byte {
		t.Helper()
		if err := pinned(func() error { return unix.Sendto(fd, b, flags, nil) }); err != nil {
			t.Fatal(err)
		}
		return h.throw(t)
	}
	set := func(level, option, value int) {
		t.Helper()
		if err := unix.SetsockoptInt(fd, level, option, value); err != nil {
			t.Fatal(err)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1)
	for _, options := range [][]byte{nil, {1, 1, 1, 0}, append(bytes.Repeat([]byte{1}, 39), 0)} {
		if err := unix.SetsockoptString(fd, unix.SOL_IP, unix.IP_OPTIONS, string(options)); err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{0, 1, 30, 1300} {
			inner4, inner6 := good(bytes.Repeat([]byte{0xa5}, n))
			for _, inner := range [][]byte{inner4, inner6} {
				for how, flags := range map[string]int{"copied": 0, "in pages of the sender's": unix.MSG_ZEROCOPY} {
					if got := send(inner, flags); len(got) != 1 || !bytes.Equal(got[0], inner) {
						t.Errorf("IPv%d with %d octets %s, %d octets of outer options: came out as\n% x\nwant\n% x",
							inner[0]>>4, n, how, len(options), got, inner)
					}
				}
			}
		}
	}
	if err := unix.SetsockoptString(fd, unix.SOL_IP, unix.IP_OPTIONS, ""); err != nil {
		t.Fatal(err)
	}
	inner, _ := good([]byte("one of several"))
	set(unix.SOL_UDP, unix.UDP_SEGMENT, len(inner))
	// Before it gets here the kernel may have taken them apart.
	for _, got := range send(bytes.Repeat(inner, 5), 0) {
		if !bytes.Equal(got, inner) {
			t.Errorf("of five packets in one came out\n% x", got)
		}
	}
	if got := send(inner, 0); len(got) != 1 || !bytes.Equal(got[0], inner) {
		t.Errorf("one by itself came out as\n% x", got)
	}
}

// tun makes a TUN device on a host: what is written to the file comes in by it.
func (ns *NS) tun(t testing.TB, dev string) *os.File {
	t.Helper()
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		ns.Run(t, "modprobe", "tun")
	}
	var file *os.File
	err := ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(dev)
		if err == nil {
			request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		file = os.NewFile(uintptr(fd), dev)
		return err
	})
	if err != nil {
		t.Fatalf("in %s: TUN device %s: %v", ns.Name, dev, err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// On an outer device without a link layer, IP headers with options are not mistaken for Ethernet's: a stranger could
// write another header into them, as if the peer had sent it.
func TestBPFNoLinkLayer(t *testing.T) {
	t.Parallel()
	seeded(t)
	h := &hostile{wire: newWire(t), inlet: inlet{mac: make([]byte, 6), local: "198.51.100.2", peer: "203.0.113.1", port: hostilePort, peerPort: 6666}}
	file := h.b.tun(t, "t0")
	h.b.batch(t, "addr add 198.51.100.2/24 dev t0", "link set t0 mtu 65535 up", "route add 203.0.113.0/24 dev t0")
	static(t, h.dir, end{h.b, []string{"--static", "--backend", "bpf", "--mode", "any4", "--encap", "fou", "--fou-dev", "t0",
		"--fou-local-port", fmt.Sprint(h.port), "--fou-remote", fmt.Sprintf("%s:%d", h.peer, h.peerPort),
		"--tunl-ip", "10.9.0.2/24,fd09::2/64", "--mtu", "1400"}})
	h.inside = h.b.Tap(t, "ipipou0")
	throw := func(packets ...[]byte) [][]byte {
		t.Helper()
		frame, inner := h.mark()
		err := pinned(func() error {
			for _, p := range append(packets, frame[14:]) {
				if _, err := file.Write(p); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return h.inside.take(t, inner)
	}
	inner4, inner6 := good([]byte("bare"))
	for words := range 11 {
		outer := h.outer()
		outer.options = bytes.Repeat([]byte{1}, 4*words)
		for _, inner := range [][]byte{inner4, inner6} {
			if got := throw(h.wrap(outer, inner)); len(got) != 1 || !bytes.Equal(got[0], inner) {
				t.Errorf("%d words of options: came out as\n% x\nwant\n% x", words, got, inner)
			}
		}
	}
	for words := 6; words <= 14; words += 2 {
		if got := throw(h.disguised(words)); len(got) != 0 {
			t.Errorf("a stranger's packet with a header of %d words came out as\n% x", words, got)
		}
	}

	// The way out.
	h.b.sender(t, "ipipou0").send(t, inner4)
	buf := make([]byte, 65536)
	for {
		n, err := file.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if want := inner4; n > 28 && bytes.HasSuffix(buf[:n], want) {
			if h := (header{src: h.local, dst: h.peer}).packet(nil); !bytes.Equal(buf[12:20], h[12:]) || n != 28+len(want) {
				t.Errorf("sent % x", buf[:n])
			}
			break
		}
	}
}

// disguised is a stranger's packet that looks like the peer's to who skips an Ethernet header in front of it: his address
// is so chosen that a second IP header begins with its third octet; the rest of that is in options, or behind them.
func (in inlet) disguised(words int) []byte {
	const ethernet = 14
	inner, _ := good(nil)
	b := append(make([]byte, ethernet), in.wrap(in.outer(), inner)...)
	// The length of the second one is in our own address, and so long the packet has to be.
	claims := int(binary.BigEndian.Uint16(net.ParseIP(in.local).To4()))
	b = append(b, make([]byte, ethernet+claims-len(b))...)
	copy(b, header{src: "198.18.69.0", dst: in.local, proto: 17, options: make([]byte, 4*words-20)}.packet(nil)[:20])
	copy(b[2:], be16(len(b)))
	rightIPv4(b[ethernet:]) // before the first one's, which it is part of
	return rightIPv4(b)
}
