// Command ipipou makes authenticated IP tunnels over UDP (ipip over FOU) that
// the kernel carries, and that survive NAT and roaming.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/alecthomas/kong"

	"ipipou/authd"
	"ipipou/instance"
	"ipipou/plans"
	"ipipou/runner"
)

func main() {
	args := hideSecrets(os.Args)
	os.Exit(run(args[1:], os.Stdout, os.Stderr))
}

func run(args []string, stdout, stderr io.Writer) int {
	line, done, err := parse(args, stdout)
	if done {
		return 0
	}
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	var files []plans.File
	for _, name := range line.Config {
		f, err := plans.Load(name, os.ReadFile)
		if err != nil {
			return fail(stderr, err, plans.ExitUsage)
		}
		files = append(files, f)
	}
	if line.AuthKeygen {
		if err := keygen(stdout, plans.Verbosity(files, line.settings) > 0); err != nil {
			return fail(stderr, err, plans.ExitGeneral)
		}
		return 0
	}
	config, err := plans.Resolve(line.Config, files, line.settings, os.ReadFile)
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	log := instance.NewLog(stderr, config.Verbosity, config.LogTime, config.LogPID)
	for _, n := range config.Notes {
		switch n.Level {
		case plans.Warn:
			log.Warn(n.Text)
		default:
			log.Info(n.Text)
		}
	}
	if line.PrintOnly {
		if _, err := io.WriteString(stdout, plans.Script(config, header(config, line.WithSecrets), line.WithSecrets)); err != nil {
			return fail(stderr, err, plans.ExitGeneral)
		}
		return 0
	}
	if line.status {
		if err := instance.Status(config, stdout); err != nil {
			return fail(stderr, err, plans.ExitGeneral)
		}
		return 0
	}
	in := &instance.Instance{Config: config, Log: log}
	if config.Verbosity > 0 {
		in.Echo = func(c plans.Command) { fmt.Fprintf(stderr, "[#] %s\n", c) }
	}
	ctx, again, stop := signals(func(s os.Signal) { log.Info(s.String() + ": ignored") })
	defer stop()
	in.Again = again
	if config.ReauthOnly {
		err = in.Reauth(ctx)
	} else {
		err = in.Run(ctx)
	}
	if code := instance.ExitCode(err); code != 0 {
		return fail(stderr, err, code)
	}
	return 0
}

// header says on top of a printed script what it is.
func header(c plans.Config, secrets bool) []string {
	lines := []string{
		"ipipou " + version() + " --print-only: all that instance " + c.Name + " does to a host.",
		"",
	}
	if c.Undecided() {
		lines = append(lines, "For a kernel with its own drivers; without them ipipou takes BPF programs, which --backend bpf prints.", "")
	}
	said := map[string]bool{}
	for _, t := range c.Tunnels {
		if said[t.Dev] {
			continue
		}
		said[t.Dev] = true
		switch t.Role {
		case plans.Client:
			lines = append(lines, t.Dev+" authenticates at the end of `up`, with `auth`, and with `keepalive SEC` again and again. A script can't read replies.")
		case plans.Server:
			lines = append(lines, "A script can't listen: what authd finds out, `bind` and `rebind` are told by hand ("+t.Dev+").")
		}
	}
	if len(lines) > 2 && lines[len(lines)-1] != "" {
		lines = append(lines, "")
	}
	return append(lines, plans.Describe(c, secrets)...)
}

func fail(stderr io.Writer, err error, code int) int {
	fmt.Fprintln(stderr, "ipipou: "+strings.ReplaceAll(err.Error(), "\n", "; "))
	return code
}

func keygen(stdout io.Writer, labels bool) error {
	private, public, err := authd.Keygen(rand.Reader)
	if err != nil {
		return err
	}
	if labels {
		// Two blanks: scripts around the Python tool cut these lines by column.
		private, public = "Private key (ed25519, 32 bytes): "+private, "Public  key (ed25519, 32 bytes): "+public
	}
	_, err = fmt.Fprintf(stdout, "%s\n%s\n", private, public)
	return err
}

// signals ends the context at SIGTERM and SIGINT, passes SIGUSR1 on, and keeps
// the others from killing a process that has a host to clean up.
func signals(ignored func(os.Signal)) (ctx context.Context, again <-chan struct{}, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	c := make(chan os.Signal, 16)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGALRM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGHUP, syscall.SIGPIPE)
	trigger := make(chan struct{}, 1)
	go func() {
		for s := range c {
			switch s {
			case syscall.SIGTERM, syscall.SIGINT, syscall.SIGALRM:
				cancel(runner.ErrInterrupted)
			case syscall.SIGUSR1:
				select {
				case trigger <- struct{}{}:
				default: // one is pending
				}
			case syscall.SIGPIPE: // logging it would bring the next
			default:
				ignored(s)
			}
		}
	}()
	return ctx, trigger, func() { signal.Stop(c); cancel(errors.New("done")) }
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// A line is a parsed command line.
type line struct {
	Config      []string `name:"config" sep:"none" placeholder:"NAME|PATH" help:"Read /etc/ipipou/NAME.toml or NAME.conf, or the file PATH. May be repeated; flags win over it." group:"Mode"`
	PrintOnly   bool     `name:"print-only" help:"Print the complete shell script of the instance and do nothing." group:"Audit"`
	WithSecrets bool     `name:"with-secrets" help:"With --print-only: show tokens, private keys and secrets too." group:"Audit"`
	AuthKeygen  bool     `name:"auth-keygen" help:"Print a new ed25519 key pair, private then public, and exit." group:"Authentication"`
	Verbose     int      `name:"verbose" short:"v" type:"counter" help:"Say more; up to -vvv. From -v on, each command is printed before it runs." group:"Log"`
	Version     bool     `name:"version" help:"Print the version and exit."`

	settings plans.Settings
	status   bool
}

const description = "IP tunnels that the kernel carries: authenticated, over UDP, across NAT and roaming; or static, in all of Linux's modes. " +
	"`ipipou status`, with an instance's flags, shows its tunnels and what they counted."

// parse reads the command line: flags, with `status` before them or without. done
// means that all there was to do is done (--help, --version).
func parse(args []string, stdout io.Writer) (l *line, done bool, err error) {
	l = &line{settings: plans.Settings{}}
	if len(args) > 0 && args[0] == "status" {
		l.status, args = true, args[1:]
	}
	options := optionStruct()
	exited := false
	parser, err := kong.New(l, kong.Name("ipipou"), kong.Description(description),
		kong.Embed(options), kong.Writers(stdout, io.Discard), kong.Exit(func(int) { exited = true }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))
	if err != nil {
		return nil, false, err
	}
	ctx, err := parser.Parse(unabbreviate(args))
	if exited {
		return nil, true, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("%s (ipipou --help lists the flags)", harmless(err))
	}
	if l.Version {
		fmt.Fprintln(stdout, version())
		return nil, true, nil
	}
	if l.status && (l.PrintOnly || l.AuthKeygen) {
		return nil, false, errors.New("status: takes neither --print-only nor --auth-keygen")
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
		tag := fmt.Sprintf("name:%q help:%q group:%q", o.Name, o.Help, o.Group)
		if o.Short != "" {
			tag += fmt.Sprintf(" short:%q", o.Short)
		}
		if o.Hint != "" {
			tag += fmt.Sprintf(" placeholder:%q", o.Hint)
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
