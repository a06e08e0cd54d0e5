package plans

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func static(more ...string) []string {
	return append([]string{"--static", "--fou-local", "192.0.2.1@eth0", "--fou-remote", "192.0.2.2"}, more...)
}

func static6(more ...string) []string {
	return append([]string{"--static", "--fou-local", "2001:db8::1@eth0", "--fou-remote", "2001:db8::2"}, more...)
}

func TestStaticPlans(t *testing.T) {
	for name, words := range map[string][]string{
		"ipip":         static("--mode", "ipip", "--tunl-ip", "10.9.0.1", "--tunl-peer-ip", "10.9.0.2"),
		"ipip-fou":     static("--encap", "fou", "--tunl-ip", "10.9.0.1/30", "--ttl", "64", "--tos", "16", "--no-encap-csum"),
		"sit-fou":      static("--mode", "sit", "--encap", "fou", "--tunl-ip", "fd00::1", "--tunl-peer-ip", "fd00::2", "--no-pmtudisc"),
		"any4-gue":     static("--mode", "any4", "--encap", "gue", "--tunl-ip", "10.9.0.1/30,fd00::1/64", "--mtu", "1400", "--tos", "inherit"),
		"gre":          static("--mode", "gre", "--key", "7", "--tunl-ip", "10.9.0.1/30"),
		"ip6ip6-fou":   static6("--mode", "ip6ip6", "--encap", "fou", "--tunl-ip", "fd00::1/64", "--ttl", "64", "--tos", "0x10", "--encap-csum"),
		"gre6-device":  {"--mode", "gre6", "--fou-dev", "eth0", "--fou-remote", "[2001:db8::2]", "--tunl-ip", "10.9.0.1/30", "--key", "0x10"},
		"isatap":       {"--mode", "isatap", "--fou-local", "192.0.2.1", "--tunl-ip", "fd00::5efe:192.0.2.1/64"},
		"vti":          static("--mode", "vti", "--key", "9", "--tunl-ip", "10.9.0.1/30"),
		"one-to-many":  {"--mode", "any4", "--fou-local", "192.0.2.1", "--tunl-ip", "10.9.0.1/32,fd00::1/128", "--routes", "10.9.0.2/32 via 192.0.2.2 onlink,fd00::2/128 via 192.0.2.2 onlink"},
		"gre-to-many":  {"--mode", "gre", "--fou-local", "192.0.2.1", "--tunl-ip", "10.9.0.1/32", "--routes", "10.9.0.2/32 via 192.0.2.2 onlink,10.8.0.0/16 via 192.0.2.2 onlink"},
		"default":      static("--tunl-ip", "10.9.0.1/30", "--routes", "default"),
		"default-half": {"--encap", "fou", "--fou-dev", "eth0", "--fou-remote", "other.example", "--refresh", "5m", "--tunl-ip", "10.9.0.1/30", "--routes", "0.0.0.0/1 128.0.0.0/1"},
		"routes":       static("--tunl-ip", "10.9.0.1/30", "--routes", "10.1.0.0/16 via 10.9.0.2 metric 5 table 7,192.0.2.0/24,10.3.0.0/16"),
		"gateway": static("--tunl-ip", "10.9.0.1/30", "--routes", "10.1.0.0/16", "--forward", "--forward-to", "lan0,10.2.0.0/16", "--masquerade",
			"--bridge", "br0 10.42.1.1/24", "--pre-up", "logger up", "--post-up", "logger there", "--pre-down", "logger going", "--post-down", "logger gone"),
		"forward-6": static("--mode", "any4", "--tunl-ip", "fd00::1/64", "--forward"),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, "plans/static-"+name+".txt", operations(resolve(t, words...)))
		})
	}
}

func TestStaticScripts(t *testing.T) {
	for name, words := range map[string][]string{
		"gateway": static("--encap", "gue", "--tunl-ip", "10.9.0.1/30", "--routes", "default", "--forward", "--bridge", "br0 10.42.1.1/24", "--post-up", "status up", "--post-down", "logger gone"),
		"any6":    static6("--mode", "any6", "--encap", "gue", "--tunl-ip", "10.9.0.1/30,fd00::1/64"),
	} {
		t.Run(name, func(t *testing.T) {
			c := resolve(t, words...)
			golden(t, "scripts/static-"+name+".sh", Script(c, Describe(c, false), false))
		})
	}
}

func TestStaticRefused(t *testing.T) {
	line, line6 := strings.Join(static("--tunl-ip", "10.9.0.1/30"), " "), strings.Join(static6(), " ")
	for _, c := range []struct{ line, want string }{
		{line + " --mode ipop", `--mode: "ipop" is unknown, want ipip, sit, any4, ip6ip6, ipip6, any6, gre, gre6, isatap or vti`},
		{line + " --encap vxlan", `--encap: "vxlan" is unknown, want fou, gue or none`},
		{line + " --mode any4 --encap fou", "--encap: a FOU port has room for one protocol, and mode any4 is two: want gue or none"},
		{line + " --mode vti --encap fou", "--encap: the kernel can't wrap mode vti: leave it out"},
		{"--static --mode isatap --fou-local 192.0.2.1 --encap gue", "--encap: the kernel can't wrap mode isatap"},
		{"--static --mode isatap --fou-local 192.0.2.1 --fou-remote 192.0.2.2", "--fou-remote: mode isatap finds the other ends by their addresses"},
		{line + " --key 7", "--key: mode ipip has no key, want mode gre, gre6 or vti"},
		{line + " --mode gre --key 4294967296", `--key: "4294967296" is out of range, want 0 to 4294967295`},
		{line + " --ttl 0", `--ttl: "0" is out of range, want 1 to 255, or inherit`},
		{line + " --ttl 64 --no-pmtudisc", "--ttl: contradicts no-pmtudisc"},
		{line + " --tos 256", `--tos: "256" is out of range, want 0 to 255 (or 0x00 to 0xff), or inherit`},
		{line + " --mode vti --tos 1", "--tos: mode vti takes the outer header from IPsec"},
		{line6 + " --mode ip6ip6 --pmtudisc", "--pmtudisc: mode ip6ip6 has no such choice, want mode ipip, sit, any4, gre or isatap"},
		{line + " --mtu 12", "--mtu: 12 is out of range, want 68 to 65535"},
		{line + " --mode any4 --mtu 1000", "--mtu: 1000 is too small for IPv6, want 1280 or more"},
		{line + " --encap-csum", "--encap-csum: there is no checksum without UDP"},
		{line + " --fou-local-port 5", "--fou-local-port: there are no ports without UDP"},
		{line + " --fou-remote-port 5", "--fou-remote-port: there are no ports without UDP"},
		{line + " --auth-token t", "--auth-token: a static tunnel authenticates nobody: leave it out, or give --server or --client"},
		{line + " --keepalive 5", "--keepalive: a static tunnel authenticates nobody"},
		{line + " --force-fou-local-ip-alt", "--force-fou-local-ip-alt: a static tunnel authenticates nobody"},
		{line + " --server", "contradicts"},
		{line6 + " --mode ipip", "--fou-local: mode ipip goes over IPv4, and 2001:db8::1 is none; want another address, or mode ipip6"},
		{line + " --mode ip6ip6", "--fou-local: mode ip6ip6 goes over IPv6, and 192.0.2.1 is none; want another address, or mode sit"},
		{line + " --tunl-ip fd00::1", "--tunl-ip: mode ipip carries IPv4 only, and fd00::1 is none; want mode sit, any4 or gre"},
		{line + " --tunl-ip 10.9.0.300", `--tunl-ip: "10.9.0.300" is not an address`},
		{line + " --tunl-ip 10.9.0.1,10.9.0.1", "--tunl-ip: 10.9.0.1 is given twice"},
		{line + " --tunl-peer-ip 10.9.0.2", "--tunl-peer-ip: 10.9.0.2 goes with no address of this end's"},
		{line + " --tunl-peer-ip 10.9.0.2/30", "without a prefix length"},
		{line + " --fou-remote 192.0.2.1", "--fou-remote: 192.0.2.1 is the local address itself"},
		{"--static --mode gre6 --fou-dev eth0", "--fou-remote: mode gre6 needs a remote address; without one, where routes choose it, want mode ipip, sit, any4 or gre"},
		{"--encap fou --fou-dev eth0 --tunl-ip 10.9.0.1/24", "--fou-remote: a static tunnel needs the other end's address, or routes with via and onlink"},
		{line + " --refresh 5m", "--refresh: there is no name to resolve"},
		{line + " --refresh soon", `--refresh: "soon" is no time, want one second or more, such as 30s, 5m or 1h`},
		{line + " --refresh 10ms", "--refresh: "},
		{goodServer + " --refresh 5m --fou-remote h", "--refresh: a server learns its peer's address"},
		{line + " --routes 10.1.0.0/16 via", "--routes: \"10.1.0.0/16 via\": via wants a value"},
		{line + " --routes 10.1.0.0/16 gateway 1.2.3.4", `--routes: "gateway" is not a network`},
		{line + " --routes 10.1.0.0/16 via fd00::2", "--routes: 10.1.0.0/16 via fd00::2: the families differ"},
		{line + " --routes 10.1.0.0/16 onlink", "--routes: 10.1.0.0/16: onlink goes with via"},
		{line + " --routes 10.1.0.0/16 metric x", `--routes: 10.1.0.0/16 metric "x" is out of range`},
		{line + " --routes fd00:1::/64", "--routes: mode ipip carries IPv4 only"},
		{line + " --routes 10.1.0.0/16,10.1.0.0/16", "--routes: 10.1.0.0/16 is given twice"},
		{line + " --routes default table 254", "--routes: a default route in the main table would carry the tunnel's own packets"},
		{"--static --fou-dev eth0 --routes 10.1.0.0/16", "--routes: 10.1.0.0/16: without a remote each route needs the outer address of its node"},
		{"--static --fou-dev eth0 --routes default via 192.0.2.2 onlink", "--routes: a default route wants a tunnel of its own"},
		{line + " --forward-to lan0", "--forward-to: has no effect without forward = true"},
		{line + " --masquerade", "--masquerade: has no effect without forward = true"},
		{line + " --forward --forward-to 10.1.0.1/16", `--forward-to: "10.1.0.1/16" is not a network`},
		{line + " --forward --forward-to 10.1.0.0/44", `--forward-to: "10.1.0.0/44" is neither a network such as 10.1.0.0/24 nor the name of an interface`},
		{line + " --forward --forward-to ipipou0", "--forward-to: is the tunnel itself"},
		{line + " --bridge br0", "--bridge: wants an address"},
		{line + " --bridge br0 10.1.0.1", `--bridge: "10.1.0.1" is not an address with a prefix length`},
		{line + " --bridge a/b 10.1.0.1/24", `--bridge: "a/b" can't be the name of an interface`},
		{line + " --bridge eth0 10.1.0.1/24", "--bridge: eth0 is the tunnel's or the outer interface"},
		{line + " --post-up echo ${HOME}", "--post-up: \"${HOME}\": there is no shell that would expand it"},
		{line + " --post-up sh -c 'x y'", "--post-up: there is no shell that would take the quotes away"},
		{line + " --node a", "--node: no file has a [[node]]"},
		{goodClient + " --mode sit", "--mode: an authenticated tunnel is ipip or gre, not sit"},
		{goodClient + " --encap gue", `--encap: an authenticated tunnel is wrapped in FOU, not "gue"`},
		{goodServer + " --mode gre --key x", "--key: "},
	} {
		s := Settings{}
		var err error
		for _, pair := range strings.Split(strings.TrimPrefix(c.line, "--"), " --") {
			name, value, _ := strings.Cut(pair, " ")
			if fault := s.Set(name, value, "--"+name); fault != nil && err == nil {
				err = fault
			}
		}
		if err == nil {
			_, err = Resolve(nil, nil, s, noFiles)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s\n\terror %v\n\twant  %s", c.line, err, c.want)
		}
	}
}

// nft itself reads the rules (-c: and does nothing).
func TestRulesAreValid(t *testing.T) {
	if os.Getuid() != 0 && os.Getenv("CI") == "" {
		t.Skip("nft wants root to check a ruleset")
	}
	for _, words := range [][]string{
		{"--mode", "any4", "--encap", "gue", "--fou-local", "192.0.2.1", "--routes", "10.9.0.2/32 via 192.0.2.2 onlink,fd00::2/128 via 192.0.2.3 onlink"},
		{"--mode", "gre", "--fou-local", "192.0.2.1", "--routes", "10.9.0.2/32 via 192.0.2.2 onlink"},
		static("--tunl-ip", "10.9.0.1/30", "--forward"),
		static("--mode", "any4", "--tunl-ip", "10.9.0.1/30,fd00::1/64", "--forward", "--masquerade", "--forward-to", "lan0,lan1,10.2.0.0/16,10.3.0.0/16,fd01::/64", "--no-nft-counter"),
	} {
		var text strings.Builder
		resolve(t, words...).Up().Walk(func(s Step) { text.WriteString(s.Do.Stdin) })
		nft := exec.Command("nft", "-c", "-f", "-")
		nft.Stdin = strings.NewReader(text.String())
		if out, err := nft.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, text.String())
		}
	}
}

func TestRoleWithoutSaying(t *testing.T) {
	for line, want := range map[string]Role{
		"--mode sit --fou-local 192.0.2.1 --fou-remote 192.0.2.2":                            Static,
		"--encap gue --fou-local 192.0.2.1 --fou-remote 192.0.2.2":                           Static,
		"--mode gre --fou-dev c0 --fou-remote h:1 --tunl-ip 10.0.0.1 --auth-token t":         Client,
		"--mode gre --fou-dev c0 --fou-remote h:1 --tunl-ip 10.0.0.1 --client true":          Client,
		"--mode gre --key 5 --fou-dev s0 --server true --auth-token t":                       Server,
		"--fou-dev c0 --fou-remote h:1 --tunl-ip 10.0.0.1":                                   Client,
		"--fou-dev c0 --fou-remote h:1 --tunl-ip 10.0.0.1 --static true --encap fou --key 0": -1,
	} {
		c, err := Resolve(nil, nil, flags(t, strings.Fields(line)...), noFiles)
		if want < 0 {
			if err == nil {
				t.Errorf("%s is taken", line)
			}
			continue
		}
		if err != nil || c.Tunnels[0].Role != want {
			t.Errorf("%s: %v, %v, want %v", line, c.Tunnels, err, want)
		}
	}
}

const other = "[[node]]\nname = \"c\"\n"

const mesh = `
mode = "any4"
[[node]]
name = "a"
fou-local-ip = "203.0.113.1"
tunl-ip = ["10.9.0.1", "fd09::1"]
bridge = { name = "br0", address = ["10.42.1.1/24", "fd42:1::1/64"] }
[[node]]
name = "b"
fou-local = "198.51.100.1@eth0"
tunl-ip = ["10.9.0.2", "fd09::2"]
networks = ["10.5.0.0/16"]
routes = ["192.168.7.0/24 via 203.0.113.1 onlink"]
`

func nodeConfig(t *testing.T, text, node string) (Config, error) {
	t.Helper()
	f, err := parseTOML("mesh.toml", []byte(text))
	if err != nil {
		return Config{}, err
	}
	return Resolve([]string{"mesh"}, []File{f}, flags(t, "--node", node), noFiles)
}

func routesOf(t Tunnel) []string { return strs(t.Routes, Route.String) }

func TestNodes(t *testing.T) {
	two, err := nodeConfig(t, strings.Replace(mesh, " via 203.0.113.1 onlink", "", 1), "b")
	if err != nil {
		t.Fatal(err)
	}
	b := two.Tunnels[0]
	if two.Name != "mesh-b" || b.RemoteIP.String() != "203.0.113.1" || b.OneToMany() ||
		b.Addrs[0].Peer.String() != "10.9.0.1" || b.Addrs[1].Peer.String() != "fd09::1" {
		t.Errorf("%+v", b)
	}
	if diff := cmp.Diff([]string{"192.168.7.0/24", "10.42.1.0/24", "fd42:1::/64"}, routesOf(b)); diff != "" {
		t.Error(diff)
	}
	many := mesh + "[[node]]\nname = \"c\"\nfou-local-ip = \"192.0.2.9\"\ntunl-ip = \"10.9.0.3/24\"\n"
	three, err := nodeConfig(t, many, "b")
	if err != nil {
		t.Fatal(err)
	}
	if b := three.Tunnels[0]; !b.OneToMany() || b.FOUDev != "eth0" {
		t.Errorf("%+v", b)
	}
	want := []string{
		"192.168.7.0/24 via 203.0.113.1 onlink", "10.9.0.1/32 via 203.0.113.1 onlink", "fd09::1/128 via ::203.0.113.1 onlink",
		"10.42.1.0/24 via 203.0.113.1 onlink", "fd42:1::/64 via ::203.0.113.1 onlink", "10.9.0.3/32 via 192.0.2.9 onlink",
	}
	for i, r := range want {
		// netip writes the compatible form without dots.
		want[i] = strings.Replace(r, "::203.0.113.1", "::cb00:7101", 1)
	}
	if diff := cmp.Diff(want, routesOf(three.Tunnels[0])); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct{ text, node, want string }{
		{mesh, "c", `--node: "c" is none of the nodes: a, b`},
		{mesh + "[[node]]\nname = \"a\"\n", "a", `mesh.toml:15: name: "a" is another node's too`},
		{mesh + "[[node]]\nfou-dev = \"x\"\n", "a", "mesh.toml: name: each [[node]] wants one"},
		{mesh + "[[node]]\nname = \"c\"\n", "a", "mesh.toml:15: node c has no fou-local-ip, its outer address"},
		{mesh + "[[node]]\nname = \"c\"\nnetworks = [1]\n", "a", "mesh.toml:16: networks: want a list of strings"},
		{mesh + "[[node]]\nname = \"c\"\nfou-local-ip = \"1.2.3.4\"\ntunl-ip = \"x\"\n", "a", `mesh.toml:17: tunl-ip: "x" is not an address`},
		{mesh + "[[tunnel]]\nnumber = 3\n", "a", "a file has [[tunnel]]s or [[node]]s, not both"},
		{"auth-token = \"t\"\n" + mesh, "a", "nodes are static tunnels: leave auth-token out"},
		{"[[node]]\nname = \"a\"\nfou-local-ip = \"1.2.3.4\"\n", "a", "a node needs another one"},
		{mesh + "encap = \"gue\"\n", "a", "mesh.toml:9: node b has encap gue, and node a has none (mesh.toml:4): they must be the same"},
		{mesh + other + "fou-local-ip = \"203.0.113.1\"\n", "a", "mesh.toml:15: node c has the outer address 203.0.113.1, which is node a's too"},
		{mesh + other + "fou-local-ip = \"1.2.3.4\"\ntunl-ip = \"10.9.0.2\"\n", "a", "mesh.toml:15: node c has the tunl-ip 10.9.0.2, which is node b's too"},
		{mesh + other + "fou-local-ip = \"1.2.3.4\"\nnetworks = [\"203.0.113.0/24\"]\n", "a", "mesh.toml:15: networks: node c: 203.0.113.0/24 holds 203.0.113.1, the outer address of node a"},
		{mesh + other + "fou-local-ip = \"1.2.3.4\"\nnetworks = [\"10.4.0.1/16\"]\n", "a", `mesh.toml:15: networks: node c: "10.4.0.1/16" is not a network`},
		{"encap = \"gue\"\n" + mesh + other + "fou-local = \"1.2.3.4:7\"\n", "b", "mesh.toml:16: node c has the UDP port 7, and node a has 10000 (mesh.toml:5): they must be the same"},
		{mesh + "[[node]]\nname = \"c\"\nnode = \"a\"\n", "a", "belongs at the top of the file"},
	} {
		if _, err := nodeConfig(t, c.text, c.node); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s\n\terror %v\n\twant  %s", c.text[len(c.text)-30:], c.node, err, c.want)
		}
	}
}

// Values in TOML may be of several types, and each that is not is named.
func TestTOMLForms(t *testing.T) {
	f, err := parseTOML("a.toml", []byte(`
static = true
fou-dev = "eth0"
fou-remote = "192.0.2.2"
mode = "gre"
ttl = 64
key = 4294967295
tos = "inherit"
pmtudisc = true
tunl-ip = ["10.9.0.1/30", "fd00::1/64"]
routes = ["10.1.0.0/16", { to = "10.2.0.0/16", via = "10.9.0.2", onlink = true, metric = 5, table = 7 }, { to = "default" }]
bridge = { name = "br0", address = "10.42.1.1/24" }
post-up = ["logger", "two words"]
pre-down = [["a"], ["b", "c"]]
`))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve(nil, []File{f}, Settings{}, noFiles)
	if err != nil {
		t.Fatal(err)
	}
	tu := c.Tunnels[0]
	if diff := cmp.Diff([]string{"10.1.0.0/16", "10.2.0.0/16 via 10.9.0.2 onlink metric 5 table 7", "0.0.0.0/0"}, routesOf(tu)); diff != "" {
		t.Error(diff)
	}
	if tu.TTL != "64" || tu.Key != "4294967295" || tu.Bridge.Name != "br0" || len(tu.Hooks.PreDown) != 2 || tu.Hooks.PostUp[0][1] != "two words" {
		t.Errorf("%+v", tu)
	}
	for text, want := range map[string]string{
		"ttl = true":                                          "a.toml:1: ttl: want a string or an integer",
		"bridge = { name = \"b\" }":                           "a.toml:1: bridge: want a table such as",
		"bridge = { name = \"b\", adress = 1 }":               "a.toml:1: bridge: want a table such as",
		"routes = [{ to = \"1.0.0.0/8\", dev = \"x\" }]":      "a.toml:1: routes: want a list of routes",
		"routes = [{ to = \"1.0.0.0/8\", onlink = \"yes\" }]": "a.toml:1: routes: want a list of routes",
		"post-up = \"echo\"":                                  "a.toml:1: post-up: want a list of strings (a command",
		"post-up = [\"a\", [\"b\"]]":                          "a.toml:1: post-up: want a list of strings (a command",
		"tunl-ip = 5":                                         "a.toml:1: tunl-ip: want a list of strings",
		"forward = \"yes\"":                                   "a.toml:1: forward: want true or false",
	} {
		if _, err := parseTOML("a.toml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
}
