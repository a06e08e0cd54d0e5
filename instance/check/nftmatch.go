package check

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
)

// matches is whether the packet fits a match statement.
func (r *nftReader) matches(table string, body json.RawMessage) answer {
	var m struct {
		Op          string
		Left, Right json.RawMessage
	}
	if json.Unmarshal(body, &m) != nil {
		return maybe
	}
	switch m.Op {
	case "==", "in", "":
		return r.compare(table, m.Left, m.Right)
	case "!=":
		if r.impossible(m.Left) {
			return no // another protocol's header is not unequal, it isn't there
		}
		return r.compare(table, m.Left, m.Right).not()
	}
	if r.impossible(m.Left) {
		return no
	}
	return maybe
}

// A field is what of a packet is compared: one of three forms.
type nftField struct {
	Meta    struct{ Key string }
	CT      struct{ Key string }
	Payload struct{ Protocol, Field string }
	Concat  []json.RawMessage
}

// impossible reports whether the field is of a header that the packet has not.
func (r *nftReader) impossible(left json.RawMessage) bool {
	var f nftField
	if json.Unmarshal(left, &f) != nil {
		return false
	}
	switch of := f.Payload.Protocol; of {
	case "", "th", "ether", "vlan":
		return false
	case "ip":
		return r.is6
	case "ip6":
		return !r.is6
	case "arp":
		return true
	default:
		number, known := protocols[of]
		return known && number != r.proto
	}
}

// compare is whether the packet's field has a value, or one of a set.
func (r *nftReader) compare(table string, left, right json.RawMessage) answer {
	if r.impossible(left) {
		return no
	}
	var f nftField
	if json.Unmarshal(left, &f) != nil {
		return maybe
	}
	if len(f.Concat) > 0 {
		return r.concat(table, f.Concat, right)
	}
	c, known := r.field(f)
	if !known {
		return maybe
	}
	return r.fits(table, right, c, 0)
}

// concat compares fields that are joined, with values or a set of such.
func (r *nftReader) concat(table string, left []json.RawMessage, right json.RawMessage) answer {
	var values struct{ Concat []json.RawMessage }
	if json.Unmarshal(right, &values) == nil && len(values.Concat) == len(left) {
		all := yes
		for i := range left {
			all = min(all, r.compare(table, left[i], values.Concat[i]))
		}
		return all
	}
	return maybe
}

// A comparer compares a field of the packet.
type comparer struct {
	is     func(value string) answer
	number int // the field's value for ranges; -1: it is no number
}

// within is whether the field is in a range.
func (c comparer) within(ends []json.RawMessage) answer {
	var from, to int
	if c.number < 0 || json.Unmarshal(ends[0], &from) != nil || json.Unmarshal(ends[1], &to) != nil {
		return maybe
	}
	return truth(from <= c.number && c.number <= to)
}

// equal compares a field that is a word.
func equal(mine string) comparer {
	return comparer{func(v string) answer { return truth(v == mine) }, -1}
}

// field is the packet's, unless it is not known.
func (r *nftReader) field(f nftField) (c comparer, known bool) {
	switch {
	case f.Meta.Key == "l4proto", f.Payload.Protocol == "ip" && f.Payload.Field == "protocol", f.Payload.Protocol == "ip6" && f.Payload.Field == "nexthdr":
		return comparer{r.isProto, r.proto}, true
	case f.Meta.Key == "nfproto":
		return equal(map[bool]string{false: "ipv4", true: "ipv6"}[r.is6]), true
	case f.Meta.Key == "protocol":
		return equal(map[bool]string{false: "ip", true: "ip6"}[r.is6]), true
	case (f.Meta.Key == "iifname" || f.Meta.Key == "iif") && r.dev != "":
		return comparer{r.isDev, -1}, true
	case f.CT.Key == "state":
		return comparer{func(v string) answer { return r.state[v] }, -1}, true
	case f.Payload.Field == "dport" && r.port != 0:
		return comparer{equal(strconv.Itoa(int(r.port))).is, int(r.port)}, true
	case f.Payload.Field == "saddr" && r.remote.IsValid():
		return comparer{addressIs(r.remote), -1}, true
	case f.Payload.Field == "daddr" && r.local.IsValid():
		return comparer{addressIs(r.local), -1}, true
	}
	return c, false
}

// isDev compares the interface with a name, which may end in a star.
func (p packet) isDev(name string) answer {
	if head, open := strings.CutSuffix(name, "*"); open {
		return truth(strings.HasPrefix(p.dev, head))
	}
	return truth(name == p.dev)
}

func (p packet) isProto(name string) answer {
	if n, err := strconv.Atoi(name); err == nil {
		return truth(n == p.proto)
	}
	number, known := protocols[name]
	if !known {
		return maybe
	}
	return truth(number == p.proto)
}

func addressIs(mine netip.Addr) func(string) answer {
	return func(v string) answer {
		if a, err := netip.ParseAddr(v); err == nil {
			return truth(a == mine)
		}
		p, err := netip.ParsePrefix(v)
		if err != nil {
			return maybe
		}
		return truth(p.Contains(mine))
	}
}

// fits compares with a value in any of the forms of libnftables-json(5).
func (r *nftReader) fits(table string, value json.RawMessage, c comparer, level int) answer {
	if level > depth {
		return maybe
	}
	var number json.Number
	if json.Unmarshal(value, &number) == nil && number != "" {
		return c.is(number.String())
	}
	var text string
	if json.Unmarshal(value, &text) == nil && !strings.HasPrefix(text, "@") {
		return c.is(text)
	}
	var form struct {
		Range  []json.RawMessage
		Prefix *struct {
			Addr string
			Len  int
		}
		Elem *struct{ Val json.RawMessage }
	}
	if json.Unmarshal(value, &form) == nil {
		switch {
		case form.Prefix != nil:
			return c.is(form.Prefix.Addr + "/" + strconv.Itoa(form.Prefix.Len))
		case form.Elem != nil:
			return r.fits(table, form.Elem.Val, c, level+1)
		case len(form.Range) == 2:
			return c.within(form.Range)
		}
	}
	elements, known := r.elements(table, value)
	if !known {
		return maybe
	}
	best := no
	for _, e := range elements {
		best = max(best, r.fits(table, e, c, level+1))
	}
	return best
}
