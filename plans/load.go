package plans

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode"
)

// ConfigDir is where --config NAME is looked for, as in the Python tool.
const ConfigDir = "/etc/ipipou"

// Files reads a file, as os.ReadFile does.
type Files func(name string) ([]byte, error)

// A File is one configuration file, read but not yet validated.
type File struct {
	Path    string
	Top     Settings   // defaults of all tunnels
	Tunnels []Settings // one for each [[tunnel]]
	Nodes   []Node     // one for each [[node]]
}

// Load reads --config NAME|PATH. What begins with /, ./ or ../ is a path; a
// plain NAME is /etc/ipipou/NAME.toml or else /etc/ipipou/NAME.conf. A path
// that ends in .toml is TOML, any other is the Python tool's format.
func Load(config string, read Files) (File, error) {
	if config == "" {
		return File{}, errors.New("--config: empty name")
	}
	candidates := []string{config}
	if !isPath(config) {
		base := ConfigDir + "/" + config
		candidates = []string{base + ".toml", base + ".conf"}
	}
	var data []byte
	var err error
	for _, name := range candidates {
		if data, err = read(name); err == nil {
			if strings.HasSuffix(name, ".toml") {
				return parseTOML(name, data)
			}
			return parseLegacy(name, data)
		}
		if !isNotExist(err) {
			break
		}
	}
	if len(candidates) > 1 && isNotExist(err) {
		return File{}, fmt.Errorf("--config: neither %s nor %s exists", candidates[0], candidates[1])
	}
	return File{}, fmt.Errorf("--config: %v", err)
}

// instanceName is the name of an instance that a configuration file gives:
// its file name without directory and ending.
func instanceName(config string) string {
	return strings.TrimSuffix(strings.TrimSuffix(path.Base(config), ".toml"), ".conf")
}

// isPath tells a path from the name of a configuration.
func isPath(config string) bool {
	return strings.HasPrefix(config, "/") || strings.HasPrefix(config, "./") || strings.HasPrefix(config, "../")
}

// ParseName reads what an operator calls an instance: its name or, as with --config,
// its configuration file. The error is one of usage.
func ParseName(text string) (string, error) {
	name := text
	if isPath(text) || !strings.Contains(text, "/") {
		name = instanceName(text)
	}
	bad := strings.ContainsFunc(name, func(c rune) bool { return c == '/' || unicode.IsControl(c) })
	if text == "" || name == "" || name == "." || name == ".." || bad {
		return "", fmt.Errorf("%q can't be an instance: want its name, or the path of its file, which begins with /, ./ or ../", text)
	}
	return name, nil
}

// parseLegacy reads the Python tool's format: `key value` a line, key and
// value parted by one blank, blanks, tabs and hyphens before the key ignored,
// # comments. All behind the blank is the value, trailing blanks included.
func parseLegacy(name string, data []byte) (File, error) {
	f := File{Path: name, Top: Settings{}}
	for _, l := range legacyLines(name, string(data)) {
		switch {
		case l.err != nil:
			return File{}, l.err
		case l.v > 0:
			f.Top.addVerbosity(l.v, l.where)
		case l.option.Name != "":
			if err := f.Top.Set(l.option.Name, l.value, l.where+": "+l.option.Name); err != nil {
				return File{}, err
			}
		}
	}
	return f, nil
}

// A legacyLine is a line of the Python tool's format: an option, or a -v, or a
// comment, or nothing.
type legacyLine struct {
	where   string
	option  Option
	value   string
	v       int    // how many
	comment string // with its #
	err     error  // of its form
}

func legacyLines(name, text string) []legacyLine {
	var lines []legacyLine
	for i, line := range strings.Split(text, "\n") {
		lines = append(lines, parseLegacyLine(fmt.Sprintf("%s:%d", name, i+1), line))
	}
	return lines
}

func parseLegacyLine(where, line string) legacyLine {
	l := legacyLine{where: where}
	line = strings.TrimLeft(strings.TrimRight(line, "\r"), " \t-")
	if line == "" || strings.HasPrefix(line, "#") {
		l.comment = line
		return l
	}
	key, value, blank := strings.Cut(line, " ")
	k, v, joined := strings.Cut(key, "=")
	if joined {
		key, value = k, v
	}
	if len(key) > 0 && strings.Trim(key, "v") == "" {
		l.v = len(key)
		return l
	}
	o, ok := optionByName(key)
	if !ok {
		o, ok = OptionByPrefix(key)
	}
	l.option, l.value = o, value
	switch {
	case !ok:
		l.err = unknown(key, where)
	case joined && blank:
		l.err = fmt.Errorf("%s: %s: a value behind = can't have a blank: write `%s VALUE`", where, key, key)
	case o.Kind == Bool && strings.TrimSpace(value) != "":
		l.err = fmt.Errorf("%s: %s takes no value", where, o.Name)
	case o.Kind != Bool && value == "":
		l.err = fmt.Errorf("%s: %s wants a value: %s", where, o.Name, o.Placeholder())
	}
	return l
}

// A Source is a file that settings were read from.
type Source struct {
	Path   string
	Secret bool // it holds a private key, a token or a secret
}

// source is the file without its content.
func (f File) source() Source {
	all := append([]Settings{f.Top}, f.Tunnels...)
	for _, n := range f.Nodes {
		all = append(all, n.Settings)
	}
	return Source{f.Path, slices.ContainsFunc(all, Settings.secret)}
}

func (s Settings) secret() bool {
	for name := range s {
		if o, ok := optionByName(name); ok && o.Secret {
			return true
		}
	}
	return false
}

// addVerbosity counts a -v; it is kept apart from verb, which the last one wins.
func (s Settings) addVerbosity(n int, where string) {
	old, _ := s["v"].Value.(int)
	s["v"] = Setting{old + n, where}
}
