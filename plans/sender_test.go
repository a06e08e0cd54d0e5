package plans

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	thread "runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

var clientEnd, serverEnd = netip.MustParseAddrPort("198.51.100.7:10000"), netip.MustParseAddrPort("198.51.100.1:4500")

// cable makes two network namespaces with a cable between them; the server's end
// is a socket, and on the client's another one has the port.
func cable(t *testing.T) (client string, server *net.UDPConn) {
	t.Helper()
	must := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	if os.Geteuid() != 0 {
		need(t, errors.New("network namespaces need root"))
	}
	client = "plans-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	for _, ns := range []string{client, client + "s"} {
		out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput()
		if err != nil {
			need(t, fmt.Errorf("no network namespaces here: %w: %s", err, out))
		}
		t.Cleanup(func() { must("netns", "del", ns) })
	}
	must("link", "add", "c0", "netns", client, "type", "veth", "peer", "name", "s0", "netns", client+"s")
	for dev, a := range map[string]netip.AddrPort{"c0": clientEnd, "s0": serverEnd} {
		ns := map[string]string{"c0": client, "s0": client + "s"}[dev]
		if dev == "c0" { // the second address must not be the one that goes out
			must("-n", ns, "address", "add", "198.51.100.6/24", "dev", dev)
		}
		must("-n", ns, "address", "add", a.Addr().String()+"/24", "dev", dev)
		must("-n", ns, "link", "set", dev, "up")
		done := make(chan error)
		go func() {
			thread.LockOSThread() // never unlocked: the thread ends with the goroutine
			done <- func() error {
				file, err := os.Open("/run/netns/" + ns)
				if err != nil {
					return err
				}
				defer file.Close()
				if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
					return err
				}
				c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(a))
				if err != nil {
					return err
				}
				t.Cleanup(func() { c.Close() })
				if dev == "s0" {
					server = c
				}
				return checksums(c, dev)
			}()
		}()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	return client, server
}

// checksums makes the kernel compute and verify them, as on a real cable.
func checksums(c *net.UDPConn, dev string) error {
	value := [2]uint32{unix.ETHTOOL_STXCSUM, 0}
	ifreq := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(ifreq.name[:], dev)
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifreq)))
	})
	if errno != 0 {
		err = errno
	}
	return err
}

const sending = "\nsend_payload 198.51.100.7 10000 198.51.100.1 4500 || { say \"$ERR\"; exit 9; }"

// Every sender there is delivers the payload as one datagram from the port that
// another socket has, and nothing is left.
func TestSendPayload(t *testing.T) {
	client, server := cable(t)
	type sender struct{ shell, tools, says string }
	senders := []sender{
		{"dash", "dash:od:socat", "socat"}, {"dash", "dash:od:bash:cat", "bash"}, {"dash", "dash:od:ping", "ping"},
		{"busybox sh", "busybox:busybox od:busybox ping", "ping"},
	}
	for _, nc := range []string{"ncat", "nc.openbsd", "nc.traditional"} {
		if _, err := exec.LookPath(nc); err == nil {
			senders = append(senders, sender{"dash", "dash:od:" + nc, nc})
		}
	}
	for _, s := range senders {
		t.Run(s.shell+" "+s.says, func(t *testing.T) {
			h := newShellHost(t, s.shell, strings.Split(s.tools, ":")...)
			h.ns = client
			if name, _, netcat := strings.Cut(s.says, "."); netcat {
				if err := os.Rename(h.path("bin/"+s.says), h.path("bin/"+name)); err != nil {
					t.Fatal(err)
				}
			}
			lengths := []int{0, 1, 73, 1472}
			if s.says == "ping" { // in chunks of 16; it and nc take a second each
				lengths = []int{0, 15, 16, 73, 1472}
			}
			for _, length := range lengths {
				want := bytes.Repeat([]byte("t0k\n\x00en%'\"\\\xff "), 200)[:length]
				h.write(t, "token", base64.StdEncoding.EncodeToString(want))
				code := "payload_token_b64 " + h.path("token") + " || exit 8"
				if length == 0 {
					code = "payload_empty"
				}
				_, says, exit := h.run(t, code+sending)
				if exit != 0 || !strings.Contains(says, "\n[#] "+strings.Split(s.says, ".")[0]) {
					t.Errorf("%d bytes: exit %d: %s", length, exit, says)
				}
				if length == 0 && s.says != "ping" && s.says != "socat" {
					want = []byte{0}
				}
				buf := make([]byte, 2000)
				server.SetReadDeadline(time.Now().Add(2 * time.Second))
				n, from, err := server.ReadFromUDPAddrPort(buf)
				if err != nil || from != clientEnd || !bytes.Equal(buf[:n], want) {
					t.Errorf("%d bytes: got %q from %v: %v", length, buf[:n], from, err)
				}
				server.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				if n, from, err := server.ReadFromUDPAddrPort(buf); err == nil {
					t.Errorf("%d bytes: another datagram: %q from %v", length, buf[:n], from)
				}
				h.silent(t, says, want)
			}
			h.noTable(t)
		})
	}
}

func (h *shellHost) noTable(t *testing.T) {
	t.Helper()
	out, err := exec.Command("ip", "netns", "exec", h.ns, "nft", "list", "ruleset").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("nft: %v: %s", err, out)
	}
}

// What does not get out is noticed, told in one line without the token, and
// undone; so is a send that a signal meets.
func TestSendPayloadFails(t *testing.T) {
	client, _ := cable(t)
	const token = "\nprintf hunter2 >$JOURNAL.t; payload_token $JOURNAL.t || exit 8; rm $JOURNAL.t"
	for _, sender := range []string{"socat", "bash", "ping"} {
		h := newShellHost(t, "dash", "dash", "od", "cat", sender)
		h.ns = client
		fails := func(why, code string) {
			t.Helper()
			_, says, exit := h.run(t, "mkdir -p ${JOURNAL%/*}"+token+code)
			lines := strings.Split(strings.TrimSpace(says), "\n")
			if last := lines[len(lines)-1]; exit != 9 || !strings.HasPrefix(last, "t: ") || !strings.Contains(last, why) {
				t.Errorf("%s: exit %d, want %q in the last line: %s", sender, exit, why, says)
			}
			h.silent(t, says, []byte("hunter2"))
			h.noTable(t)
		}
		why := "Network is unreachable"
		if sender == "ping" {
			why = "sent nothing" // it doesn't say why
		}
		fails(why, strings.Replace(sending, "198.51.100.1", "203.0.113.1", 1))
		h.tool(t, sender, "exit 0")
		fails(sender+" has sent nothing", "\nSENDER="+sender+sending)
		// A killed one has left all it had; the next one sees to that.
		h.tool(t, sender, "kill -9 -$(cat "+h.path("pid")+"); exit 1")
		cmd := h.command(t, "echo $$ >"+h.path("pid")+"; mkdir -p ${JOURNAL%/*}"+token+"\nSENDER="+sender+"; locked send_payload 198.51.100.7 10000 198.51.100.1 4500")
		if err := cmd.Run(); err == nil {
			t.Error("it was not killed")
		}
		if left, _ := filepath.Glob(h.path("run/*")); len(left) < 2 {
			t.Errorf("%s: only %v are left", sender, left)
		}
		// Ctrl-C goes to all of them, whatever they do.
		ctrlC := "kill -INT -$(cat " + h.path("pid") + "); sleep 0.1; "
		h.tool(t, sender, ctrlC)
		nft, _ := exec.LookPath("nft")
		h.tool(t, "nft", ctrlC+"exec "+nft+" \"$@\"")
		fails("interrupted", "\nSENDER="+sender+"; echo $$ >"+h.path("pid")+"; go() {"+sending+"\n}; locked go")
		h.tool(t, "nft", "cat >&2; exit 1")
		fails("", "\nSENDER="+sender+sending)
	}
	h := newShellHost(t, "dash", "dash", "od")
	if _, says, exit := h.run(t, `have_sender || { say "$ERR"; exit 9; }`); exit != 9 || !strings.Contains(says, "install socat") {
		t.Errorf("exit %d: %s", exit, says)
	}
	os.Remove(h.path("bin/nft"))
	if _, says, exit := h.run(t, `have_sender || { say "$ERR"; exit 9; }`); exit != 9 || !strings.Contains(says, "nft is not installed") {
		t.Errorf("exit %d: %s", exit, says)
	}
}
