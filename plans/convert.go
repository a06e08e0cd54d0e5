package plans

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Convert reads the Python tool's configuration FILE, or /etc/ipipou/NAME.conf for a
// word that is neither a path nor ends in .conf, and returns the same as TOML: keys in
// the file's order under their long names, comments where they stood, and as comments
// what had no effect, and what there is now that the Python tool didn't have. Keys,
// tokens and secrets are in it, as in the file.
//
// It resolves to what the file resolves to. The file's errors are those of Load; more
// are that it is TOML, that a text is not UTF-8 (a token is then written in base64), and
// that a number is too large for TOML's settings, which is too large for any.
func Convert(config string, read Files) (string, error) {
	switch {
	case config == "":
		return "", errors.New("want the name of a file")
	case strings.HasSuffix(config, ".toml"):
		return "", fmt.Errorf("%s: is TOML already; want a file of the Python tool's, such as NAME.conf", config)
	case !strings.Contains(config, "/") && !strings.HasSuffix(config, ".conf"):
		// Not NAME.toml, as with --config: the shell may have made it, empty, to
		// hold what this prints.
		config = ConfigDir + "/" + config + ".conf"
	}
	data, err := read(config)
	if err != nil {
		return "", err
	}
	f, err := parseLegacy(config, data)
	if err != nil {
		return "", err
	}
	c := converter{top: f.Top, covered: map[string]string{}}
	for _, name := range []string{"fou-local", "fou-remote"} {
		parts := Settings{}
		text, _ := f.Top[name].Value.(string)
		_ = compound(name, text, "", parts) // Set has seen that it is well-formed
		for part := range parts {
			c.covered[part] = name
		}
	}
	for _, l := range legacyLines(config, strings.TrimSuffix(string(data), "\n")) {
		if err := c.line(l); err != nil {
			return "", err
		}
	}
	c.hints()
	return c.out.String(), nil
}

type converter struct {
	top     Settings
	covered map[string]string // options that another one has the last word about, by name
	verbose bool              // verb is written
	out     strings.Builder
}

func (c *converter) write(format string, args ...any) { fmt.Fprintf(&c.out, format+"\n", args...) }

func (c *converter) line(l legacyLine) error {
	o := l.option
	where := l.where + ": " + o.Name
	switch {
	case l.v > 0 || o.Name == "verb":
		c.verb()
		return nil
	case o.Name == "":
		c.write("%s", strings.Map(printable, strings.ToValidUTF8(l.comment, "\uFFFD")))
		return nil
	case c.top[setting(o.Name)].Where != where:
		c.write("# %s: given again below, where it counts", o.Name)
		return nil
	case c.covered[o.Name] != "":
		c.write("# %s: no effect, %s has one too", o.Name, c.covered[o.Name])
		return nil
	case o.Name == "nfq-max-len":
		c.write("# nfq-max-len: no effect, there is no packet queue any more")
		return nil
	case o.Name == "queue-number":
		c.queue()
		return nil
	case o.Name == "number" && c.queued() > 0:
		c.write("# number: 0, so the queue's number is the tunnel's")
		return nil
	}
	value := c.top[setting(o.Name)].Value
	if token, ok := value.(string); ok && o.Name == "auth-token" && !utf8.ValidString(token) {
		c.write("# auth-token: not UTF-8, so in base64")
		o.Name, value = "auth-token-b64", base64.StdEncoding.EncodeToString([]byte(token))
	}
	text, err := tomlValue(o, value)
	if err != nil {
		return fmt.Errorf("%s: %w", where, err)
	}
	c.write("%s = %s", o.Name, text)
	return nil
}

// setting is the name under which Settings have an option.
func setting(name string) string {
	if other, ok := opposites[name]; ok {
		return other
	}
	return name
}

// verb writes all of -v and --verb as one number, which is all that TOML has.
func (c *converter) verb() {
	if c.verbose {
		c.write("# verb: counted above")
		return
	}
	c.verbose = true
	c.write("verb = %d", min(newReader(c.top, nil).verbosity(), maxVerb))
}

// queued is the tunnel's number if it is the queue's that gives it, else 0.
func (c *converter) queued() int {
	var t Tunnel
	r := newReader(c.top, nil)
	t.Role = r.role()
	r.number(&t)
	if r.integer("number", 0, 0, 65535) != 0 {
		return 0
	}
	return t.Number
}

func (c *converter) queue() {
	if n := c.queued(); n > 0 {
		c.write("# queue-number: there is no packet queue any more, what was left of it is")
		c.write("number = %d", n)
		return
	}
	c.write("# queue-number: no effect, there is no packet queue any more")
}

// hints name what is better than what the file has, as comments.
func (c *converter) hints() {
	r := newReader(c.top, nil)
	var lines []string
	hint := func(line, why string) { lines = append(lines, "# "+line, "#     "+why) }
	key := r.has("auth-key-b64") || r.has("auth-key-file") // the client's
	if r.role() == Server {
		key = r.has("auth-remote-pubkey-b64") || r.has("auth-remote-pubkey-file")
	}
	token := r.has("auth-token") || r.has("auth-token-b64") || r.has("auth-token-file")
	if key && !r.flag("auth-challenge") {
		hint("auth-challenge = true", "in both files, once both ends run this program: no clock counts, and nobody can use what he caught")
	}
	if key && !r.has("auth-secret") && !r.has("auth-secret-file") {
		hint(`auth-secret = "…"`, "in both files: the default one is known to everybody")
	}
	if token {
		hint(`auth-key-b64 = "…"`, "a token can be read on its way, a private key is never sent: ipipou --auth-keygen")
	}
	if (key || token) && !r.flag("reply-on-auth-ok") && !r.flag("auth-challenge") {
		hint("reply-on-auth-ok = true", "in both files: a client then knows whether it was heard, and tries again if not")
	}
	if r.role() == Client && !r.has("keepalive") {
		hint("keepalive = 27", "keeps a NAT router's mapping, and tells the server a new address")
	}
	if r.role() == Client && (key || token) && !r.has("monitor") {
		hint(`monitor = "auth"`, "where the server has reply-on-auth-ok: notices that the path is dead, and tries until it is not")
	}
	if r.role() == Server {
		hint("[[tunnel]]", "one for each client, with a number and a key of its own: one file and one process for all")
	}
	if len(lines) > 0 {
		c.write("\n# Also possible now:\n%s", strings.Join(lines, "\n"))
	}
}

// tomlValue is a value as TOML, of its own type. A list of one stands without brackets.
func tomlValue(o Option, value any) (string, error) {
	switch v := value.(type) {
	case int:
		if v < math.MinInt32 || v > math.MaxInt32 {
			return "", fmt.Errorf("%d is out of range", v)
		}
		return strconv.Itoa(v), nil
	case string:
		if n, err := strconv.ParseInt(v, 10, 64); o.Kind == Word && err == nil && strconv.FormatInt(n, 10) == v {
			return v, nil
		}
		return tomlString(v)
	case []string:
		if len(v) == 1 {
			return tomlString(v[0])
		}
		return tomlStrings(v)
	case [][]string:
		return tomlStrings(v[0])
	default:
		return "true", nil // what .conf has without a value is never false
	}
}

func tomlStrings(words []string) (string, error) {
	quoted := make([]string, len(words))
	for i, w := range words {
		var err error
		if quoted[i], err = tomlString(w); err != nil {
			return "", err
		}
	}
	return "[" + strings.Join(quoted, ", ") + "]", nil
}

// tomlString is a basic string of TOML 1.0.
func tomlString(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errors.New("is not UTF-8, which TOML is; put it into a file of its own, if there is a setting for that")
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r == '\t':
			b.WriteString(`\t`)
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String(), nil
}

// printable takes out what TOML has no room for in a comment.
func printable(r rune) rune {
	if unicode.IsControl(r) && r != '\t' {
		return '\uFFFD'
	}
	return r
}
