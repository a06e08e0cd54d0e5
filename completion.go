package main

import (
	"embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"

	"github.com/alecthomas/kong"

	"ipipou/plans"
	"ipipou/runner"
)

//go:embed packaging/completion
var completions embed.FS

// A completed is a flag or an argument, as the scripts complete it.
type completed struct {
	Command     string // of an argument
	Name        string // of the value
	Long, Short string // of a flag
	Help        string // a sentence
	// Takes is what the value is: file, config, running or instance (names), device, any;
	// "": it has none.
	Takes   string
	Values  []string // all that it can be, if they are few
	Several bool     // it can be given again
}

// completion prints the script that completes command lines in a shell.
func completion(l *line, stdout, stderr io.Writer) int {
	type group struct {
		Commands []string
		Flags    []completed
	}
	var data struct {
		ConfigDir, RunDir string
		Commands          []struct{ Word, About string }
		Flags             []completed // each once
		Any               []completed // those whose value nobody can guess
		Groups            []group     // flags by what commands they belong to
		Args              []completed
	}
	data.ConfigDir, data.RunDir = plans.ConfigDir, runner.RunDir
	belongs := map[string][]string{}
	for _, c := range l.all {
		if c.word != "" {
			data.Commands = append(data.Commands, struct{ Word, About string }{c.word, strings.TrimSuffix(c.about, ".")})
		}
		parser, err := (&line{command: c, all: l.all}).parser(io.Discard, func(int) {})
		if err != nil {
			return fail(stderr, err, plans.ExitGeneral)
		}
		for _, f := range parser.Model.Flags {
			if belongs[f.Name] == nil {
				flag := completedFlag(f)
				data.Flags = append(data.Flags, flag)
				if flag.Takes == "any" && flag.Values == nil {
					data.Any = append(data.Any, flag)
				}
			}
			belongs[f.Name] = append(belongs[f.Name], c.word)
		}
		for _, p := range parser.Model.Positional {
			a := completedValue(p)
			a.Command = c.word
			data.Args = append(data.Args, a)
		}
	}
	for _, f := range data.Flags {
		in := belongs[f.Long]
		i := slices.IndexFunc(data.Groups, func(g group) bool { return slices.Equal(g.Commands, in) })
		if i < 0 {
			i = len(data.Groups)
			data.Groups = append(data.Groups, group{Commands: in})
		}
		data.Groups[i].Flags = append(data.Groups[i].Flags, f)
	}
	name := l.Shell + ".tmpl"
	script, err := template.New(name).Funcs(template.FuncMap{
		"join": strings.Join,
		"words": func(of []struct{ Word, About string }) (words []string) {
			for _, c := range of {
				words = append(words, c.Word)
			}
			return words
		},
		"quote":  func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" },
		"fish":   func(s string) string { return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'" },
		"colons": func(s string) string { return strings.ReplaceAll(s, ":", `\:`) },
		"brackets": func(s string) string {
			return strings.NewReplacer(`\`, `\\`, "[", `\[`, "]", `\]`, ":", `\:`).Replace(s)
		},
	}).ParseFS(completions, "packaging/completion/"+name)
	if err == nil {
		err = script.Execute(stdout, data)
	}
	if err != nil {
		return fail(stderr, fmt.Errorf("completion: %w", err), plans.ExitGeneral)
	}
	return 0
}

func completedFlag(f *kong.Flag) completed {
	c := completedValue(f.Value)
	c.Long, c.Help = f.Name, strings.TrimSuffix(f.Help, ".")
	if f.Short != 0 {
		c.Short = string(f.Short)
	}
	if sentence, _, more := strings.Cut(f.Help, ". "); more {
		c.Help = sentence
	}
	if f.IsBool() || f.IsCounter() {
		c.Takes = ""
	}
	c.Several = f.IsCumulative() || f.IsCounter()
	return c
}

func completedValue(v *kong.Value) completed {
	c := completed{Name: strings.ToLower(v.Name), Takes: "any", Several: v.IsCumulative()}
	if v.Enum != "" {
		c.Values = strings.Split(v.Enum, ",")
	}
	if kind := v.Tag.Get("complete"); kind != "" {
		c.Takes = kind
	}
	if o, ok := plans.OptionByPrefix(v.Name); ok && o.Name == v.Name {
		c.Values = o.Values
	}
	switch {
	case strings.HasSuffix(v.Name, "-file"):
		c.Takes = "file"
	case v.Name == "fou-dev":
		c.Takes = "device"
	}
	return c
}
