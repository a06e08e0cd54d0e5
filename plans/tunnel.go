package plans

import (
	"crypto/ed25519"
	"net/netip"
)

// Mode says which end of a tunnel this host is.
type Mode int

// The ends of a tunnel.
const (
	Client Mode = iota
	Server
)

func (m Mode) String() string { return [...]string{"client", "server"}[m] }

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
	Keepalive    int // seconds; 0: never
	Reply        bool
}

// A Tunnel is one validated tunnel.
type Tunnel struct {
	Mode   Mode
	Number int

	Dev    string     // tunnel interface
	IP     netip.Addr // its address
	PeerIP netip.Addr // the other end's
	Routes []netip.Prefix

	FOUDev   string     // outer interface; "": not given
	FOUIP    netip.Addr // outer local address; invalid: the first of FOUDev
	FOUPort  uint16
	FOUIPAlt netip.Addr // alternate outer local address (server)
	ForceAlt bool

	RemoteHost string     // a name to resolve; "": RemoteIP holds
	RemoteIP   netip.Addr // invalid: not given
	RemotePort uint16     // 0: not given

	EncapCsum *bool // nil: the system's default
	Counters  bool
	Table     string // nft table of the instance

	Auth Auth

	// factIP and factDev are ${NAME}s of what the host must tell.
	factIP, factDev string
	// varPeerIP and varPeerPort are the ${NAME}s of the peer.
	varPeerIP, varPeerPort string
}

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
	ReauthOnly bool
	Notes      []Note
}

// Servers reports whether any tunnel is a server's, and so needs the gate.
func (c Config) Servers() bool {
	for _, t := range c.Tunnels {
		if t.Mode == Server {
			return true
		}
	}
	return false
}
