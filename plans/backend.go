package plans

import (
	"errors"
	"fmt"
	"slices"
)

// Backend is what carries a tunnel's packets.
type Backend string

// The backends: the kernel's own drivers (ipip, fou and so on); the BPF programs of
// package datapath; and whichever the host has, the kernel's first.
const (
	Auto   Backend = "auto"
	Kernel Backend = "kernel"
	BPF    Backend = "bpf"
)

// backend reads what is to carry the tunnel, before its shape is read.
func (r *reader) backend(t *Tunnel) {
	t.Backend = Auto
	if r.has("backend") {
		t.Backend = Backend(r.text("backend"))
	}
	if t.Backend != Auto && t.Backend != Kernel && t.Backend != BPF {
		r.fail("backend", "%q is unknown, want auto, kernel or bpf", t.Backend)
	}
}

// bpfShape refuses what the BPF programs can't do, and what they need not be told.
func (r *reader) bpfShape(t *Tunnel) {
	option, why := t.beyondBPF()
	switch {
	case t.Backend == BPF && option != "":
		r.fail(option, "%s, with backend bpf", why)
	case t.Backend == BPF && (r.has("fou-local-ip-alt") || t.ForceAlt):
		r.note(Info, "the BPF data path needs no alternate local address: fou-local-ip-alt has no effect")
	}
}

// beyondBPF is why the BPF programs can't carry the tunnel, and the setting that
// says so; "" if they can.
func (t Tunnel) beyondBPF() (option, why string) {
	switch {
	case !t.how().bpf():
		return "mode", fmt.Sprintf("mode %s is not carried: want %s", t.Mode, modeNames(linkMode.bpf))
	case t.Encap == GUE:
		return "encap", "gue is not spoken: want fou or none"
	case t.EncapCsum != nil && *t.EncapCsum:
		return "encap-csum", "the outer UDP header has no checksum: leave it out"
	case t.PMTU != nil && !*t.PMTU:
		return "no-pmtudisc", "outer packets can't be fragmented: leave it out"
	}
	return "", ""
}

// bpf reports whether the BPF programs know the mode: IPv4 or IPv6 in IPv4.
func (m linkMode) bpf() bool { return !m.outer6 && !m.key && !m.bare }

// Undecided reports whether the host has to say what carries a tunnel.
func (c Config) Undecided() bool { return slices.ContainsFunc(c.Tunnels, Tunnel.undecided) }

func (t Tunnel) undecided() bool { return t.Backend == Auto }

// Decided is the configuration with every undecided tunnel carried by b.
func (c Config) Decided(b Backend) Config {
	c.Tunnels = slices.Clone(c.Tunnels)
	for i := range c.Tunnels {
		if c.Tunnels[i].undecided() {
			c.Tunnels[i].Backend = b
		}
	}
	return c
}

// KernelDrivers is a plan that fails where the kernel lacks a driver that an
// undecided tunnel wants. What it loads is what `up` would load.
func (c Config) KernelDrivers() Plan {
	c.Tunnels = slices.DeleteFunc(slices.Clone(c.Tunnels), func(t Tunnel) bool { return !t.undecided() })
	return Plan{Name: "drivers", Steps: c.Decided(Kernel).modules()}
}

// BPFFault is why the undecided tunnels can't all be carried by BPF; nil if they can.
func (c Config) BPFFault() error {
	for _, t := range c.Tunnels {
		if _, why := t.beyondBPF(); t.undecided() && why != "" {
			return errors.New(t.Dev + ": " + why)
		}
	}
	return nil
}

// on are the tunnels that the backend carries. What is still undecided counts as
// the kernel's: that is what is printed.
func (c Config) on(b Backend) []Tunnel {
	var all []Tunnel
	for _, t := range c.Tunnels {
		if (t.Backend == BPF) == (b == BPF) {
			all = append(all, t)
		}
	}
	return all
}

// Backends tells which backend carries what, for the log.
func (c Config) Backends() (kernel, bpf bool) {
	return len(c.on(Kernel)) > 0, len(c.on(BPF)) > 0
}
