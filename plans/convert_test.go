package plans

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func convert(text string) (string, error) {
	return Convert("./a.conf", func(string) ([]byte, error) { return []byte(text), nil })
}

// What the Python tool's documentation has as examples, and all that is not written as it
// is in TOML.
func TestConvert(t *testing.T) {
	for _, c := range []struct{ name, conf, want string }{
		{"server", `# the hub, for berlin
server
number 0
fou-dev eth0
fou-local-port 10000

auth-remote-pubkey-b64 eQYNhD/Xwl6Zaq+z3QXDzNI77x8CEKqY1n5kt9bKeEI=
auth-secret topsecret
	# an hour
auth-lifetime 3600
reply-on-auth-ok
verb 3
`, `# the hub, for berlin
server = true
number = 0
fou-dev = "eth0"
fou-local-port = 10000

auth-remote-pubkey-b64 = "eQYNhD/Xwl6Zaq+z3QXDzNI77x8CEKqY1n5kt9bKeEI="
auth-secret = "topsecret"
# an hour
auth-lifetime = 3600
reply-on-auth-ok = true
verb = 3

# Also possible now:
# auth-challenge = true
#     in both files, once both ends run this program: no clock counts, and nobody can use what he caught
# [[tunnel]]
#     one for each client, with a number and a key of its own: one file and one process for all
`},
		{"client", `-c
-b @wlan0
--fou-remote ipipou.example.net:10000
tunl-ip 172.28.0.1,10.0.0.1/24
auth-token  a "b" \
no-encap-csum
v
-vv
key 42
ttl inherit
post-up logger up
`, `client = true
fou-local = "@wlan0"
fou-remote = "ipipou.example.net:10000"
tunl-ip = ["172.28.0.1", "10.0.0.1/24"]
auth-token = " a \"b\" \\"
no-encap-csum = true
verb = 3
# verb: counted above
key = 42
ttl = "inherit"
post-up = ["logger", "up"]

# Also possible now:
# auth-key-b64 = "…"
#     a token can be read on its way, a private key is never sent: ipipou --auth-keygen
# reply-on-auth-ok = true
#     in both files: a client then knows whether it was heard, and tries again if not
# keepalive = 27
#     keeps a NAT router's mapping, and tells the server a new address
# monitor = "auth"
#     where the server has reply-on-auth-ok: notices that the path is dead, and tries until it is not
`},
		{"no effect", `server
queue-number 7
nfq-max-len 65535
number 0
fou-dev eth0
fou-dev eth1
fou-local-port 1
fou-local 192.0.2.1:10007
auth-by-remote-ip
`, `server = true
# queue-number: there is no packet queue any more, what was left of it is
number = 7
# nfq-max-len: no effect, there is no packet queue any more
# number: 0, so the queue's number is the tunnel's
# fou-dev: given again below, where it counts
fou-dev = "eth1"
# fou-local-port: no effect, fou-local has one too
fou-local = "192.0.2.1:10007"
auth-by-remote-ip = true

# Also possible now:
# [[tunnel]]
#     one for each client, with a number and a key of its own: one file and one process for all
`},
		{"no text", "server\nqueue-number 7\nnumber 1\nauth-token \xff\r\n#\a\xff", `server = true
# queue-number: no effect, there is no packet queue any more
number = 1
# auth-token: not UTF-8, so in base64
auth-token-b64 = "/w=="
#` + "\uFFFD\uFFFD" + `

# Also possible now:
# auth-key-b64 = "…"
#     a token can be read on its way, a private key is never sent: ipipou --auth-keygen
# reply-on-auth-ok = true
#     in both files: a client then knows whether it was heard, and tries again if not
# [[tunnel]]
#     one for each client, with a number and a key of its own: one file and one process for all
`},
	} {
		got, err := convert(c.conf)
		if err != nil || got != c.want {
			t.Errorf("%s: error %v, have\n%s\nwant\n%s", c.name, err, got, c.want)
		}
	}
}

func TestConvertRefused(t *testing.T) {
	for _, c := range []struct{ config, text, want string }{
		{"", "", "want the name of a file"},
		{"a/b.toml", "", "a/b.toml: is TOML already; want a file of the Python tool's, such as NAME.conf"},
		{"a.conf", "server = true", "a.conf:1: server takes no value"},
		{"a.conf", "auth-secret \xff", "a.conf:1: auth-secret: is not UTF-8"},
		{"office", "mtu 9999999999", "/etc/ipipou/office.conf:1: mtu: 9999999999 is out of range"},
	} {
		_, err := Convert(c.config, func(string) ([]byte, error) { return []byte(c.text), nil })
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %s", c.config, err, c.want)
		}
	}
	if _, err := Convert("none", noFiles); err == nil || !strings.Contains(err.Error(), "/etc/ipipou/none.conf") {
		t.Error(err)
	}
}

// FuzzConvert checks that what resolves does so to the same when it is converted, that no
// comment is lost, and that what is said to be possible is.
func FuzzConvert(f *testing.F) {
	f.Add("server\nnumber 0\nfou-dev eth0\nfou-local-port 10000\nauth-token x\nverb 3\n")
	f.Add("server\nqueue-number 5\nfou-dev eth0\nauth-token \xff\n# \x00\nv\nv\n")
	f.Add("fou-local :5@eth0\nfou-local-port 99999999999\nfou-remote h:1\ntunl-ip 172.28.0.1\nauth-secret  a\\\"\x7f \n")
	f.Add("static\nmode gre\nkey 7\nroutes 10.0.0.0/8 metric 5,default\nfou-dev e\nfou-remote-ip 192.0.2.1\nbridge b 10.1.0.1/24\npost-up a b\n")
	f.Add("server\nfou-dev e\nfou-remote-ip 192.0.2.1\nauth-by-remote-ip\nauth-key-b64 RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=\n")
	f.Fuzz(func(t *testing.T, text string) { converts(t, text) })
}

// TestConvertAny is the same of files made of lines that go together more often than what
// a fuzzer makes up.
func TestConvertAny(t *testing.T) {
	lines := strings.Split(`server
-s
client
-n 3
number 0
number 5
queue-number 7
queue-number 2000
nfq-max-len 1
fou-local @eth0
fou-local 192.0.2.1:4000@eth1
fou-local :4001
-b 192.0.2.2
fou-local-ip 192.0.2.3
fou-local-port 4002
fou-local-port 9999999999
fou-dev eth2
fou-dev not-a-device-name
fou-remote h.example:10000
fou-remote :4003
fou-remote-ip 203.0.113.1
fou-remote-port 4004
tunl-ip 172.28.0.1
tunl-ip 10.9.0.1/24,fd09::1/64 10.9.0.2/24
tunl-peer-ip 172.28.0.0
tunl-dev we~re
mode gre
mode ipip
key 007
key 7
ttl 64
ttl inherit
mtu 1400
encap-csum
no-encap-csum
no-pmtudisc
routes 10.1.0.0/24,10.2.0.0/16 metric 7
routes default
bridge br0 10.42.1.1/24,10.43.1.1/24
forward
forward-to eth5 10.0.0.0/8
post-up logger --tag x up
refresh 5m
refresh 90
auth-token  two  blanks `+`
auth-token `+"\xfe\xff"+`
auth-token-b64 aGFsbG8=
auth-key-b64 RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=
auth-remote-pubkey-b64 `+key+`
auth-secret "quoted" 'and' \
auth-by-remote-ip
auth-lifetime 60
auth-challenge
keepalive 27
reply-on-auth-ok
no-nft-counter
nft-table mine
no-log-time
log-format json
metrics 127.0.0.1:9586
monitor auth
monitor-interval 10s
monitor-interval 7
state-hook logger --tag ipipou
verb 2
v
-vv
# a comment
#

`, "\n")
	rng := rand.New(rand.NewPCG(1, 2))
	resolved := 0
	for range 5_000 {
		text := []string{"fou-dev eth0", "fou-remote 203.0.113.1:10000", "tunl-ip 172.28.0.1"}
		for range rng.IntN(12) {
			text = append(text, lines[rng.IntN(len(lines))])
		}
		rng.Shuffle(len(text), func(i, j int) { text[i], text[j] = text[j], text[i] })
		if converts(t, strings.Join(text, "\n")) {
			resolved++
		}
	}
	if resolved < 500 {
		t.Errorf("%d of the files resolve: they show too little", resolved)
	}
}

// converts converts a file that resolves, and reports whether it does.
func converts(t *testing.T, text string) bool {
	t.Helper()
	want, _, err := resolveText("./a.conf", text)
	if err != nil {
		return false
	}
	converted, err := convert(text)
	if err != nil {
		checkMessage(t, err)
		if !strings.Contains(err.Error(), "not UTF-8") {
			t.Errorf("%q resolves, and is not converted: %v", text, err)
		}
		return true
	}
	got, _, err := resolveText("./a.toml", converted)
	if err != nil {
		t.Fatalf("%q is converted to what does not resolve: %v\n%s", text, err, converted)
	}
	want.Verbosity = min(want.Verbosity, maxVerb)
	want.Sources[0].Path = "./a.toml"
	want.Notes = slices.DeleteFunc(want.Notes, func(n Note) bool { return strings.Contains(n.Text, "no packet queue") })
	if len(want.Notes) == 0 {
		want.Notes = got.Notes[:0] // nil or not
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q is converted to\n%s\nwhich resolves to\n%+v\nwant\n%+v", text, converted, got, want)
	}
	_, hints, _ := strings.Cut(converted, "\n# Also possible now:\n")
	for _, hint := range strings.Split(hints, "\n") {
		hint, _ = strings.CutPrefix(hint, "# ")
		if hint == "" || hint[0] == ' ' || strings.ContainsAny(hint, "…[") {
			continue
		}
		if _, _, err := resolveText("./a.toml", converted+hint+"\n"); err != nil {
			t.Errorf("%q is converted to what resolves, and with %s does not: %v", text, hint, err)
		}
	}
	rest := strings.Split(converted, "\n")
	for _, l := range legacyLines("", text) {
		if l.comment == "" {
			continue
		}
		i := slices.Index(rest, strings.Map(printable, strings.ToValidUTF8(l.comment, "\uFFFD")))
		if i < 0 {
			t.Fatalf("%q lost the comment %q:\n%s", text, l.comment, converted)
		}
		rest = rest[i+1:]
	}
	return true
}
