package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"ipipou/instance"
	"ipipou/plans"
)

var pages = map[string]func(*testing.T) string{"docs/ipipou.8": flagsPage, "docs/ipipou.toml.5": keysPage}

var generated = regexp.MustCompile(`(?s)(\n\.\\" begin options[^\n]*\n).*(\.\\" end options\n)`)

// What the pages say of options is what the help says, and they are well-formed.
func TestManual(t *testing.T) {
	for path, list := range pages {
		text := read(t, path)
		if !generated.MatchString(text) {
			t.Fatalf("%s has no place for the options", path)
		}
		at := generated.FindStringSubmatchIndex(text)
		golden(t, path, text[:at[3]]+list(t)+text[at[4]:])
		if _, err := exec.LookPath("mandoc"); err != nil && os.Getenv("CI") == "" {
			t.Skip(err)
		}
		// Which pages of others there are is the machine's.
		out, _ := exec.Command("mandoc", "-Tlint", path).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, path+":") && !strings.Contains(line, "referenced manual") {
				t.Error(line)
			}
		}
	}
}

// flagsPage lists all flags of all commands, by the help's groups.
func flagsPage(t *testing.T) string {
	flags, takes := map[string][]*kong.Flag{}, map[string][]string{}
	for _, c := range commands {
		parser, err := (&line{command: c, all: commands}).parser(io.Discard, func(int) {})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range parser.Model.Flags {
			group := ""
			if f.Group != nil {
				group = f.Group.Key
			}
			if takes[f.Name] == nil {
				flags[group] = append(flags[group], f)
			}
			takes[f.Name] = append(takes[f.Name], c.word)
		}
	}
	var b strings.Builder
	for _, g := range append(groups, kong.Group{Key: "", Title: "Beside these:"}) {
		section(&b, g.Title)
		for _, f := range flags[g.Key] {
			b.WriteString(".It Fl ")
			if f.Short != 0 {
				fmt.Fprintf(&b, "%c , ", f.Short)
			}
			fmt.Fprintf(&b, "-%s", f.Name)
			if !f.IsBool() && !f.IsCounter() {
				fmt.Fprintf(&b, " Ns = Ns Ar %q", f.PlaceHolder)
			}
			b.WriteString("\n" + sentences(f.Help, "Fl -"))
			if in := takes[f.Name]; in[0] != "" {
				fmt.Fprintf(&b, "With\n.Cm %s .\n", strings.Join(in, "\nand\n.Cm "))
			}
		}
		b.WriteString(".El\n")
	}
	return b.String()
}

// keysPage lists all keys of a file.
func keysPage(t *testing.T) string {
	var b strings.Builder
	for _, g := range groups {
		in := slices.DeleteFunc(slices.Clone(plans.Options), func(o plans.Option) bool { return o.Group != g.Key })
		if len(in) == 0 {
			continue
		}
		section(&b, g.Title)
		for _, o := range in {
			kind := o.Kind.String()
			text := strings.ToUpper(kind[:1]) + kind[1:] + ". " + about(o)
			b.WriteString(".It Ic " + o.Name + "\n" + sentences(text, "Ic "))
		}
		b.WriteString(".El\n")
	}
	return b.String()
}

func section(b *strings.Builder, title string) {
	fmt.Fprintf(b, ".Ss %s\n.Bl -tag -width Ds\n", strings.TrimSuffix(title, ":"))
}

var (
	sentence = regexp.MustCompile(`([.]) ([A-Z0])`)
	span     = regexp.MustCompile("(\\(?)(?:--([a-z0-9-]+)|`([^`]+)`)([.,;:)]*)( |$)")
)

// sentences is plain text in mdoc(7), a line for each sentence and each word of the
// program's language.
func sentences(text, flag string) string {
	var b strings.Builder
	for _, line := range strings.Split(sentence.ReplaceAllString(text, "$1\n$2"), "\n") {
		at := 0
		for _, m := range span.FindAllStringSubmatchIndex(line, -1) {
			plain(&b, line[at:m[0]])
			macro, word := flag, ""
			if m[4] >= 0 {
				word = line[m[4]:m[5]]
			} else {
				macro, word = "Ql ", line[m[6]:m[7]]
			}
			open, after := line[m[2]:m[3]], strings.Join(strings.Split(line[m[8]:m[9]], ""), " ")
			if open != "" {
				open += " "
			}
			fmt.Fprintln(&b, strings.TrimSpace("."+macro[:2]+" "+open+macro[3:]+word+" "+after))
			at = m[1]
		}
		plain(&b, line[at:])
	}
	return b.String()
}

// plain writes text that has no macros, nor what would be taken for one.
func plain(b *strings.Builder, text string) {
	text = strings.ReplaceAll(strings.TrimSpace(text), `\`, `\e`)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		text = `\&` + text
	}
	if text != "" {
		b.WriteString(filled("", text, 80))
	}
}

var literal = regexp.MustCompile(`(?s)\n\.Bd -literal[^\n]*\n(.*?)\n\.Ed\n`)

// Every example of the pages is good: configurations as they are, commands by their
// flags.
func TestManualExamples(t *testing.T) {
	configs, called := 0, map[string]bool{}
	for path := range pages {
		for _, m := range literal.FindAllStringSubmatch(read(t, path), -1) {
			if !strings.HasPrefix(m[1], "$ ") && !strings.HasPrefix(m[1], "# ") {
				configs++
				checkConfig(t, path, "./office.toml", m[1])
				continue
			}
			for command := range strings.Lines(strings.ReplaceAll(m[1], "\\e\n", "")) {
				command, _, _ = strings.Cut(command, ">")
				words := strings.Fields(command)
				if words[1] == "systemctl" {
					continue
				}
				if words[1] != "ipipou" {
					t.Errorf("%s: what is %s?", path, command)
					continue
				}
				l, _, err := parse(words[2:], io.Discard)
				if err != nil {
					t.Errorf("%s: %v", command, err)
					continue
				}
				called[l.command.word] = true
				if l.command.word == "" && l.Config == nil && !l.AuthKeygen {
					if _, err := plans.Resolve(nil, nil, l.settings, keyFiles); err != nil {
						t.Errorf("%s: %v", command, err)
					}
				}
			}
		}
	}
	if configs < 5 {
		t.Errorf("found %d configurations: has the form changed?", configs)
	}
	synopsis, _, _ := strings.Cut(read(t, "docs/ipipou.8"), ".Sh DESCRIPTION")
	for _, c := range commands {
		if !called[c.word] {
			t.Errorf("the manual has no example of the command %q", c.word)
		}
		if c.word != "" && !strings.Contains(synopsis, "\n.Cm "+c.word+"\n") {
			t.Errorf("the manual's synopsis has no %s", c.word)
		}
	}
}

// The manual and the README have all exit codes, and no others.
func TestExitCodes(t *testing.T) {
	want := []int{
		0, plans.ExitGeneral, plans.ExitUsage, exitNotCompared, plans.ExitModprobe, instance.ExitSockets, plans.ExitNft, plans.ExitIPAddress,
		plans.ExitIPLink, plans.ExitIPFou, plans.ExitBPF, instance.ExitBind, instance.ExitRebind, instance.ExitSend, plans.ExitDeaf, plans.ExitCleanup,
	}
	_, list, _ := strings.Cut(read(t, "docs/ipipou.8"), ".Sh EXIT STATUS")
	list, _, _ = strings.Cut(list, ".Sh ")
	_, table, _ := strings.Cut(read(t, "README.md"), "| exit code | |")
	table, _, _ = strings.Cut(table, "\n\n")
	for where, words := range map[string][][]string{
		"the manual": regexp.MustCompile(`(?m)^\.It (\d+)$`).FindAllStringSubmatch(list, -1),
		"the README": regexp.MustCompile(`(?m)(?:^\||,) (\d+)\b`).FindAllStringSubmatch(table, -1),
	} {
		var got []int
		for _, w := range words {
			n, _ := strconv.Atoi(w[1])
			got = append(got, n)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s has the exit codes %v, want %v", where, got, want)
		}
	}
}

// The manual has every variable of the environment that the program reads.
func TestEnvironment(t *testing.T) {
	_, list, _ := strings.Cut(read(t, "docs/ipipou.8"), ".Sh ENVIRONMENT")
	list, _, _ = strings.Cut(list, ".Sh ")
	found := 0
	for _, dir := range []string{".", "authd", "instance", "plans", "runner"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range files {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			for _, m := range regexp.MustCompile(`(?:Getenv|LookupEnv)\("([A-Z_]+)"\)`).FindAllStringSubmatch(read(t, path), -1) {
				if found++; !strings.Contains(list, m[1]) {
					t.Errorf("%s reads %s, of which the manual says nothing", path, m[1])
				}
			}
		}
	}
	if found == 0 {
		t.Error("found no variable: has the form changed?")
	}
}
