package plans

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
)

// reader takes typed values out of settings and keeps the first fault.
type reader struct {
	s     Settings
	read  Files
	err   error
	notes []Note
	files []Source
}

func newReader(s Settings, read Files) *reader { return &reader{s: s, read: read} }

func (r *reader) note(l Level, format string, args ...any) {
	r.notes = append(r.notes, Note{l, fmt.Sprintf(format, args...)})
}

// fail keeps the first fault; where is an option's name or a place.
func (r *reader) fail(name, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s: %s", r.where(name), fmt.Sprintf(format, args...))
	}
}

// where is the place at which an option was given, else the flag that could give it.
func (r *reader) where(name string) string {
	if set, ok := r.s[name]; ok {
		return set.Where
	}
	return "--" + name
}

func (r *reader) has(name string) bool { _, ok := r.s[name]; return ok }

func (r *reader) flag(name string) bool { v, _ := r.s[name].Value.(bool); return v }

func (r *reader) text(name string) string { v, _ := r.s[name].Value.(string); return v }

func (r *reader) integer(name string, otherwise, low, high int) int {
	if !r.has(name) {
		return otherwise
	}
	n, _ := r.s[name].Value.(int)
	if n < low || n > high {
		r.fail(name, "%d is out of range, want %d to %d", n, low, high)
		return otherwise
	}
	return n
}

// outer reads an outer address of the mode's family; the zero Addr if the option
// isn't given.
func (r *reader) outer(name string, m linkMode) netip.Addr {
	if !r.has(name) {
		return netip.Addr{}
	}
	text := strings.TrimSpace(r.text(name))
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil || a.Zone() != "" || a.Is4In6():
		r.fail(name, "%q is not an %s address", text, m.outer())
		return netip.Addr{}
	case a.Is6() != m.outer6:
		r.otherFamily(name, a, m)
		return netip.Addr{}
	case a.IsUnspecified() || a.IsMulticast() || a == broadcast:
		r.fail(name, "%s can't be the address of a host", a)
	}
	return a
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// otherFamily says which modes go over the family of the address instead.
func (r *reader) otherFamily(name string, a netip.Addr, m linkMode) {
	fits := modeNames(func(other linkMode) bool {
		return other.outer6 != m.outer6 && other.inner4 == m.inner4 && other.inner6 == m.inner6
	})
	if r.role() != Static {
		r.fail(name, "an authenticated tunnel goes over %s, and %s is none", m.outer(), a)
		return
	}
	if fits == "" {
		fits = modeNames(func(other linkMode) bool { return other.outer6 != m.outer6 })
	}
	r.fail(name, "mode %s goes over %s, and %s is none; want another address, or mode %s", m.name, m.outer(), a, fits)
}

func (r *reader) list(name string) []string { v, _ := r.s[name].Value.([]string); return v }

// source reads what may be given in base64, as plain text, or in a file, and
// says by which option. Inline text is returned as it is, the content of a
// file without one newline at its end.
func (r *reader) source(names ...string) (name string, data []byte) {
	for _, name := range names {
		if !r.has(name) {
			continue
		}
		if !strings.HasSuffix(name, "-file") {
			return name, []byte(r.text(name))
		}
		data, err := r.read(r.text(name))
		if err != nil {
			r.fail(name, "%v", err)
			return name, nil
		}
		r.files = append(r.files, Source{r.text(name), name != "auth-remote-pubkey-file"})
		text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		if text == "" {
			r.fail(name, "%s is empty", r.text(name))
		}
		return name, []byte(text)
	}
	return "", nil
}

const maxVerb = 100

func (r *reader) verbosity() int {
	v, _ := r.s["v"].Value.(int)
	return v + r.integer("verb", 0, 0, maxVerb)
}

// device checks the name of an interface: what the kernel's dev_valid_name
// (net/core/dev.c) allows, less what means something to a shell or is a pattern.
func (r *reader) device(name string) string {
	if !r.has(name) {
		return ""
	}
	return r.deviceName(name, r.text(name))
}

func (r *reader) deviceName(name, dev string) string {
	bad := strings.ContainsFunc(dev, func(c rune) bool { return !nftRune(c) && !strings.ContainsRune("@+=,#~", c) })
	switch {
	case dev == "", dev == ".", dev == "..", bad, strings.HasPrefix(dev, "-"):
		r.fail(name, "%q can't be the name of an interface", dev)
	case len(dev) > 15:
		r.fail(name, "%q is longer than the 15 characters an interface name can have", dev)
	}
	return dev
}

func (r *reader) base64(name string) []byte {
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(r.text(name)))
	if err != nil {
		r.fail(name, "not standard base64")
	}
	return b
}
