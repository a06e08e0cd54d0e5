package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// A surveyor compares a configuration with the host that it is on.
type surveyor struct {
	*host
	ctx     context.Context
	config  plans.Config
	reading *plans.Reading
	found   plans.Found
	tables  map[string]string  // listings by name; what is not there is not in it
	named   map[int]bool       // tunnels (Number) whose other end is given by name
	used    map[int]netip.Addr // other ends that the maps of BPF programs have
	notes   []string
	objects []plans.Object
}

// survey reads what is planned and what there is. thorough is whether the other ends'
// names are asked for, and nft for its words of the plan's rules.
func survey(ctx context.Context, c plans.Config, thorough bool) (*surveyor, error) {
	s := &surveyor{
		host:    newHost(),
		ctx:     ctx,
		reading: plans.NewReading(),
		found:   plans.Found{Vars: map[string]string{plans.RunDir: "run"}, Peers: map[int]plans.Bound{}},
		tables:  map[string]string{},
		named:   map[int]bool{}, used: map[int]netip.Addr{},
	}
	stdout, err := s.look(plans.LinksLook)
	if err == nil {
		err = s.reading.ReadLinks(stdout)
	}
	if err != nil {
		return nil, err
	}
	s.decide(c)
	s.names()
	for _, step := range []func() error{s.facts, s.programs, s.nft, s.peers, s.listings} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	s.remotes(thorough)
	if s.objects, err = s.config.Expect(s.found); err != nil {
		return nil, err
	}
	s.forget()
	return s, s.rulesets(thorough)
}

// look runs a command that changes nothing.
func (s *surveyor) look(c plans.Command) (string, error) {
	if s.ctx.Err() != nil {
		return "", runner.ErrInterrupted
	}
	stdout, stderr, err := s.exec(c)
	if err != nil {
		return "", &runner.StepError{Command: c, Stderr: stderr, Err: err}
	}
	return stdout, nil
}

// decide takes for what carries undecided tunnels what is there.
func (s *surveyor) decide(c plans.Config) {
	s.config = c
	if !c.Undecided() {
		return
	}
	s.config = c.Decided(plans.Kernel)
	for _, t := range c.Tunnels {
		if t.FilterHandle() != "" && s.reading.Links[t.Dev].Kind == "tun" {
			s.config = c.Decided(plans.BPF)
			return
		}
	}
}

// remotes learns the addresses of other ends that were given by name. The one in use is
// right as long as the name stands for it.
func (s *surveyor) remotes(thorough bool) {
	for i := range s.config.Tunnels {
		t := &s.config.Tunnels[i]
		if !s.named[t.Number] {
			continue
		}
		used := s.used[t.Number]
		if l := s.reading.Links[t.Dev]; l.Remote.IsValid() {
			used = l.Remote.Addr()
		}
		if thorough {
			ips, err := lookup(s.ctx, *t)
			switch {
			case err != nil:
				s.note("%s: %s can't be resolved: the address in use, if any, is taken for right (%v)", t.Title(), t.RemoteHost, err)
			case !slices.Contains(ips, used):
				used = ips[0]
			}
		}
		if used.IsValid() {
			t.RemoteIP = used
		}
		maps.Copy(s.found.Vars, t.PeerVars(netip.AddrPortFrom(t.RemoteIP, t.RemotePort)))
	}
}

// names notes which other ends are given by name. Their addresses are unknown at first.
func (s *surveyor) names() {
	s.config.Tunnels = slices.Clone(s.config.Tunnels)
	for i := range s.config.Tunnels {
		t := &s.config.Tunnels[i]
		if s.named[t.Number] = t.Role != plans.Server && t.RemoteHost != "" && !t.RemoteIP.IsValid(); s.named[t.Number] {
			t.RemoteIP = unknown(*t)
		}
	}
}

// unknown stands for another end's address that nobody can tell.
func unknown(t plans.Tunnel) netip.Addr {
	if t.OuterIPv6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// forget drops the lines with an address that nobody can tell.
func (s *surveyor) forget() {
	for i := range s.objects {
		s.objects[i].Lines = slices.DeleteFunc(s.objects[i].Lines, func(l plans.Line) bool {
			return slices.ContainsFunc(strings.Fields(l.Text), func(word string) bool {
				return word == "::" || word == "0.0.0.0" || strings.HasPrefix(word, "0.0.0.0:")
			})
		})
	}
}

func (s *surveyor) note(format string, args ...any) {
	s.notes = append(s.notes, fmt.Sprintf(format, args...))
}

// facts asks the host for what the plans need to know.
func (s *surveyor) facts() error {
	run := &runner.Runner{Exec: s.exec, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	alternate := map[string]bool{}
	for _, t := range s.config.Tunnels {
		alternate[t.FOUIPAlt.String()] = t.FOUIPAlt.IsValid()
	}
	for _, v := range s.config.Facts() {
		query, err := v.Query.Expand(s.found.Vars)
		if err != nil {
			return err
		}
		if i := slices.Index(query.Argv, "dev"); i > 0 && i+1 < len(query.Argv) {
			if _, there := s.reading.Links[query.Argv[i+1]]; !there {
				return errors.New(v.Missing)
			}
		}
		value, err := run.Ask(v, s.found.Vars)
		if alternate[value] {
			value, err = s.main(v, query, alternate)
		}
		if err != nil {
			return err
		}
		if v.Name != "" {
			s.found.Vars[v.Name] = value
		}
	}
	return nil
}

// main is the answer behind alternate local addresses: they are before the interface's own
// if that was set anew.
func (s *surveyor) main(v plans.Var, query plans.Command, alternate map[string]bool) (string, error) {
	stdout, err := s.look(query)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(stdout) {
		if value := v.Answer(line); value != "" && !alternate[value] {
			return value, nil
		}
	}
	return "", errors.New(v.Missing)
}

// programs finds the instance's BPF programs, and reads their maps.
func (s *surveyor) programs() error {
	type place struct{ dev, where, handle string }
	var places []place
	add := func(p place) {
		if _, there := s.reading.Links[p.dev]; there && !slices.Contains(places, p) {
			places = append(places, p)
		}
	}
	var tunnels []plans.Tunnel
	for _, t := range s.config.Tunnels {
		if t.Backend != plans.BPF {
			continue
		}
		outer, err := t.Outer(s.found.Vars)
		if err != nil {
			return err
		}
		add(place{t.Dev, "egress", t.FilterHandle()})
		add(place{outer, "ingress", t.FilterHandle()})
		tunnels = append(tunnels, t)
	}
	if len(tunnels) == 0 {
		return nil
	}
	batch := plans.Command{Argv: []string{"tc", "-force", "-j", "-batch", "-"}}
	for _, p := range places {
		batch.Stdin += "filter show dev " + p.dev + " " + p.where + "\n"
	}
	programs := map[int]bool{}
	if len(places) > 0 {
		stdout, err := s.look(batch)
		if err != nil {
			return err
		}
		shown := json.NewDecoder(strings.NewReader(stdout))
		for _, p := range places {
			var filters json.RawMessage
			if err := shown.Decode(&filters); err != nil {
				return fmt.Errorf("what `%s` prints can't be read: %w", batch.Argv[0], err)
			}
			program, err := s.reading.ReadFilters(filters, p.dev, p.where, p.handle)
			if err != nil {
				return err
			}
			if program != 0 && p.where == "egress" { // the other knows nothing of interfaces
				programs[program] = true
			}
		}
	}
	s.found.Maps = len(programs) > 0
	for program := range programs {
		state, err := s.state(program)
		if err != nil {
			return err
		}
		for _, t := range tunnels {
			name := "interface " + t.Dev
			if at := state.Local[s.reading.Links[t.Dev].Index]; at.IsValid() {
				s.reading.Add(name, "outer "+shown(at))
			}
			for _, number := range t.Peers() {
				at := state.Peers[number]
				if !at.IsValid() {
					continue
				}
				s.reading.Add(name, fmt.Sprintf("peer %d %s", number, shown(at)))
				s.used[t.Number] = at.Addr()
				if t.Role == plans.Server {
					s.found.Peers[t.Number] = plans.Bound{Peer: at}
				}
			}
		}
	}
	return nil
}

// nft lists the instance's tables. Where nft's part of the kernel is not loaded there are
// none, and to ask would load it.
func (s *surveyor) nft() error {
	if unloaded("nf_tables") {
		return nil
	}
	for _, name := range s.config.NftTables() {
		stdout, err := s.look(plans.Command{Argv: append([]string{"nft", "-s", "list", "table"}, strings.Fields(name)...)})
		if gone(err) {
			continue
		} else if err != nil {
			return err
		}
		s.tables[name] = stdout
	}
	s.found.ReadTables(s.tables)
	return nil
}

// gone reports that a command found nothing.
func gone(err error) bool {
	var step *runner.StepError
	return errors.As(err, &step) && plans.Gone.Matches(step.Stderr)
}

// unloaded reports whether a part of the kernel is a module that is not loaded.
func unloaded(module string) bool {
	if _, err := os.Stat("/sys/module/" + module); err == nil {
		return false
	}
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return false
	}
	modules, err := os.ReadFile("/lib/modules/" + unix.ByteSliceToString(name.Release[:]) + "/modules.dep")
	return err == nil && strings.Contains(string(modules), "/"+module+".ko")
}

// peers learns who is bound to servers of the kernel's drivers: from the interface or, if
// it was taken away, from the gate.
func (s *surveyor) peers() error {
	admitted := map[string]map[netip.AddrPort]plans.Bound{}
	for name, listing := range s.tables {
		admitted[name] = plans.Admitted(listing)
	}
	var nobody []string
	for _, t := range s.config.Tunnels {
		if t.Role != plans.Server {
			continue
		}
		_, bound := s.found.Peers[t.Number]
		if t.Backend != plans.BPF {
			at, err := local(t, s.found.Vars)
			if err != nil {
				return err
			}
			var b plans.Bound
			b, bound = admitted["ip "+t.Table][at]
			if l := s.reading.Links[t.Dev]; l.Kind == t.Kind() && l.Remote.IsValid() {
				b, bound = plans.Bound{Peer: l.Remote, Alt: l.Local.Addr() == t.FOUIPAlt}, true
			}
			if bound {
				s.found.Peers[t.Number] = b
			}
		}
		if !bound {
			nobody = append(nobody, t.Title())
		}
	}
	if len(nobody) > 0 {
		s.note("nobody is bound: %s", strings.Join(nobody, ", "))
	}
	return nil
}

// listings reads routes, rules and FOU listeners, and whether the host forwards.
func (s *surveyor) listings() error {
	_, no6 := os.Stat("/proc/net/if_inet6")
	listens := slices.ContainsFunc(s.config.Tunnels, plans.Tunnel.Listens) && !unloaded("fou")
	for _, l := range plans.Listings() {
		switch {
		case l == plans.Addresses: // with the links
			continue
		case (l == plans.Routes6 || l == plans.Rules6) && no6 != nil, l == plans.Listeners && !listens:
			continue
		}
		stdout, err := s.look(l.Look())
		if gone(err) {
			continue // no such part of the kernel, no such things
		}
		if err == nil {
			err = s.reading.Read(l, stdout)
		}
		if err != nil {
			return err
		}
	}
	for _, setting := range s.config.ForwardSettings() {
		text, err := os.ReadFile("/proc/sys/" + setting)
		if err == nil {
			s.reading.Add("sysctl", setting+" = "+strings.TrimSpace(string(text)))
		}
	}
	return nil
}

// rulesets brings the plan's nft tables and the host's into one form.
func (s *surveyor) rulesets(thorough bool) error {
	sets, err := s.config.Rulesets(s.found)
	if err != nil {
		return err
	}
	planned := map[string]string{}
	there := slices.ContainsFunc(sets, func(r plans.Ruleset) bool { return s.tables[r.Table] != "" })
	if thorough && there {
		if planned, err = s.inWordsOfNft(sets); err != nil {
			s.note("of nft tables only chains, sets and the elements of sets are compared, not the rules: %v", err)
			planned = nil
		}
	}
	for _, r := range sets {
		if s.tables[r.Table] == "" {
			s.objects = append(s.objects, plans.Object{Name: "nft table " + r.Table, Lines: []plans.Line{{Text: "table " + r.Table}}})
			continue
		}
		rules := planned[r.Table] != ""
		text := planned[r.Table]
		if !rules {
			text = strings.Join(r.Stdins, "")
		}
		objects := plans.ReadTable(r.Table, text, rules)
		for i := range objects {
			for j := range objects[i].Lines {
				l := &objects[i].Lines[j]
				l.Of = r.Of[strings.TrimPrefix(l.Text, "element ")]
			}
		}
		known := map[string]bool{}
		for _, o := range objects {
			known[o.Name] = true
		}
		for _, o := range plans.ReadTable(r.Table, s.tables[r.Table], rules) {
			for _, l := range o.Lines {
				s.reading.Lines[o.Name] = append(s.reading.Lines[o.Name], l.Text)
			}
			if !known[o.Name] {
				o.Lines = nil
				objects = append(objects, o)
			}
		}
		s.objects = append(s.objects, objects...)
	}
	return nil
}

// compare compares all objects of the plan with those of the host.
func (s *surveyor) compare() []difference {
	var all []difference
	for _, o := range s.objects {
		all = append(all, compareLines(o, s.reading.Lines[o.Name], s.reading.Auto[o.Name]))
	}
	return all
}

// absent reports whether nothing is left of an object.
func (s *surveyor) absent(object string) bool { return len(s.reading.Lines[object]) == 0 }
