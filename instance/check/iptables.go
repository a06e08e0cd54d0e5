package check

import (
	"slices"
	"strconv"
	"strings"
)

// readIptables reads what `iptables-legacy -S` prints of the table filter, for the packet:
// options as iptables(8) takes them, a rule a line.
func readIptables(text string, p packet) *ruleset {
	const table = "iptables filter"
	rules := &ruleset{chains: map[string]*chain{}, bases: []string{"INPUT"}}
	get := func(name string) *chain {
		if rules.chains[name] == nil {
			rules.chains[name] = &chain{name: "iptables' chain " + name, table: table}
		}
		return rules.chains[name]
	}
	get("INPUT")
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch c := get(words[1]); words[0] {
		case "-P":
			c.drops = len(words) > 2 && words[2] == "DROP"
		case "-A":
			c.rules = append(c.rules, iptablesRule(words[2:], p))
		}
	}
	return rules
}

// iptablesRule is a rule by its options, each with its value but the flags.
func iptablesRule(words []string, p packet) (r rule) {
	r.match = yes
	negated := false
	for i := 0; i < len(words); i++ {
		if words[i] == "!" {
			negated = true
			continue
		}
		option, value := words[i], ""
		if i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") {
			i++
			value = words[i]
		}
		a := iptablesMatch(option, value, p)
		if negated {
			a, negated = a.not(), false
		}
		switch option {
		case "-j", "-g":
			r.does = append(r.does, iptablesTarget(option, value))
			return r // what follows are the target's options
		}
		r.match = min(r.match, a)
	}
	return r
}

func iptablesTarget(option, name string) verdict {
	switch {
	case option == "-g":
		return verdict{yes, "goto", name}
	case name == "ACCEPT":
		return verdict{yes, "accept", ""}
	case name == "DROP" || name == "REJECT":
		return verdict{yes, "drop", ""}
	case name == "RETURN":
		return verdict{yes, "return", ""}
	case slices.Contains([]string{"LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "SET", "AUDIT", "ACCOUNT", "NOTRACK", "CT"}, name):
		return verdict{match: no}
	case name == "QUEUE" || name == "NFQUEUE":
		return verdict{yes, "unknown", ""}
	}
	return verdict{yes, "jump", name}
}

// iptablesMatch is whether the packet fits an option.
func iptablesMatch(option, value string, p packet) answer {
	inList := func(fits func(string) answer) answer {
		best := no
		for v := range strings.SplitSeq(value, ",") {
			best = max(best, fits(v))
		}
		return best
	}
	switch option {
	case "-m": // loads what its options are of
		return yes
	case "--comment":
		return yes
	case "-p":
		if value == "all" {
			return yes
		}
		return p.isProto(value)
	case "-i":
		if p.dev == "" {
			return maybe
		}
		if head, open := strings.CutSuffix(value, "+"); open {
			return p.isDev(head + "*")
		}
		return p.isDev(value)
	case "--dport", "--dports":
		if p.port == 0 {
			return no
		}
		return inList(func(v string) answer { return portRange(v, p.port) })
	case "--state", "--ctstate":
		return inList(func(v string) answer { return p.state[strings.ToLower(v)] })
	case "-s":
		if p.remote.IsValid() {
			return addressIs(p.remote)(value)
		}
	case "-d":
		if p.local.IsValid() {
			return addressIs(p.local)(value)
		}
	}
	return maybe
}

// portRange is whether the port is N, or in N:M.
func portRange(text string, port uint16) answer {
	from, to, isRange := strings.Cut(text, ":")
	low, err := strconv.Atoi(from)
	if err != nil {
		return maybe
	}
	high := low
	if isRange {
		if high, err = strconv.Atoi(to); err != nil {
			return maybe
		}
	}
	return truth(low <= int(port) && int(port) <= high)
}
