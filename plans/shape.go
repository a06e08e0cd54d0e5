package plans

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// shape reads what kind of tunnel it is, and refuses what the kernel would
// refuse half-way or, worse, take and not do.
func (r *reader) shape(t *Tunnel) linkMode {
	t.Mode = "ipip"
	if r.has("mode") {
		t.Mode = Mode(r.text("mode"))
	}
	m, ok := modeByName(t.Mode)
	if !ok {
		r.fail("mode", "%q is unknown, want %s", t.Mode, modeNames(func(linkMode) bool { return true }))
		t.Mode = "ipip"
		m, _ = modeByName(t.Mode)
	}
	t.Encap = FOU
	if t.Role == Static {
		t.Encap = None
	}
	if r.has("encap") {
		t.Encap = Encap(r.text("encap"))
	}
	r.encap(t, m)
	t.Key = r.number32("key")
	if t.Key != "" && !m.key {
		r.fail("key", "mode %s has no key, want mode %s", m.name, modeNames(func(m linkMode) bool { return m.key }))
	}
	r.header(t, m)
	if t.MTU = r.integer("mtu", 0, 68, 65535); t.MTU > 0 && t.MTU < 1280 && m.inner6 {
		r.fail("mtu", "%d is too small for IPv6, want 1280 or more (RFC 8200)", t.MTU)
	}
	return m
}

func (r *reader) encap(t *Tunnel, m linkMode) {
	switch {
	case t.Encap != FOU && t.Encap != GUE && t.Encap != None:
		r.fail("encap", "%q is unknown, want fou, gue or none", t.Encap)
	case t.Role != Static && t.Encap != FOU:
		r.fail("encap", "an authenticated tunnel is wrapped in FOU, not %q: leave it out, or give --static", t.Encap)
	case t.Role != Static && t.Mode != "ipip" && t.Mode != "gre" && !(t.Backend == BPF && m.bpf()):
		r.fail("mode", "an authenticated tunnel is ipip or gre, not %s: want one of them (with backend bpf, sit and any4 too), or --static", t.Mode)
	case m.bare && t.Encap != None:
		r.fail("encap", "the kernel can't wrap mode %s: leave it out", m.name)
	case t.Encap == FOU && m.proto == 0 && t.Backend != BPF:
		r.fail("encap", "a FOU port has room for one protocol, and mode %s is two: want gue or none", m.name)
	}
	if !r.has("encap-csum") {
		return
	}
	if t.Encap == None {
		r.fail("encap-csum", `there is no checksum without UDP: leave it out, or give encap = "fou" or "gue"`)
	}
	on := r.flag("encap-csum")
	t.EncapCsum = &on
}

// header reads what concerns the outer header.
func (r *reader) header(t *Tunnel, m linkMode) {
	if r.has("pmtudisc") {
		on := r.flag("pmtudisc")
		t.PMTU = &on
		if !m.pmtudisc {
			r.fail("pmtudisc", "mode %s has no such choice, want mode %s", m.name, modeNames(func(m linkMode) bool { return m.pmtudisc }))
		}
	}
	if m.name == "vti" && (r.has("ttl") || r.has("tos")) {
		name := map[bool]string{true: "ttl", false: "tos"}[r.has("ttl")]
		r.fail(name, "mode vti takes the outer header from IPsec: leave it out")
	}
	if text := r.text("ttl"); r.has("ttl") {
		t.TTL = text
		n, err := strconv.Atoi(text)
		if text != "inherit" && (err != nil || n < 1 || n > 255) {
			r.fail("ttl", "%q is out of range, want 1 to 255, or inherit", text)
		}
		if text != "inherit" && t.PMTU != nil && !*t.PMTU {
			r.fail("ttl", "contradicts no-pmtudisc: the kernel takes a fixed TTL only with path MTU discovery; give one of them")
		}
	}
	if text := r.text("tos"); r.has("tos") {
		t.TOS = text
		n, err := strconv.ParseUint(text, 0, 8)
		if text != "inherit" {
			// ip-link(8) reads a bare number as hexadecimal.
			t.TOS = fmt.Sprintf("0x%02x", n)
			if err != nil {
				r.fail("tos", "%q is out of range, want 0 to 255 (or 0x00 to 0xff), or inherit", text)
			}
		}
	}
}

// number32 reads an unsigned number of 32 bits.
func (r *reader) number32(name string) string {
	if !r.has(name) {
		return ""
	}
	n, err := strconv.ParseUint(strings.TrimSpace(r.text(name)), 0, 32)
	if err != nil {
		r.fail(name, "%q is out of range, want 0 to 4294967295", r.text(name))
	}
	return strconv.FormatUint(n, 10)
}

// Time reads a time in Go's notation or in seconds, of a second or more.
func Time(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if n, fault := strconv.Atoi(text); fault == nil {
		d, err = time.Duration(n)*time.Second, nil
	}
	if err != nil || d < time.Second {
		return 0, fmt.Errorf("%q is no time, want one second or more, such as 30s, 5m or 1h", text)
	}
	return d, nil
}

// duration reads a key by Time.
func (r *reader) duration(name string) time.Duration {
	if !r.has(name) {
		return 0
	}
	d, err := Time(r.text(name))
	if err != nil {
		r.fail(name, "%v", err)
	}
	return d
}
