package plans

import (
	_ "embed"
	"encoding/hex"
	"slices"
	"strconv"
	"strings"

	"ipipou/datapath"
)

// authenticate and send are the parts of a client's script that make
// authentications, and send them, with the tools of a small host.
//
//go:embed authenticate.sh
var authenticate string

//go:embed send.sh
var send string

// payloads writes a function for each client that makes its authentication, and
// one that sends all.
func (s *script) payloads(c Config, inline bool) {
	s.challenged(c)
	if len(c.sending()) == 0 {
		return
	}
	for i, t := range c.sending() {
		s.line("\npayload_%s() {", fn(t))
		file := func(variable, given, kind, must string) string {
			if given == "" {
				given = ConfigDir + "/" + c.Name + "." + kind
				s.comment("\t", given+" must hold "+must+"; "+numbered(variable, i)+" in the environment names another file")
			}
			return `"${` + numbered(variable, i) + `:-` + escapeExpanded(given, quotedEscapes) + `}"`
		}
		switch a := t.Auth; {
		case a.Token != nil && inline:
			s.line("\tpayload %s 'the token'", hex.EncodeToString(a.Token))
		case a.Token != nil:
			s.line("\tpayload_token %s", file("AUTH_TOKEN_FILE", t.files.token, "token", "the token"))
		case a.Key != nil && inline:
			s.line("\tsign %s %s 'the key of %s'", hex.EncodeToString(a.Key.Seed()), hex.EncodeToString(a.Secret), t.Dev)
		case a.Key != nil:
			key, secret := file("AUTH_KEY_FILE", t.files.key, "key", "the private key: 32 bytes in base64, or as OpenSSH writes it"), "''"
			if string(a.Secret) != DefaultSecret || t.files.secret != "" {
				secret = file("AUTH_SECRET_FILE", t.files.secret, "secret", "the shared secret")
			}
			s.line("\tpayload_ed25519 %s %s", key, secret)
		default:
			s.line("\tpayload_empty")
		}
		s.line("}")
	}
	s.line("\n# Each client's authentication; `payloads` only makes them, before anything is done.")
	s.line("payloads() {")
	for _, t := range c.sending() {
		s.line("\tpayload_%s || return", fn(t))
	}
	s.line("}\nauthenticate() {")
	for _, t := range c.sending() {
		s.line("\tpayload_%s && send_payload \"%s\" %s \"%s\" \"%s\" || return", fn(t), t.localIP(), t.port(), t.peerIP(), t.peerPort())
		s.line("\tsay %s", Quote(t.Dev+": authentication sent"))
	}
	s.line("}")
}

// sending are the clients whose authentication is something to send. That of the
// others is a conversation, and a script can't hear.
func (c Config) sending() []Tunnel {
	return slices.DeleteFunc(c.clients(), func(t Tunnel) bool { return t.Auth.Challenge })
}

// challenged writes what a script has to say of those others.
func (s *script) challenged(c Config) {
	if len(c.sending()) == len(c.clients()) {
		return
	}
	s.line("\nchallenged() {")
	for _, t := range c.clients() {
		if t.Auth.Challenge {
			s.line("\tsay %s", Quote(t.Dev+": its server sends a challenge, which a script can't hear: authenticate with the same settings and ipipou --reauth-only"))
		}
	}
	s.line("}")
}

func (s *script) status(c Config) {
	s.line("\nstatus() {")
	fou := false
	for i, t := range c.Tunnels {
		if i > 0 && t.bpf.shared && t.Dev == c.Tunnels[i-1].Dev {
			continue
		}
		s.line("\tshow ip -d -s link show dev %s", Quote(t.Dev))
		s.line("\tshow ip address show dev %s", Quote(t.Dev))
		if len(t.Routes) > 0 {
			s.line("\tshow ip route show dev %s table all", Quote(t.Dev))
		}
		fou = fou || t.Encap != None && t.Backend != BPF
	}
	s.bpfStatus(c)
	if fou {
		s.line("\tshow ip fou show")
	}
	if len(c.gated()) > 0 {
		s.line("\tshow nft list table ip %s", c.table())
	}
	if len(c.forwarders()) > 0 {
		s.line("\tshow nft list table inet %s", c.table())
	}
	if table := c.membersTable(); table != "" {
		s.line("\tshow nft list table ip %s", table)
	}
	s.line("}")
}

// bpfStatus shows the programs and what they count.
func (s *script) bpfStatus(c Config) {
	tunnels := c.on(BPF)
	shown := map[string]bool{}
	for _, t := range tunnels {
		if !shown[t.outerDev()] {
			s.line("\tshow tc -s filter show dev %s ingress", Quote(t.outerDev()))
		}
		shown[t.outerDev()] = true
	}
	if len(tunnels) == 0 {
		return
	}
	s.line("\t[ -s \"$JOURNAL\" ] || return 0")
	names := strings.Join(datapath.Counters, " ")
	for _, t := range tunnels {
		pin := Quote(t.bpf.dir + "/counters")
		nodes := t.nodes()
		for i := range t.bpf.peers {
			whose := t.Dev + " peer " + strconv.Itoa(t.Number)
			if len(nodes) > 0 {
				whose = t.Dev + " node " + nodes[i]
			}
			s.line("\tcounters %s %d %s %s", Quote(whose), t.bpf.first+i, pin, names)
		}
	}
	s.line("\tcounters nobody 0 %s %s", Quote(tunnels[0].bpf.dir+"/counters"), names)
}

// operations writes what the words of the command line do.
func (s *script) operations(c Config) {
	clients := c.clients()
	sends := len(c.sending()) > 0
	deaf := len(c.sending()) < len(clients)
	s.line("\nop_up() {")
	s.line("\t[ ! -s \"$JOURNAL\" ] || die 1 \"$NAME is up already, says $JOURNAL: run $0 down\"")
	if sends {
		s.line("\tpayloads || die 2 \"authentication: $ERR\"\n\thave_sender || die 120 \"authentication: $ERR\"")
	}
	s.line("\tfacts\n\tbegin\n\tup\n\tremember\n\tdone_with")
	if sends {
		s.line("\tauthenticate || {\n\t\tsay \"${STEP-}: $ERR\"\n\t\tundo_all\n\t\t[ -z \"$INTERRUPTED\" ] || exit 1\n\t\texit 120\n\t}")
	}
	if deaf {
		s.line("\tchallenged")
	}
	s.line("}\nop_down() { undo_all || exit 200; }")
	for _, t := range c.Tunnels {
		if t.Role == Server {
			s.bind(t)
		} else {
			s.move(t)
		}
	}
	if !sends {
		return
	}
	s.line("\nop_auth() {\n\tauthenticate || die 120 \"${STEP-}: $ERR\"\n}")
	s.line("\n# One beat of `keepalive`: another call, or the host's network, may have changed\n# where the tunnel's ends are.\nbeat() {")
	for _, v := range c.Facts() {
		if v.Name != "" {
			s.line("\tunset %s", v.Name)
		}
	}
	s.line("\tload\n\tfacts")
	moved := map[string][]Tunnel{} // by the fact that moves them
	for _, t := range clients {
		moved[t.factIP] = append(moved[t.factIP], t)
		if t.RemoteHost != "" && t.Refresh > 0 {
			moved[t.varPeerIP] = append(moved[t.varPeerIP], t)
		}
	}
	for _, v := range c.Facts() {
		if v.Name == "" {
			continue
		}
		for _, t := range moved[v.Name] {
			s.line("\tnow=$(word %d %s)", v.Word, v.Query.line())
			s.line("\t[ -z \"$now\" ] || [ \"$now\" = \"$%s\" ] || op_move_%s '' ''", v.Name, fn(t))
		}
	}
	s.line("\tauthenticate\n}")
	s.line("op_keepalive() {\n\t[ -s \"$JOURNAL\" ] || die 1 \"$NAME is not up: run $0 up\"\n\tkeepalive_loop \"$1\" beat\n}")
}

// bind writes what a server is told by hand.
func (s *script) bind(t Tunnel) {
	if t.Backend == BPF {
		s.line("\nop_bind_%s() {\n\tpeer \"${1-}\" \"${2-}\"\n\tfacts", fn(t))
		s.line("\t[ -z \"${BOUND_%s-}\" ] || die 1 %s", fn(t), Quote(t.Dev+" is bound already: rebind it"))
		s.line("\tbegin\n\tbind_%s\n\tset_var BOUND_%s \"$PEER_IP $PEER_PORT\"\n\tdone_with\n}", fn(t), fn(t))
		s.line("op_move_%s() {\n\tpeer \"${1-}\" \"${2-}\"\n\tfacts\n\tbound %s\n\tbegin\n\trebind_%s", fn(t), fn(t), fn(t))
		s.line("\tset_var BOUND_%s \"$PEER_IP $PEER_PORT\"\n\tdone_with\n}", fn(t))
		return
	}
	dev := Quote(t.Dev)
	s.line("\nop_bind_%s() {\n\tpeer \"${1-}\" \"${2-}\"\n\tfacts\n\tunbound %s\n\tbegin\n\tbind_%s\n\tdone_with\n}", fn(t), dev, fn(t))
	s.line("op_move_%s() {\n\tpeer \"${1-}\" \"${2-}\"\n\tfacts\n\tends %s\n\tbegin\n\trebind_%s\n\tdone_with\n}", fn(t), dev, fn(t))
}

// move writes what follows a change of addresses of a tunnel that knows its other
// end: what the host tells is asked anew.
func (s *script) move(t Tunnel) {
	s.line("\nop_move_%s() {", fn(t))
	if t.factIP != "" {
		s.line("\tunset %s", t.factIP)
	}
	if t.Backend == BPF { // the outer interface may have been made anew
		s.line("\tunset %s", t.bpf.outer)
	}
	if !t.hasRemote() {
		s.line("\t[ -z \"${1-}\" ] || die 2 %s", Quote(t.Dev+" has no other end: its routes have"))
	} else {
		address := map[bool]string{false: "ipv4", true: "ipv6"}[t.how().outer6]
		s.line("\tif [ -n \"${1-}\" ]; then\n\t\t%s \"$1\"\n\t\t%s=$1", address, t.varPeerIP)
		if t.RemoteHost != "" {
			s.line("\telse\n\t\tunset %s", t.varPeerIP)
		}
		s.line("\tfi")
		if t.Encap != None {
			s.line("\tif [ -n \"${2-}\" ]; then\n\t\tport \"$2\"\n\t\t%s=$2\n\tfi", t.varPeerPort)
		}
	}
	s.line("\tfacts\n\tbegin\n\trebind_%s\n\tremember\n\tdone_with\n}", fn(t))
}

// called is how the operator calls the tunnel: by its interface, or by its number
// where others have the interface too.
func (t Tunnel) called() string {
	if t.bpf.shared {
		return strconv.Itoa(t.Number)
	}
	return t.Dev
}

// dispatch is the main program.
func (s *script) dispatch(c Config) {
	binds, usage := "", "up | down | rebind [IP [PORT [DEV]]] | status"
	servers := len(c.servers()) > 0
	if servers {
		binds, usage = "bind|", "up | down | bind IP PORT [DEV] | rebind IP PORT [DEV] | status"
	}
	if c.Tunnels[0].bpf.shared {
		usage = strings.ReplaceAll(usage, "DEV", "NUMBER")
	}
	clients := len(c.clients()) > 0
	if clients {
		usage = strings.Replace(usage, " | status", " | auth | keepalive SEC | status", 1)
	}
	s.line("\nusage() { die 2 \"usage: $0 %s\"; }\n", usage)
	s.line("find_ip\nload")
	if len(c.on(BPF)) > 0 {
		s.line("find_tc")
	}
	s.line("case ${1-} in")
	s.line("up|down)\n\t[ $# -eq 1 ] || usage\n\tlocked \"op_$1\"\n\t;;")
	s.line("%srebind)", binds)
	s.line("\t[ $# -le 4 ] || usage\n\t[ -s \"$JOURNAL\" ] || die 1 \"$NAME is not up: run $0 up\"")
	s.line("\tcase ${4-%s} in", Quote(c.Tunnels[0].called()))
	for _, t := range c.Tunnels {
		s.line("\t%s)", Quote(t.called()))
		if t.Role == Server {
			s.line("\t\tcase $1 in\n\t\tbind) locked op_bind_%s \"${2-}\" \"${3-}\" ;;\n\t\t*) locked op_move_%s \"${2-}\" \"${3-}\" ;;\n\t\tesac\n\t\t;;", fn(t), fn(t))
			continue
		}
		if servers {
			s.line("\t\t[ \"$1\" = rebind ] || die 2 %s", Quote(t.Dev+" can't be bound, only a server's tunnel can"))
		}
		s.line("\t\tlocked op_move_%s \"${2-}\" \"${3-}\"", fn(t))
		switch {
		case t.Auth.Challenge:
			s.line("\t\tchallenged")
		case t.Role == Client:
			s.line("\t\tlocked op_auth")
		}
		s.line("\t\t;;")
	}
	s.line("\t*) die 2 \"no tunnel ${4-}\" ;;")
	s.line("\tesac\n\t;;")
	if clients {
		sends, deaf := len(c.sending()) > 0, len(c.sending()) < len(c.clients())
		s.line("auth)\n\t[ $# -eq 1 ] || usage\n\t[ -s \"$JOURNAL\" ] || die 1 \"$NAME is not up: run $0 up\"")
		if sends {
			s.line("\tfacts\n\tlocked op_auth")
		}
		if deaf {
			s.line("\tchallenged\n\texit %d", ExitDeaf)
		}
		s.line("\t;;\nkeepalive)\n\t[ $# -eq 2 ] || usage")
		if deaf {
			s.line("\tchallenged")
		}
		if sends {
			s.line("\top_keepalive \"$2\"\n\t;;")
		} else {
			s.line("\texit %d\n\t;;", ExitDeaf)
		}
	}
	s.line("status) status ;;")
	s.line("*) usage ;;")
	s.line("esac")
}
