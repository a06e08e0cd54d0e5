package plans

import (
	"regexp"
	"strings"
	"testing"
)

// hub is a server of two peers on one interface and port.
const hub = `
server = true
backend = "bpf"
fou-dev = "s0"
fou-local-port = 10000
tunl-dev = "ipipou0"
tunl-ip = ["172.28.0.0"]
auth-secret = "s"
[[tunnel]]
tunl-peer-ip = "172.28.0.1"
auth-remote-pubkey-b64 = "` + key + `"
routes = ["10.1.0.0/24"]
auth-lifetime = 60
[[tunnel]]
number = 1
tunl-peer-ip = "172.28.0.3"
auth-token = "t"
routes = ["default"]
`

func fromTOML(t *testing.T, text string) (Config, error) {
	t.Helper()
	f, err := parseTOML("office.toml", []byte(text))
	if err != nil {
		return Config{}, err
	}
	return Resolve([]string{"office"}, []File{f}, Settings{}, noFiles)
}

func bpfConfigs(t *testing.T) map[string]Config {
	t.Helper()
	h, err := fromTOML(t, hub)
	if err != nil {
		t.Fatal(err)
	}
	static := []string{"--backend", "bpf", "--static"}
	return map[string]Config{
		"hub": h,
		"server": resolve(t, "--backend", "bpf", "--server", "--fou-local-ip", "203.0.113.1", "--auth-token", "t", "--mode", "any4",
			"--tunl-ip", "172.28.0.0,fd00::1/64", "--mtu", "1400", "--tos", "inherit", "--forward"),
		"client": resolve(t, "--backend", "bpf", "--fou-dev", "c0", "--fou-remote", "server.example:10000", "--tunl-ip", "172.28.0.1", "--auth-token", "t"),
		"plain":  resolve(t, append(static, "--mode", "any4", "--fou-dev", "s0", "--fou-remote", "192.0.2.2", "--tunl-ip", "10.9.0.1/30,fd09::1/64", "--ttl", "64", "--tos", "0x10")...),
		"to-many": resolve(t, append(static, "--mode", "any4", "--encap", "fou", "--fou-dev", "s0", "--tunl-ip", "10.9.0.1/32", "--routes",
			"10.9.0.2/32 via 192.0.2.2 onlink,10.42.2.0/24 via 192.0.2.2 onlink,10.9.0.3/32 via 192.0.2.3 onlink,fd43::/64 via ::192.0.2.3 onlink")...),
	}
}

func TestBPFPlans(t *testing.T) {
	for name, c := range bpfConfigs(t) {
		t.Run(name, func(t *testing.T) {
			golden(t, "plans/bpf-"+name+".txt", regexp.MustCompile(`<<\d+ bytes`).ReplaceAllString(operations(c), "<<N bytes"))
		})
	}
}

// The compiled programs are left out: the golden file would change with every compiler.
func TestBPFScripts(t *testing.T) {
	object := regexp.MustCompile(`(?s)(base64 -d <<'EOF' \| gzip -dc\n).*?\nEOF\n`)
	for _, name := range []string{"hub", "client", "to-many"} {
		t.Run(name, func(t *testing.T) {
			c := bpfConfigs(t)[name]
			text := Script(c, Describe(c, false), false)
			if !object.MatchString(text) {
				t.Fatal("the script has no programs")
			}
			golden(t, "scripts/bpf-"+name+".sh", object.ReplaceAllString(text, "${1}H4sI\nEOF\n"))
		})
	}
}

// What BPF can't carry is refused where it is asked for, and stays the kernel's where nothing is said.
func TestBPFRefused(t *testing.T) {
	base := []string{"--static", "--fou-local", "192.0.2.1@eth0", "--fou-remote", "192.0.2.2"}
	for _, c := range []struct{ args, want string }{
		{"--mode gre", "--mode: mode gre is not carried: want ipip, sit or any4, with backend bpf"},
		{"--mode ipip --encap gue", "--encap: gue is not spoken: want fou or none, with backend bpf"},
		{"--encap fou --encap-csum", "--encap-csum: the outer UDP header has no checksum: leave it out, with backend bpf"},
		{"--no-pmtudisc", "--no-pmtudisc: outer packets can't be fragmented: leave it out, with backend bpf"},
	} {
		words := append(append([]string{}, base...), strings.Fields(c.args)...)
		_, err := Resolve(nil, nil, flags(t, append(words, "--backend", "bpf")...), noFiles)
		if err == nil || err.Error() != c.want {
			t.Errorf("%s: error %v, want %s", c.args, err, c.want)
		}
		auto := resolve(t, words...)
		if auto.BPFFault() == nil {
			t.Errorf("%s: BPF could stand in", c.args)
		}
	}
	_, err := Resolve(nil, nil, flags(t, append(base, "--backend", "ebpf")...), noFiles)
	if want := `--backend: "ebpf" is unknown, want auto, kernel or bpf`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// Peers of one interface must be told from each other, and the interface is one.
func TestSharingRefused(t *testing.T) {
	if _, err := fromTOML(t, hub); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ old, new, want string }{
		{`number = 1`, "number = 1\nfou-local-port = 10001", "tunnel 2 (ipipou0): fou-local-port is not that of tunnel 1, which has the same tunl-dev ipipou0: give it at the top of the file, for all, or another tunl-dev"},
		{`number = 1`, "number = 1\nmtu = 1300", "tunnel 2 (ipipou0): mtu is not that of tunnel 1, which has the same tunl-dev ipipou0: give it at the top of the file, for all, or another tunl-dev"},
		{`"172.28.0.3"`, `"172.28.0.1"`, "tunnel 2 (ipipou0): 172.28.0.1/32 is also behind tunnel 1: of one interface, give each its own tunl-peer-ip or routes"},
		{`auth-token = "t"`, `auth-remote-pubkey-b64 = "` + key + `"`, "tunnel 2 (ipipou0): has the key or token of tunnel 1: by it peers of one port are told from each other"},
		{`auth-token = "t"`, "auth-by-remote-ip = true\nfou-remote-ip = \"192.0.2.9\"", "tunnel 2 (ipipou0): has no key or token: by it peers of one port are told from each other"},
		{`backend = "bpf"`, `backend = "kernel"`, "tunnel 2 (ipipou0): tunl-dev ipipou0 is also that of tunnel ipipou0: give each [[tunnel]] its own number"},
		{"auth-secret", "encap-csum = true\nauth-secret", "office.toml:8: encap-csum: the outer UDP header has no checksum: leave it out, with backend bpf"},
	} {
		_, err := fromTOML(t, strings.Replace(hub, c.old, c.new, 1))
		if err == nil || !strings.HasSuffix(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %s", c.new, err, c.want)
		}
	}
	// One that BPF can't carry is refused also where nobody said backend.
	text := strings.Replace(hub, "backend", "# backend", 1)
	_, err := fromTOML(t, strings.Replace(text, "number = 1", "number = 1\nencap-csum = true", 1))
	if want := "tunnel 2 (ipipou0): several tunnels have this interface, which takes backend bpf: encap-csum: the outer UDP header has no checksum: leave it out"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	// Undecided, they can only be BPF's.
	c, err := fromTOML(t, strings.Replace(hub, "backend", "# backend", 1))
	if err != nil || c.Undecided() || c.Tunnels[0].Backend != BPF {
		t.Errorf("undecided %v, backend %s (%v)", c.Undecided(), c.Tunnels[0].Backend, err)
	}
}

// Tunnels of different interfaces must be told apart by what arrives.
func TestArrivalsRefused(t *testing.T) {
	top := "backend = \"bpf\"\nstatic = true\nfou-dev = \"s0\"\n"
	one := "[[tunnel]]\nfou-remote-ip = \"192.0.2.2\"\ntunl-ip = \"10.9.0.1/30\"\n"
	for _, c := range []struct{ text, want string }{
		{one + "[[tunnel]]\nnumber = 1\nfou-remote-ip = \"192.0.2.3\"\ntunl-ip = \"10.9.0.5/30\"\n", ""},
		{one + "[[tunnel]]\nnumber = 1\nfou-remote-ip = \"192.0.2.2\"\ntunl-ip = \"10.9.0.5/30\"\n",
			"tunnel 2 (ipipou1): protocol 4 from 192.0.2.2 is also for tunnel ipipou0, and the BPF data path tells tunnels by that"},
		{one + "[[tunnel]]\nnumber = 1\nmode = \"sit\"\nfou-remote-ip = \"192.0.2.2\"\ntunl-ip = \"fd09::1/64\"\n", ""},
		{"encap = \"fou\"\nfou-local-port = 5555\n" + one + "[[tunnel]]\nnumber = 1\nfou-local-ip = \"192.0.2.9\"\nfou-remote-ip = \"192.0.2.3\"\ntunl-ip = \"10.9.0.5/30\"\n",
			"tunnel 2 (ipipou1): UDP port 5555 is also for tunnel ipipou0, and the BPF data path tells tunnels by that"},
	} {
		_, err := fromTOML(t, top+c.text)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%s: error %v, want %s", c.text, err, c.want)
		}
	}
}
