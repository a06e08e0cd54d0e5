package instance

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"ipipou/plans"
)

func linesOf(texts ...string) (lines []plans.Line) {
	for _, text := range texts {
		lines = append(lines, plans.Line{Text: text, Of: "ipipou0"})
	}
	return lines
}

func TestCompareLines(t *testing.T) {
	link := plans.Object{Name: "interface ipipou0", Own: []string{"link", "address"},
		Lines: linesOf("link type ipip", "mtu 1400", "state up", "address 10.0.0.1", "address 10.0.0.2")}
	link.Lines[4].Or = []string{"address 10.0.0.2/30"}
	chain := plans.Object{Name: "nft table ip x, chain gate", Own: []string{"*"}, Ordered: true, Lines: linesOf("chain gate", "a", "b", "c", "d", "e", "f", "g", "h")}
	for name, c := range map[string]struct {
		object plans.Object
		host   []string
		want   string
		lacks  []string
	}{
		"the same":          {link, []string{"state up", "address 10.0.0.2", "address 10.0.0.1", "mtu 1400", "link type ipip"}, "", nil},
		"another form":      {link, []string{"link type ipip", "mtu 1400", "state up", "address 10.0.0.1", "address 10.0.0.2/30"}, "", nil},
		"what is left free": {link, []string{"link type ipip", "ttl 7", "route 10.0.0.0/8", "mtu 1400", "state up", "address 10.0.0.1", "address 10.0.0.2"}, "", nil},
		"the kernel's own":  {link, []string{"link type ipip", "mtu 1400", "state up", "address 10.0.0.1", "address 10.0.0.2", "address fe80::1/64"}, "", nil},
		"other values": {link, []string{"link type ipip", "mtu 1500", "state up", "address 10.0.0.3", "address 10.0.0.2"},
			" link type ipip\n-mtu 1400\n+mtu 1500\n state up\n-address 10.0.0.1\n address 10.0.0.2\n+address 10.0.0.3\n",
			[]string{"mtu 1500, not mtu 1400", "address 10.0.0.1 is missing"}},
		"nothing": {link, nil, "-link type ipip\n-mtu 1400\n-state up\n-address 10.0.0.1\n-address 10.0.0.2\n", []string{"interface ipipou0 is missing"}},
		"another place": {chain, []string{"chain gate", "b", "a", "c", "d", "e", "f", "g", "h"}, " chain gate\n-a\n b\n+a\n c\n d\n e\n ...\n",
			[]string{"a (nft table ip x, chain gate) is missing"}},
		"a rule more": {chain, []string{"chain gate", "a", "b", "c", "d", "e", "f", "g", "x", "h"}, " ...\n e\n f\n g\n+x\n h\n", nil},
	} {
		d := compareLines(c.object, c.host, map[string]bool{"address fe80::1/64": true})
		var b bytes.Buffer
		if d.differs() {
			d.write(&b, false)
		}
		if b.String() != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", name, b.String(), c.want)
		}
		if got := d.missing(len(c.host) == 0)["ipipou0"]; !slices.Equal(got, c.lacks) {
			t.Errorf("%s: lacks %q, want %q", name, got, c.lacks)
		}
		b.Reset()
		d.write(&b, true)
		if plain := strings.NewReplacer("\x1b[31m", "", "\x1b[32m", "", "\x1b[0m", "").Replace(b.String()); c.want != "" && plain != c.want {
			t.Errorf("%s, in colour: %q", name, b.String())
		}
	}
}

// Whatever a host has in whatever order, a difference has each line of both sides, and
// those of the plan in their order.
func FuzzOrdered(f *testing.F) {
	f.Add("a b c", "b a c")
	f.Add("a a b", "a c b b")
	f.Fuzz(func(t *testing.T, one, other string) {
		plan, host := strings.Fields(one), strings.Fields(other)
		if len(plan)*len(host) > 1e4 {
			return
		}
		sides := map[byte][]string{}
		for _, l := range ordered(linesOf(plan...), host) {
			if l.mark != '+' {
				sides['-'] = append(sides['-'], l.text)
			}
			if l.mark != '-' {
				sides['+'] = append(sides['+'], l.text)
			}
		}
		if !slices.Equal(sides['-'], plan) || !slices.Equal(sides['+'], host) {
			t.Errorf("%q and %q: %v", plan, host, slices.Collect(maps.Values(sides)))
		}
	})
}

// What is missing once, because somebody moves, has not drifted.
func TestInBoth(t *testing.T) {
	before := map[string][]string{"ipipou0": {"a is missing", "b is missing"}, "ipipou1": {"a is missing"}, "": {"c is missing"}}
	now := map[string][]string{"ipipou0": {"b is missing", "d is missing"}, "ipipou2": {"a is missing"}, "": {"c is missing"}}
	want := map[string][]string{"ipipou0": {"b is missing"}, "": {"c is missing"}}
	if both := inBoth(before, now); !maps.EqualFunc(both, want, slices.Equal) {
		t.Errorf("%v, want %v", both, want)
	}
}
