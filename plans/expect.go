package plans

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What an instance that is up has on its host, in lines that can be compared with those
// that are read from the host (see Reading): the words are those of ip(8) and nft(8), in
// one order, with nothing that a plan leaves to the kernel.

// An Object is a part of the host with lines about it.
type Object struct {
	// Name is "interface ipipou0", "nft table ip ipipou0, chain gate" and so on.
	Name  string
	Lines []Line
	// Own are the first words of lines that nobody else may add: more of them on the host
	// are a difference. "*" stands for all.
	Own []string
	// Ordered says that the order counts, as with rules.
	Ordered bool
}

// A Line is something that the plan makes.
type Line struct {
	Text string
	Of   string   // Title of the tunnel that it belongs to; "": the instance's
	Or   []string // other forms that the plan takes for it
}

// A Found is what of the host decides between ways that a plan has.
type Found struct {
	// Vars are the values of Facts, of a BPF data path as of the kernel's.
	Vars map[string]string
	// Peers are who is bound to servers, by the tunnel's Number.
	Peers map[int]Bound
	// Tracked: the tunnels' packets are kept out of connection tracking. Rewrites: an
	// alternate local address was in use once. Both are as the tables show.
	Tracked, Rewrites bool
	// Maps: those of the BPF programs could be read.
	Maps bool
	// Made are the names of families that the host forwards for tunnels alone.
	Made []string
}

// A Bound is a peer of a server: where it is, and whether its tunnel goes by the alternate
// local address.
type Bound struct {
	Peer netip.AddrPort
	Alt  bool
}

// Expect is what the host has if nothing was changed, but for nft tables (Rulesets). The
// operator's own commands count for nothing. The error is that of Command.Expand.
func (c Config) Expect(f Found) ([]Object, error) {
	b := &expectation{seen: map[string]bool{}, places: map[string]int{}}
	for _, t := range c.Tunnels {
		vars, bound := maps.Clone(f.Vars), t.Role != Server
		at, peered := f.Peers[t.Number]
		if peered && !bound {
			bound = true
			maps.Copy(vars, t.PeerVars(at.Peer))
		}
		device := b.object("interface " + t.Dev)
		own := t.own()
		if device.Own == nil {
			device.Own = own
		}
		device.Own = slices.DeleteFunc(device.Own, func(word string) bool { return !slices.Contains(own, word) })
		for _, s := range t.makes(bound, at.Alt) {
			if s.Do.IsZero() || !f.holds(s) {
				continue
			}
			if err := b.step(t, s, vars); err != nil {
				return nil, err
			}
		}
		if t.Backend == BPF && f.Maps {
			if err := b.maps(t, vars); err != nil {
				return nil, err
			}
		}
		if t.Forward && bound {
			for _, family := range t.families {
				b.add("sysctl", Line{Text: family.setting + " = 1", Of: t.Title()})
			}
		}
	}
	return b.objects, nil
}

// makes are the steps after which the host has what the tunnel needs; alt is whether it
// goes by the alternate local address.
func (t Tunnel) makes(bound, alt bool) []Step {
	steps := t.bridging()
	switch {
	case t.Backend == BPF:
		addresses, late := t.addresses()
		steps = slices.Concat(steps, t.tunDevice(), []Step{t.bpfLinkUp()}, addresses, late, t.attach())
		if bound {
			steps = append(steps, t.routing()...)
		}
		return steps
	case t.Role == Server:
		steps = append(steps, t.listen(t.localIP(), "listener"))
	default:
		steps = append(steps, t.listener()...)
	}
	if !bound {
		return steps
	}
	local := t.localIP()
	if alt {
		local = t.FOUIPAlt.String()
		steps = append(steps, t.alternate()[:2]...)
	}
	return append(append(steps, Step{Do: t.linkAdd(local)}), t.interior()...)
}

// holds reports whether a step was done that has a condition.
func (f Found) holds(s Step) bool {
	if !s.Unless.IsZero() && !slices.Contains(f.Made, family6.name) {
		return false // of two families one is made: see grouping
	}
	if s.If.IsZero() {
		return true
	}
	for _, family := range []family{family4, family6} {
		if s.If.line() == family.made().line() {
			return slices.Contains(f.Made, family.name)
		}
	}
	return false
}

// own are the first words of lines of the interface that nobody else may add.
func (t Tunnel) own() []string {
	own := []string{"link", "encap"}
	if t.how().key {
		own = append(own, "key")
	}
	if t.Forward {
		own = append(own, "group")
	}
	if len(t.Hooks.PreUp)+len(t.Hooks.PostUp) == 0 { // they may add what they like
		own = append(own, "address", "route")
	}
	return own
}

// maps are what the BPF programs are told of the tunnel.
func (b *expectation) maps(t Tunnel, vars map[string]string) error {
	add := func(text string, ip, port string) error {
		at, err := expand(ip, vars)
		if err == nil && t.Encap != None {
			port, err = expand(port, vars)
			at += ":" + port
		}
		if err == nil {
			b.add("interface "+t.Dev, Line{Text: text + " " + at, Of: t.Title()})
		}
		return err
	}
	if err := add("outer", t.localIP(), t.port()); err != nil {
		return err
	}
	for i, node := range t.nodes() {
		if !t.OneToMany() {
			break
		}
		if err := add("peer "+strconv.Itoa(t.bpf.first+i), node, strconv.Itoa(int(t.RemotePort))); err != nil {
			return err
		}
	}
	if t.Role == Server || t.OneToMany() {
		return nil
	}
	return add("peer "+strconv.Itoa(t.bpf.first), t.peerIP(), t.peerPort())
}

// An expectation gathers lines by object, each line once.
type expectation struct {
	objects []Object
	places  map[string]int // in objects, by name
	seen    map[string]bool
}

func (b *expectation) object(name string) *Object {
	i, known := b.places[name]
	if !known {
		i = len(b.objects)
		b.places[name] = i
		b.objects = append(b.objects, Object{Name: name})
	}
	return &b.objects[i]
}

func (b *expectation) add(name string, l Line) {
	o := b.object(name)
	if key := name + "\n" + l.Text; !b.seen[key] {
		b.seen[key] = true
		o.Lines = append(o.Lines, l)
	}
}

// step adds what a step makes, by its words.
func (b *expectation) step(t Tunnel, s Step, vars map[string]string) error {
	do, err := s.Do.Expand(vars)
	if err != nil {
		return err
	}
	w := wordsOf(do)
	line := Line{Of: t.Title()}
	on := "interface " + w.of("dev")
	switch w.what {
	case "ip link add", "ip tuntap add":
		on = "interface " + w.or("name", "dev")
		for _, text := range w.link().lines() {
			b.add(on, Line{Text: text, Of: line.Of})
		}
		return nil
	case "ip link set":
		for _, word := range []string{"mtu", "group"} {
			if value := w.of(word); value != "" {
				b.replace(on, word, Line{Text: word + " " + value, Of: line.Of})
			}
		}
		if !w.has("up") {
			return nil
		}
		line.Text = "state up"
	case "ip address add":
		line.Text = w.address()
	case "ip route add":
		line.Text = w.route()
	case "ip rule add":
		on, line.Text = "rules", w.rule()
	case "ip fou add":
		on, line.Text = "FOU listeners", listenerKey(w.words[3:], w.is6)
		for _, e := range s.Else {
			for _, form := range e.Lines {
				form, err := expand(form, vars)
				if err != nil {
					return err
				}
				words := slices.DeleteFunc(strings.Fields(form), func(w string) bool { return w == "*" })
				if key := listenerKey(words, false); key != line.Text && !slices.Contains(line.Or, key) {
					line.Or = append(line.Or, key)
				}
			}
		}
	case "tc filter add":
		line.Text = filterLine(w.words[5], w.of("pref"), w.of("handle"))
	default:
		return nil
	}
	b.add(on, line)
	return nil
}

// replace adds a line in place of an earlier one that begins with the word: what is set
// later counts.
func (b *expectation) replace(name, word string, l Line) {
	o := b.object(name)
	i := slices.IndexFunc(o.Lines, func(l Line) bool { return first(l.Text) == word })
	switch {
	case i < 0:
		b.add(name, l)
	case o.Lines[i].Text != l.Text:
		o.Lines[i] = l
	}
}

// Outer is the tunnel's outer interface, by the values of Facts.
func (t Tunnel) Outer(vars map[string]string) (string, error) { return expand(t.outerDev(), vars) }

// ForwardSettings are the names in /proc/sys of what says that this host forwards, as far
// as the instance needs it.
func (c Config) ForwardSettings() []string {
	var names []string
	for _, f := range c.families() {
		names = append(names, f.setting)
	}
	return names
}
