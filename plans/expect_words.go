package plans

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The one form of each line, from the words of a plan's commands and from what the host
// prints.

// argv are the words of a command of ip(8) or tc(8).
type argv struct {
	what  string // program, object and verb
	words []string
	is6   bool
}

func wordsOf(c Command) argv {
	a := argv{words: c.Argv}
	if len(a.words) > 1 && (a.words[1] == "-4" || a.words[1] == "-6") {
		a.is6 = a.words[1] == "-6"
		a.words = slices.Delete(slices.Clone(a.words), 1, 2)
	}
	a.what = strings.Join(a.words[:min(3, len(a.words))], " ")
	return a
}

// of is the word behind the first one that is name, "" if there is none.
func (a argv) of(name string) string {
	if i := slices.Index(a.words, name); i > 0 && i+1 < len(a.words) {
		return a.words[i+1]
	}
	return ""
}

func (a argv) or(name, other string) string { return cmp.Or(a.of(name), a.of(other)) }

func (a argv) has(word string) bool { return slices.Contains(a.words, word) }

// first is the first word of a line.
func first(line string) string {
	word, _, _ := strings.Cut(line, " ")
	return word
}

// A linkForm is an interface as ip-link(8) has it. What is "" was left to the kernel, or has
// its default.
type linkForm struct {
	kind, mode, remote, local, dev       string
	encap, sport, dport, csum            string
	key, ttl, tos, pmtudisc, encaplimits string
}

// link are the words of `ip link add` and `ip tuntap add`.
func (a argv) link() linkForm {
	f := linkForm{
		kind: a.or("type", "mode"), remote: plain(a.of("remote")), local: plain(a.of("local")),
		encap: a.of("encap"), sport: a.of("encap-sport"), dport: a.of("encap-dport"),
		key: a.of("key"), ttl: a.or("ttl", "hoplimit"), tos: tos(a.or("tos", "tclass")), encaplimits: a.of("encaplimit"),
	}
	if a.of("type") != "" {
		f.mode = a.of("mode")
	}
	if a.words[1] == "link" {
		f.dev = a.of("dev")
	}
	if a.has("isatap") {
		f.mode = "isatap"
	}
	if f.kind == "vti" && f.key == "0" {
		f.key = "" // the same to it
	}
	for word, value := range map[string]*string{"encap-csum": &f.csum, "encap-udp6-csum": &f.csum, "pmtudisc": &f.pmtudisc} {
		switch {
		case a.has(word):
			*value = "on"
		case a.has("no" + word):
			*value = "off"
		}
	}
	return f
}

// tos is a TOS as a number in hexadecimal; 1 is the kernel's way to say inherit.
func tos(text string) string {
	n, err := strconv.ParseUint(text, 0, 8)
	switch {
	case err != nil:
		return text
	case n == 1:
		return "inherit"
	}
	return fmt.Sprintf("0x%02x", n)
}

// lines are the form's: where the tunnel leads, and each of what was chosen.
func (f linkForm) lines() []string {
	pairs := func(line string, words ...string) string {
		for i := 0; i < len(words); i += 2 {
			if words[i+1] != "" {
				line += " " + words[i] + " " + words[i+1]
			}
		}
		return line
	}
	lines := []string{pairs("link type "+f.kind, "mode", f.mode, "local", f.local, "remote", f.remote, "dev", f.dev)}
	if f.encap != "" {
		lines = append(lines, pairs("encap "+f.encap, "sport", f.sport, "dport", f.dport))
	}
	for _, o := range [][2]string{{"csum", f.csum}, {"key", f.key}, {"ttl", f.ttl}, {"tos", f.tos}, {"pmtudisc", f.pmtudisc}, {"encaplimit", f.encaplimits}} {
		if o[1] != "" {
			lines = append(lines, o[0]+" "+o[1])
		}
	}
	return lines
}

// address are the words of `ip address add`.
func (a argv) address() string {
	own, bits, _ := strings.Cut(a.words[3], "/")
	peer, peerBits, _ := strings.Cut(a.of("peer"), "/")
	return addressLine(own, peer, cmp.Or(bits, peerBits))
}

// addressLine leaves out a prefix length that is that of an address.
func addressLine(own, peer, bits string) string {
	line, full := "address "+plain(own), "32"
	if a, err := netip.ParseAddr(own); err == nil && a.Is6() {
		full = "128"
	}
	if peer != "" && peer != own {
		line += " peer " + plain(peer)
	}
	if bits != "" && bits != full {
		line += "/" + bits
	}
	return line
}

// route are the words of `ip route add`.
func (a argv) route() string {
	return routeLine(a.is6, a.words[3], a.of("via"), a.has("onlink"), a.of("metric"), a.of("table"))
}

func routeLine(is6 bool, to, via string, onlink bool, metric, table string) string {
	line := "route " + plain(to)
	if is6 && to == "default" {
		line = "route ::/0"
	}
	if via != "" {
		line += " via " + plain(via)
	}
	if onlink {
		line += " onlink"
	}
	if metric != "" && metric != "0" && (!is6 || metric != defaultMetric6) {
		line += " metric " + metric
	}
	if table != "" && table != "main" && table != strconv.Itoa(mainTable) {
		line += " table " + table
	}
	return line
}

// defaultMetric6 is IP6_RT_PRIO_USER in linux/ipv6_route.h.
const defaultMetric6 = "1024"

// rule are the words of `ip rule add`.
func (a argv) rule() string {
	return ruleLine(a.is6, ruleKey(a.of("pref"), a.of("from"), a.of("to"), a.of("lookup")), a.of("suppress_prefixlength"))
}

func ruleLine(is6 bool, key, suppress string) string {
	line := "rule "
	if is6 {
		line = "IPv6 rule "
	}
	if of, main := strings.CutSuffix(key, " "+strconv.Itoa(mainTable)); main {
		key = of + " main"
	}
	line += key
	if suppress != "" {
		line += " suppress_prefixlength " + suppress
	}
	return line
}

func filterLine(where, pref, handle string) string {
	return "filter " + where + " bpf pref " + pref + " handle " + handle
}
