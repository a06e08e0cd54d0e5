package plans

import (
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"

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
	f := File{Top: Settings{}}
	lines := keyLines(string(data))
	tables, err := tunnelTables(name, raw, lines)
	if err != nil {
		return File{}, err
	}
	if err := fill(f.Top, raw, name, lines[0]); err != nil {
		return File{}, err
	}
	for i, table := range tables {
		s := Settings{}
		var at map[string]int
		if i+1 < len(lines) {
			at = lines[i+1]
		}
		if err := fill(s, table, name, at); err != nil {
			return File{}, err
		}
		for key, set := range s {
			if o, ok := optionByName(key); ok && o.Process {
				return File{}, fmt.Errorf("%s: belongs at the top of the file, not in a [[tunnel]]", set.Where)
			}
		}
		f.Tunnels = append(f.Tunnels, s)
	}
	return f, nil
}

// harmless is what the decoder says of a line, without quoting a secret from it.
func harmless(err toml.ParseError, text string) string {
	lines := strings.Split(text, "\n")
	if n := err.Position.Line; n >= 1 && n <= len(lines) {
		key, _, _ := strings.Cut(lines[n-1], "=")
		if o, ok := optionByName(strings.Trim(key, " \t\"'")); ok && o.Secret {
			return o.Name + ": want a string in quotes"
		}
	}
	return err.Message
}

// tunnelTables takes the [[tunnel]] tables out of raw.
func tunnelTables(name string, raw map[string]any, lines []map[string]int) ([]map[string]any, error) {
	tunnels, ok := raw["tunnel"]
	if !ok {
		return nil, nil
	}
	delete(raw, "tunnel")
	tables, ok := tunnels.([]map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: want [[tunnel]], in double brackets", at(name, lines[0], "tunnel"))
	}
	return tables, nil
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

// keyLines finds the line of each key: the first map is of the top, the others
// of each [[tunnel]]. The decoder does not tell where a key stood. A key that
// is written in a way this doesn't see is named without its line.
func keyLines(text string) []map[string]int {
	tables := []map[string]int{{}}
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			if strings.HasPrefix(line, "[[") {
				tables = append(tables, map[string]int{})
			}
			key := strings.Trim(line, "[] \t")
			if _, seen := tables[0][key]; !seen {
				tables[0][key] = i + 1
			}
			continue
		}
		key, _, ok := strings.Cut(line, "=")
		key = strings.Trim(key, " \t\"'")
		if !ok || key == "" || strings.HasPrefix(key, "#") {
			continue
		}
		table := tables[len(tables)-1]
		if _, seen := table[key]; !seen {
			table[key] = i + 1
		}
	}
	return tables
}
