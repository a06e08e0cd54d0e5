package check

import (
	"fmt"
	"net/netip"
	"strings"
)

// An answer is whether something is so. That it isn't known is one, too.
type answer int8

const (
	no answer = iota
	maybe
	yes
)

func (a answer) not() answer { return yes - a }

func truth(is bool) answer {
	if is {
		return yes
	}
	return no
}

// A packet is the kind that must get in: of a tunnel's UDP port or, without UDP, of its
// protocol.
type packet struct {
	proto  int // of IP: 17 is UDP
	port   uint16
	dev    string
	is6    bool
	local  netip.Addr // invalid if not known, as all below
	remote netip.Addr
	state  map[string]answer // which it may have for connection tracking; none other
}

func (p packet) String() string {
	if p.proto == 17 {
		return fmt.Sprintf("UDP port %d", p.port)
	}
	return fmt.Sprintf("IP protocol %d", p.proto)
}

// What connection tracking thinks of packets: of those to a server, none, for the gate
// sees to that, where it was in use when the server was started; of those that begin a
// connection; of those that answer ours.
var (
	served   = map[string]answer{"new": maybe, "untracked": maybe}
	fresh    = map[string]answer{"new": yes}
	answered = map[string]answer{"established": yes}
)

// protocols are the names of IP protocols in rulesets, as /etc/protocols has them.
var protocols = map[string]int{
	"ip": 0, "icmp": 1, "igmp": 2, "ipencap": 4, "ipv4": 4, "ipip": 94, "tcp": 6, "udp": 17, "dccp": 33, "ipv6": 41, "gre": 47, "esp": 50, "ah": 51,
	"ipv6-icmp": 58, "icmpv6": 58, "comp": 108, "ipcomp": 108, "sctp": 132, "udplite": 136,
}

// A ruleset is what a firewall does, as far as it could be read.
type ruleset struct {
	chains map[string]*chain // by table and name
	bases  []string          // those that packets enter, in their order
}

// A chain is a list of rules. A base chain has a policy.
type chain struct {
	name  string // for people: `chain inet filter input`
	table string
	rules []rule
	drops bool // the policy of a base chain
}

// A rule is what it may do with the packet, in order.
type rule struct {
	match answer
	does  []verdict
}

// A verdict is one thing that a rule does with packets, or with some.
type verdict struct {
	match  answer
	action string // accept, drop, return, jump, goto, unknown: accept or drop
	target string // chain of a jump
}

// A fate is all that may become of a packet in a chain.
type fate struct {
	accepted, dropped, through bool
	by                         string // what may drop it, the first that was found
}

func (f *fate) add(other fate) {
	f.accepted = f.accepted || other.accepted
	if f.dropped = f.dropped || other.dropped; f.by == "" {
		f.by = other.by
	}
}

// most is how many rules are looked at for one packet: nft lets chains jump to each other
// so that the ways through them are many more than the rules.
const most = 100_000

// A walk is one packet's through a ruleset.
type walk struct {
	*ruleset
	left int
}

// enter is what becomes of the packet in a base chain.
func (r *ruleset) enter(base string) fate {
	w := walk{r, most}
	f := w.chain(base, 0)
	c := r.chains[base]
	switch {
	case f.through && c.drops:
		f.add(fate{dropped: true, by: c.name + " has policy drop"})
	case f.through:
		f.accepted = true
	}
	return f
}

// depth is how far jumps may go (NFT_JUMP_STACK_SIZE of the kernel).
const depth = 16

func (w *walk) chain(key string, level int) (f fate) {
	c := w.chains[key]
	if c == nil || level > depth {
		return fate{accepted: true, dropped: true, through: true, by: "a chain that can't be read"}
	}
	for _, r := range c.rules {
		if w.left--; w.left < 0 {
			f.add(fate{accepted: true, dropped: true, by: c.name + " has very many rules"})
			f.through = true
			return f
		}
		for _, v := range r.does {
			match := min(r.match, v.match)
			if match == no {
				continue
			}
			var then fate
			switch v.action {
			case "accept":
				then.accepted = true
			case "drop":
				then = fate{dropped: true, by: "a rule of " + c.name}
			case "return":
				then.through = true
				f.through = true
			case "goto":
				then = w.chain(v.target, level+1)
				f.through = f.through || then.through
			case "jump":
				if then = w.chain(v.target, level+1); then.through {
					match = maybe // those that return go on here
				}
			default:
				then = fate{accepted: true, dropped: true, by: "a rule of " + c.name + " that can't be read"}
				match = maybe
			}
			f.add(then)
			if match == yes {
				return f
			}
		}
	}
	f.through = true
	return f
}

// judge is the line of what a firewall does with the packet.
func (r *ruleset) judge(p packet) Line {
	for _, base := range r.bases {
		f := r.enter(base)
		if !f.dropped {
			continue
		}
		c := r.chains[base]
		how := "whether a rule lets it in depends on more than that"
		if !f.accepted {
			how = "no rule lets it in"
		}
		if !strings.Contains(f.by, "policy") && !f.accepted {
			how = "it drops it"
		}
		advice := c.open(p)
		if f.accepted {
			return warning("firewall", fmt.Sprintf("may drop %s: %s, and %s", p, f.by, how), advice)
		}
		return missing("firewall", fmt.Sprintf("drops %s: %s, and %s", p, f.by, how), advice)
	}
	return ok("firewall", "lets "+p.String()+" in")
}

// open is how to let the packet in, in the words of whoever manages the chain.
func (c *chain) open(p packet) string {
	family, table, _ := strings.Cut(c.table, " ")
	words := fmt.Sprintf("meta l4proto %d", p.proto)
	option := fmt.Sprintf("-p %d", p.proto)
	if p.proto == 17 {
		words, option = fmt.Sprintf("udp dport %d", p.port), fmt.Sprintf("-p udp --dport %d", p.port)
	}
	tool := map[bool]string{false: "iptables", true: "ip6tables"}[p.is6]
	_, name, _ := strings.Cut(c.name, c.table+" ")
	switch {
	case table == "firewalld" && p.proto == 17:
		return fmt.Sprintf("firewall-cmd --permanent --add-port=%d/udp && firewall-cmd --reload", p.port)
	case table == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --add-protocol=%d && firewall-cmd --reload", p.proto)
	case name == "INPUT" && table == "filter" && family != "inet":
		return fmt.Sprintf("%s -I INPUT %s -j ACCEPT (ufw allow %d/udp, where that is in charge)", tool, option, p.port)
	}
	return fmt.Sprintf("nft insert rule %s %s %s accept, and the same in /etc/nftables.conf or wherever it comes from", c.table, name, words)
}
