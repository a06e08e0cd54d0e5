package plans

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// A Ruleset is what makes one nft table of the instance's as it is now.
type Ruleset struct {
	Table  string   // "ip ipipou0"
	Stdins []string // for `nft -f -`, one after the other
	// Of are the tunnels (Title) to which elements of sets belong.
	Of map[string]string
}

// Rulesets are the instance's nft tables. The error is that of Command.Expand.
func (c Config) Rulesets(f Found) ([]Ruleset, error) {
	var sets []Ruleset
	table := func(name string, steps []Step) (r *Ruleset, err error) {
		sets = append(sets, Ruleset{Table: name, Of: map[string]string{}})
		r = &sets[len(sets)-1]
		for _, s := range steps {
			if s.Do.IsZero() || s.Do.Argv[0] != "nft" || !f.holds(s) {
				continue
			}
			do, err := s.Do.Expand(f.Vars)
			if err != nil {
				return nil, err
			}
			r.Stdins = append(r.Stdins, do.Stdin)
		}
		return r, nil
	}
	if len(c.forwarders()) > 0 {
		if _, err := table("inet "+c.table(), c.forwarding()); err != nil {
			return nil, err
		}
	}
	if name := c.membersTable(); name != "" {
		if _, err := table("ip "+name, c.members()); err != nil {
			return nil, err
		}
	}
	gated := c.gated()
	if len(gated) == 0 {
		return sets, nil
	}
	steps := c.gate()
	untracked := steps[1]
	if untracked.If = (Command{}); !f.Tracked {
		untracked = Step{}
	}
	outward := Step{}
	alt := slices.ContainsFunc(gated, func(t Tunnel) bool { return f.Peers[t.Number].Alt })
	if alt || f.Rewrites {
		outward = gated[0].outward()
	}
	r, err := table("ip "+c.table(), []Step{steps[0], untracked, outward})
	if err != nil {
		return nil, err
	}
	var admitted strings.Builder
	for _, t := range gated {
		bound, there := f.Peers[t.Number]
		if !there {
			continue
		}
		vars := maps.Clone(f.Vars)
		maps.Copy(vars, t.PeerVars(bound.Peer))
		local := t.localIP()
		if bound.Alt {
			local = t.FOUIPAlt.String()
		}
		for _, line := range t.elements(local, bound.Alt) {
			line, err := expand(line, vars)
			if err != nil {
				return nil, err
			}
			admitted.WriteString(line + "\n")
			_, elements, _ := strings.Cut(line, "{")
			r.Of[strings.Trim(elements, " }")] = t.Title()
		}
	}
	if admitted.Len() > 0 {
		r.Stdins = append(r.Stdins, admitted.String())
	}
	return sets, nil
}

// NftTables are the names of the tables, family first, of which there may be a Ruleset.
func (c Config) NftTables() []string {
	var names []string
	if len(c.forwarders()) > 0 {
		names = append(names, "inet "+c.table())
	}
	if name := c.membersTable(); name != "" {
		names = append(names, "ip "+name)
	}
	if len(c.gated()) > 0 {
		names = append(names, "ip "+c.table())
	}
	return names
}

// ReadTables takes from listings of NftTables, by their names, what they decide.
func (f *Found) ReadTables(listings map[string]string) {
	for name, text := range listings {
		switch {
		case strings.HasPrefix(name, "ip "):
			f.Tracked = f.Tracked || strings.Contains(text, " notrack") || strings.Contains(text, "\tnotrack")
			f.Rewrites = f.Rewrites || strings.Contains(text, "\tchain post {")
		default:
			for _, family := range []family{family4, family6} {
				if strings.Contains(text, "meta nfproto "+family.name+" iifgroup != ") {
					f.Made = append(f.Made, family.name)
				}
			}
		}
	}
}

// Admitted are the peers that a gate lets in, by the outer ends to which they may send,
// from a listing of its table.
func Admitted(listing string) map[netip.AddrPort]Bound {
	all := map[netip.AddrPort]Bound{}
	for _, o := range ReadTable("", listing, false) {
		peers := strings.HasSuffix(o.Name, ", map peers")
		if !peers && !strings.HasSuffix(o.Name, ", map alt_in") {
			continue
		}
		for _, l := range o.Lines[1:] {
			// element 203.0.113.1 . 10000 . 198.51.100.7 . 4000 : goto pass
			words := strings.Fields(l.Text)
			if len(words) < 8 {
				continue
			}
			at, err := netip.ParseAddrPort(words[1] + ":" + words[3])
			peer, fault := netip.ParseAddrPort(words[5] + ":" + words[7])
			if err != nil || fault != nil {
				continue
			}
			b := all[at]
			if peers {
				b.Peer = peer
			} else {
				b.Alt = true
			}
			all[at] = b
		}
	}
	maps.DeleteFunc(all, func(_ netip.AddrPort, b Bound) bool { return !b.Peer.IsValid() })
	return all
}

// A tableReader reads nft's language as far as nft prints it, and as plans are written.
type tableReader struct {
	table   string
	objects []Object
	dynamic map[string]bool // sets whose elements come and go by themselves
	depth   int
	now     string // name of the set or chain that is read
	inside  bool   // its elements
}

// ReadTable reads a table, or what makes one, as objects: its sets and maps with their
// elements sorted, and its chains with their rules. Of sets whose elements have a timeout
// no element is one of them. rules is whether anything but names and elements counts: only
// what nft has printed is in one form.
func ReadTable(table, text string, rules bool) []Object {
	r := &tableReader{table: table, dynamic: map[string]bool{}}
	for line := range strings.Lines(text) {
		r.line(strings.TrimSpace(line))
	}
	for i := range r.objects {
		o := &r.objects[i]
		o.Own = []string{"*"}
		head, body := o.Lines[:1], o.Lines[1:]
		o.Ordered = strings.HasPrefix(head[0].Text, "chain ")
		if !o.Ordered {
			slices.SortStableFunc(body, func(a, b Line) int { return strings.Compare(a.Text, b.Text) })
			body = slices.DeleteFunc(body, func(l Line) bool {
				element := strings.HasPrefix(l.Text, elementWord)
				return element && r.dynamic[o.Name] || !element && !rules
			})
		} else if !rules {
			body = nil
		}
		o.Lines = append(slices.Clone(head), body...)
	}
	return r.objects
}

const elementWord = "element "

func (r *tableReader) object(name string) *Object {
	name = "nft table " + r.table + ", " + name
	for i := range r.objects {
		if r.objects[i].Name == name {
			return &r.objects[i]
		}
	}
	_, head, _ := strings.Cut(name, ", ")
	r.objects = append(r.objects, Object{Name: name, Lines: []Line{{Text: head}}})
	return &r.objects[len(r.objects)-1]
}

func (r *tableReader) add(line string) {
	o := r.object(r.now)
	if strings.HasPrefix(line, "flags ") && strings.Contains(line, "timeout") {
		r.dynamic[o.Name] = true
	}
	o.Lines = append(o.Lines, Line{Text: line})
}

func (r *tableReader) elements(text string) {
	o := r.object(r.now)
	for _, e := range strings.Split(text, ",") {
		if e = strings.TrimSpace(e); e != "" {
			o.Lines = append(o.Lines, Line{Text: elementWord + e})
		}
	}
}

func (r *tableReader) line(line string) {
	words := strings.Fields(line)
	switch {
	case len(words) == 0:
	case r.inside:
		rest, done := strings.CutSuffix(line, "}")
		r.inside = !done
		r.elements(rest)
	case r.depth == 0:
		r.statement(words)
	case line == "}":
		r.depth--
	case r.depth == 1:
		if strings.HasSuffix(line, " {") {
			r.now, r.depth = strings.TrimSuffix(line, " {"), 2
			r.object(r.now)
		}
	case words[0] == "elements" && strings.HasPrefix(line, "elements = {"):
		rest, done := strings.CutSuffix(strings.TrimPrefix(line, "elements = {"), "}")
		r.inside = !done
		r.elements(rest)
	default:
		r.add(line)
	}
}

// statement is one outside of braces; `add VERB FAMILY TABLE NAME REST`.
func (r *tableReader) statement(words []string) {
	if words[0] == "table" && words[len(words)-1] == "{" {
		r.depth = 1
	}
	if len(words) < 6 {
		return
	}
	rest := strings.Join(words[5:], " ")
	body := strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(rest, "{"), "}"))
	switch words[0] + " " + words[1] {
	case "add element":
		for _, kind := range []string{"set ", "map "} {
			name := "nft table " + r.table + ", " + kind + words[4]
			if slices.ContainsFunc(r.objects, func(o Object) bool { return o.Name == name }) {
				r.now = kind + words[4]
				r.elements(body)
			}
		}
	case "add chain":
		r.now = "chain " + words[4]
		r.add(body)
	case "add rule":
		r.now = "chain " + words[4]
		r.add(rest)
	case "insert rule":
		o := r.object("chain " + words[4])
		o.Lines = slices.Insert(o.Lines, 1, Line{Text: rest})
	}
}
