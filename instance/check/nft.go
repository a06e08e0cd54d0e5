package check

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A table of an object in what `nft -j list ruleset` prints (libnftables-json(5)).
type nftPlace struct {
	Family, Table, Name, Chain string
}

func (p nftPlace) table() string { return p.Family + " " + p.Table }

// An nftReader makes a ruleset of nft's, for one packet.
type nftReader struct {
	packet
	sets map[string]json.RawMessage // elements, by table and name
}

// readNft reads what `nft -j list ruleset` prints, for the packet. Tables of our own
// instances are left out: they let in who has authenticated.
func readNft(text string, p packet) (*ruleset, error) {
	var all struct {
		Nftables []map[string]json.RawMessage
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, fmt.Errorf("what nft prints can't be read: %w", err)
	}
	r := &nftReader{packet: p, sets: map[string]json.RawMessage{}}
	rules := &ruleset{chains: map[string]*chain{}}
	gates := map[string]int{} // tables with sets as those of our gate
	for _, object := range all.Nftables {
		for _, kind := range []string{"set", "map"} {
			var s struct {
				nftPlace
				Elem json.RawMessage
			}
			if json.Unmarshal(object[kind], &s) != nil {
				continue
			}
			r.sets[s.table()+" "+s.Name] = s.Elem
			if slices.Contains([]string{"fou", "peers", "alt_in", "alt_out"}, s.Name) {
				gates[s.table()]++
			}
		}
	}
	const allOfThem = 4
	for _, object := range all.Nftables {
		var c struct {
			nftPlace
			Type, Hook, Policy, Dev string
		}
		if json.Unmarshal(object["chain"], &c) != nil || gates[c.table()] == allOfThem {
			continue
		}
		key := c.table() + " " + c.Name
		rules.chains[key] = &chain{name: "chain " + key, table: c.table(), drops: c.Policy == "drop"}
		if c.Type == "filter" && r.enters(c.Family, c.Hook, c.Dev) {
			rules.bases = append(rules.bases, key)
		}
	}
	for _, object := range all.Nftables {
		var one struct {
			nftPlace
			Expr []map[string]json.RawMessage
		}
		if json.Unmarshal(object["rule"], &one) != nil {
			continue
		}
		if c := rules.chains[one.table()+" "+one.Chain]; c != nil {
			c.rules = append(c.rules, r.rule(one.table(), one.Expr))
		}
	}
	return rules, nil
}

// enters reports whether the packet comes through a base chain.
func (r *nftReader) enters(family, hook, dev string) bool {
	switch family {
	case "ip", "ip6":
		return (family == "ip6") == r.is6 && (hook == "prerouting" || hook == "input")
	case "inet":
		return hook == "prerouting" || hook == "input" || hook == "ingress" && dev == r.dev
	case "netdev":
		return hook == "ingress" && dev == r.dev
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
