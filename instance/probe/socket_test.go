package probe

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func ip(t *testing.T, line string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput(); err != nil {
		skip := t.Skipf
		if os.Getenv("CI") != "" {
			skip = t.Fatalf
		}
		skip("network namespaces need root and iproute2: ip %s: %v: %s", line, err, out)
	}
}

// An end that is there answers, by IPv4 and IPv6, also over an interface that was made anew; and one that is not does
// not.
func TestSockets(t *testing.T) {
	a, b := fmt.Sprintf("probe-a%d", os.Getpid()), fmt.Sprintf("probe-b%d", os.Getpid())
	for _, ns := range []string{a, b} {
		ip(t, "netns add "+ns)
		t.Cleanup(func() { ip(t, "netns del "+ns) })
	}
	link := func() {
		t.Helper()
		ip(t, "link add v0 netns "+a+" type veth peer name v1 netns "+b)
		for i, ns := range []string{a, b} {
			v, n := fmt.Sprintf("v%d", i), i+1
			for _, addr := range []string{fmt.Sprintf("10.0.0.%d/24", n), fmt.Sprintf("fd00::%d/64 nodad", n), fmt.Sprintf("fe80::%d/64 nodad", n)} {
				ip(t, "-n "+ns+" addr add "+addr+" dev "+v)
			}
			ip(t, "-n "+ns+" link set "+v+" up")
		}
	}
	link()
	const up, lost = "up", "lost"
	said := map[string]<-chan string{}
	for _, net := range []string{"10.0.0.", "fd00::", "fe80::"} {
		says := make(chan string, 1000)
		said[net] = says
		p := New(Config{
			Device: "v0", From: netip.MustParseAddr(net + "1"), To: netip.MustParseAddr(net + "2"), Every: 100 * time.Millisecond,
			OnUp: func() { says <- up }, OnLost: func(error) { says <- lost }, OnAsk: func() {},
		})
		done := make(chan error)
		go func() {
			// Never unlocked: the thread, which is in this namespace, ends with it.
			runtime.LockOSThread()
			file, err := os.Open("/run/netns/" + a)
			if err == nil {
				err = unix.Setns(int(file.Fd()), unix.CLONE_NEWNET)
				file.Close()
			}
			if err == nil {
				p.Run(t.Context())
			}
			done <- err
		}()
		t.Cleanup(func() {
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		p.Begin()
	}
	// It may be another before: neighbours are found within some seconds.
	all := func(want string) {
		t.Helper()
		for net, says := range said {
			for got := ""; got != want; {
				select {
				case got = <-says:
				case <-time.After(10 * time.Second):
					t.Fatalf("%s2 is %q, want %s", net, got, want)
				}
			}
		}
	}
	all(up)
	ip(t, "-n "+b+" link set v1 down")
	all(lost)
	ip(t, "-n "+a+" link del v0")
	link()
	all(up)
}
