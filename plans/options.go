package plans

import (
	"cmp"
	"strings"
)

// An Option is one setting: a flag, a TOML key and a key of the Python tool's
// .conf, all of one name.
type Option struct {
	Name    string
	Short   string
	Kind    Kind
	Hint    string   // placeholder of the value in the help; if not given, the Values
	Values  []string // all that it can be, if they are few
	Group   string
	Secret  bool   // its value is never shown
	Help    string // whole sentences
	Default string // what holds if it is not given, in words; "": nothing, or false
	New     bool   // the Python tool did not have it
	// Process marks a setting of the whole instance, which a [[tunnel]] can't have.
	Process bool
}

// About is the help with the default.
func (o Option) About() string {
	if o.Default == "" {
		return o.Help
	}
	return o.Help + " Default: " + o.Default + "."
}

// Placeholder stands for the value in the help; "" if there is none to give.
func (o Option) Placeholder() string { return cmp.Or(o.Hint, strings.Join(o.Values, "|")) }

// Kind is the type of a setting's value.
type Kind int

// The kinds of values: a TOML boolean, integer, string, array of strings, and
// forms of our own. A list of one may be written without its brackets.
const (
	Bool Kind = iota
	Int
	String
	List
	Word    // a string or an integer
	Lines   // a command's arguments, or a list of such
	Routing // a list of routes, each in words or a table
	Bridged // a bridge's name and addresses, in words or a table
)

func (k Kind) String() string {
	return [...]string{
		"true or false", "an integer", "a string", "a list of strings", "a string or an integer",
		"a list of strings (a command and its arguments), or a list of such lists",
		`a list of routes, such as "10.1.0.0/24" or { to = "10.1.0.0/24", via = "192.0.2.1", onlink = true, metric = 5, table = 7 }`,
		`a table such as { name = "br0", address = "10.42.1.1/24" }`,
	}[k]
}

// Options is the table of all settings, in the order of the help.
var Options = []Option{
	{Name: "server", Short: "s", Kind: Bool, Group: "Mode", Help: "Server: wait for an authenticated client."},
	{Name: "client", Short: "c", Kind: Bool, Group: "Mode", Help: "Client: authenticate to a server. Of all the roles, the default."},
	{Name: "static", Kind: Bool, New: true, Group: "Mode", Help: "Static: both ends are known, neither authenticates. It goes without saying where --mode, --encap or --node is given and nothing about authentication."},
	{Name: "node", Kind: String, New: true, Hint: "NAME", Group: "Mode", Process: true, Help: "Which of the file's [[node]]s this host is."},
	{Name: "number", Short: "n", Kind: Int, Hint: "N", Group: "Mode", Help: "Number of the tunnel; other defaults come from it, as N.", Default: "0"},
	{Name: "reauth-only", Kind: Bool, Group: "Mode", Process: true, Help: "Client: send one authentication for a tunnel that is up, and exit."},

	{Name: "fou-local", Short: "b", Kind: String, Hint: "[IP][:PORT][@DEV]", Group: "Outer path", Help: "Local endpoint, three options in one; an IPv6 address in brackets. Without UDP it has no port."},
	{Name: "fou-local-ip", Kind: String, Hint: "IP", Group: "Outer path", Help: "Local outer address.", Default: "the first of --fou-dev"},
	{Name: "fou-local-ip-alt", Kind: String, Hint: "IP", Group: "Outer path", Help: "Server: alternate local address, for a second client behind one public address.", Default: "172.29.0.0 + N"},
	{Name: "force-fou-local-ip-alt", Kind: Bool, Group: "Outer path", Help: "Server: use the alternate local address at once."},
	{Name: "fou-local-port", Kind: Int, Hint: "PORT", Group: "Outer path", Help: "Local UDP port.", Default: "10000 + N"},
	{Name: "fou-remote", Short: "r", Kind: String, Hint: "[HOST][:PORT]", Group: "Outer path", Help: "Remote endpoint, two options in one; an IPv6 address in brackets."},
	{Name: "fou-remote-ip", Kind: String, Hint: "HOST", Group: "Outer path", Help: "Remote outer address, or a name."},
	{Name: "fou-remote-port", Kind: Int, Hint: "PORT", Group: "Outer path", Help: "Remote UDP port.", Default: "a static tunnel's, --fou-local-port"},
	{Name: "refresh", Kind: Word, New: true, Hint: "TIME", Group: "Outer path", Help: "Resolve the name in --fou-remote anew so often, as in 5m; the tunnel moves when its address changed.", Default: "never"},
	{Name: "fou-dev", Kind: String, Hint: "DEV", Group: "Outer path", Help: "Outer network interface.", Default: "that of the local outer address"},
	{Name: "encap-csum", Kind: Bool, Group: "Outer path", Help: "UDP checksums on the tunnel's packets.", Default: "the system's"},
	{Name: "no-encap-csum", Kind: Bool, Group: "Outer path", Help: "No UDP checksums on the tunnel's packets."},

	{Name: "backend", Kind: String, New: true, Values: []string{string(Auto), string(Kernel), string(BPF)}, Group: "Tunnel", Help: "What carries the packets: the kernel's own drivers, or BPF programs on kernels without them (modes ipip, sit, any4; encap fou or none). auto is the former where they are there.", Default: "auto"},
	{Name: "encap", Kind: String, New: true, Values: []string{string(FOU), string(GUE), string(None)}, Group: "Tunnel", Help: "The UDP wrapping.", Default: "fou; of a static tunnel, none"},
	{Name: "mode", Kind: String, New: true, Hint: "MODE", Values: modeList(), Group: "Tunnel", Help: "What is carried in what: ipip (4 in 4), sit (6 in 4), any4 (both in 4), ip6ip6, ipip6 (4 in 6), any6 (both in 6), gre, gre6, isatap, vti.", Default: "ipip"},
	{Name: "key", Kind: Word, New: true, Hint: "N", Group: "Tunnel", Help: "Key of gre, gre6 and vti, the same at both ends; tunnels of different keys can share two addresses."},
	{Name: "ttl", Kind: Word, New: true, Hint: "N|inherit", Group: "Tunnel", Help: "TTL of the outer header.", Default: "the driver's"},
	{Name: "tos", Kind: Word, New: true, Hint: "N|inherit", Group: "Tunnel", Help: "TOS (traffic class) of the outer header.", Default: "the driver's"},
	{Name: "pmtudisc", Kind: Bool, New: true, Group: "Tunnel", Help: "Path MTU discovery on the outer path.", Default: "the kernel's, which is to do it"},
	{Name: "no-pmtudisc", Kind: Bool, New: true, Group: "Tunnel", Help: "No path MTU discovery: outer packets may be fragmented."},
	{Name: "mtu", Kind: Int, New: true, Hint: "BYTES", Group: "Tunnel", Help: "MTU of the tunnel interface.", Default: "the kernel's choice, which fits the outer interface"},
	{Name: "tunl-dev", Kind: String, Hint: "DEV", Group: "Tunnel", Help: "Name of the tunnel interface.", Default: "ipipouN"},
	{Name: "tunl-ip", Kind: List, Hint: "IP[/LEN],...", Group: "Tunnel", Help: "Addresses of the tunnel interface, IPv4 and IPv6. A client must give one.", Default: "a server's, 172.28.0.0 + 2N"},
	{Name: "tunl-peer-ip", Kind: List, Hint: "IP,...", Group: "Tunnel", Help: "Addresses of the other end, for those without a prefix length.", Default: "a server's, --tunl-ip + 1; a client's, --tunl-ip - 1"},
	{Name: "routes", Kind: Routing, New: true, Hint: "NET,...", Group: "Network", Help: "Networks behind the other end, each with `via IP`, `onlink`, `metric N`, `table N` if need be; `default` for all but the tunnel's own packets."},
	{Name: "forward", Kind: Bool, New: true, Group: "Network", Help: "Forward between the tunnel and --forward-to, and nothing else."},
	{Name: "forward-to", Kind: List, New: true, Hint: "DEV|NET,...", Group: "Network", Help: "Devices and networks that --forward is for; the tunnel's bridge is one by itself.", Default: "all"},
	{Name: "masquerade", Kind: Bool, New: true, Group: "Network", Help: "What is forwarded leaves with this host's address, both ways."},
	{Name: "bridge", Kind: Bridged, New: true, Hint: "'NAME IP/LEN,...'", Group: "Network", Help: "Make a bridge with these addresses, for a network behind this end."},
	{Name: "pre-up", Kind: Lines, New: true, Hint: "COMMAND", Group: "Network", Help: "Run before the tunnel is made; no shell."},
	{Name: "post-up", Kind: Lines, New: true, Hint: "COMMAND", Group: "Network", Help: "Run when the tunnel is up."},
	{Name: "pre-down", Kind: Lines, New: true, Hint: "COMMAND", Group: "Network", Help: "Run before the tunnel is undone."},
	{Name: "post-down", Kind: Lines, New: true, Hint: "COMMAND", Group: "Network", Help: "Run when the tunnel is undone."},

	{Name: "auth-by-remote-ip", Kind: Bool, Group: "Authentication", Help: "Server: only --fou-remote-ip may authenticate."},
	{Name: "auth-by-remote-port", Kind: Bool, Group: "Authentication", Help: "Server: only --fou-remote-port may authenticate."},
	{Name: "auth-token", Kind: String, Hint: "TOKEN", Group: "Authentication", Secret: true, Help: "Shared token, plain text."},
	{Name: "auth-token-b64", Kind: String, Hint: "BASE64", Group: "Authentication", Secret: true, Help: "Shared token, base64."},
	{Name: "auth-token-file", Kind: String, New: true, Hint: "FILE", Group: "Authentication", Help: "Shared token, the content of a file (a newline at its end does not count)."},
	{Name: "auth-key-b64", Kind: String, Hint: "BASE64", Group: "Authentication", Secret: true, Help: "Own private key: the 32-byte seed, base64."},
	{Name: "auth-key-file", Kind: String, New: true, Hint: "FILE", Group: "Authentication", Help: "Own private key from a file: base64 seed, or an OpenSSH ed25519 key."},
	{Name: "auth-remote-pubkey-b64", Kind: String, Hint: "BASE64", Group: "Authentication", Help: "Public key of the other end: 32 bytes, base64, or an ssh-ed25519 line."},
	{Name: "auth-remote-pubkey-file", Kind: String, New: true, Hint: "FILE", Group: "Authentication", Help: "Public key of the other end from a file, in either form."},
	{Name: "auth-key-type", Kind: String, Hint: "TYPE", Values: []string{"ed25519"}, Group: "Authentication", Help: "Type of the keys.", Default: "ed25519"},
	{Name: "auth-secret", Kind: String, Hint: "SECRET", Group: "Authentication", Secret: true, Help: "Shared secret that is signed along and never sent.", Default: "netprickle.com, which protects nothing"},
	{Name: "auth-secret-file", Kind: String, New: true, Hint: "FILE", Group: "Authentication", Help: "Shared secret, the content of a file (a newline at its end does not count)."},
	{Name: "auth-max-time-discrepancy", Kind: Int, Hint: "SEC", Group: "Authentication", Help: "Refuse authentications whose time is further off; 0: any time.", Default: "0"},
	{Name: "auth-packet-ttl", Kind: Int, Hint: "TTL", Group: "Authentication", Help: "TTL of authentications and replies.", Default: "the system's"},
	{Name: "auth-lifetime", Kind: Int, Hint: "SEC", Group: "Authentication", Help: "Server: a peer silent for so long must authenticate again; 0: never.", Default: "0"},
	{Name: "keepalive", Kind: Int, Hint: "SEC", Group: "Authentication", Help: "Client: authenticate every SEC seconds, which also keeps NAT mappings. Server: send the bound peer an empty datagram so often. 0: never.", Default: "0"},
	{Name: "reply-on-auth-ok", Kind: Bool, Group: "Authentication", Help: "Server: answer valid authentications. Client: expect the answer, and retry until it comes."},
	{Name: "auth-challenge", Kind: Bool, New: true, Group: "Authentication", Help: "Version 2 of the protocol, with ed25519: the client signs a challenge that the server sends to where it seems to be, and no clock counts. Set it at both ends; implies --reply-on-auth-ok."},

	{Name: "monitor", Kind: String, New: true, Values: []string{string(MonitorAuth), string(MonitorPing)}, Group: "Monitoring", Help: "Notice that the path is dead and do something about it: auth, by keepalives that the server does not answer (client; implies --reply-on-auth-ok, and --keepalive 25 if none is given); ping, by echo requests through the tunnel.", Default: "off"},
	{Name: "monitor-interval", Kind: Word, New: true, Hint: "TIME", Group: "Monitoring", Help: "With --monitor ping: between two echo requests.", Default: "10s"},
	{Name: "state-hook", Kind: Lines, New: true, Hint: "COMMAND", Group: "Monitoring", Help: "Run when a tunnel's state has changed, with three more arguments: interface, state (up, lost), peer; no shell."},
	{Name: "metrics", Kind: String, New: true, Hint: "ADDR:PORT|PATH", Group: "Monitoring", Process: true, Help: "Serve Prometheus metrics over HTTP at this TCP address, or unix socket if it has a slash."},

	{Name: "no-nft-counter", Kind: Bool, Group: "Gate", Process: true, Help: "Server: no counters in the nft rules."},
	{Name: "nft-table", Kind: String, Hint: "NAME", Group: "Gate", Process: true, Help: "Server: name of this instance's own nft table.", Default: "the tunnel interface's name"},
	{Name: "queue-number", Short: "q", Kind: Int, Hint: "NUM", Group: "Gate", Help: "Accepted for the Python tool's sake: gives the default number, nothing else."},
	{Name: "nfq-max-len", Kind: Int, Hint: "NUM", Group: "Gate", Help: "Accepted for the Python tool's sake, without effect."},

	{Name: "verb", Kind: Int, Hint: "N", Group: "Log", Process: true, Help: "As -v given N times.", Default: "0"},
	{Name: "no-log-time", Kind: Bool, Group: "Log", Process: true, Help: "No time in the log."},
	{Name: "no-log-pid", Kind: Bool, Group: "Log", Process: true, Help: "No process number in the log."},
	{Name: "log-format", Kind: String, New: true, Values: []string{"text", "logfmt", "json"}, Group: "Log", Process: true, Help: "Form of the log's lines.", Default: "text"},
}

// optionByName finds an option by its long or short name.
func optionByName(name string) (Option, bool) {
	for _, o := range Options {
		if o.Name == name || (o.Short != "" && o.Short == name) {
			return o, true
		}
	}
	return Option{}, false
}

// OptionByPrefix finds the one option whose long name is name or, as the
// Python tool's argparse had it, alone begins with name among those it knew.
func OptionByPrefix(name string) (Option, bool) {
	if o, ok := optionByName(name); ok && len(name) > 1 {
		return o, true
	}
	var found, known []Option
	for _, o := range Options {
		if name != "" && strings.HasPrefix(o.Name, name) {
			found = append(found, o)
			if !o.New {
				known = append(known, o)
			}
		}
	}
	switch {
	case len(known) == 1:
		return known[0], true
	case len(found) == 1:
		return found[0], true
	}
	return Option{}, false
}

// nearest is the option name that looks most like name, "" if none does.
func nearest(name string) string {
	best, at := "", len(name)/2+1
	for _, o := range Options {
		if d := distance(name, o.Name); d < at {
			best, at = o.Name, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short ASCII words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := diagonal
			if a[i-1] != b[j-1] {
				change++
			}
			diagonal = row[j]
			row[j] = min(change, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
