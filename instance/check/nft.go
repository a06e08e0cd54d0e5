package check

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// An nftPlace is where an object of a ruleset is, in what `nft -j list ruleset` prints
// (libnftables-json(5)).
type nftPlace struct {
	Family, Table, Name string
}

func (p nftPlace) table() string { return p.Family + " " + p.Table }

type nftChain struct {
	nftPlace
	Type, Hook, Policy string
	Dev                json.RawMessage // a name, or a list of them
}

type nftRule struct {
	nftPlace
	Chain string
	Expr  []map[string]json.RawMessage
}

// An nftListing is a ruleset of nft's.
type nftListing struct {
	sets   map[string]json.RawMessage // elements, by table and name
	chains []nftChain
	rules  []nftRule
}

// An nftReader reads one for a packet.
type nftReader struct {
	packet
	*nftListing
}

// parseNft reads what `nft -j list ruleset` prints. Tables of our own instances are left
// out: they let in who has authenticated.
func parseNft(text string) (*nftListing, error) {
	var all struct {
		Nftables []struct {
			Set, Map *struct {
				nftPlace
				Elem json.RawMessage
			}
			Chain *nftChain
			Rule  *nftRule
		}
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("what nft prints can't be read: %w", err)
	}
	l := &nftListing{sets: map[string]json.RawMessage{}}
	gates := map[string]int{} // by table, how many sets of our gate's it has
	for _, object := range all.Nftables {
		if s := cmp.Or(object.Set, object.Map); s != nil {
			l.sets[s.table()+" "+s.Name] = s.Elem
			if slices.Contains([]string{"fou", "peers", "alt_in", "alt_out"}, s.Name) {
				gates[s.table()]++
			}
		}
		if object.Chain != nil {
			l.chains = append(l.chains, *object.Chain)
		}
		if object.Rule != nil {
			l.rules = append(l.rules, *object.Rule)
		}
	}
	const allOfThem = 4
	l.chains = slices.DeleteFunc(l.chains, func(c nftChain) bool { return gates[c.table()] == allOfThem })
	l.rules = slices.DeleteFunc(l.rules, func(r nftRule) bool { return gates[r.table()] == allOfThem })
	return l, nil
}

// ruleset is what the rules say of the packet.
func (l *nftListing) ruleset(p packet) *ruleset {
	r := &nftReader{p, l}
	rules := &ruleset{chains: map[string]*chain{}}
	for _, c := range l.chains {
		key := c.table() + " " + c.Name
		rules.chains[key] = &chain{name: "chain " + key, table: c.table(), drops: c.Policy == "drop"}
		if c.Type == "filter" && r.enters(c) {
			rules.bases = append(rules.bases, key)
		}
	}
	for _, one := range l.rules {
		if c := rules.chains[one.table()+" "+one.Chain]; c != nil {
			c.rules = append(c.rules, r.rule(one.table(), one.Expr))
		}
	}
	return rules
}

// enters reports whether the packet comes through a base chain.
func (r *nftReader) enters(c nftChain) bool {
	here := c.Hook == "ingress" && strings.Contains(string(c.Dev), strconv.Quote(r.dev))
	switch c.Family {
	case "ip", "ip6":
		return (c.Family == "ip6") == r.is6 && (c.Hook == "prerouting" || c.Hook == "input")
	case "inet":
		return c.Hook == "prerouting" || c.Hook == "input" || here
	case "netdev":
		return here
	}
	return false
}

// passing are statements that change nothing about where the packet goes.
var passing = []string{"counter", "log", "mangle", "notrack", "comment", "set", "dup", "meter", "ct helper", "ct timeout", "ct expectation", "last"}

func (r *nftReader) rule(table string, statements []map[string]json.RawMessage) (out rule) {
	out.match = yes
	for _, s := range statements {
		for kind, body := range s {
			switch {
			case kind == "match":
				out.match = min(out.match, r.matches(table, body))
			case kind == "vmap":
				out.does = append(out.does, r.vmap(table, body)...)
			case slices.Contains(passing, kind):
			default:
				v, ends := verdictOf(table, kind, body)
				if !ends { // a limit, a quota, an extension of iptables
					out.match = min(out.match, maybe)
				}
				if ends || v.action != "" {
					out.does = append(out.does, v)
				}
			}
		}
	}
	return out
}

// verdictOf is the verdict of a statement; ends: it is one.
func verdictOf(table, kind string, body json.RawMessage) (v verdict, ends bool) {
	v.match = yes
	switch kind {
	case "accept", "drop", "return":
		v.action = kind
	case "snat", "dnat", "masquerade", "redirect", "tproxy", "flow", "fwd":
		v.action = "accept"
	case "continue":
		v.match = no
	case "reject":
		v.action = "drop"
	case "queue":
		v.action = "unknown"
	case "jump", "goto":
		var to struct{ Target string }
		json.Unmarshal(body, &to) // an unknown chain, else
		v.action, v.target = kind, table+" "+to.Target
	case "xt":
		// A match or a target: old nft does not say.
		var x struct{ Type string }
		json.Unmarshal(body, &x)
		if x.Type != "match" {
			v.action = "unknown"
		}
		return v, false
	default:
		return v, false
	}
	return v, true
}

// vmap are the verdicts of a map, in the order in which they may be.
func (r *nftReader) vmap(table string, body json.RawMessage) (all []verdict) {
	var m struct{ Key, Data json.RawMessage }
	if json.Unmarshal(body, &m) != nil {
		return []verdict{{match: maybe, action: "unknown"}}
	}
	elements, known := r.elements(table, m.Data)
	if !known {
		return []verdict{{match: maybe, action: "unknown"}}
	}
	for _, e := range elements {
		var pair []json.RawMessage
		var then map[string]json.RawMessage
		if json.Unmarshal(e, &pair) != nil || len(pair) != 2 || json.Unmarshal(pair[1], &then) != nil {
			return append(all, verdict{match: maybe, action: "unknown"})
		}
		for kind, body := range then {
			v, _ := verdictOf(table, kind, body)
			if v.match = min(v.match, r.compare(table, m.Key, pair[0])); v.match != no {
				all = append(all, v)
			}
		}
	}
	return all
}

// elements are those of a set, which stands there or is named.
func (r *nftReader) elements(table string, set json.RawMessage) (all []json.RawMessage, known bool) {
	var name string
	if json.Unmarshal(set, &name) == nil {
		if !strings.HasPrefix(name, "@") {
			return nil, false
		}
		elements, there := r.sets[table+" "+name[1:]]
		if !there {
			return nil, false
		}
		return all, len(elements) == 0 || json.Unmarshal(elements, &all) == nil
	}
	var inside struct{ Set []json.RawMessage }
	if json.Unmarshal(set, &inside) == nil && inside.Set != nil {
		return inside.Set, true
	}
	return all, json.Unmarshal(set, &all) == nil
}
