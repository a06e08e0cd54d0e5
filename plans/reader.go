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

// address reads an IPv4 address; the zero Addr if the option isn't given.
func (r *reader) address(name string) netip.Addr {
	if !r.has(name) {
		return netip.Addr{}
	}
	return r.ipv4(name, r.text(name))
}

func (r *reader) ipv4(name, text string) netip.Addr {
	a, err := netip.ParseAddr(strings.TrimSpace(text))
	if err != nil || !a.Is4() {
		r.fail(name, "%q is not an IPv4 address", text)
		return netip.Addr{}
	}
	return a
}

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
		text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
		if text == "" {
			r.fail(name, "%s is empty", r.text(name))
		}
		return name, []byte(text)
	}
	return "", nil
}

func (r *reader) verbosity() int {
	v, _ := r.s["v"].Value.(int)
	return v + r.integer("verb", 0, 0, 100)
}

// device checks the name of an interface: what the kernel's dev_valid_name
// (net/core/dev.c) allows, less what means something to a shell or is a pattern.
func (r *reader) device(name string) string {
	if !r.has(name) {
		return ""
	}
	dev := r.text(name)
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
