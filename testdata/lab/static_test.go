package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// An outer is a kind of tunnel: a row of the table in docs/static.md.
type outer struct {
	mode, key string
	six       bool   // outer addresses are IPv6
	inner     string // versions of IP that it carries
}

func (o outer) String() string {
	if o.key != "" {
		return "`" + o.mode + "` with `key`"
	}
	return "`" + o.mode + "`"
}

var outers = []outer{
	{mode: "ipip", inner: "4"},
	{mode: "sit", inner: "6"},
	{mode: "any4", inner: "46"},
	{mode: "gre", inner: "46"},
	{mode: "gre", key: "7", inner: "46"},
	{mode: "ip6ip6", inner: "6", six: true},
	{mode: "ipip6", inner: "4", six: true},
	{mode: "any6", inner: "46", six: true},
	{mode: "gre6", inner: "46", six: true},
	{mode: "gre6", key: "4294967295", inner: "46", six: true},
}

var encaps = []string{"none", "fou", "gue"}

// possible is whether there is such a thing: a FOU port has one protocol.
func (o outer) possible(encap string) bool {
	return encap != "fou" || !strings.HasPrefix(o.mode, "any")
}

// address is the outer one of the ith tunnel, on host 1, which is a, or 2.
func (o outer) address(i, host int) string {
	if o.six {
		return fmt.Sprintf("2001:db8::%d:%d", host, i+1)
	}
	return fmt.Sprintf("192.0.2.%d", 100*host+i)
}

// inside is the inner address, of one version of IP.
func (o outer) inside(i, host int, version rune) string {
	return fmt.Sprintf(map[rune]string{'4': "10.9.%d.%d", '6': "fd00:9:%d::%d"}[version], i, host)
}

// modeEnds are two hosts' configurations with a tunnel of each kind, whose outer addresses they get.
func modeEnds(t testing.TB, w *wire, encap string) []end {
	t.Helper()
	var ends []end
	for i, ns := range []*NS{w.a, w.b} {
		me, you, dev := i+1, 2-i, string(rune('a'+i))+"0"
		lines, addrs := []string{"static = true", "encap = \"" + encap + "\"", "fou-dev = \"" + dev + "\""}, []string{}
		for i, o := range outers {
			if !o.possible(encap) {
				continue
			}
			addrs = append(addrs, "addr add "+o.address(i, me)+map[bool]string{true: "/64", false: "/24"}[o.six]+" dev "+dev)
			var own, peer []string
			for _, version := range o.inner {
				own = append(own, strconv.Quote(o.inside(i, me, version)))
				peer = append(peer, strconv.Quote(o.inside(i, you, version)))
			}
			lines = append(lines, "[[tunnel]]", fmt.Sprint("number = ", i), "mode = \""+o.mode+"\"",
				"fou-local-ip = \""+o.address(i, me)+"\"", "fou-remote-ip = \""+o.address(i, you)+"\"",
				"tunl-ip = ["+strings.Join(own, ", ")+"]", "tunl-peer-ip = ["+strings.Join(peer, ", ")+"]")
			if o.key != "" {
				lines = append(lines, "key = "+o.key)
			}
		}
		ns.batch(t, addrs...)
		ends = append(ends, end{ns, []string{"--config", tomlFile(t, w.dir, ns.Name, lines...)}})
	}
	return ends
}

// carries has packets cross the ith tunnel, and returns what they were.
func (o outer) carries(t testing.TB, w *wire, i int) string {
	t.Helper()
	dev := fmt.Sprint("ipipou", i)
	for _, version := range o.inner {
		a, b := o.inside(i, 1, version), o.inside(i, 2, version)
		w.a.fullPing(t, dev, b)
		if err := both(w.a, w.b, a, b, 300_000); err != nil {
			t.Error(err)
		}
	}
	mtu := w.a.mtu(t, dev)
	if other := w.b.mtu(t, dev); other != mtu {
		t.Errorf("the MTU is %d at one end and %d at the other", mtu, other)
	}
	return fmt.Sprintf("%s, %d", strings.Join(strings.Split(o.inner, ""), " and "), mtu)
}

// Every mode with every encapsulation that the kernel has for it, and the table of them in docs/static.md.
func TestModes(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	cells := map[string]string{}
	found := func(row, encap, what string) {
		mu.Lock()
		defer mu.Unlock()
		cells[row+encap] = what
	}
	t.Run("all", func(t *testing.T) {
		for _, encap := range encaps {
			t.Run(encap, func(t *testing.T) {
				t.Parallel()
				w := newWire(t)
				ends := modeEnds(t, w, encap)
				before := snapshots(t, w.a, w.b)
				procs := static(t, w.dir, ends...)
				for i, o := range outers {
					if o.possible(encap) {
						for _, p := range procs {
							p.WaitLog(t, fmt.Sprintf(`ipipou%d: up`, i), commandTimeout)
						}
						t.Run(o.String(), func(t *testing.T) { found(o.String(), encap, o.carries(t, w, i)) })
					}
				}
				asPlanned(t, procs...)
				stop(t, procs...)
				for _, p := range procs {
					if n := count(p.Logs(), "WARN|ERROR"); n > 0 {
						t.Errorf("%s: %d warnings or errors", p, n)
					}
				}
				if encap == "none" {
					setUpOnly(t, w, found)
				}
				if n := w.a.fragments(t) + w.b.fragments(t); n > 0 {
					t.Errorf("%d packets were cut in pieces", n)
				}
				sameStates(t, "after all modes", w.dir, before)
			})
		}
	})
	if !t.Failed() {
		compareTable(t, cells)
	}
}

// setUpOnly is for modes that need more than a tunnel, isatap a router and vti IPsec: they come up, and go.
func setUpOnly(t *testing.T, w *wire, found func(row, encap, what string)) {
	t.Helper()
	for mode, args := range map[string][]string{
		"isatap": {"--fou-local", "192.0.2.1@a0", "--tunl-ip", "fd00:9::200:5efe:192.0.2.1/64"},
		"vti":    {"--fou-local", "192.0.2.1@a0", "--fou-remote", "192.0.2.2", "--key", "9", "--tunl-ip", "10.9.0.1"},
	} {
		t.Run(mode, func(t *testing.T) {
			procs := static(t, w.dir, end{w.a, append(args, "--mode", mode)})
			found("`"+mode+"`", "none", fmt.Sprintf("comes up, %d", w.a.mtu(t, "ipipou0")))
			asPlanned(t, procs...)
			stop(t, procs...)
		})
	}
}

// compareTable compares the table in docs/static.md with what was found.
func compareTable(t *testing.T, cells map[string]string) {
	t.Helper()
	rows := []string{"| mode | " + strings.Join(encaps, " | ") + " |", "| --- |" + strings.Repeat(" --- |", len(encaps))}
	kinds := []string{}
	for _, o := range outers {
		kinds = append(kinds, o.String())
	}
	for _, kind := range append(kinds, "`isatap`", "`vti`") {
		row := "| " + kind + " |"
		for _, encap := range encaps {
			cell := cells[kind+encap]
			if cell == "" {
				cell = "–"
			}
			row += " " + cell + " |"
		}
		rows = append(rows, row)
	}
	const opens, closes = "<!-- modes -->\n", "<!-- /modes -->"
	right := strings.Join(rows, "\n") + "\n"
	page, err := os.ReadFile("../../docs/static.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), opens)
	table, _, _ := strings.Cut(rest, closes)
	if strings.TrimSpace(table) != strings.TrimSpace(right) {
		t.Errorf("the table in docs/static.md, between %sand %s, has to be\n%s", opens, closes, right)
	}
}
