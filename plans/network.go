package plans

import (
	"net/netip"
	"strings"
)

// network reads what hangs on the tunnel beside routes: the bridge and what is
// forwarded.
func (r *reader) network(t *Tunnel, m linkMode) {
	if r.has("bridge") {
		t.Bridge = r.bridge(t)
	}
	t.Forward, t.Masquerade = r.flag("forward"), r.flag("masquerade")
	for _, name := range []string{"forward-to", "masquerade"} {
		if r.has(name) && !t.Forward && (name != "masquerade" || t.Masquerade) {
			r.fail(name, "has no effect without forward = true")
		}
	}
	for _, text := range r.list("forward-to") {
		p, err := netip.ParsePrefix(text)
		switch {
		case err == nil && p != p.Masked():
			r.fail("forward-to", "%q is not a network, it has bits behind its prefix; want %s", text, p.Masked())
		case err == nil && !m.carries(p.Addr().Is6()):
			r.notCarried("forward-to", p.Addr(), m)
		case err == nil:
			t.ForwardNets = append(t.ForwardNets, p)
		case strings.ContainsAny(text, "/:"):
			r.fail("forward-to", "%q is neither a network such as 10.1.0.0/24 nor the name of an interface", text)
		default:
			dev := r.deviceName("forward-to", text)
			if dev == t.Dev {
				r.fail("forward-to", "is the tunnel itself")
			}
			t.ForwardDevs = append(t.ForwardDevs, dev)
		}
	}
	if t.Bridge == nil {
		return
	}
	if !t.Forward {
		r.note(Info, "the bridge %s is there for this host alone: what is behind it reaches the tunnel with forward = true", t.Bridge.Name)
		return
	}
	t.ForwardDevs = append(t.ForwardDevs, t.Bridge.Name)
}

// bridge reads NAME ADDRESS,ADDRESS.
func (r *reader) bridge(t *Tunnel) *Bridge {
	name, rest, _ := strings.Cut(strings.TrimSpace(r.text("bridge")), " ")
	b := &Bridge{Name: r.deviceName("bridge", name)}
	if b.Name == t.Dev || b.Name == t.FOUDev {
		r.fail("bridge", "%s is the tunnel's or the outer interface", b.Name)
	}
	for _, text := range strings.FieldsFunc(rest, func(c rune) bool { return c == ',' || c == ' ' }) {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() || p.Addr().IsUnspecified() {
			r.fail("bridge", "%q is not an address with a prefix length, such as 10.42.1.1/24", text)
			continue
		}
		b.Addrs = append(b.Addrs, p)
	}
	if len(b.Addrs) == 0 {
		r.fail("bridge", "wants an address: NAME IP/LEN, as in br0 10.42.1.1/24")
	}
	return b
}

// hooks reads the operator's own commands.
func (r *reader) hooks(t *Tunnel) {
	h := &t.Hooks
	for i, into := range []*[][]string{&h.PreUp, &h.PostUp, &h.PreDown, &h.PostDown} {
		*into = r.commands([]string{"pre-up", "post-up", "pre-down", "post-down"}[i])
	}
}

// commands reads the operator's commands, each an argument list.
func (r *reader) commands(name string) [][]string {
	lines, _ := r.s[name].Value.([][]string)
	for _, line := range lines {
		if len(line) == 0 || strings.TrimSpace(line[0]) == "" {
			r.fail(name, `an empty command; want its words, as in ["systemctl", "start", "app"]`)
			continue
		}
		for _, w := range line {
			_, _, _, ok := cutVar(w)
			if ok || strings.ContainsAny(w, "\n\x00") {
				r.fail(name, "%q: there is no shell that would expand it, and a word is one line; call a script of yours", w)
			}
		}
	}
	return lines
}
