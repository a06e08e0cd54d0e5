package plans

import (
	"crypto/ed25519"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Role says which end of a tunnel this host is.
type Role int

// The ends of a tunnel. Those of a static one are alike: nobody authenticates.
const (
	Client Role = iota
	Server
	Static
)

func (r Role) String() string { return [...]string{"client", "server", "static"}[r] }

// DefaultSecret is what the Python tool signs with when nothing else is given.
// Everybody knows it, so it protects nothing.
const DefaultSecret = "netprickle.com"

// Auth is how the peer proves who it is, and how we do. Of a token and keys
// only one is set; ByRemoteIP and ByRemotePort go with either, or alone.
type Auth struct {
	ByRemoteIP   bool
	ByRemotePort bool
	Token        []byte
	Key          ed25519.PrivateKey
	RemoteKey    ed25519.PublicKey
	Secret       []byte
	MaxSkew      int // seconds; 0: any
	TTL          uint8
	Lifetime     int // seconds; 0: for ever
	Keepalive    int // seconds between a client's authentications, or a server's empty datagrams; 0: never
	Reply        bool
	Challenge    bool // version 2 of the wire protocol
}

// secretFiles are where a script finds what it must not hold itself. A name is
// empty where the setting was given as text.
type secretFiles struct {
	token, key, secret string
}

// A Tunnel is one validated tunnel.
type Tunnel struct {
	Role    Role
	Number  int
	Backend Backend
	Mode    Mode
	Encap   Encap

	Dev    string // tunnel interface
	Addrs  []Address
	Routes []Route
	Key    string // of GRE and VTI, 0 to 2^32 - 1; "": none
	TTL    string // of the outer header, or "inherit"; "": the driver's default
	TOS    string // of the outer header, as 0x.., or "inherit"; "": the driver's default
	PMTU   *bool  // pmtudisc; nil: the driver's default, which is on
	MTU    int    // of the tunnel interface; 0: the kernel's choice
	Bridge *Bridge

	Forward     bool
	ForwardDevs []string
	ForwardNets []netip.Prefix
	Masquerade  bool

	Hooks Hooks

	Monitor      Monitor
	MonitorEvery time.Duration // between two pings
	// StateHook are commands for a change of the tunnel's state; each is run with the
	// interface, the state and the peer as further arguments.
	StateHook [][]string

	FOUDev   string     // outer interface; "": not given
	FOUIP    netip.Addr // outer local address; invalid: the first of FOUDev
	FOUPort  uint16
	FOUIPAlt netip.Addr // alternate outer local address (server)
	ForceAlt bool

	RemoteHost string     // a name to resolve; "": RemoteIP holds
	RemoteIP   netip.Addr // invalid: not given
	RemotePort uint16     // 0: not given
	// Refresh is how often RemoteHost is resolved anew; 0: never.
	Refresh time.Duration

	EncapCsum *bool // nil: the system's default
	Counters  bool
	Table     string // nft table of the instance

	Auth Auth

	// files are where the script finds the secrets.
	files secretFiles

	// factIP and factDev are ${NAME}s of what the host must tell.
	factIP, factDev string
	// families are those that the instance forwards.
	families []family
	// varPeerIP and varPeerPort are the ${NAME}s of the peer.
	varPeerIP, varPeerPort string
	// bpf is the tunnel's place in the maps of the BPF programs.
	bpf place
}

// An Address is one of a tunnel interface's, with a prefix length or the other
// end's address, or neither.
type Address struct {
	IP   netip.Addr
	Bits int // -1: none
	Peer netip.Addr
}

// String is the address, with its prefix length if it has one.
func (a Address) String() string {
	if a.Bits >= 0 {
		return netip.PrefixFrom(a.IP, a.Bits).String()
	}
	return a.IP.String()
}

// A Route is a network behind the other end.
type Route struct {
	To     netip.Prefix
	Via    netip.Addr // invalid: none
	Onlink bool
	Metric int // 0: the kernel's default
	Table  int // 0: the main one
}

// A Bridge is one of the host's own, with a network behind it.
type Bridge struct {
	Name  string
	Addrs []netip.Prefix
}

// Hooks are commands of the operator's, each an argument list.
type Hooks struct{ PreUp, PostUp, PreDown, PostDown [][]string }

// OneToMany reports whether the routes choose the outer destination.
func (t Tunnel) OneToMany() bool {
	return t.Role == Static && !t.RemoteIP.IsValid() && t.RemoteHost == "" && t.Mode != "isatap"
}

// hasRemote reports whether the tunnel has one other end, known or to be known.
func (t Tunnel) hasRemote() bool { return !t.OneToMany() && t.Mode != "isatap" }

// OuterIPv6 reports whether the outer addresses are IPv6.
func (t Tunnel) OuterIPv6() bool { return t.how().outer6 }

// localIP is the outer local address, literal or as ${NAME}.
func (t Tunnel) localIP() string {
	if t.FOUIP.IsValid() {
		return t.FOUIP.String()
	}
	return "${" + t.factIP + "}"
}

// outerDev is the device of the outer local address, literal or as ${NAME}.
func (t Tunnel) outerDev() string {
	if t.FOUDev != "" {
		return t.FOUDev
	}
	return "${" + t.factDev + "}"
}

// IPVar is the name of the fact that holds the outer local address, "" if the
// address was given.
func (t Tunnel) IPVar() string { return t.factIP }

// Title is what the log calls the tunnel: its interface, and its number where others
// have the interface too.
func (t Tunnel) Title() string {
	if t.bpf.shared {
		return t.Dev + "/" + strconv.Itoa(t.Number)
	}
	return t.Dev
}

// OwnVars are the names of the facts that change with the host's outer address or
// interface.
func (t Tunnel) OwnVars() []string { return []string{t.factIP, t.bpf.outer} }

// Addressing are the names of the variables that say where the tunnel's ends are.
func (t Tunnel) Addressing() []string { return []string{t.factIP, t.varPeerIP, t.varPeerPort} }

// Level is the weight of a note.
type Level int

// The weights of notes: Warn is seen at -v, Info at -vv.
const (
	Warn Level = iota
	Info
)

// A Note is something the operator should hear that is no error.
type Note struct {
	Level Level
	Text  string
}

// A Config is everything the settings say: the tunnels of one instance, and
// what concerns the whole process.
type Config struct {
	Name       string // of the instance: its journal, lock and script
	Tunnels    []Tunnel
	Verbosity  int
	LogTime    bool
	LogPID     bool
	LogFormat  string // text, logfmt or json
	Metrics    string // where to serve them: HOST:PORT, or a socket's path; "": nowhere
	ReauthOnly bool
	Notes      []Note
	Sources    []Source
}

// servers are the tunnels that wait for a peer.
func (c Config) servers() []Tunnel {
	var all []Tunnel
	for _, t := range c.Tunnels {
		if t.Role == Server {
			all = append(all, t)
		}
	}
	return all
}

// gated are the servers whose gate is an nft table: all but those of BPF, whose
// programs are the gate.
func (c Config) gated() []Tunnel {
	return slices.DeleteFunc(c.servers(), func(t Tunnel) bool { return t.Backend == BPF })
}

// clients are the tunnels that have to authenticate.
func (c Config) clients() []Tunnel {
	var all []Tunnel
	for _, t := range c.Tunnels {
		if t.Role == Client {
			all = append(all, t)
		}
	}
	return all
}

// table is the name of the instance's nft tables, which is that of its first
// server, or else of its first tunnel that needs one.
func (c Config) table() string {
	for _, t := range c.Tunnels {
		if t.Role == Server {
			return t.Table
		}
	}
	for _, t := range c.Tunnels {
		if t.Forward || t.OneToMany() {
			return t.Table
		}
	}
	return ""
}
