package plans

import (
	"encoding/base64"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The base of a valid command line of each kind, for tests that add a fault.
const (
	goodServer = "--server --fou-dev s0 --auth-token t"
	goodClient = "--fou-dev c0 --fou-remote 203.0.113.1:10000 --tunl-ip 172.28.0.1 --auth-token t"
)

func TestRefused(t *testing.T) {
	seed := "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso="
	for _, c := range []struct{ line, want string }{
		{"--server --auth-token t", "--fou-local: a local address or a device is needed"},
		{goodServer + " --fou-local-port 0", "--fou-local-port: 0 is out of range, want 1 to 65535"},
		{goodServer + " --fou-local-port 65536", "--fou-local-port: 65536 is out of range"},
		{goodServer + " --fou-local 1.2.3.4:70000", `--fou-local: port "70000" is out of range, want 1 to 65535`},
		{goodServer + " --fou-local ::1", "--fou-local: "},
		{goodServer + " --fou-local-ip 300.1.1.1", `--fou-local-ip: "300.1.1.1" is not an IPv4 address`},
		{goodServer + " --fou-local-ip 0.0.0.0", "--fou-local-ip: 0.0.0.0 can't be the address of a host"},
		{goodServer + " --fou-local-ip 172.29.0.0", "--fou-local-ip-alt: is the local address itself"},
		{goodServer + " --number 60000", "--number: 60000 makes the port 10000 + 60000, out of range"},
		{goodServer + " --number -1", "--number: -1 is out of range"},
		{goodServer + " --tunl-dev averyveryverylongname", "longer than the 15 characters"},
		{goodServer + " --tunl-dev a/b", `--tunl-dev: "a/b" can't be the name of an interface`},
		{goodServer + " --tunl-dev s0", "--tunl-dev: is the outer interface itself"},
		{goodServer + " --fou-dev a%d", "--fou-dev: "},
		{goodServer + " --tunl-ip 172.28.0.0 --tunl-peer-ip 172.28.0.0", "--tunl-peer-ip: want an address other than 172.28.0.0"},
		{goodServer + " --routes 10.1.0.1/24", `--routes: "10.1.0.1/24" is not a network, it has bits behind its prefix; want 10.1.0.0/24`},
		{goodServer + " --auth-remote-pubkey-b64 " + key, "--auth-remote-pubkey-b64: contradicts auth-token"},
		{goodServer + " --auth-key-b64 " + seed, "--auth-key-b64: contradicts auth-token"},
		{goodClient + " --auth-key-b64 " + seed, "--auth-key-b64: contradicts auth-token"},
		{"--server --fou-dev s0 --auth-key-b64 " + seed, "--auth-key-b64: signs replies, but nothing here verifies the client"},
		{"--server --fou-dev s0 --auth-remote-pubkey-b64 AAAA", "--auth-remote-pubkey-b64: want 32 bytes in base64, have 3"},
		{"--server --fou-dev s0 --auth-remote-pubkey-b64 %%", "--auth-remote-pubkey-b64: not standard base64"},
		{"--server --fou-dev s0 --auth-remote-pubkey-file /none", "--auth-remote-pubkey-file: open /none"},
		{"--server --fou-dev s0 --auth-token-b64 !!", "--auth-token-b64: not standard base64"},
		{goodServer + " --auth-key-type rsa", `--auth-key-type: "rsa" is not supported`},
		{goodServer + " --auth-by-remote-ip", "--auth-by-remote-ip: needs --fou-remote-ip"},
		{goodServer + " --auth-by-remote-port", "--auth-by-remote-port: needs --fou-remote-port"},
		{goodServer + " --auth-packet-ttl 256", "--auth-packet-ttl: 256 is out of range, want 1 to 255"},
		{goodServer + " --auth-lifetime -5", "--auth-lifetime: -5 is out of range"},
		{goodServer + " --reauth-only", "--reauth-only: only a client"},
		{goodServer + " --nft-table 1x", "--nft-table: "},
		{goodServer + " --monitor auth", "--monitor: only a client is answered when it authenticates, want ping"},
		{goodClient + " --monitor both", `--monitor: "both" is none of auth, ping`},
		{goodClient + " --monitor auth --monitor-interval 5s", "--monitor-interval: is for --monitor ping"},
		{"--static --mode ipip --fou-dev a --fou-remote 192.0.2.1 --tunl-ip 10.9.0.1/30 --monitor ping", "--monitor: ping asks the other end's inner address: give it as tunl-peer-ip, and tunl-ip without a prefix length"},
		{"--static --mode ipip --fou-dev a --tunl-ip 10.9.0.1/24 --routes 10.1.0.0/24 via 192.0.2.9 onlink --monitor ping", "--monitor: ping asks the one other end of a tunnel"},
		{"--fou-dev c0 --fou-remote 203.0.113.1:10000 --tunl-ip 172.28.0.1/24 --auth-token t --monitor ping", "--monitor: ping asks the other end's inner address, which is not known"},
		{"--fou-dev c0 --tunl-ip 172.28.0.1", "--fou-remote: a client needs its server's address"},
		{"--fou-dev c0 --tunl-ip 172.28.0.1 --fou-remote h", "--fou-remote-port: a client needs its server's port"},
		{"--fou-dev c0 --fou-remote h:1", "--tunl-ip: a client needs its tunnel address"},
		{"--fou-dev c0 --tunl-ip 1.1.1.1 --fou-remote a;b:1", `--fou-remote: "a;b" is neither`},
	} {
		s := Settings{}
		var err error
		for _, pair := range strings.Split(strings.TrimPrefix(c.line, "--"), " --") {
			name, value, _ := strings.Cut(pair, " ")
			if fault := s.Set(name, value, "--"+name); fault != nil {
				err = fault
			}
		}
		if err == nil {
			_, err = Resolve(nil, nil, s, noFiles)
		}
		if err == nil || !strings.HasPrefix(err.Error(), c.want) && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\n\terror %v\n\twant  %s", c.line, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), seed)) {
			t.Errorf("%s: not one line, or with a secret: %v", c.line, err)
		}
	}
}

func TestDefaults(t *testing.T) {
	s := resolve(t, "--server", "--fou-dev", "s0", "--auth-token", "t", "--number", "300").Tunnels[0]
	if s.Dev != "ipipou300" || s.FOUPort != 10300 || s.Addrs[0].IP != netip.MustParseAddr("172.28.2.88") ||
		s.Addrs[0].Peer != netip.MustParseAddr("172.28.2.89") || s.FOUIPAlt != netip.MustParseAddr("172.29.1.44") || s.Table != "ipipou300" {
		t.Errorf("server defaults: %+v", s)
	}
	c := resolve(t, "--fou-dev", "c0", "--fou-remote", "203.0.113.1:4500", "--tunl-ip", "172.28.0.1", "--auth-token", "t").Tunnels[0]
	if c.Addrs[0].Peer != netip.MustParseAddr("172.28.0.0") || c.RemotePort != 4500 || c.Role != Client || c.FOUPort != 10000 {
		t.Errorf("client defaults: %+v", c)
	}
	q := resolve(t, "--server", "--fou-dev", "s0", "--auth-token", "t", "--queue-number", "5")
	if q.Tunnels[0].Number != 5 || q.Tunnels[0].Dev != "ipipou5" {
		t.Errorf("a queue number no longer gives the default number: %+v", q.Tunnels[0])
	}
	if len(q.Notes) != 1 || !strings.Contains(q.Notes[0].Text, "queue-number") {
		t.Errorf("notes %v, want one about the queue", q.Notes)
	}
	big := resolve(t, "--server", "--fou-dev", "s0", "--auth-token", "t", "--queue-number", "5000")
	if big.Tunnels[0].Number != 0 {
		t.Errorf("queue number 5000 became the tunnel's number")
	}
}

func TestLayers(t *testing.T) {
	toml := []byte("server = true\nfou-dev = \"s0\"\nverb = 2\n[[tunnel]]\nauth-token = \"a\"\n[[tunnel]]\nnumber = 1\nauth-token = \"b\"\nfou-dev = \"s1\"\n")
	conf := []byte("# old\n  --number 9\n\n\tauth-secret  two blanks \nv\n-v\nno-encap-csum\nencap-csum\nfou-local :4000@s9\nauth-remote-pubkey-b64 " + key + "\n")
	files := func(name string) ([]byte, error) {
		switch name {
		case "/etc/ipipou/office.toml":
			return toml, nil
		case "/etc/ipipou/old.conf", "./x.conf":
			return conf, nil
		}
		return noFiles(name)
	}
	office, err := Load("office", files)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve([]string{"office"}, []File{office}, flags(t, "--fou-dev", "eth9"), files)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != "office" || len(c.Tunnels) != 2 || c.Tunnels[1].Number != 1 || string(c.Tunnels[1].Auth.Token) != "b" ||
		c.Tunnels[1].FOUDev != "eth9" || c.Verbosity != 2 || c.Tunnels[1].Table != "ipipou0" {
		t.Errorf("%+v", c)
	}
	for _, name := range []string{"old", "./x.conf"} {
		old, err := Load(name, files)
		if err != nil {
			t.Fatal(err)
		}
		c, err = Resolve([]string{name}, []File{old}, flags(t, "--server"), files)
		if err != nil {
			t.Fatal(err)
		}
		tu := c.Tunnels[0]
		if tu.Number != 9 || string(tu.Auth.Secret) != " two blanks " || c.Verbosity != 2 || !*tu.EncapCsum || tu.FOUPort != 4000 || tu.FOUDev != "s9" {
			t.Errorf("%s: %+v", name, tu)
		}
	}
	if _, err := Load("none", files); err == nil || err.Error() != "--config: neither /etc/ipipou/none.toml nor /etc/ipipou/none.conf exists" {
		t.Error(err)
	}
}

func TestFileErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a.toml", "x = ", "a.toml:1: "},
		{"a.toml", "\nfou-local-prt = 1", `a.toml:2: unknown key "fou-local-prt", did you mean "fou-local-port"?`},
		{"a.toml", "number = 1\n[[tunnel]]\nn = 1\n", `a.toml:3: unknown key "n"`},
		{"a.toml", "number = \"1\"", "a.toml:1: number: want an integer"},
		{"a.toml", "[tunnel]\nnumber = 1", "a.toml:1: want [[tunnel]], in double brackets"},
		{"a.toml", "[[tunnel]]\nverb = 1", "a.toml:2: verb: belongs at the top of the file"},
		{"a.toml", "routes = [1]", "a.toml:1: routes: want a list of routes, such as"},
		{"a.toml", "[[tunnel]]\n[tunnel.x]\ny=1", `a.toml`},
		{"a.toml", "auth-token = \"hunter2\"\nauth-token-b64 = \"hunter2\"", "a.toml:2: auth-token-b64: contradicts auth-token: give one of them"},
		{"a.conf", "numbr 1", `a.conf:1: unknown key "numbr", did you mean "number"?`},
		{"a.conf", "\nserver yes", "a.conf:2: server takes no value"},
		{"a.conf", "number", "a.conf:1: number wants a value: N"},
		{"a.conf", "number x", `a.conf:1: number: "x" is not an integer`},
		{"a.conf", "auth-k 1", `a.conf:1: unknown key "auth-k"`},
		{"a.conf", "auth-token\thunter2", `a.conf:1: "auth-token" is followed by something that can't be in a key`},
		{"a.conf", "auth-token=hunter2 x", "a.conf:1: auth-token: a value behind = can't have a blank"},
		{"a.toml", "auth-token = hunter2", "a.toml:1: auth-token: want a string in quotes"},
	} {
		_, err := Load("./"+c.name, func(string) ([]byte, error) { return []byte(c.text), nil })
		if err == nil || !strings.HasPrefix(strings.TrimPrefix(err.Error(), "./"), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error %v, want %s", c.text, err, c.want)
		}
	}
}

// A value out of a file is refused by the file's name and line.
func TestValueErrorNamesFileAndLine(t *testing.T) {
	f, err := Load("./a.toml", func(string) ([]byte, error) {
		return []byte("server = true\nfou-dev = \"s0\"\nauth-token = \"t\"\n\n[[tunnel]]\nfou-local-port = 70000\n"), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Resolve(nil, []File{f}, Settings{}, noFiles)
	if err == nil || err.Error() != "./a.toml:6: fou-local-port: 70000 is out of range, want 1 to 65535" {
		t.Error(err)
	}
}

func TestCollisions(t *testing.T) {
	for text, want := range map[string]string{
		"[[tunnel]]\n[[tunnel]]\n":                                 "number 0",
		"[[tunnel]]\n[[tunnel]]\ntunl-dev=\"b\"\n":                 "number 0",
		"[[tunnel]]\n[[tunnel]]\nnumber=1\ntunl-dev=\"ipipou0\"\n": "tunl-dev ipipou0",
		"[[tunnel]]\n[[tunnel]]\nnumber=1\nfou-local-port=10000\n": "fou-local-port 10000",
		"[[tunnel]]\n[[tunnel]]\nnumber=1\ntunl-ip=\"172.28.0.0\"": "tunl-ip 172.28.0.0",
	} {
		f, err := parseTOML("a.toml", []byte("server=true\nfou-dev=\"s0\"\nauth-token=\"t\"\n"+text))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Resolve(nil, []File{f}, Settings{}, noFiles); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one about %s", text, err, want)
		}
	}
}

func TestAbbreviations(t *testing.T) {
	for name, want := range map[string]string{
		"auth-remote-pubkey-b": "auth-remote-pubkey-b64", "keep": "keepalive", "number": "number", "fou-local": "fou-local",
		"auth-remote": "auth-remote-pubkey-b64", "auth-sec": "auth-secret", "s": "server", "auth-remote-pubkey-f": "auth-remote-pubkey-file",
	} {
		if o, ok := OptionByPrefix(name); !ok || o.Name != want {
			t.Errorf("%s: %s %v", name, o.Name, ok)
		}
	}
	for _, name := range []string{"auth", "n", "", "fou-remote-"} {
		if o, ok := OptionByPrefix(name); ok {
			t.Errorf("%q is %s, want none", name, o.Name)
		}
	}
}

// A value given for a part of a compound option in a later layer wins over it.
func TestCompoundsAreLayered(t *testing.T) {
	f, err := parseTOML("a.toml", []byte("server=true\nauth-token=\"t\"\nfou-local=\"192.0.2.1:10000@eth0\"\n[[tunnel]]\nfou-local-port=10003\n"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := Resolve(nil, []File{f}, flags(t, "--fou-local", "@eth1"), noFiles)
	if err != nil {
		t.Fatal(err)
	}
	if tu := c.Tunnels[0]; tu.FOUPort != 10003 || tu.FOUDev != "eth1" || tu.FOUIP != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%+v", tu)
	}
}

func TestSwitchesCanBeOff(t *testing.T) {
	s := flags(t, "--fou-dev", "s0", "--server", "true", "--auth-token", "t")
	for _, name := range []string{"no-nft-counter", "auth-by-remote-ip"} {
		if err := s.Set(name, "false", "--"+name); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Resolve(nil, nil, s, noFiles)
	if err != nil || !c.Tunnels[0].Counters || c.Tunnels[0].Auth.ByRemoteIP {
		t.Errorf("%+v %v", c, err)
	}
}

func TestOpenSSHKeys(t *testing.T) {
	dir := filepath.Join("testdata", "ssh")
	private, err := os.ReadFile(filepath.Join(dir, "id_ed25519"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(filepath.Join(dir, "id_ed25519.pub"))
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParsePrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	p, err := ParsePublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Equal(k.Public()) {
		t.Error("the OpenSSH key pair does not match")
	}
	b64, err := ParsePublicKey([]byte(base64.StdEncoding.EncodeToString(p) + "\n"))
	if err != nil || !b64.Equal(p) {
		t.Errorf("base64 of the same key: %v", err)
	}
	for name, want := range map[string]string{"id_rsa": "not an ed25519 key", "id_locked": "passphrase"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParsePrivateKey(data); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
}
