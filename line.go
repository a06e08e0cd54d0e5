package main

import (
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/alecthomas/kong"

	"ipipou/plans"
)

// A command is what a command line asks for: its first word, or that the tunnels are
// run where the first word is a flag.
type command struct {
	word  string
	usage string // what follows the word
	about string // for --help
	// takes are what kong reads the line into; the first has the arguments. options: also
	// all the options of an instance.
	takes   func(l *line) []any
	options bool
	run     func(l *line, stdout, stderr io.Writer) int
}

// A line is a parsed command line.
type line struct {
	making
	running
	auditing
	names
	maybeName
	file
	shell
	looking
	watching
	always

	command  command
	all      []command // the table that it is from
	settings plans.Settings
}

// making are the flags of an instance beside the options.
type making struct {
	Config []string `name:"config" sep:"none" complete:"config" placeholder:"NAME|PATH" help:"Read /etc/ipipou/NAME.toml or NAME.conf, or the file PATH. May be repeated; flags win over it." group:"Mode"`
}

// running are the flags of who runs the tunnels.
type running struct {
	Confirm    *interval `name:"confirm" placeholder:"TIME" help:"Undo everything after this time, as in 60s, unless ipipou confirm comes before. Default: never." group:"Mode"`
	AuthKeygen bool      `name:"auth-keygen" help:"Print a new ed25519 key pair, private then public, and exit." group:"Authentication"`
}

type auditing struct {
	PrintOnly   bool `name:"print-only" help:"Print the complete shell script of the instance and do nothing." group:"Audit"`
	WithSecrets bool `name:"with-secrets" help:"With --print-only: show tokens, private keys and secrets too." group:"Audit"`
}

const nameHelp = "An instance: the name of its configuration file (or the file, as a path), else that of its interface."

type names struct {
	Names []string `arg:"" name:"NAME" complete:"running" help:"${nameHelp}"`
}

type maybeName struct {
	Name string `arg:"" name:"NAME" optional:"" complete:"instance" help:"${nameHelp}"`
}

type file struct {
	File string `arg:"" name:"FILE" complete:"file" help:"A configuration of the Python tool's: a path, or NAME for /etc/ipipou/NAME.conf."`
}

type shell struct {
	Shell string `arg:"" name:"SHELL" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

type looking struct {
	JSON bool `name:"json" help:"JSON, for programs." group:"Output"`
}

type watching struct {
	Watch bool `name:"watch" short:"w" help:"Show it again each second, until interrupted." group:"Output"`
}

type always struct {
	Verbose int  `name:"verbose" short:"v" type:"counter" help:"Say more; up to -vvv. From -v on, each command is printed before it runs." group:"Log"`
	Version bool `name:"version" help:"Print the version and exit."`
}

// grammar is what kong reads the command's arguments into, and the command's name and
// description.
func (l *line) grammar() (root any, options []kong.Option) {
	c := l.command
	name := strings.TrimSpace("ipipou " + c.word)
	about := c.about
	if c.word == "" {
		about += "\n\n"
		for _, other := range l.all[1:] {
			about += listed(other)
		}
		about += "\nWithout a command it runs tunnels until a signal, and undoes them:\n`ipipou --config office` those of /etc/ipipou/office.toml.\n\nThe manual: ipipou(8), ipipou.toml(5)."
	}
	options = []kong.Option{kong.Name(name), kong.Description(about), kong.Vars{"nameHelp": nameHelp}, kong.Embed(&l.always)}
	takes := c.takes(l)
	for _, more := range takes[1:] {
		options = append(options, kong.Embed(more))
	}
	if c.options {
		options = append(options, kong.Embed(optionStruct()))
	}
	return takes[0], options
}

// parse reads the command line: a command's word or none, and what it takes. done
// means that all there was to do is done (--help, --version).
func parse(args []string, stdout io.Writer) (l *line, done bool, err error) {
	l = &line{settings: plans.Settings{}, command: commands[0], all: commands}
	for _, c := range commands[1:] {
		if len(args) > 0 && args[0] == c.word {
			l.command, args = c, args[1:]
			break
		}
	}
	exited := false
	parser, err := l.parser(stdout, func(int) { exited = true })
	if err != nil {
		return nil, false, err
	}
	ctx, err := parser.Parse(unabbreviate(args))
	if exited {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s (%s --help lists the flags)", harmless(err), parser.Model.Name)
	}
	if l.Version {
		fmt.Fprintln(stdout, version())
		return nil, true, nil
	}
	if l.Verbose > 0 {
		l.settings["v"] = plans.Setting{Value: l.Verbose, Where: "-v"}
	}
	// In the order in which they were given: of -s and -c the last one counts.
	for _, p := range ctx.Path {
		if p.Flag == nil {
			continue
		}
		if _, ok := plans.OptionByPrefix(p.Flag.Name); !ok {
			continue
		}
		text := ""
		if p.Flag.Target.Kind() == reflect.String {
			text = p.Flag.Target.String()
		} else {
			text = strconv.FormatBool(p.Flag.Target.Bool())
		}
		if err := l.settings.Set(p.Flag.Name, text, "--"+p.Flag.Name); err != nil {
			return nil, false, err
		}
	}
	return l, false, nil
}

// harmless is what kong says, without quoting what may be a secret.
func harmless(err error) string {
	text := err.Error()
	for _, o := range plans.Options {
		if o.Secret && strings.Contains(text, "--"+o.Name+":") {
			return "--" + o.Name + ": want a value"
		}
	}
	if strings.HasPrefix(text, "unexpected argument") {
		return "an argument that belongs to no flag (a value with blanks wants quotes)"
	}
	return text
}

// optionStruct turns the table of options into what kong reads flags from, so
// that flags and configuration keys can't differ.
func optionStruct() any {
	var fields []reflect.StructField
	for i, o := range plans.Options {
		kind := reflect.TypeOf("")
		if o.Kind == plans.Bool {
			kind = reflect.TypeOf(false)
		}
		tag := fmt.Sprintf("name:%q help:%q group:%q", o.Name, o.About(), o.Group)
		if o.Short != "" {
			tag += fmt.Sprintf(" short:%q", o.Short)
		}
		if hint := o.Placeholder(); hint != "" {
			tag += fmt.Sprintf(" placeholder:%q", hint)
		}
		fields = append(fields, reflect.StructField{Name: fmt.Sprintf("Option%d", i), Type: kind, Tag: reflect.StructTag(tag)})
	}
	return reflect.New(reflect.StructOf(fields)).Interface()
}

// unabbreviate writes out long flags that are shortened to a beginning that
// only one of them has, which the Python tool's argparse allowed.
func unabbreviate(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = arg
		name, value, given := strings.Cut(arg, "=")
		if !strings.HasPrefix(name, "--") || name == "--verbose" {
			continue
		}
		if o, ok := plans.OptionByPrefix(name[2:]); ok {
			out[i] = "--" + o.Name
			if given {
				out[i] += "=" + value
			}
		}
	}
	return out
}

// hideSecrets copies the arguments and blanks secret values in the originals,
// which are what ps(1) shows of this process.
func hideSecrets(args []string) []string {
	out := make([]string, len(args))
	secret := false
	for i, arg := range args {
		out[i] = strings.Clone(arg)
		name, value, given := strings.Cut(arg, "=")
		isSecret := false
		if strings.HasPrefix(name, "--") {
			o, ok := plans.OptionByPrefix(name[2:])
			isSecret = ok && o.Secret
		}
		switch {
		case secret:
			blank(arg)
		case isSecret && given:
			blank(value)
		}
		secret = !secret && isSecret && !given
	}
	return out
}

// blank overwrites the memory of a string that the kernel gave us, where
// /proc/PID/cmdline reads it.
func blank(s string) {
	if s == "" {
		return
	}
	for i, b := 0, unsafe.Slice(unsafe.StringData(s), len(s)); i < len(b); i++ {
		b[i] = 'x'
	}
}

// An interval is a flag's value in the form that a file's keys of that kind have.
type interval struct{ time.Duration }

// UnmarshalText is for kong.
func (i *interval) UnmarshalText(text []byte) (err error) {
	i.Duration, err = plans.Time(string(text))
	return err
}
