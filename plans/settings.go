package plans

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A Setting is a value and where it was given: "--number", or
// "/etc/ipipou/office.toml:7: number".
type Setting struct {
	Value any // bool, int, string, []string or [][]string, as its Option.Kind says
	Where string
}

// Settings are the values of one layer (a file's top, one [[tunnel]], the
// command line), by canonical option name.
type Settings map[string]Setting

// opposites are options that are one setting in truth. Of two in one layer the
// later wins, as it did in the Python tool.
var opposites = map[string]string{"client": "server", "no-encap-csum": "encap-csum", "no-pmtudisc": "pmtudisc"}

// sources are groups of options of which one layer may give only one; a later
// layer's choice takes the place of an earlier one's.
var sources = [][]string{
	{"auth-token", "auth-token-b64", "auth-token-file"},
	{"auth-key-b64", "auth-key-file"},
	{"auth-remote-pubkey-b64", "auth-remote-pubkey-file"},
	{"auth-secret", "auth-secret-file"},
	{"server", "static"},
}

// Set stores a value that is text, as flags and the Python tool's .conf have it.
// A flag that takes no value is set with an empty one.
func (s Settings) Set(name, text, where string) error {
	o, ok := optionByName(name)
	if !ok {
		return unknown(name, where)
	}
	switch o.Kind {
	case Bool:
		on, err := strconv.ParseBool(cmp.Or(text, "true"))
		if err != nil {
			return fmt.Errorf("%s: %q is neither true nor false", where, text)
		}
		return s.put(o, on, where)
	case Int:
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			return fmt.Errorf("%s: %s is not an integer", where, shown(o, text))
		}
		return s.put(o, n, where)
	case List:
		return s.put(o, strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }), where)
	case Routing:
		return s.put(o, strings.Split(text, ","), where)
	case Lines:
		if strings.ContainsAny(text, `'"\\`) {
			return fmt.Errorf("%s: there is no shell that would take the quotes away: call a script, or write the words as a list in a TOML file", where)
		}
		return s.put(o, [][]string{strings.Fields(text)}, where)
	default:
		return s.put(o, text, where)
	}
}

// setTyped stores a value that has a type already, as TOML has it.
func (s Settings) setTyped(name string, value any, where string) error {
	o, ok := optionByName(name)
	if !ok || o.Name != name {
		return unknown(name, where)
	}
	if v, ok := typed(o.Kind, value); ok {
		return s.put(o, v, where)
	}
	return fmt.Errorf("%s: want %s", where, o.Kind)
}

func (s Settings) put(o Option, value any, where string) error {
	name := o.Name
	if other, ok := opposites[name]; ok {
		name, value = other, !value.(bool)
	}
	for _, group := range sources {
		for _, other := range group {
			if _, both := s[other]; both && other != name && slices.Contains(group, name) {
				return fmt.Errorf("%s: contradicts %s: give one of them", where, other)
			}
		}
	}
	if text, ok := value.(string); ok {
		if err := compound(name, text, where, Settings{}); err != nil {
			return err
		}
	}
	s[name] = Setting{value, where}
	return nil
}

// typed turns a value as the TOML decoder has it into that of a setting.
func typed(k Kind, value any) (any, bool) {
	switch v := value.(type) {
	case bool:
		return v, k == Bool
	case int64:
		if k == Word {
			return strconv.FormatInt(v, 10), true
		}
		return int(v), k == Int && math.MinInt32 <= v && v <= math.MaxInt32
	case string:
		if k == List || k == Routing {
			return []string{v}, true
		}
		return v, k == String || k == Word || k == Bridged
	case map[string]any:
		if k == Bridged {
			return bridgeWords(v)
		}
	case []any:
		return list(k, v)
	}
	return nil, false
}

// list is a value of those kinds that have several parts.
func list(k Kind, values []any) (any, bool) {
	words, lines := []string{}, [][]string{}
	for _, e := range values {
		switch v := e.(type) {
		case string:
			words = append(words, v)
		case map[string]any:
			text, ok := routeWords(v)
			if !ok || k != Routing {
				return nil, false
			}
			words = append(words, text)
		case []any:
			line, ok := list(List, v)
			if !ok || k != Lines {
				return nil, false
			}
			lines = append(lines, line.([]string))
		default:
			return nil, false
		}
	}
	switch {
	case k == Lines && len(lines) == 0:
		return [][]string{words}, len(words) > 0
	case k == Lines:
		return lines, len(words) == 0
	}
	return words, k == List || k == Routing
}

// bridgeWords are a bridge's table in the words of the flag.
func bridgeWords(table map[string]any) (string, bool) {
	name, ok := table["name"].(string)
	addrs, addrsOK := typed(List, table["address"])
	if !ok || !addrsOK || len(table) != 2 {
		return "", false
	}
	return name + " " + strings.Join(addrs.([]string), ","), true
}

// routeWords are a route's table in the words of ip-route(8).
func routeWords(table map[string]any) (string, bool) {
	to, ok := table["to"].(string)
	text, known := to, 1
	for _, key := range []string{"via", "metric", "table"} {
		if v, given := table[key]; given {
			word, isWord := typed(Word, v)
			ok = ok && isWord && word != ""
			text += fmt.Sprintf(" %s %v", key, word)
			known++
		}
	}
	if v, given := table["onlink"]; given {
		on, isBool := v.(bool)
		ok = ok && isBool
		known++
		if on {
			text += " onlink"
		}
	}
	return text, ok && known == len(table)
}

// compound takes fou-local and fou-remote apart into the options that they
// stand for.
func compound(name, text, where string, into Settings) error {
	rest, side := text, ""
	switch name {
	case "fou-local":
		dev, ok := "", false
		if rest, dev, ok = strings.Cut(text, "@"); ok {
			into["fou-dev"] = Setting{dev, where}
		}
		side = "fou-local"
	case "fou-remote":
		side = "fou-remote"
	default:
		return nil
	}
	host, port, ok := hostPort(rest)
	if host != "" {
		into[side+"-ip"] = Setting{host, where}
	}
	if ok {
		return putPort(into, side+"-port", port, where)
	}
	return nil
}

// hostPort takes HOST:PORT apart. An IPv6 address that has a port stands in
// brackets (RFC 3986).
func hostPort(text string) (host, port string, ok bool) {
	if inside, after, closed := strings.Cut(strings.TrimPrefix(text, "["), "]"); closed && strings.HasPrefix(text, "[") {
		if after == "" {
			return inside, "", false
		}
		port, ok = strings.CutPrefix(after, ":")
		if !ok {
			return text, "", false
		}
		return inside, port, true
	}
	if strings.Count(text, ":") > 1 {
		return text, "", false
	}
	return strings.Cut(text, ":")
}

func putPort(s Settings, name, text, where string) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%s: port %q is out of range, want 1 to 65535", where, text)
	}
	s[name] = Setting{n, where}
	return nil
}

// over lays later settings on top of s, the compound ones taken apart: within a
// layer they go before their parts, as in the Python tool, but not over a later
// layer's.
func (s Settings) over(later Settings) Settings {
	out := maps.Clone(s)
	if out == nil {
		out = Settings{}
	}
	later = maps.Clone(later)
	for _, name := range []string{"fou-local", "fou-remote"} {
		if set, ok := later[name]; ok {
			text, _ := set.Value.(string)
			compound(name, text, set.Where, later) // put has seen that it is well-formed
			delete(later, name)
		}
	}
	for name := range later {
		for _, group := range sources {
			if slices.Contains(group, name) {
				for _, other := range group {
					delete(out, other)
				}
			}
		}
	}
	maps.Copy(out, later)
	return out
}

// unknown names a key that there is not. Of a key with odd characters only the
// beginning is named: the rest may be a secret behind a wrong separator.
func unknown(name, where string) error {
	if i := strings.IndexFunc(name, func(r rune) bool { return !nftRune(r) }); i >= 0 {
		return fmt.Errorf("%s: %q is followed by something that can't be in a key", where, name[:i])
	}
	if near := nearest(name); near != "" {
		return fmt.Errorf("%s: unknown key %q, did you mean %q?", where, name, near)
	}
	return fmt.Errorf("%s: unknown key %q", where, name)
}

// shown is a value for an error message, unless it is secret.
func shown(o Option, value string) string {
	if o.Secret {
		return "the value"
	}
	return strconv.Quote(value)
}
