package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ipipou/plans"
)

// documents are the README's and the other manuals' text by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{}
	for _, path := range append(paths, "README.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	return texts
}

// Who copies the first two examples, the server's and the client's, has ends that let each other in.
func TestQuickStart(t *testing.T) {
	var ends [2]plans.Tunnel
	for i, b := range regexp.MustCompile("(?ms)^```toml\n(.*?)^```$").FindAllStringSubmatch(documents(t)["README.md"], len(ends)) {
		ends[i] = checkConfig(t, "README.md", "./office.toml", b[1])[0].Tunnels[0]
	}
	server, client := ends[0], ends[1]
	if server.Role != plans.Server || client.Role != plans.Client {
		t.Fatalf("the first examples are of a %s and a %s", server.Role, client.Role)
	}
	for _, pair := range [][2]plans.Tunnel{{server, client}, {client, server}} {
		if !pair[0].Auth.RemoteKey.Equal(pair[1].Auth.Key.Public()) {
			t.Errorf("the %s does not have the %s's public key", pair[0].Role, pair[1].Role)
		}
	}
	if !slices.Equal(server.Auth.Secret, client.Auth.Secret) || server.Auth.Reply != client.Auth.Reply || server.FOUPort != client.RemotePort ||
		server.Addrs[0].Peer != client.Addrs[0].IP {
		t.Errorf("the server %+v is not the client's %+v", server, client)
	}
}

var fenced = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$")

// Every configuration in the documents is valid, and every command a command.
func TestDocs(t *testing.T) {
	makefile, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	texts := documents(t)
	counts := map[string]int{} // of blocks, by path and language, and of commands
	for path, text := range texts {
		blocks := fenced.FindAllStringSubmatch(text, -1)
		for i, b := range blocks {
			counts[path+" "+b[1]]++
			switch b[1] {
			case "toml":
				checkConfig(t, path, "./office.toml", b[2])
			case "conf":
				checkConfig(t, path, "./office.conf", b[2])
				converted, err := plans.Convert("./office.conf", func(string) ([]byte, error) { return []byte(b[2]), nil })
				if next := append(blocks, []string{"", "", ""})[i+1]; err != nil || next[1] != "toml" || next[2] != converted {
					t.Errorf("%s: %v: what is behind a .conf is not what it is converted to:\n%s", path, err, converted)
				}
			case "sh":
				counts[path+" commands"] += checkCommands(t, path, b[2])
			}
		}
		for _, m := range regexp.MustCompile("`make ([a-z]+)|^    make ([a-z]+)").FindAllStringSubmatch(text, -1) {
			if target := m[1] + m[2]; !strings.Contains(string(makefile), "\n"+target+":") {
				t.Errorf("%s names make %s, which the Makefile has not", path, target)
			}
		}
	}
	for what, want := range map[string]int{
		"README.md toml": 5, "README.md commands": 15, "docs/static.md toml": 5, "docs/bpf.md toml": 1, "docs/monitoring.md toml": 1,
		"docs/moving.md conf": 2, "docs/moving.md toml": 4, "docs/moving.md commands": 10,
	} {
		if counts[what] < want {
			t.Errorf("found %d of %s, want %d: has the form changed?", counts[what], what, want)
		}
	}
}

// checkConfig checks that a configuration, and each node of it, resolves; and without a
// warning, if it is in the format that is recommended.
func checkConfig(t *testing.T, path, name, text string) []plans.Config {
	t.Helper()
	all, err := resolved(nil, name, text)
	if err != nil {
		t.Errorf("%s: %v in\n%s", path, err, text)
	}
	for _, c := range all {
		for _, n := range c.Notes {
			if strings.HasSuffix(name, ".toml") {
				t.Errorf("%s: an example that is warned about: %s", path, n.Text)
			}
		}
	}
	return all
}

// checkCommands checks that our commands among the lines of a shell are such, and counts them.
func checkCommands(t *testing.T, path, lines string) (n int) {
	t.Helper()
	for line := range strings.Lines(lines) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "ipipou" {
			continue
		}
		n++
		if i := slices.IndexFunc(words, func(w string) bool { return w == ">" || w == "|" || w == "#" }); i > 0 {
			words = words[:i]
		}
		if _, _, err := parse(words[1:], io.Discard); err != nil {
			t.Errorf("%s: %s: %v", path, line, err)
		}
	}
	return n
}

// What the documents link to is there: files, pictures, headings.
func TestLinks(t *testing.T) {
	texts := documents(t)
	anchors := map[string]bool{}
	for path, text := range texts {
		for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			// As GitHub makes them.
			kept := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
			anchors[path+"#"+strings.ReplaceAll(kept, " ", "-")] = true
		}
	}
	used := map[string]bool{}
	for path, text := range texts {
		for _, m := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, inside := strings.Cut(m[1], "#")
			target := filepath.Join(filepath.Dir(path), file)
			if file == "" {
				target = path
			}
			used[target] = true
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s: %v", path, m[1], err)
			}
			if inside && !anchors[target+"#"+anchor] {
				t.Errorf("%s links to %s: there is no such heading", path, m[1])
			}
		}
	}
	pictures, err := filepath.Glob("docs/pictures/*")
	if err != nil || len(pictures) < 6 {
		t.Fatalf("pictures %v: %v", pictures, err)
	}
	for _, path := range pictures {
		if !used[path] {
			t.Errorf("%s is in no document", path)
		}
		checkPicture(t, path)
	}
}

// checkPicture checks that a picture is well-formed, says how large it is and what it shows, and brings its own
// background, for who reads in the dark.
func checkPicture(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	has := map[string]bool{}
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if e, ok := token.(xml.StartElement); ok {
			has[e.Name.Local] = true
			for _, a := range e.Attr {
				has[e.Name.Local+" "+a.Name.Local] = true
				if a.Name.Local == "class" {
					has["."+a.Value] = true
				}
			}
		}
	}
	for _, want := range []string{"svg viewBox", "title", ".background"} {
		if !has[want] {
			t.Errorf("%s: has no %s", path, want)
		}
	}
}
