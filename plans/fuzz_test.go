package plans

import (
	"strings"
	"testing"
)

// Whatever a file holds, reading it and resolving what was read gives a valid
// configuration or an error of one line; never a panic, and never a script
// with a value broken out of its place.
func FuzzTOML(f *testing.F) {
	f.Add("server = true\nfou-dev = \"s0\"\nauth-token = \"t\"\n[[tunnel]]\nnumber = 1\n")
	f.Add("tunl-dev = \"a'b\"\nfou-dev=\"$(x)\"\nserver=true")
	f.Add("[tunnel]\n[[tunnel]]\n\"number\" = 3 # x\n routes = [\"10.0.0.0/8\"]")
	f.Add(mesh + "node = \"b\"")
	f.Add("node = \"b\"" + mesh)
	f.Add("mode=\"any4\"\nencap=\"gue\"\nfou-local=\"192.0.2.1:5@eth0\"\nroutes=[\"::/0\",{to=\"10.0.0.0/8\",via=\"192.0.2.2\",onlink=true,metric=5,table=7}]\n" +
		"forward=true\nmasquerade=true\nforward-to=[\"lan0\"]\nbridge={name=\"b\",address=[\"10.1.1.1/24\"]}\npost-up=[[\"a\",\"b c\"],[\"d\"]]\npre-down=[\"x\"]")
	f.Fuzz(func(t *testing.T, text string) { fuzzFile(t, "./a.toml", text) })
}

// FuzzLegacy is FuzzTOML for the Python tool's format.
func FuzzLegacy(f *testing.F) {
	f.Add("server\nnumber 0\nfou-dev eth0\nfou-local-port 10000\nauth-token x\nverb 3\n")
	f.Add("client\r\nfou-local @wlan0\nfou-remote ipipou.example.net:10000\ntunl-ip 172.28.0.1\nauth-key-b64 RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso=\nkeepalive 27")
	f.Add("  -- x\nvvv\nnumber=3\nfou-local-ip 1.2.3.4 ")
	f.Fuzz(func(t *testing.T, text string) { fuzzFile(t, "./a.conf", text) })
}

func fuzzFile(t *testing.T, name, text string) {
	file, err := Load(name, func(string) ([]byte, error) { return []byte(text), nil })
	if err == nil {
		var c Config
		if c, err = Resolve([]string{name}, []File{file}, Settings{}, noFiles); err == nil {
			if script := Script(c, Describe(c, false), false); !strings.HasSuffix(script, "esac\n") {
				t.Errorf("the script has no end:\n%s", script)
			}
			return
		}
	}
	if strings.TrimSpace(err.Error()) == "" {
		t.Error("an error without words")
	}
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
