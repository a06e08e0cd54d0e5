package instance

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ipipou/datapath"
	"ipipou/plans"
	"ipipou/runner"
)

// A host is asked what is there. What several tunnels share is asked once.
type host struct {
	exec   runner.Exec
	links  map[string]*link        // by name
	states map[int]*datapath.State // by the number of the program
}

// A link is what a tunnel's interface is found to be.
type link struct {
	backend string
	index   int

	// With the kernel's drivers:
	tunnel tunnel
	rx, tx statistics

	// With BPF:
	state *datapath.State
}

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

// link looks at the tunnel's interface.
func (h *host) link(t plans.Tunnel) (*link, error) {
	if l, known := h.links[t.Dev]; known {
		return l, nil
	}
	l, err := h.look(t)
	if err == nil {
		h.links[t.Dev] = l
	}
	return l, err
}

func (h *host) look(t plans.Tunnel) (*link, error) {
	var found []struct {
		Index int `json:"ifindex"`
		Info  struct {
			Kind string          `json:"info_kind"`
			Data json.RawMessage `json:"info_data"`
		} `json:"linkinfo"`
		Stats struct{ RX, TX statistics } `json:"stats64"`
	}
	err := h.ask(&found, "ip", "-d", "-s", "-j", "link", "show", "dev", t.Dev)
	var step *runner.StepError
	switch {
	case errors.As(err, &step) && plans.Gone.Matches(step.Stderr):
		return &link{backend: down}, nil
	case err != nil:
		return nil, err
	case len(found) != 1:
		return nil, fmt.Errorf("ip shows %d interfaces named %s", len(found), t.Dev)
	}
	l := &link{backend: foreign, index: found[0].Index}
	switch found[0].Info.Kind {
	case t.Kind():
		l.backend = string(plans.Kernel)
		l.rx, l.tx = found[0].Stats.RX, found[0].Stats.TX
		if err := json.Unmarshal(found[0].Info.Data, &l.tunnel); err != nil {
			return nil, fmt.Errorf("what ip shows of %s can't be read: %w", t.Dev, err)
		}
		for _, a := range []string{l.tunnel.Local, l.tunnel.Remote} {
			if _, err := netip.ParseAddr(a); err != nil && a != "" && a != "any" {
				return nil, fmt.Errorf("what ip shows of %s can't be read: %q is no address", t.Dev, a)
			}
		}
	case "tun":
		program, err := h.egress(t)
		if err != nil || program == 0 {
			return l, err
		}
		l.backend = string(plans.BPF)
		if l.state, err = h.state(program); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// egress is the number of our program on the TUN device, 0 if there is none. The pins
// don't tell it: they may be in another mount namespace.
func (h *host) egress(t plans.Tunnel) (program int, err error) {
	var filters []struct {
		Kind    string
		Options struct {
			Handle  string
			Program struct{ ID int } `json:"prog"`
		}
	}
	err = h.ask(&filters, "tc", "-j", "filter", "show", "dev", t.Dev, "egress")
	for _, f := range filters {
		if f.Kind == "bpf" && f.Options.Handle == t.FilterHandle() {
			return f.Options.Program.ID, err
		}
	}
	return 0, err
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

// ask runs a command that prints JSON.
func (h *host) ask(into any, argv ...string) error {
	c := plans.Command{Argv: argv}
	stdout, stderr, err := h.exec(c)
	if err == nil {
		if err := json.Unmarshal([]byte(stdout), into); err != nil {
			return fmt.Errorf("what `%s` prints can't be read: %w", c, err)
		}
		return nil
	}
	var said struct{ Error string } // bpftool's way
	if json.Unmarshal([]byte(stdout), &said) == nil && said.Error != "" {
		stderr = said.Error
	}
	if strings.Contains(stderr, "Operation not permitted") {
		return fmt.Errorf("not permitted: run as root, who alone may read BPF maps (%s)", c)
	}
	return &runner.StepError{Command: c, Stderr: stderr, Err: err}
}
