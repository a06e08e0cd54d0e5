package check

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// ruleset1 lets in UDP port 10000 and no other.
const ruleset1 = `{"nftables": [
{"chain": {"family": "inet", "table": "filter", "name": "input", "handle": 2, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
{"rule": {"family": "inet", "table": "filter", "chain": "input", "expr": [{"match": {"op": "==", "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": 10000}}, {"accept": null}]}}
]}`

// A firewall in nft's words, and what becomes of a server's UDP port 10000, a client's and
// a static tunnel's by IP protocol 47, which is a packet of eth0 to 192.0.2.1.
var firewalls = []struct {
	name, rules            string
	server, client, static string
}{
	{"none", ``, "ok", "ok", "ok"},
	{"open", `table inet filter { chain input { type filter hook input priority 0; policy accept; udp dport 53 drop
}
}`, "ok", "ok", "ok"},
	{"closed", `table inet filter { chain input { type filter hook input priority 0; policy drop; ct state established,related accept; tcp dport 22 accept
}
}`, "missing", "ok", "missing"},
	{"port named", `table inet filter { chain input { type filter hook input priority 0; policy drop; udp dport { 53, 10000-10010 } accept; ip protocol gre accept
}
}`, "ok", "ok", "ok"},
	{"port in a set", `table ip filter { set ports { type inet_service; flags interval; elements = { 9000-11000 }
}
chain input { type filter hook input priority 0; policy drop; udp dport @ports accept; meta l4proto { gre, icmp } accept
}
}`, "ok", "ok", "ok"},
	{"port refused", `table ip filter { chain input { type filter hook input priority 0; policy accept; udp dport 10000 reject
}
}`, "missing", "missing", "ok"},
	{"new connections only", `table ip filter { chain input { type filter hook input priority 0; policy drop; ct state new udp dport 10000 accept; ct state vmap { established : accept, invalid : drop }
}
}`, "warning", "ok", "missing"},
	{"some senders", `table ip filter { chain input { type filter hook input priority 0; policy drop; ip saddr 198.51.100.0/24 accept
}
}`, "warning", "ok", "ok"},
	{"a rate", `table ip filter { chain input { type filter hook input priority 0; policy accept; udp dport 10000 limit rate over 5/second drop
}
}`, "warning", "warning", "ok"},
	{"by interface", `table ip filter { chain input { type filter hook input priority 0; policy drop; iifname "lo" accept; iifname "eth*" accept
}
}`, "ok", "ok", "ok"},
	{"jumps", `table ip filter { chain zone { udp dport 10000 accept; return
}
chain other { accept
}
chain input { type filter hook input priority 0; policy drop; iifname "eth0" jump zone; meta l4proto gre goto other; drop
}
}`, "ok", "ok", "ok"},
	{"by address and port", `table ip filter { chain input { type filter hook input priority 0; policy drop; ip daddr . udp dport vmap { 192.0.2.1 . 10000 : accept, 192.0.2.9 . 1 : drop }
}
}`, "ok", "ok", "missing"},
	{"raw", `table ip mine { chain pre { type filter hook prerouting priority raw; policy accept; ip daddr 192.0.2.1 drop
}
}`, "missing", "missing", "missing"},
	{"of IPv6", `table ip6 filter { chain input { type filter hook input priority 0; policy drop
}
}
table inet filter { chain input { type filter hook input priority 0; meta nfproto ipv6 drop; ip6 saddr ::/0 drop; tcp flags syn drop
}
}`, "ok", "ok", "ok"},
	{"output", `table ip filter { chain output { type filter hook output priority 0; policy drop
}
chain forward { type filter hook forward priority 0; policy drop
}
}`, "ok", "ok", "ok"},
	{"our gate", `table ip ipipou0 { set fou { type ipv4_addr . inet_service; elements = { 192.0.2.1 . 10000 }
}
map peers { type ipv4_addr . inet_service : verdict
}
map alt_in { type ipv4_addr . inet_service : ipv4_addr
}
map alt_out { type ipv4_addr . inet_service : ipv4_addr
}
chain gate { type filter hook prerouting priority raw; policy accept; ip daddr . udp dport @fou drop
}
}`, "ok", "ok", "ok"},
}

// packets are a server's, a client's and a static tunnel's.
func packets() [3]packet {
	local, remote := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.7")
	return [3]packet{
		{proto: 17, port: 10000, dev: "eth0", local: local, state: served},
		{proto: 17, port: 10000, dev: "eth0", local: local, remote: remote, state: answered},
		{proto: 47, dev: "eth0", local: local, remote: remote, state: fresh},
	}
}

// The rules are read as the real nft prints them, in a network namespace of their own.
func TestFirewalls(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("a network namespace takes root")
	}
	for _, f := range firewalls {
		command := exec.Command("unshare", "-n", "sh", "-c", "nft -f - && nft -j list ruleset")
		command.Stdin = strings.NewReader(f.rules)
		var said strings.Builder
		command.Stderr = &said
		listing, err := command.Output()
		if err != nil {
			t.Fatalf("%s: %v: %s", f.name, err, said.String())
		}
		nft, err := parseNft(string(listing))
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range []string{f.server, f.client, f.static} {
			if l := nft.ruleset(packets()[i]).judge(packets()[i]); string(l.State) != want || (l.Advice == "") != (want == "ok") {
				t.Errorf("%s, %s: %+v, want %s", f.name, packets()[i], l, want)
			}
		}
	}
}

// Rules where packets come in by an interface, or by one of several.
func TestIngress(t *testing.T) {
	for dev, want := range map[string]State{`"eth0"`: Missing, `["lo", "eth0"]`: Missing, `"eth1"`: OK, `["lo", "eth01"]`: OK} {
		nft, err := parseNft(`{"nftables": [{"chain": {"family": "netdev", "table": "t", "name": "c", "type": "filter", "hook": "ingress", "prio": 0, "dev": ` + dev + `, "policy": "drop"}}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if l := nft.ruleset(packets()[0]).judge(packets()[0]); l.State != want {
			t.Errorf("%s: %+v, want %s", dev, l, want)
		}
	}
}

// Who manages the chain is told in his words.
func TestOpen(t *testing.T) {
	p := packets()[0]
	for table, want := range map[string]string{
		"inet firewalld":  "firewall-cmd --permanent --add-port=10000/udp && firewall-cmd --reload",
		"ip filter":       "iptables -I INPUT -p udp --dport 10000 -j ACCEPT (ufw allow 10000/udp, where that is in charge)",
		"inet filter":     "nft insert rule inet filter INPUT udp dport 10000 accept, and the same in /etc/nftables.conf or wherever it comes from",
		"iptables filter": "iptables -I INPUT -p udp --dport 10000 -j ACCEPT (ufw allow 10000/udp, where that is in charge)",
	} {
		if got := (&chain{name: "chain " + table + " INPUT", table: table}).open(p); got != want {
			t.Errorf("%s: %q, want %q", table, got, want)
		}
	}
}

// The kernel's older tables.
func TestIptables(t *testing.T) {
	for rules, want := range map[string]string{
		"-P INPUT ACCEPT\n-P FORWARD DROP\n": "ok",
		"-P INPUT DROP\n":                    "missing",
		"-P INPUT DROP\n-A INPUT -p udp -m udp --dport 10000 -j ACCEPT\n":                                                       "ok",
		"-P INPUT DROP\n-A INPUT -p udp -m multiport --dports 53,9000:11000 -m comment --comment x -j ACCEPT\n":                 "ok",
		"-P INPUT DROP\n-A INPUT -p tcp -m tcp --dport 10000 -j ACCEPT\n":                                                       "missing",
		"-P INPUT DROP\n-A INPUT ! -i lo -j ACCEPT\n":                                                                           "ok",
		"-P INPUT DROP\n-A INPUT -s 10.0.0.0/8 -j ACCEPT\n":                                                                     "warning",
		"-P INPUT DROP\n-A INPUT -m conntrack --ctstate NEW,UNTRACKED -j ACCEPT\n":                                              "warning",
		"-P INPUT DROP\n-N ufw-user-input\n-A INPUT -j ufw-user-input\n-A ufw-user-input -p udp -m udp --dport 10000 -j ACCEPT": "ok",
		"-P INPUT ACCEPT\n-A INPUT -j LOG --log-prefix x\n-A INPUT -p udp -j REJECT --reject-with icmp-port-unreachable\n":      "missing",
		"-P INPUT ACCEPT\n-N a\n-A INPUT -g a\n-A a -i eth+ -j DROP":                                                            "missing",
	} {
		if l := readIptables(rules, packets()[0]).judge(packets()[0]); string(l.State) != want {
			t.Errorf("%q: %+v, want %s", rules, l, want)
		}
	}
}

// Chains that jump to each other in many ways are given up, not followed for ever.
func TestManyWays(t *testing.T) {
	text := "-P INPUT DROP\n"
	for i := range 15 {
		for range 50 {
			text += "-A c" + string(rune('a'+i)) + " -j c" + string(rune('b'+i)) + "\n"
		}
	}
	text += "-A INPUT -j ca\n-A INPUT -j INPUT\n"
	if l := readIptables(text, packets()[0]).judge(packets()[0]); l.State != Warning {
		t.Errorf("%+v", l)
	}
}

// Whatever is listed, a judgement is one line, and made in no time to speak of.
func FuzzFirewall(f *testing.F) {
	f.Add(ruleset1, "-P INPUT DROP\n-A INPUT -p udp -m udp --dport 10000 -j ACCEPT\n")
	f.Add(`{"nftables": [{"chain": {"family": "ip", "table": "t", "name": "c", "type": "filter", "hook": "input"}},
		{"rule": {"family": "ip", "table": "t", "chain": "c", "expr": [{"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["new", {"jump": {"target": "c"}}]]}}}]}}]}`, "-A INPUT -j INPUT")
	f.Fuzz(func(t *testing.T, listing, old string) {
		for _, p := range packets() {
			sets := []*ruleset{readIptables(old, p)}
			if nft, err := parseNft(listing); err == nil {
				sets = append(sets, nft.ruleset(p))
			} else if strings.ContainsAny(oneLine(err.Error()), "\n\r") {
				t.Errorf("error %q", err)
			}
			for _, rules := range sets {
				if l := rules.judge(p); l.Found == "" || l.State == OK && l.Advice != "" {
					t.Errorf("%+v", l)
				}
			}
		}
	})
}
