package plans

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
)

// links are what iproute2 6.1 prints of interfaces, most of them made by the commands of
// TestLinkLines.
func links(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../testdata/hosts/links.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What a command chose is found in what the kernel then has, and nothing else is.
func TestLinkLines(t *testing.T) {
	r := NewReading()
	if err := r.ReadLinks(links(t)); err != nil {
		t.Fatal(err)
	}
	for _, made := range []string{
		"x1 type ipip remote 192.0.2.9 local 192.0.2.1 encap fou encap-sport 1 encap-dport 2 encap-csum ttl inherit tos inherit dev lo mode ipip",
		"x2 type ipip remote 192.0.2.9 local 192.0.2.2 ttl 5 tos 0x10 pmtudisc dev lo mode ipip",
		"x3 type sit remote 192.0.2.9 local 192.0.2.2 nopmtudisc ttl inherit mode any",
		"x4 type sit local 192.0.2.2 encap gue encap-sport 5 encap-dport 6 noencap-csum mode any",
		"x5 type sit local 192.0.2.1 isatap",
		"x6 type sit remote 192.0.2.9 local 192.0.2.1 mode ip6ip tos 0x01",
		"x7 type gre remote 192.0.2.9 local 192.0.2.1 key 7 tos inherit",
		"x8 type gre remote 192.0.2.9 local 192.0.2.1 ttl 9 nopmtudisc",
		"x8b type gre remote 192.0.2.9 local 192.0.2.1 key 0 nopmtudisc",
		"x8c type gre remote 192.0.2.9 local 192.0.2.1 ttl inherit nopmtudisc key 258 encap fou encap-sport 5 encap-dport 6 tos 0x04",
		"x9 type ip6gre remote 2001:db8::9 local 2001:db8::1 key 4294967295 hoplimit 3 tclass inherit encaplimit none",
		"x10 type ip6gre remote 2001:db8::9 local 2001:db8::1 hoplimit inherit tclass 0x10 encaplimit none encap fou encap-sport 5 encap-dport 6 encap-udp6-csum",
		"x11 type ip6tnl remote 2001:db8::9 local 2001:db8::1 hoplimit inherit tclass inherit encaplimit none mode ip6ip6",
		"x12 type ip6tnl remote 2001:db8::a local 2001:db8::1 hoplimit 8 tclass 0x10 encaplimit none mode ipip6",
		"x13 type ip6tnl remote 2001:db8::b local 2001:db8::1 encaplimit none mode any",
		"x15 type vti remote 192.0.2.9 local 192.0.2.1 key 9",
		"x16 type vti remote 192.0.2.9 local 192.0.2.2 key 0",
		"x17 type bridge",
	} {
		words := strings.Fields("ip link add name " + made)
		for _, line := range wordsOf(Command{Argv: words}).link().lines() {
			if host := r.Lines["interface "+words[4]]; !slices.Contains(host, line) {
				t.Errorf("%s: no %q in %q", made, line, host)
			}
		}
	}
	for name, line := range map[string]string{
		"x1": "mtu 65507", "x3": "state up", "x2": "state down", "x14": "encaplimit 4", "x8": "address 10.9.0.1",
		"x6": "address fe80::c000:201/64", "x4": "address ::192.0.2.2/96",
	} {
		if line == "address ::192.0.2.2/96" {
			line = "address ::c000:202/96"
		}
		if host := r.Lines["interface "+name]; !slices.Contains(host, line) {
			t.Errorf("%s: no %q in %q", name, line, host)
		}
		if auto := strings.Contains(line, "::"); auto != r.Auto["interface "+name][line] {
			t.Errorf("%s: %q is the kernel's own: want %v", name, line, auto)
		}
	}
	if l := r.Links["x1"]; l.Remote.String() != "192.0.2.9:2" || l.Local.String() != "192.0.2.1:1" || l.Kind != "ipip" || l.Index != 10 {
		t.Errorf("x1 is %+v", l)
	}
}

// Routes, rules and addresses have one form, in a plan's words and in those of the host.
func TestExpectedLines(t *testing.T) {
	for _, c := range []struct {
		argv string
		l    Listing
		json string
	}{
		{"ip route add default dev t0 table 10000", Routes, `{"dst":"default","dev":"t0","table":"10000","flags":["linkdown"]}`},
		{"ip -6 route add default dev t0 metric 1024", Routes6, `{"dst":"default","dev":"t0","metric":1024,"pref":"medium"}`},
		{"ip route add 10.1.0.0/24 via 10.0.0.2 dev t0 onlink metric 5", Routes, `{"dst":"10.1.0.0/24","gateway":"10.0.0.2","dev":"t0","metric":5,"flags":["onlink"]}`},
		{"ip -6 route add fd09::2/128 via ::192.0.2.2 dev t0 onlink", Routes6, `{"dst":"fd09::2","gateway":"::192.0.2.2","dev":"t0","metric":1024,"flags":["onlink"]}`},
		{"ip -4 rule add lookup main suppress_prefixlength 0 pref 29001", Rules, `{"priority":29001,"src":"all","table":"254","suppress_prefixlen":0}`},
		{"ip -4 rule add to 192.0.2.1 lookup main pref 29000", Rules, `{"priority":29000,"src":"all","dst":"192.0.2.1","table":"254"}`},
		{"ip -6 rule add from fd00::/64 lookup 10001 pref 29002", Rules6, `{"priority":29002,"src":"fd00::","srclen":64,"table":"10001"}`},
	} {
		b, r := &expectation{seen: map[string]bool{}, places: map[string]int{}}, NewReading()
		if err := b.step(Tunnel{Dev: "t0"}, Step{Do: cmd(strings.Fields(c.argv)...)}, nil); err != nil {
			t.Fatal(err)
		}
		if err := r.Read(c.l, "["+c.json+"]"); err != nil {
			t.Fatal(err)
		}
		o := b.objects[0]
		if host := r.Lines[o.Name]; len(host) != 1 || host[0] != o.Lines[0].Text {
			t.Errorf("%s: %q and %q", c.argv, o.Lines, host)
		}
	}
}

// expected are objects as text.
func expected(objects []Object) string {
	var b strings.Builder
	for _, o := range objects {
		fmt.Fprintf(&b, "@@ %s @@\n", o.Name)
		for _, l := range o.Lines {
			fmt.Fprintf(&b, " %s", l.Text)
			if l.Of != "" {
				fmt.Fprintf(&b, "  # %s", l.Of)
			}
			b.WriteString("\n")
			for _, form := range l.Or {
				fmt.Fprintf(&b, "   or %s\n", form)
			}
		}
	}
	return b.String()
}

// What is expected of a server one of whose peers is bound by the alternate address, with
// clients beside it; and of BPF.
func TestExpect(t *testing.T) {
	hub := bpfConfigs(t)["hub"]
	for name, c := range map[string]Config{"many": many(t), "hub": hub} {
		f := Found{
			Vars:  map[string]string{RunDir: "/run"},
			Peers: map[int]Bound{1: {Peer: netip.MustParseAddrPort("198.51.100.7:4000"), Alt: true}},
			Maps:  true, Tracked: true,
		}
		for _, v := range c.Facts() {
			f.Vars[v.Name] = v.Value
			if v.Value == "" {
				f.Vars[v.Name] = "203.0.113.1"
			}
			if v.Number {
				f.Vars[v.Name] = "1472"
			}
		}
		objects, err := c.Expect(f)
		if err != nil {
			t.Fatal(err)
		}
		sets, err := c.Rulesets(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range sets {
			objects = append(objects, ReadTable(r.Table, strings.Join(r.Stdins, ""), true)...)
		}
		golden(t, "expect/"+name+".txt", expected(objects))
	}
}

// A table is read alike from a plan and from what nft prints of it.
func TestReadTable(t *testing.T) {
	const plan = `create table ip x
table ip x {
	set fou {
		type ipv4_addr . inet_service
		elements = {
			203.0.113.1 . 10000,
			172.29.0.0 . 10000,
		}
	}
	map peers {
		type ipv4_addr . inet_service . ipv4_addr . inet_service : verdict
	}
	set alive {
		type ipv4_addr
		flags dynamic,timeout
	}
	chain pass {
		counter
	}
}
insert rule ip x pass notrack
add element ip x peers { 203.0.113.1 . 10000 . 198.51.100.7 . 4000 : goto pass }
add element ip x alive { 198.51.100.7 timeout 60s }
add chain ip x post { type filter hook postrouting priority srcnat; policy accept; }
add rule ip x post accept
`
	const listed = `table ip x {
	set fou {
		type ipv4_addr . inet_service
		elements = { 172.29.0.0 . 10000,
			     203.0.113.1 . 10000 }
	}

	map peers {
		type ipv4_addr . inet_service . ipv4_addr . inet_service : verdict
		elements = { 203.0.113.1 . 10000 . 198.51.100.7 . 4000 : goto pass }
	}

	set alive {
		type ipv4_addr
		flags dynamic,timeout
		elements = { 198.51.100.7 timeout 1m }
	}

	chain pass {
		notrack
		counter
	}

	chain post {
		type filter hook postrouting priority srcnat; policy accept;
		accept
	}
}
`
	for _, rules := range []bool{false, true} {
		if a, b := expected(ReadTable("ip x", plan, rules)), expected(ReadTable("ip x", listed, rules)); a != b {
			t.Errorf("the plan is\n%s\nand the host has\n%s", a, b)
		}
	}
	peers := Admitted(listed)
	if b := peers[netip.MustParseAddrPort("203.0.113.1:10000")]; len(peers) != 1 || b.Peer != netip.MustParseAddrPort("198.51.100.7:4000") || b.Alt {
		t.Errorf("admitted are %v", peers)
	}
	var f Found
	if f.ReadTables(map[string]string{"ip x": listed}); !f.Tracked || !f.Rewrites {
		t.Errorf("the table shows %+v", f)
	}
}

// What the programs that are asked print is lines, or an error of one line.
func FuzzReading(f *testing.F) {
	f.Add(links(f))
	f.Add(`[{"dst":"default","dev":"t0","table":"10000"},{"priority":29001,"src":"all","table":"254","suppress_prefixlen":0}]`)
	f.Add(`[{"pref":17280,"kind":"bpf","options":{"handle":"0x1","prog":{"id":7}}}]`)
	f.Add("port 10000 ipproto 4 local 192.0.2.1 dev lo\n")
	f.Fuzz(func(t *testing.T, stdout string) {
		r := NewReading()
		errs := []error{r.ReadLinks(stdout)}
		for _, l := range Listings() {
			if l != Addresses {
				errs = append(errs, r.Read(l, stdout))
			}
		}
		_, err := r.ReadFilters(json.RawMessage(stdout), "t0", "egress", "0x1")
		for _, err := range append(errs, err) {
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("%q", err)
			}
		}
	})
}

// A listing of nft is read to its end, and what is read of it, written as a plan, is read
// alike.
func FuzzReadTable(f *testing.F) {
	f.Add("table ip x {\n\tset a {\n\t\ttype ipv4_addr\n\t\telements = { 1.2.3.4,\n\t\t\t5.6.7.8 }\n\t}\n\tchain b {\n\t\taccept\n\t}\n}\n")
	f.Add("create table ip x\nadd element ip x a { 1 : goto b }\nadd chain ip x c { type filter; }\ninsert rule ip x c accept\n")
	f.Fuzz(func(t *testing.T, text string) {
		Admitted(text)
		for _, rules := range []bool{false, true} {
			seen := map[string]bool{}
			for _, o := range ReadTable("ip x", text, rules) {
				if seen[o.Name] || len(o.Lines) == 0 {
					t.Errorf("%q is there twice or empty", o.Name)
				}
				seen[o.Name] = true
				for _, l := range o.Lines {
					if strings.Contains(l.Text, "\n") {
						t.Errorf("%q", l.Text)
					}
				}
			}
		}
	})
}
