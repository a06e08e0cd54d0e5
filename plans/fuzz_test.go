package plans

import (
	"encoding/base64"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// Whatever a file holds, reading it and resolving what was read gives a valid
// configuration, the same each time, whose plans lack no variable, or an error of
// one line that names the file; never a panic, and never a script without an end.
func FuzzTOML(f *testing.F) {
	f.Add("server = true\nfou-dev = \"s0\"\nauth-token = \"t\"\n[[tunnel]]\nnumber = 1\n")
	f.Add("tunl-dev = \"a'b\"\nfou-dev=\"$(x)\"\nserver=true")
	f.Add(mesh + "node = \"b\"")
	f.Add("node = \"b\"" + mesh)
	f.Fuzz(func(t *testing.T, text string) { fuzzFile(t, "./a.toml", text) })
}

// FuzzLegacy is FuzzTOML for the Python tool's format.
func FuzzLegacy(f *testing.F) {
	f.Add("server\nnumber 0\nfou-dev eth0\nfou-local-port 10000\nauth-token x\nverb 3\n")
	f.Fuzz(func(t *testing.T, text string) { fuzzFile(t, "./a.conf", text) })
}

// resolveText is what comes of a file with that text.
func resolveText(name, text string) (c Config, read bool, err error) {
	file, err := Load(name, func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		return c, false, err
	}
	c, err = Resolve([]string{name}, []File{file}, Settings{}, noFiles)
	return c, true, err
}

func fuzzFile(t *testing.T, name, text string) {
	c, read, err := resolveText(name, text)
	if err != nil {
		checkMessage(t, err)
		if !read && !strings.HasPrefix(err.Error(), name+":") {
			t.Errorf("an error that doesn't name the file: %v", err)
		}
		return
	}
	script := Script(c, Describe(c, false), false)
	if !strings.HasSuffix(script, "esac\n") {
		t.Errorf("the script has no end:\n%s", script)
	}
	for _, fault := range unknownVariables(c) {
		t.Error(fault)
	}
	again, _, err := resolveText(name, text)
	if err != nil || Script(again, Describe(again, false), false) != script {
		t.Errorf("another script or error the second time: %v", err)
	}
}

// checkMessage checks that an error is one line that a terminal can show.
func checkMessage(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); strings.TrimSpace(text) == "" || strings.ContainsFunc(text, unicode.IsControl) {
		t.Errorf("the error is not one line of text: %q", text)
	}
}

// A secret never shows, whatever stands around it in a file and however wrong it
// is written: not in errors, not in notes, and not in a script without secrets.
func FuzzSecret(f *testing.F) {
	const canary = "GDtFxUNkyAwQeZsPbH" // letters, which a decoder reads as one word
	inside := regexp.MustCompile("^[^\n#\\[,]*$|^[ \t]*=[ \t]*(\"\"\"|'''|\\[)?[ \t\n]*[\"']?$")
	secrets := []string{"auth-token", "auth-token-b64", "auth-key-b64", "auth-secret"}
	f.Add(false, uint8(3), "server = true\nfou-dev = \"s0\"", ` = "`, `"`, "")
	f.Add(true, uint8(0), "server\nfou-dev s0", " ", "", "")
	f.Fuzz(func(t *testing.T, legacy bool, which uint8, before, opening, closing, after string) {
		// In a line of its own, within another's value or behind what may be more of
		// the key, it is no secret's value.
		if opening == "" || nftRune(rune(opening[0])) || !inside.MatchString(opening) ||
			legacy && strings.Contains(opening, "\n") || !legacy && strings.ContainsAny(before, "[{\"'#") {
			return
		}
		name := map[bool]string{true: "./a.conf", false: "./a.toml"}[legacy]
		text := before + "\n" + secrets[int(which)%len(secrets)] + opening + canary + closing + "\n" + after
		shown := ""
		if c, _, err := resolveText(name, text); err != nil {
			shown = err.Error()
		} else {
			shown = Script(c, Describe(c, false), false)
			for _, n := range c.Notes {
				shown += n.Text
			}
		}
		if strings.Contains(shown, canary) {
			t.Errorf("%q shows the secret:\n%s", text, shown)
		}
	})
}

// A flag with any text is taken or refused by its name, in one line that shows
// no secret.
func FuzzFlag(f *testing.F) {
	bases := [][]string{
		{"--server", "--fou-dev", "s0"},
		{"--fou-dev", "c0", "--fou-remote", "203.0.113.1:10000", "--tunl-ip", "172.28.0.1"},
		{"--static", "--mode", "any4", "--encap", "gue", "--fou-local-ip", "192.0.2.1", "--fou-remote", "203.0.113.1:5"},
	}
	f.Add("fou-local", "192.0.2.1:5555@eth0", uint8(0))
	f.Fuzz(func(t *testing.T, name, text string, base uint8) {
		o, known := optionByName(name)
		if !known {
			return
		}
		s := flags(t, bases[int(base)%len(bases)]...)
		err := s.Set(o.Name, text, "--"+o.Name)
		if err == nil {
			_, err = Resolve(nil, nil, s, noFiles)
		}
		if err == nil {
			return
		}
		checkMessage(t, err)
		if o.Secret && len(text) > 8 && strings.Contains(err.Error(), text) {
			t.Errorf("the secret shows: %v", err)
		}
	})
}

// The parts of a compound endpoint, put together, are the same parts again.
func FuzzEndpoint(f *testing.F) {
	f.Add("fou-local", "[2001:db8::1]:5555@eth0")
	f.Add("fou-remote", "vpn.example.net:5555")
	f.Fuzz(func(t *testing.T, name, text string) {
		if name != "fou-local" && name != "fou-remote" {
			return
		}
		parts := Settings{}
		if err := compound(name, text, "--"+name, parts); err != nil {
			checkMessage(t, err)
			return
		}
		r := newReader(parts, noFiles)
		built, port, dev := r.text(name+"-ip"), r.integer(name+"-port", 0, 1, 65535), r.text("fou-dev")
		ip, _ := netip.ParseAddr(built)
		if built != "" && !ip.IsValid() && !hostname(built) {
			return // Resolve refuses it
		}
		if port != 0 {
			if ip.Is6() {
				built = "[" + built + "]"
			}
			built += ":" + strconv.Itoa(port)
		}
		if r.has("fou-dev") {
			built += "@" + dev
		}
		again := Settings{}
		if err := compound(name, built, "--"+name, again); r.err != nil || err != nil || !maps.Equal(parts, again) {
			t.Errorf("%q is %v (%v), and %q is %v (%v)", text, parts, r.err, built, again, err)
		}
	})
}

// Routes in the words of ip-route(8) are the same routes again.
func FuzzRoutes(f *testing.F) {
	f.Add("default 10.7.0.0/16 via 10.9.0.2 onlink metric 50 table 7")
	f.Fuzz(func(t *testing.T, text string) {
		m, _ := modeByName("any4")
		tunnel := Tunnel{Role: Static, Mode: m.name, RemoteHost: "a"}
		parse := func(text string) ([]Route, error) {
			r := newReader(Settings{"routes": {Value: []string{text}, Where: "--routes"}}, noFiles)
			return r.route(text, &tunnel, m), r.err
		}
		routes, err := parse(text)
		if err != nil {
			checkMessage(t, err)
			return
		}
		var words []string
		for _, r := range routes {
			words = append(words, r.To.String())
			if r.Via.IsValid() {
				words = append(words, "via", r.Via.String())
			}
			if r.Onlink {
				words = append(words, "onlink")
			}
			if r.Metric != 0 {
				words = append(words, "metric", strconv.Itoa(r.Metric))
			}
			if r.Table != 0 {
				words = append(words, "table", strconv.Itoa(r.Table))
			}
		}
		if again, err := parse(strings.Join(words, " ")); err != nil || !slices.Equal(again, routes) {
			t.Errorf("%q is %v, and %q is %v (%v)", text, routes, words, again, err)
		}
	})
}

// A key that is taken is whole: its halves belong together, and in base64 it is
// the same key. Errors show nothing of it.
func FuzzKeys(f *testing.F) {
	for _, name := range []string{"id_ed25519", "id_ed25519.pub", "id_rsa", "id_locked"} {
		data, err := os.ReadFile("testdata/ssh/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		private, err := ParsePrivateKey(text)
		if err != nil {
			checkKeyError(t, err, text)
		} else {
			again, err := ParsePrivateKey([]byte(base64.StdEncoding.EncodeToString(private.Seed())))
			if err != nil || !again.Equal(private) {
				t.Errorf("the halves of the key don't belong together: %v", err)
			}
		}
		public, err := ParsePublicKey(text)
		if err != nil {
			checkKeyError(t, err, text)
			return
		}
		again, err := ParsePublicKey([]byte(base64.StdEncoding.EncodeToString(public)))
		if err != nil || !again.Equal(public) {
			t.Errorf("%x in base64 is %x: %v", public, again, err)
		}
	})
}

func checkKeyError(t *testing.T, err error, text []byte) {
	t.Helper()
	checkMessage(t, err)
	for _, word := range strings.Fields(string(text)) {
		if len(word) > 16 && strings.Contains(err.Error(), word) {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

// What a command answered is one word of what it printed, without a prefix length,
// or a number that is not negative, or nothing.
func FuzzAnswer(f *testing.F) {
	f.Add("2: s0    inet 203.0.113.1/24 brd 203.0.113.255 scope global s0\n", uint8(4), false, uint16(0))
	f.Add("2: s0: <BROADCAST,UP> mtu 1500 qdisc noqueue state UP\n", uint8(5), true, uint16(28))
	f.Fuzz(func(t *testing.T, stdout string, word uint8, number bool, less uint16) {
		v := Var{Word: 1 + int(word)%32, Number: number, Less: int(less)}
		answer := v.Answer(stdout)
		if answer == "" {
			return
		}
		if n, err := strconv.Atoi(answer); number && (err != nil || n < 0) {
			t.Errorf("%q is no number", answer)
		}
		if !number && !strings.Contains(stdout, answer) || len(strings.Fields(answer)) != 1 || strings.Contains(answer, "/") {
			t.Errorf("%q from %q", answer, stdout)
		}
	})
}

// What a command said has a known failure just if one of its lines has it, and
// confirms something just if one of its lines does.
func FuzzFailure(f *testing.F) {
	f.Add("RTNETLINK answers: File exists\n", "Error: ipv4: No such device.")
	f.Add("port 10000 ipproto 4\n", "port 10001 ipproto 47 local 192.0.2.1 peer any")
	e := Else{Lines: []string{"port 10000 ipproto 4", "port 10001 *"}}
	f.Fuzz(func(t *testing.T, one, other string) {
		both := one + "\n" + other
		for _, kind := range []Failure{Exists, Unsupported, Gone, NoHelper, "unheard of"} {
			line := kind.In(both)
			if kind.Matches(both) != (kind.Matches(one) || kind.Matches(other)) || (line != "") != kind.Matches(both) {
				t.Errorf("%s: %q has it in %q", kind, both, line)
			}
			if strings.Contains(line, "\n") || line != "" && !kind.Matches(line) {
				t.Errorf("%s: %q is not the line of %q", kind, line, both)
			}
		}
		if got := e.Confirms(both); got != (e.Confirms(one) || e.Confirms(other)) {
			t.Errorf("%q confirms %v", both, got)
		}
	})
}

// FuzzQuote checks that what is quoted for a shell holds no way out of its quotes.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "plain", "a b", "it's", "${FOU_IP}", "${FOU_IP} `x` $(y) \\", "a\nb"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q := Quote(s)
		_, _, _, expands := cutVar(s)
		if expands || strings.ContainsRune(s, 0) {
			return
		}
		if got := unquote(q); got != s {
			t.Errorf("%q quoted as %s, which a shell reads as %q", s, q, got)
		}
	})
}

// unquote reads single-quoted and plain words as POSIX says (2.2 Quoting).
func unquote(s string) string {
	var b strings.Builder
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\'':
			quoted = !quoted
		case s[i] == '\\' && !quoted:
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}
