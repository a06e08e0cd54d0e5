package plans

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Reading is what a host has, in the lines of Expect by the names of its objects. Of
// objects that nobody has planned there is more in it than anybody asks for.
type Reading struct {
	Lines map[string][]string
	// Auto are lines that the kernel adds by itself, by object.
	Auto map[string]map[string]bool
	// Links are the interfaces by name.
	Links map[string]Link
}

// A Link is an interface of the host.
type Link struct {
	Index int
	Kind  string // info_kind of ip(8); "" of what is no virtual one
	// The outer ends of a tunnel of the kernel's drivers; invalid where it has none.
	// Without UDP the ports are 0.
	Local, Remote netip.AddrPort
}

// NewReading is empty.
func NewReading() *Reading {
	return &Reading{Lines: map[string][]string{}, Auto: map[string]map[string]bool{}, Links: map[string]Link{}}
}

// Add adds a line to an object, once.
func (r *Reading) Add(name, text string) {
	if !slices.Contains(r.Lines[name], text) {
		r.Lines[name] = append(r.Lines[name], text)
	}
}

// auto adds a line that is the kernel's own.
func (r *Reading) auto(name, text string) {
	r.Add(name, text)
	if r.Auto[name] == nil {
		r.Auto[name] = map[string]bool{}
	}
	r.Auto[name][text] = true
}

// LinksLook prints all interfaces, with their addresses. One that is not there is not
// asked for by its name: the kernel would look for a module of that name (dev_load in
// net/core/dev_ioctl.c).
var LinksLook = cmd("ip", "-d", "-j", "address", "show")

// ReadLinks takes in what LinksLook printed.
func (r *Reading) ReadLinks(stdout string) error {
	var found []struct {
		Index int             `json:"ifindex"`
		Name  string          `json:"ifname"`
		Flags []string        `json:"flags"`
		MTU   int             `json:"mtu"`
		Group string          `json:"group"`
		On    json.RawMessage `json:"link"`
		Info  struct {
			Kind string          `json:"info_kind"`
			Data json.RawMessage `json:"info_data"`
		} `json:"linkinfo"`
		Addresses []hostAddress `json:"addr_info"`
	}
	if err := decode(LinksLook, stdout, &found); err != nil {
		return err
	}
	for _, l := range found {
		f, link := linkForm{kind: l.Info.Kind}, Link{Index: l.Index, Kind: l.Info.Kind}
		if slices.ContainsFunc(modes, func(m linkMode) bool { return m.kind == l.Info.Kind }) { // others have other data by these names
			var data infoData
			if err := decode(LinksLook, string(l.Info.Data), &data); err != nil {
				return err
			}
			f, link.Local, link.Remote = data.form(l.Info.Kind)
			_ = json.Unmarshal(l.On, &f.dev) // null where it is on none
		}
		r.Links[l.Name] = link
		name := "interface " + l.Name
		for _, text := range f.lines() {
			r.Add(name, text)
		}
		r.Add(name, "mtu "+strconv.Itoa(l.MTU))
		if l.Group != "default" && l.Group != "" {
			r.Add(name, "group "+l.Group)
		}
		if slices.Contains(l.Flags, "UP") {
			r.Add(name, "state up")
		} else {
			r.Add(name, "state down")
		}
		for _, a := range l.Addresses {
			if a.auto(l.Info.Kind) {
				r.auto(name, a.line())
			} else {
				r.Add(name, a.line())
			}
		}
	}
	return nil
}

// infoData is what the drivers say of a tunnel. Their words are those of iproute2's
// ip/link_*.c.
type infoData struct {
	Proto, Remote, Local string
	ISATAP               bool
	TTL                  *int
	TOS                  string
	TClass               string
	OrigTClass           bool  `json:"ip6_tnl_f_use_orig_tclass"`
	NoEncapLimit         bool  `json:"ip6_tnl_f_ign_encap_limit"`
	EncapLimit           *int  `json:"encap_limit"`
	PMTU                 *bool `json:"pmtudisc"`
	IKey                 string
	OKey                 string
	Encap                *struct {
		Type   string
		Source uint16 `json:"sport"`
		Dest   uint16 `json:"dport"`
		Csum   bool
		Csum6  bool
	}
}

// form is the interface in a plan's words, and its ends.
func (d infoData) form(kind string) (f linkForm, local, remote netip.AddrPort) {
	f = linkForm{kind: kind, mode: d.Proto}
	if d.ISATAP {
		f.mode = "isatap"
	}
	var ports [2]uint16
	onOff := func(on bool) string { return map[bool]string{true: "on", false: "off"}[on] }
	if d.Encap != nil && d.Encap.Type != "" {
		f.encap, f.sport, f.dport = d.Encap.Type, strconv.Itoa(int(d.Encap.Source)), strconv.Itoa(int(d.Encap.Dest))
		f.csum = onOff(d.Encap.Csum || d.Encap.Csum6)
		ports = [2]uint16{d.Encap.Source, d.Encap.Dest}
	}
	for i, end := range []struct {
		text string
		word *string
		at   *netip.AddrPort
	}{{d.Local, &f.local, &local}, {d.Remote, &f.remote, &remote}} {
		if a, err := netip.ParseAddr(end.text); err == nil {
			*end.word, *end.at = a.String(), netip.AddrPortFrom(a, ports[i])
		}
	}
	if d.TTL != nil {
		if f.ttl = strconv.Itoa(*d.TTL); *d.TTL == 0 {
			f.ttl = "inherit"
		}
	}
	f.tos = "0x00"
	switch {
	case d.OrigTClass:
		f.tos = "inherit"
	case d.TOS+d.TClass != "":
		f.tos = tos(d.TOS + d.TClass)
	}
	if d.PMTU != nil {
		f.pmtudisc = onOff(*d.PMTU)
	}
	switch {
	case d.NoEncapLimit:
		f.encaplimits = "none"
	case d.EncapLimit != nil:
		f.encaplimits = strconv.Itoa(*d.EncapLimit)
	}
	f.key = keyOf(d.IKey)
	if f.key != keyOf(d.OKey) {
		f.key = "in " + f.key + " out " + keyOf(d.OKey)
	}
	return f, local, remote
}

// keyOf is a key, which ip(8) prints like an address, as a number.
func keyOf(text string) string {
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() {
		return text
	}
	b := a.As4()
	return strconv.FormatUint(uint64(b[0])<<24|uint64(b[1])<<16|uint64(b[2])<<8|uint64(b[3]), 10)
}

type hostAddress struct {
	Family, Local, Address, Scope string
	Bits                          int `json:"prefixlen"`
	Dynamic                       bool
}

func (a hostAddress) line() string { return addressLine(a.Local, a.Address, strconv.Itoa(a.Bits)) }

// auto reports whether the kernel gives an interface such an address by itself: IPv6's of
// the link, those that a router's advertisements make, and sit's of automatic tunnels
// (add_v4_addrs in net/ipv6/addrconf.c).
func (a hostAddress) auto(kind string) bool {
	own, err := netip.ParseAddr(a.Local)
	if err != nil || !own.Is6() {
		return false
	}
	return a.Scope == "link" || a.Dynamic || kind == "sit" && a.Bits == 96 && strings.HasPrefix(own.StringExpanded(), "0000:0000:0000:0000:0000:0000:")
}

// Read takes in what a Listing printed; addresses come with ReadLinks.
func (r *Reading) Read(l Listing, stdout string) error {
	if l == Listeners {
		keys, err := l.Keys(stdout)
		for key := range keys {
			r.Add("FOU listeners", key)
		}
		return err
	}
	if strings.TrimSpace(stdout) == "" {
		return nil
	}
	is6 := l == Routes6 || l == Rules6
	var found []struct {
		Dev, Dst, Src, Gateway, Table string
		Type                          string
		Flags                         []string
		Metric, Priority              int
		DstLen, SrcLen                *int
		Suppress                      *int `json:"suppress_prefixlen"`
	}
	if err := decode(l.Look(), stdout, &found); err != nil {
		return err
	}
	for _, f := range found {
		if l == Rules || l == Rules6 {
			suppress := ""
			if f.Suppress != nil {
				suppress = strconv.Itoa(*f.Suppress)
			}
			key := ruleKey(strconv.Itoa(f.Priority), withLength(f.Src, f.SrcLen), withLength(f.Dst, f.DstLen), f.Table)
			r.Add("rules", ruleLine(is6, key, suppress))
			continue
		}
		if f.Dev != "" {
			r.Add("interface "+f.Dev, routeLine(is6, f.Dst, f.Gateway, slices.Contains(f.Flags, "onlink"), strconv.Itoa(f.Metric), f.Table))
		}
	}
	return nil
}

// ReadFilters takes in the filters of one end of an interface, "ingress" or "egress", as
// `tc -j filter show` prints them, and returns the number of the program of the filter
// with that handle, 0 if it is not there.
func (r *Reading) ReadFilters(filters json.RawMessage, dev, where, handle string) (program int, err error) {
	var found []struct {
		Kind    string
		Pref    int
		Options struct {
			Handle  string
			Program struct{ ID int } `json:"prog"`
		}
	}
	if err := json.Unmarshal(filters, &found); err != nil {
		return 0, fmt.Errorf("what tc shows of the filters of %s can't be read: %w", dev, err)
	}
	for _, f := range found {
		if f.Kind == "bpf" && f.Options.Handle == handle {
			r.Add("interface "+dev, filterLine(where, strconv.Itoa(f.Pref), handle))
			program = f.Options.Program.ID
		}
	}
	return program, nil
}

// decode reads JSON that a command has printed.
func decode(c Command, stdout string, into any) error {
	if err := json.Unmarshal([]byte(stdout), into); err != nil {
		return fmt.Errorf("what `%s` prints can't be read: %w", c, err)
	}
	return nil
}
