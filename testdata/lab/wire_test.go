package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// A wire is two hosts with nothing between them but a cable:
//
//	a a0 192.0.2.1 2001:db8::1 ──── 192.0.2.2 2001:db8::2 b0 b
type wire struct {
	a, b *NS
	dir  string
}

func newWire(t testing.TB) *wire {
	t.Helper()
	w := &wire{NewNS(t, "a"), NewNS(t, "b"), t.TempDir()}
	w.a.batch(t, veth("a0", 1, "b0", w.b), "addr add 192.0.2.1/24 dev a0", "addr add 2001:db8::1/64 dev a0", "link set a0 up")
	w.b.batch(t, "addr add 192.0.2.2/24 dev b0", "addr add 2001:db8::2/64 dev b0", "link set b0 up")
	w.a.waitRunning(t)
	w.b.waitRunning(t)
	return w
}

// snapshots are those of several hosts, for sameStates to compare with later ones.
func snapshots(t testing.TB, hosts ...*NS) map[*NS]string {
	t.Helper()
	all := map[*NS]string{}
	for _, ns := range hosts {
		all[ns] = ns.Snapshot(t)
	}
	return all
}

// sameStates checks that hosts are as they were, and that the program has left none of its files on them.
func sameStates(t testing.TB, when, dir string, before map[*NS]string) {
	t.Helper()
	for ns, was := range before {
		SameState(t, ns.Name+" "+when, was, ns.Snapshot(t))
		noJournal(t, dir, ns)
	}
}

// tomlFile writes a configuration and returns its path.
func tomlFile(t testing.TB, dir, name string, lines ...string) string {
	t.Helper()
	path := filepath.Join(dir, name+".toml")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// An end is a host and how the program is started there.
type end struct {
	ns   *NS
	args []string
}

// static starts the program on some hosts at once, and waits until the static tunnel of each is up.
func static(t testing.TB, dir string, ends ...end) []*Proc {
	t.Helper()
	var procs []*Proc
	for _, e := range ends {
		procs = append(procs, startIPIPOU(t, dir, e.ns, append(e.args, "--verb", "3")...))
	}
	for _, p := range procs {
		p.WaitLog(t, `ipipou\d+: up`, commandTimeout)
	}
	return procs
}

// both sends n bytes over TCP each way, both ways at once, and says what went wrong.
func both(a, b *NS, addrA, addrB string, n int64) error {
	var all sync.WaitGroup
	var errs [2]error
	all.Go(func() { errs[0] = tcp(a, b, addrB, n) })
	all.Go(func() { errs[1] = tcp(b, a, addrA, n) })
	all.Wait()
	return errors.Join(errs[:]...)
}

// tcp is Transfer for either version of IP.
func tcp(from, to *NS, addr string, n int64) error {
	if netip.MustParseAddr(addr).Is4() {
		_, err := Transfer(from, to, addr, n)
		return err
	}
	what := fmt.Sprintf("TCP from %s to %s at %s, %d bytes", from.Name, to.Name, addr, n)
	conn, listener, err := dial(from, to, addr)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	defer listener.Close()
	received := make(chan sum, 1)
	go func() { received <- receive(listener) }()
	sent, got := send(conn, n), <-received
	if sent.err != nil || got.err != nil || sent.n != n || sent.n != got.n || sent.md5 != got.md5 {
		return fmt.Errorf("%s: sent %d, MD5 %x (%v); received %d, MD5 %x (%v)", what, sent.n, sent.md5, sent.err, got.n, got.md5, got.err)
	}
	return nil
}

// dial is dialTCP for either version of IP.
func dial(from, to *NS, addr string) (conn net.Conn, listener net.Listener, err error) {
	if netip.MustParseAddr(addr).Is4() {
		return dialTCP(from, to, addr)
	}
	err = to.Do(func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		listener, err = config.Listen(context.Background(), "tcp6", net.JoinHostPort(addr, "0"))
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	err = from.Do(func() (err error) {
		dialer := net.Dialer{Timeout: stall}
		dialer.SetMultipathTCP(false)
		conn, err = dialer.Dial("tcp6", listener.Addr().String())
		return err
	})
	if err != nil {
		listener.Close()
	}
	return conn, listener, err
}

// mtu is a device's.
func (ns *NS) mtu(t testing.TB, dev string) int {
	t.Helper()
	var mtu int
	err := ns.Do(func() error {
		device, err := net.InterfaceByName(dev)
		if err == nil {
			mtu = device.MTU
		}
		return err
	})
	if err != nil {
		t.Fatalf("in %s: %s: %v", ns.Name, dev, err)
	}
	return mtu
}

// fullPing pings with packets as large as the device takes, none of which may be cut in pieces.
func (ns *NS) fullPing(t testing.TB, dev, addr string) {
	t.Helper()
	headers := 28
	if netip.MustParseAddr(addr).Is6() {
		headers = 48
	}
	ns.Ping(t, addr, "-M", "do", "-s", fmt.Sprint(ns.mtu(t, dev)-headers))
}

// fragments is how many packets a host has sent in pieces.
func (ns *NS) fragments(t testing.TB) (n int) {
	t.Helper()
	err := ns.Do(func() error {
		v4, err := os.ReadFile("/proc/thread-self/net/snmp")
		if err != nil {
			return err
		}
		v6, err := os.ReadFile("/proc/thread-self/net/snmp6")
		if err != nil {
			return err
		}
		n, err = fragCreates(string(v4), string(v6))
		return err
	})
	if err != nil {
		t.Fatalf("in %s: %v", ns.Name, err)
	}
	return n
}

// fragCreates adds up two files' counters: in snmp a line of names precedes one of values, in snmp6 each name its value.
func fragCreates(snmp, snmp6 string) (total int, err error) {
	values := map[string]string{}
	var names []string
	for line := range strings.Lines(snmp) {
		words := strings.Fields(line)
		if words[0] != "Ip:" {
			continue
		}
		for i := range min(len(names), len(words)) {
			values[names[i]] = words[i]
		}
		names = words
	}
	for line := range strings.Lines(snmp6) {
		if words := strings.Fields(line); len(words) == 2 {
			values[words[0]] = words[1]
		}
	}
	for _, name := range []string{"FragCreates", "Ip6FragCreates"} {
		var n int
		if _, err := fmt.Sscan(values[name], &n); err != nil {
			return 0, fmt.Errorf("%s=%q: %w", name, values[name], err)
		}
		total += n
	}
	return total, nil
}
