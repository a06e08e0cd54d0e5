package plans

import (
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"
	"unicode"

	"github.com/BurntSushi/toml"
)

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// parseTOML reads our own format: keys are the long option names; those at the
// top are defaults of every [[tunnel]].
func parseTOML(name string, data []byte) (File, error) {
	raw := map[string]any{}
	if _, err := toml.Decode(string(data), &raw); err != nil {
		var at toml.ParseError
		if errors.As(err, &at) {
			return File{}, fmt.Errorf("%s:%d: %s", name, at.Position.Line, harmless(at, string(data)))
		}
		return File{}, fmt.Errorf("%s: %v", name, err)
	}
	f := File{Path: name, Top: Settings{}}
	top, inside := keyLines(string(data))
	tunnels, err := tables(name, "tunnel", raw, top)
	if err != nil {
		return File{}, err
	}
	nodes, err := tables(name, "node", raw, top)
	if err != nil {
		return File{}, err
	}
	if len(tunnels) > 0 && len(nodes) > 0 {
		return File{}, fmt.Errorf("%s: a file has [[tunnel]]s or [[node]]s, not both", at(name, top, "node"))
	}
	if err := fill(f.Top, raw, name, top); err != nil {
		return File{}, err
	}
	for i, table := range tunnels {
		s, err := settingsOf(table, name, lineOf(inside["tunnel"], i))
		if err != nil {
			return File{}, err
		}
		f.Tunnels = append(f.Tunnels, s)
	}
	for i, table := range nodes {
		n, err := parseNode(table, name, lineOf(inside["node"], i))
		if err != nil {
			return File{}, err
		}
		f.Nodes = append(f.Nodes, n)
	}
	return f, nil
}

func lineOf(tables []map[string]int, i int) map[string]int {
	if i < len(tables) {
		return tables[i]
	}
	return nil
}

// settingsOf are the settings of one [[tunnel]] or [[node]].
func settingsOf(table map[string]any, name string, lines map[string]int) (Settings, error) {
	s := Settings{}
	if err := fill(s, table, name, lines); err != nil {
		return nil, err
	}
	for key, set := range s {
		if o, ok := optionByName(key); ok && o.Process {
			return nil, fmt.Errorf("%s: belongs at the top of the file, not in a table of one tunnel", set.Where)
		}
	}
	return s, nil
}

// harmless is what the decoder says of a line, in one, without quoting a secret from
// it: of a value that goes on for several lines, the first names the key.
func harmless(err toml.ParseError, text string) string {
	lines := strings.Split(text, "\n")
	for n := min(err.Position.Line, len(lines)); n >= 1; n-- {
		line := lines[n-1]
		for _, word := range strings.FieldsFunc(line, func(r rune) bool { return !nftRune(r) }) {
			if o, ok := optionByName(word); ok && o.Secret {
				return o.Name + ": want a string in quotes"
			}
		}
		key, _, _ := strings.Cut(line, "=")
		if _, ok := optionByName(strings.Trim(key, " \t\"'")); ok {
			break
		}
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, err.Message)
}

// tables takes the [[tunnel]] or [[node]] tables out of raw.
func tables(name, key string, raw map[string]any, lines map[string]int) ([]map[string]any, error) {
	found, ok := raw[key]
	if _, isNode := found.(string); !ok || isNode && key == "node" {
		return nil, nil // node = "a" is the setting
	}
	delete(raw, key)
	list, ok := found.([]map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: want [[%s]], in double brackets", at(name, lines, key), key)
	}
	return list, nil
}

// fill sets keys in the order of the file, so that of several faults the first
// is named, and of two opposites the later wins.
func fill(s Settings, raw map[string]any, name string, lines map[string]int) error {
	keys := make([]string, 0, len(raw))
	for key := range raw {
		keys = append(keys, key)
	}
	sort.Slice(keys, func(i, j int) bool {
		if lines[keys[i]] != lines[keys[j]] {
			return lines[keys[i]] < lines[keys[j]]
		}
		return keys[i] < keys[j]
	})
	for _, key := range keys {
		where := at(name, lines, key)
		if o, known := optionByName(key); known && o.Name == key {
			where += ": " + key
		}
		if err := s.setTyped(key, raw[key], where); err != nil {
			return err
		}
	}
	return nil
}

func at(name string, lines map[string]int, key string) string {
	if n := lines[key]; n > 0 {
		return fmt.Sprintf("%s:%d", name, n)
	}
	return name
}

// keyLines finds the line of each key at the top, and in each [[…]] table, by
// the table's name. The decoder does not tell where a key stood. A key that is
// written in a way this doesn't see is named without its line.
func keyLines(text string) (top map[string]int, inside map[string][]map[string]int) {
	top, inside = map[string]int{}, map[string][]map[string]int{}
	table := top
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			header, _, _ := strings.Cut(line, "#")
			name := strings.Trim(header, "[] \t")
			if strings.HasPrefix(line, "[[") {
				table = map[string]int{}
				inside[name] = append(inside[name], table)
			}
			if _, seen := top[name]; !seen {
				top[name] = i + 1
			}
			continue
		}
		key, _, ok := strings.Cut(line, "=")
		key = strings.Trim(key, " \t\"'")
		if !ok || key == "" || strings.HasPrefix(key, "#") {
			continue
		}
		if _, seen := table[key]; !seen {
			table[key] = i + 1
		}
	}
	return top, inside
}
