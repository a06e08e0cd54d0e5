package lab

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A hundred clients that change their addresses again and again leave nothing behind on the server but what the last
// change needs, and then nothing at all. With IPIPOU_LAB_LONG=1 they do so each second of a minute, and don't wait for
// the server; else as fast as it follows.

func TestBPFStorm(t *testing.T) {
	for name, hub := range map[string]bool{"ports": false, "one port": true} {
		t.Run(name, func(t *testing.T) {
			c := newCrowd(t, 100, hub, bpf)
			c.storm(t, c.bpfLeft)
		})
	}
}

// With the kernel's drivers peers behind one public address push each other to alternate addresses, and connections are
// tracked that the tunnels must not be among.
func TestStorm(t *testing.T) {
	n := 12 // in the emulated machine a move takes up to half a second
	if long() {
		n = 100
	}
	c := newCrowd(t, n, false, "auth-lifetime = 3600\n")
	c.srv.RunInput(t, firewall, "nft", "-f", "-")
	c.srv.Run(t, "nft", "insert", "rule", "inet", "filter", "input", "udp", "dport", "10000-10099", "accept")
	// What tells the server that connections are tracked must not be over before it starts.
	c.srv.Sysctl(t, map[string]string{"net/netfilter/nf_conntrack_icmp_timeout": "3600"})
	noModprobe(t)
	c.srv.Ping(t, benchClient)
	c.storm(t, c.kernelLeft)
}

const stormRounds = 5

func long() bool { return os.Getenv("IPIPOU_LAB_LONG") != "" }

// noModprobe keeps the kernel from looking for modules until the end of the test: it does so whenever ip names an
// interface that is not there (dev_load of net/core/dev_ioctl.c), which takes longer in the emulated machine than all else.
func noModprobe(t testing.TB) {
	t.Helper()
	const file = "/proc/sys/kernel/modprobe"
	was, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte("\n"), 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, was, 0); err != nil {
			t.Error(err)
		}
	})
}

// storm is the test's body. left checks what the server has put on the host, and returns in numbers what must not
// grow, and how many pending undos the moves account for.
func (c *crowd) storm(t *testing.T, left func(t testing.TB) (sizes map[string]int, undos int)) {
	before := snapshots(t, c.srv)
	c.start(t)
	c.settle(t, c.places(0))
	open, threads := c.open(t), c.server.status(t, "Threads")
	sizes, undos := left(t)
	pending, _ := c.journal(t)
	pending -= undos

	to := c.at
	if long() {
		next := time.Now()
		for round := range 60 {
			to = c.places(1 + round)
			c.send(t, to)
			next = next.Add(time.Second)
			c.follow(t, time.Until(next), func(string) bool { return false })
		}
		c.settle(t, to)
	} else {
		for round := range stormRounds {
			to = c.places(1 + round)
			c.settle(t, to)
		}
	}
	t.Logf("%d moves; %.0f MB, %.0f threads, were %.0f", c.moves, c.server.memory(t), c.server.status(t, "Threads"), threads)

	now, undos := left(t)
	if !maps.Equal(now, sizes) {
		t.Errorf("after the storm the server has %v, before it %v", now, sizes)
	}
	undone, lines := c.journal(t)
	if undone != pending+undos {
		t.Errorf("%d undos are pending, want %d and %d for alternate addresses", undone, pending, undos)
	}
	if most := 5*undone + 512; lines > most {
		t.Errorf("the journal has %d lines for %d undos, want %d at most", lines, undone, most)
	}
	Eventually(t, commandTimeout, func() error { // some are a command's, that may be about to end
		if n := c.open(t); n > open {
			return fmt.Errorf("the server has %d open files, had %d before the storm", n, open)
		}
		return nil
	})
	if mb := c.server.memory(t); mb > 40 {
		t.Errorf("the server had %.0f MB", mb)
	}
	if n := c.files(t, filepath.Join(c.dir, c.srv.Name, "state")); n != len(c.keys) {
		t.Errorf("%d files remember %d keys", n, len(c.keys))
	}
	for i := range 4 {
		c.carries(t, i, c.at[i])
	}
	if err := c.server.stop(); err != nil {
		t.Errorf("%s: %v", c.server.cmd, err)
	}
	sameStates(t, "after the storm", c.dir, before)
}

// carries sends a packet each way through the tunnel of the peer at an address.
func (c *crowd) carries(t testing.TB, i int, at netip.AddrPort) {
	t.Helper()
	inside, outside := c.inner(i)+":1000", fmt.Sprintf("%s:%d", c.serverInner(i), 2000+i)
	server, heard := c.srv.ListenUDP(t, outside), c.cli.Sniff(t, "c0")
	c.cli.SendUDP(t, at.String(), c.local(i), IPv4UDP(inside, outside, []byte("in")))
	receiveOne(t, server)
	if _, err := server.WriteToUDPAddrPort([]byte("out"), netip.MustParseAddrPort(inside)); err != nil {
		t.Fatal(err)
	}
	heard.wait(t, "the tunnel's, to "+at.String(), func(p packet) bool {
		return p.src.String() == c.local(i) && p.dst == at && isInner(p.payload)
	})
}

// pendingUndos counts the entries of a journal that no later line drops.
func pendingUndos(t testing.TB, journal string) int {
	t.Helper()
	pending := map[int]bool{}
	for line := range strings.Lines(journal) {
		_, text, _ := strings.Cut(line, "{")
		var r struct {
			ID   int
			Drop []int
		}
		if err := json.Unmarshal([]byte("{"+text), &r); err != nil {
			t.Fatalf("%v in the journal's line %s", err, line)
		}
		if r.ID > 0 {
			pending[r.ID] = true
		}
		for _, id := range r.Drop {
			delete(pending, id)
		}
	}
	return len(pending)
}

// bpfLeft checks that the programs know all peers where they are, and counts the entries of their maps.
func (c *crowd) bpfLeft(t testing.TB) (sizes map[string]int, undos int) {
	t.Helper()
	rows := status(t, c.srv, "--config", c.config)
	for i, at := range c.at {
		name := fmt.Sprintf("ipipou%d", i)
		if c.hub {
			name = fmt.Sprintf("ipipou0/%d", i)
		}
		if got := rows[name].cell["PEER"]; got != at.String() {
			t.Errorf("%s leads to %s, want %s", name, got, at)
		}
	}
	sizes = map[string]int{"rows": len(rows)}
	for _, name := range []string{"endpoints", "prefixes", "peers", "seen", "counters"} {
		var entries []any
		out := c.srv.Run(t, "bpftool", "-j", "map", "dump", "id", c.srv.bpfMap(t, "s0", name))
		if err := json.Unmarshal([]byte(out), &entries); err != nil {
			t.Fatalf("map %s: %v", name, err)
		}
		sizes[name] = len(entries)
	}
	return sizes, 0
}

// kernelLeft checks that the host has what the peers need where they are, and nothing more.
func (c *crowd) kernelLeft(t testing.TB) (sizes map[string]int, undos int) {
	t.Helper()
	var peers, alive, bare, altIn, links, listeners, addrs []string
	alternates := 0
	for i, at := range c.at {
		key := fmt.Sprintf("%s %d %s %d", SrvAddr, 10000+i, at.Addr(), at.Port())
		way, local := "timed", SrvAddr
		listeners = append(listeners, fmt.Sprintf("%s %d", SrvAddr, 10000+i))
		if c.alt[i] {
			local = fmt.Sprintf("172.29.0.%d", i)
			alternates++
			altIn = append(altIn, key+" "+local)
			listeners = append(listeners, fmt.Sprintf("%s %d", local, 10000+i))
			addrs = append(addrs, local)
		}
		peers = append(peers, key+" "+way)
		alive = append(alive, key)
		bare = append(bare, at.Addr().String()+" "+local)
		links = append(links, fmt.Sprintf("ipipou%d %s %s", i, local, at))
	}
	if alternates == 0 {
		t.Error("nobody is on an alternate address: this proves little")
	}
	sets := c.srv.nftElements(t, "ipipou0")
	for name, want := range map[string][]string{"peers": peers, "alive": alive, "bare": bare, "alt_in": altIn} {
		same(t, "nft's "+name, sets[name], want)
	}

	type device struct {
		IfName   string
		AddrInfo []struct{ Local string } `json:"addr_info"`
		link
	}
	var have struct {
		links, addrs []device
		fou          []struct {
			Local string
			Port  int
		}
	}
	ask(t, c.srv, &have.links, "ip", "-d", "-j", "link", "show", "type", "ipip")
	ask(t, c.srv, &have.addrs, "ip", "-4", "-j", "addr", "show", "dev", "s0")
	ask(t, c.srv, &have.fou, "ip", "-j", "fou", "show")
	var gotLinks, gotAddrs, gotListeners []string
	for _, l := range have.links {
		if d := l.LinkInfo.Data; d.Encap.Type == "fou" { // unlike the driver's own device
			gotLinks = append(gotLinks, fmt.Sprintf("%s %s %s:%d", l.IfName, d.Local, d.Remote, d.Encap.Dport))
		}
	}
	for _, a := range have.addrs[0].AddrInfo {
		if a.Local != SrvAddr {
			gotAddrs = append(gotAddrs, a.Local)
		}
	}
	for _, l := range have.fou {
		gotListeners = append(gotListeners, fmt.Sprintf("%s %d", l.Local, l.Port))
	}
	same(t, "the links", gotLinks, links)
	same(t, "the alternate addresses", gotAddrs, addrs)
	same(t, "the FOU listeners", gotListeners, listeners)

	for line := range strings.Lines(c.srv.Run(t, "conntrack", "-L")) {
		if strings.Contains(line, "198.18.") || strings.Contains(line, "172.29.") {
			t.Errorf("the tunnels are tracked: %s", line)
		}
	}
	if c.srv.tracked(t) == "0" {
		t.Error("nothing is tracked: this proves nothing about the tunnels")
	}
	return map[string]int{"alt_out": len(sets["alt_out"]), "fou": len(sets["fou"])}, 2 * alternates
}

// same compares two lists, in any order.
func same(t testing.TB, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	if diff := Diff(strings.Join(want, "\n")+"\n", strings.Join(got, "\n")+"\n"); diff != "" {
		t.Errorf("%s (- should be there, + are):\n%s", what, diff)
	}
}

// ask reads what a command of the namespace prints as JSON.
func ask(t testing.TB, ns *NS, into any, argv ...string) {
	t.Helper()
	out := ns.Run(t, argv...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("in %s: %s: %v: %s", ns.Name, strings.Join(argv, " "), err, out)
	}
}

// nftElements are those of each set and map of an IPv4 table: the parts of the key, and what a map has for it.
func (ns *NS) nftElements(t testing.TB, table string) map[string][]string {
	t.Helper()
	type named struct {
		Name string
		Elem []json.RawMessage
	}
	var list struct{ NFTables []struct{ Set, Map *named } }
	ask(t, ns, &list, "nft", "-j", "list", "table", "ip", table)
	sets := map[string][]string{}
	for _, object := range list.NFTables {
		for _, set := range []*named{object.Set, object.Map} {
			if set == nil {
				continue
			}
			for _, e := range set.Elem {
				sets[set.Name] = append(sets[set.Name], element(t, e))
			}
		}
	}
	return sets
}

// element takes the words out of an element: {"elem":{"val":KEY,"timeout":…}}, [KEY, VALUE] or KEY, where a KEY is a
// word or {"concat":[…]}, and a verdict {"goto":{"target":CHAIN}} (libnftables-json(5)).
func element(t testing.TB, text json.RawMessage) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	var words []string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, part := range v {
				walk(part)
			}
		case map[string]any:
			for _, name := range []string{"elem", "val", "concat", "goto", "target"} {
				if part, ok := v[name]; ok {
					walk(part)
				}
			}
		default:
			words = append(words, fmt.Sprint(v))
		}
	}
	walk(v)
	return strings.Join(words, " ")
}
