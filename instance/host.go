package instance

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ipipou/datapath"
	"ipipou/plans"
	"ipipou/runner"
)

// A host is asked what is there. However many tunnels there are, it takes the same number
// of commands.
type host struct {
	exec   runner.Exec
	links  map[string]*link        // by name
	states map[int]*datapath.State // by the number of the program
}

func newHost() *host {
	return &host{exec: runner.Command(runner.DefaultTimeout), links: map[string]*link{}, states: map[int]*datapath.State{}}
}

// A link is what a tunnel's interface is found to be.
type link struct {
	backend plans.Backend // or Down, or Foreign
	index   int

	// With the kernel's drivers:
	tunnel tunnel
	rx, tx statistics

	// With BPF:
	state *datapath.State
}

// What carries an interface that none of the backends does: there is none, or of that
// name there is another thing.
const (
	absent  plans.Backend = "down"
	foreign plans.Backend = "foreign"
)

// A tunnel is the outer ends of a driver's interface. An address can be `any`.
type tunnel struct {
	Local, Remote string
	Encap         struct {
		Source uint16 `json:"sport"`
		Dest   uint16 `json:"dport"`
	}
}

// statistics are those of an interface, in one direction.
type statistics struct {
	Packets, Bytes, Errors, Dropped uint64
	Carrier                         uint64 `json:"carrier_errors"`
}

// A device is an interface as ip(8) prints it.
type device struct {
	Index int    `json:"ifindex"`
	Name  string `json:"ifname"`
	Info  struct {
		Kind string          `json:"info_kind"`
		Data json.RawMessage `json:"info_data"`
	} `json:"linkinfo"`
	Stats struct{ RX, TX statistics } `json:"stats64"`
}

// look looks at the tunnels' interfaces.
func (h *host) look(tunnels []plans.Tunnel) error {
	byName := map[string]plans.Tunnel{}
	for _, t := range tunnels {
		byName[t.Dev] = t
	}
	devices, err := h.devices(slices.Sorted(maps.Keys(byName)))
	if err != nil {
		return err
	}
	var tuns []plans.Tunnel // which may be ours
	for name, t := range byName {
		d, there := devices[name]
		l := &link{backend: absent, index: d.Index}
		h.links[name] = l
		switch {
		case !there:
		case d.Info.Kind == t.Kind():
			if err := l.driven(d); err != nil {
				return err
			}
		default:
			l.backend = foreign
			if d.Info.Kind == "tun" {
				tuns = append(tuns, t)
			}
		}
	}
	slices.SortFunc(tuns, func(a, b plans.Tunnel) int { return cmp.Compare(a.Dev, b.Dev) })
	programs, err := h.egress(tuns)
	if err != nil {
		return err
	}
	for i, program := range programs {
		if program == 0 {
			continue
		}
		l := h.links[tuns[i].Dev]
		l.backend = plans.BPF
		if l.state, err = h.state(program); err != nil {
			return err
		}
	}
	return nil
}

// devices are the host's interfaces of these names: of one it is asked for that, of
// several for all that it has, in one go.
func (h *host) devices(names []string) (map[string]device, error) {
	var found []device
	argv := []string{"ip", "-d", "-s", "-j", "link", "show"}
	if len(names) == 1 {
		argv = append(argv, "dev", names[0])
	}
	err := h.ask(&found, argv...)
	var step *runner.StepError
	switch {
	case len(names) == 1 && errors.As(err, &step) && plans.Gone.Matches(step.Stderr):
		return nil, nil
	case err != nil:
		return nil, err
	case len(names) == 1 && len(found) != 1:
		return nil, fmt.Errorf("ip shows %d interfaces named %s", len(found), names[0])
	case len(names) == 1:
		return map[string]device{names[0]: found[0]}, nil
	}
	devices := map[string]device{}
	for _, d := range found {
		devices[d.Name] = d
	}
	return devices, nil
}

// driven takes over what ip(8) says of a driver's interface.
func (l *link) driven(d device) error {
	l.backend, l.rx, l.tx = plans.Kernel, d.Stats.RX, d.Stats.TX
	if err := json.Unmarshal(d.Info.Data, &l.tunnel); err != nil {
		return fmt.Errorf("what ip shows of %s can't be read: %w", d.Name, err)
	}
	for _, a := range []string{l.tunnel.Local, l.tunnel.Remote} {
		if _, err := netip.ParseAddr(a); err != nil && a != "" && a != "any" {
			return fmt.Errorf("what ip shows of %s can't be read: %q is no address", d.Name, a)
		}
	}
	return nil
}

// A filter is one of tc(8)'s.
type filter struct {
	Kind    string
	Options struct {
		Handle  string
		Program struct{ ID int } `json:"prog"`
	}
}

// egress are the numbers of our programs on the TUN devices, 0 where there is none. The
// pins don't tell them: they may be in another mount namespace.
func (h *host) egress(tunnels []plans.Tunnel) (programs []int, err error) {
	show := func(t plans.Tunnel) []string { return []string{"filter", "show", "dev", t.Dev, "egress"} }
	lists := make([][]filter, len(tunnels))
	switch len(tunnels) {
	case 0:
		return nil, nil
	case 1:
		err = h.ask(&lists[0], append([]string{"tc", "-j"}, show(tunnels[0])...)...)
	default:
		var batch strings.Builder
		for _, t := range tunnels {
			fmt.Fprintln(&batch, strings.Join(show(t), " "))
		}
		err = h.run(plans.Command{Argv: []string{"tc", "-j", "-batch", "-"}, Stdin: batch.String()}, func(out string) error {
			d := json.NewDecoder(strings.NewReader(out)) // a list for each
			for i := range lists {
				if err := d.Decode(&lists[i]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	programs = make([]int, len(tunnels))
	for i, t := range tunnels {
		for _, f := range lists[i] {
			if f.Kind == "bpf" && f.Options.Handle == t.FilterHandle() {
				programs[i] = f.Options.Program.ID
				break
			}
		}
	}
	return programs, nil
}

// state reads the maps of a program.
func (h *host) state(program int) (*datapath.State, error) {
	if s, known := h.states[program]; known {
		return s, nil
	}
	show := func(into any, what, how string, id int) error {
		return h.ask(into, "bpftool", "-j", what, how, "id", strconv.Itoa(id))
	}
	var prog struct {
		Maps []int `json:"map_ids"`
	}
	if err := show(&prog, "prog", "show", program); err != nil {
		return nil, err
	}
	names := []string{"devices", "peers", "counters"}
	dumps := make([]json.RawMessage, len(names))
	for _, id := range prog.Maps {
		var m struct{ Name string }
		if err := show(&m, "map", "show", id); err != nil {
			return nil, err
		}
		if i := slices.Index(names, m.Name); i >= 0 {
			if err := show(&dumps[i], "map", "dump", id); err != nil {
				return nil, err
			}
		}
	}
	if i := slices.IndexFunc(dumps, func(d json.RawMessage) bool { return d == nil }); i >= 0 {
		return nil, fmt.Errorf("the BPF program %d has no map %s", program, names[i])
	}
	s, err := datapath.Decode(dumps[0], dumps[1], dumps[2])
	if err != nil {
		return nil, err
	}
	h.states[program] = &s
	return &s, nil
}

// ask runs a command that prints one JSON document.
func (h *host) ask(into any, argv ...string) error {
	return h.run(plans.Command{Argv: argv}, func(out string) error { return json.Unmarshal([]byte(out), into) })
}

// run runs a command that only looks, and reads what it prints.
func (h *host) run(c plans.Command, read func(out string) error) error {
	stdout, stderr, err := h.exec(c)
	if err == nil {
		if err := read(stdout); err != nil {
			return fmt.Errorf("what `%s` prints can't be read: %w", strings.Join(c.Argv, " "), err)
		}
		return nil
	}
	var said struct{ Error string } // bpftool's way
	if json.Unmarshal([]byte(stdout), &said) == nil && said.Error != "" {
		stderr = said.Error
	}
	if strings.Contains(stderr, "Operation not permitted") {
		return fmt.Errorf("not permitted: run as root, who alone may read BPF maps (%s)", strings.Join(c.Argv, " "))
	}
	return &runner.StepError{Command: c, Stderr: stderr, Err: err}
}

// gateDrops is how many packets an nft gate has dropped since it was made, as far as it
// counts them and we may know.
func (h *host) gateDrops(table string) (dropped uint64) {
	out, _, err := h.exec(plans.Command{Argv: []string{"nft", "list", "chain", "ip", table, "gate"}})
	if err != nil {
		return 0
	}
	for _, m := range countedDrop.FindAllStringSubmatch(out, -1) {
		n, _ := strconv.ParseUint(m[1], 10, 64) // digits; what is too much for it is the largest
		dropped += n
	}
	return dropped
}

// countedDrop finds the counters of rules that drop, as nft(8) lists them.
var countedDrop = regexp.MustCompile(`counter packets (\d+) bytes \d+ drop`)
