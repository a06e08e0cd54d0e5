package plans

import (
	"fmt"
	"strings"
	"testing"
)

// mends are the plans that put back what others take away, with what makes them.
func mends(c Config) (plans []Plan, text string) {
	var b strings.Builder
	add := func(title string, p Plan) {
		if len(p.Steps) > 0 {
			plans = append(plans, p)
			fmt.Fprintf(&b, "\n== %s\n\n", title)
			show(&b, "", p.Steps)
		}
	}
	vars := map[string]string{PeerIP: "198.51.100.7", PeerPort: "4000"}
	for _, v := range c.Facts() {
		vars[v.Name] = "192.0.2.9"
		if v.Value != "" {
			vars[v.Name] = v.Value
		}
	}
	for _, t := range c.Tunnels {
		parts, err := t.Parts(true, vars)
		if err != nil {
			panic(err)
		}
		for _, p := range parts {
			title := p.Name + ": " + p.Key + " in " + p.In.Look().String()
			if p.Dev != "" {
				title += ", with " + p.Dev
			}
			if !p.Undo.IsZero() {
				title += ", if this is in the journal: " + p.Undo.String()
			}
			add(title, Restore([]Part{p}))
		}
	}
	for _, g := range c.Guards() {
		add(g.what+" ("+g.Look.String()+")", g.Mend)
	}
	seen := map[string]bool{}
	for _, t := range c.Tunnels {
		switch {
		case t.Backend == BPF && !seen[t.Dev]:
			add("the interface "+t.Dev, c.Remake(t.Dev))
			fallthrough
		case t.Backend == BPF:
			seen[t.Dev] = true
			add("and of tunnel "+t.Title(), t.Reroute())
		case t.Role == Server:
			add("let the peer of "+t.Dev+" in again", t.Reopen(false))
			add("by the alternate address", t.Reopen(true))
			add("the interface "+t.Dev, t.Relink(false))
			add("by the alternate address", t.Relink(true))
			add("the alternate address", t.Retake())
			add("the listeners on an outer interface that is gone", t.Leave())
			add("on its successor", t.Rehome(true, true))
		default:
			add("the interface "+t.Dev, t.Relink(false))
			add("the listeners on an outer interface that is gone", t.Leave())
		}
	}
	return plans, b.String()
}

func TestMends(t *testing.T) {
	configs := bpfConfigs(t)
	configs = map[string]Config{
		"hub": configs["hub"], "plain": configs["plain"],
		"server": resolve(t, "--server", "--fou-dev", "s0", "--auth-token", "t", "--auth-lifetime", "60",
			"--routes", "default", "--forward", "--post-up", "logger up", "--post-down", "logger down"),
		"client": resolve(t, "--fou-remote", "203.0.113.1:10000", "--fou-dev", "c0", "--tunl-ip", "172.28.0.1", "--auth-token", "t", "--routes", "default"),
		"nodes": resolve(t, "--static", "--mode", "ipip", "--encap", "fou", "--fou-dev", "s0", "--tunl-ip", "10.9.0.1/32", "--routes",
			"10.9.0.2/32 via 192.0.2.2 onlink"),
	}
	for name, c := range configs {
		t.Run(name, func(t *testing.T) {
			plans, text := mends(c)
			golden(t, "plans/mend-"+name+".txt", text)
			for _, p := range plans {
				p.Walk(func(s Step) {
					// But for what follows the outer interface, whose undos are others by then.
					if !s.Undo.IsZero() && !s.Passing && !strings.Contains(s.Undo.line(), "fou del") && !strings.Contains(s.Undo.line(), "address del") {
						t.Errorf("%s would be undone twice: %s", s.Do, s.Undo)
					}
				})
			}
		})
	}
}

// A table that only got the chain of alternate addresses is the same.
func TestGuardSame(t *testing.T) {
	const table = "table ip ipipou0 {\n\tset fou {\n\t\ttype ipv4_addr . inet_service\n\t}\n%s\n\tchain gate {\n\t\tdrop\n\t}\n}\n"
	plain := fmt.Sprintf(table, "")
	post := "\n\tchain post {\n\t\ttype filter hook postrouting priority srcnat; policy accept;\n\t\tip saddr set ip saddr . udp sport map @alt_out\n\t}\n"
	var g Guard
	if !g.Same(plain, fmt.Sprintf(table, post)) || !g.Same(fmt.Sprintf(table, post), plain) || !g.Same(plain, plain) {
		t.Error("the chain for alternate addresses makes it another table")
	}
	if g.Same(plain, strings.Replace(plain, "\t\tdrop\n", "", 1)) || g.Same(plain, "") {
		t.Error("a table without its rule is taken for the same")
	}
}

// What iproute2 prints of what a plan has made is found to be that. (ip -V: iproute2-6.1.0)
func TestListingsTellParts(t *testing.T) {
	c := resolve(t, "--static", "--mode", "any4", "--encap", "gue", "--fou-dev", "s0", "--fou-local-ip", "192.0.2.1", "--fou-remote", "198.51.100.7:4000",
		"--tunl-ip", "10.9.0.1/30,172.28.0.0,fd00::1", "--tunl-peer-ip", "172.28.0.1,fd00::2",
		"--routes", "default,::/0,10.77.0.0/24 metric 5,10.77.0.0/24,10.9.0.9/32 table 100,fd77::/64 table 100")
	parts, err := c.Tunnels[0].Parts(true, map[string]string{PeerIP: "198.51.100.7", PeerPort: "4000"})
	if err != nil {
		t.Fatal(err)
	}
	named := map[string]bool{}
	for _, p := range parts {
		if named[p.Name] {
			t.Errorf("two parts are called %s", p.Name)
		}
		named[p.Name] = true
	}
	printed := map[Listing]string{
		Addresses: `[{},{"ifindex":2,"ifname":"ipipou0","link":null,"flags":["NOARP","UP"],"addr_info":[{"family":"inet","local":"10.9.0.1","prefixlen":30,"scope":"global"},` +
			`{"family":"inet","local":"172.28.0.0","address":"172.28.0.1","prefixlen":32},{"family":"inet6","local":"fd00::1","address":"fd00::2","prefixlen":128,"nodad":true}]}]`,
		Routes: `[{"dst":"default","dev":"ipipou0","table":"10000","scope":"253","flags":["linkdown"]},{"dst":"10.9.0.9","dev":"ipipou0","table":"100","scope":"253","flags":[]},` +
			`{"dst":"10.77.0.0/24","dev":"ipipou0","scope":"253","flags":[]},{"dst":"10.77.0.0/24","dev":"ipipou0","scope":"253","metric":5,"flags":[]}]`,
		Routes6: `[{"dst":"default","dev":"ipipou0","table":"10000","metric":1024,"flags":[],"pref":"medium"},{"dst":"fd77::/64","dev":"ipipou0","table":"100","metric":1024,"flags":[],"pref":"medium"}]`,
		Rules: `[{"priority":0,"src":"all","table":"255"},{"priority":29000,"src":"all","dst":"198.51.100.7","table":"254"},{"priority":29000,"src":"192.0.2.1","table":"254"},` +
			`{"priority":29001,"src":"all","table":"254","suppress_prefixlen":0},{"priority":29002,"src":"all","table":"10000"},{"priority":32766,"src":"all","table":"254"}]`,
		Rules6:    `[{"priority":29001,"src":"all","table":"254","suppress_prefixlen":0},{"priority":29002,"src":"all","table":"10000"}]`,
		Listeners: "port 10000 gue local 192.0.2.1 peer 198.51.100.7 peer_port 4000 dev s0\nport 10000 gue\n",
	}
	for _, l := range Listings() {
		keys, err := l.Keys(printed[l])
		if err != nil {
			t.Fatal(err)
		}
		none, err := l.Keys("")
		if err != nil || len(none) > 0 {
			t.Errorf("%s prints nothing: %v, %v", l.Look(), none, err)
		}
		for _, p := range parts {
			if p.In == l && !keys[p.Key] {
				t.Errorf("%s is not seen: %q in %v", p.Name, p.Key, keys)
			}
		}
	}
	if _, err := Routes.Keys("Object \"rout\" is unknown"); err == nil {
		t.Error("what is no JSON is taken for a listing")
	}
}

// iproute2 has IPv4-compatible addresses in dotted words, and Go has not.
func TestListingsTellCompatibleAddresses(t *testing.T) {
	c := resolve(t, "--static", "--mode", "any6", "--encap", "gue", "--fou-dev", "s0", "--fou-local-ip", "::1.2.3.4", "--fou-remote", "[::5.6.7.8]:4000",
		"--tunl-ip", "::192.0.2.1", "--tunl-peer-ip", "::192.0.2.2", "--routes", "::198.51.100.0/120 table 100,::/0")
	parts, err := c.Tunnels[0].Parts(true, map[string]string{PeerIP: "::5.6.7.8", PeerPort: "4000"})
	if err != nil {
		t.Fatal(err)
	}
	printed := map[Listing]string{
		Addresses: `[{"ifname":"ipipou0","addr_info":[{"family":"inet6","local":"::192.0.2.1","address":"::192.0.2.2","prefixlen":128}]}]`,
		Routes6:   `[{"dst":"default","dev":"ipipou0","table":"10000","metric":1024},{"dst":"::198.51.100.0/120","dev":"ipipou0","table":"100","metric":1024}]`,
		Rules6: `[{"priority":29000,"src":"all","dst":"::5.6.7.8","table":"254"},{"priority":29000,"src":"::1.2.3.4","table":"254"},` +
			`{"priority":29001,"src":"all","table":"254","suppress_prefixlen":0},{"priority":29002,"src":"all","table":"10000"}]`,
		Listeners: "port 10000 gue -6 local ::1.2.3.4 peer ::5.6.7.8 peer_port 4000 dev s0\nport 10000 gue -6\n",
	}
	for _, p := range parts {
		keys, err := p.In.Keys(printed[p.In])
		if err != nil || !keys[p.Key] {
			t.Errorf("%s is not seen: %q in %v, %v", p.Name, p.Key, keys, err)
		}
	}
}

func FuzzListings(f *testing.F) {
	f.Add(`[{"dst":"default","dev":"ipipou0","table":"10000","metric":5},{"priority":1,"src":"all","srclen":3,"addr_info":[{}]}]`)
	f.Add("port 10000 ipproto 4 -6 local ::1 dev s0\n")
	f.Fuzz(func(t *testing.T, stdout string) {
		for _, l := range Listings() {
			again, err := l.Keys(stdout)
			if keys, _ := l.Keys(stdout); err == nil && len(keys) != len(again) {
				t.Errorf("%s: %d keys, then %d", l.Look(), len(keys), len(again))
			}
		}
	})
}
