// Command ipipou makes authenticated IP tunnels over UDP (ipip over FOU) that
// the kernel carries, and that survive NAT and roaming.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"time"

	"ipipou/authd"
	"ipipou/instance"
	"ipipou/plans"
	"ipipou/runner"
)

func main() {
	args := hideSecrets(os.Args)
	// A daemon that has little to do for days: its memory counts for more than the
	// milliseconds that it takes to start.
	debug.SetGCPercent(50)
	runtime.MemProfileRate = 0 // nobody will look
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
	return line.command.run(line, stdout, stderr)
}

// up runs the tunnels, or does what a flag asks for in place of it.
func up(l *line, stdout, stderr io.Writer) int {
	files, err := l.files()
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	if l.AuthKeygen {
		if err := keygen(stdout, plans.Verbosity(files, l.settings) > 0); err != nil {
			return fail(stderr, err, plans.ExitGeneral)
		}
		return 0
	}
	config, log, err := l.resolve(files, stderr)
	if err == nil {
		err = l.confirmable(config)
	}
	if err != nil {
		return fail(stderr, err, plans.ExitUsage)
	}
	for _, s := range config.Sources {
		warnOpen(log, s)
	}
	if l.PrintOnly {
		if _, err := io.WriteString(stdout, plans.Script(config, header(config, l.WithSecrets), l.WithSecrets)); err != nil {
			return fail(stderr, err, plans.ExitGeneral)
		}
		return 0
	}
	in := &instance.Instance{Config: config, Log: log, Echo: echo(log, logSettings(config), stderr), Version: version()}
	if l.Confirm != nil {
		in.ConfirmWithin = l.Confirm.Duration
	}
	ctx, again, stop := signals(func(s os.Signal) { log.Info(s.String() + ": ignored") })
	defer stop()
	in.Again = again
	if config.ReauthOnly {
		err = in.Reauth(ctx)
	} else {
		err = in.Run(ctx)
	}
	code := instance.ExitCode(err)
	switch {
	case code == 0:
	case config.LogFormat == "text":
		fail(stderr, err, code)
	default:
		log.Error(oneLine(err), "exit", code)
	}
	return code
}

func (l *line) files() (files []plans.File, err error) {
	for _, name := range l.Config {
		f, err := plans.Load(name, os.ReadFile)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// config is the configuration of the NAME, the files and the flags.
func (l *line) config(stderr io.Writer) (plans.Config, error) {
	if l.Name != "" && !slices.Contains(l.Config, l.Name) { // --watch asks again
		l.Config = append(l.Config, l.Name)
	}
	files, err := l.files()
	if err != nil {
		return plans.Config{}, err
	}
	c, _, err := l.resolve(files, stderr)
	return c, err
}

// makes reports whether the line has anything that makes an instance.
func (l *line) makes() bool { return l.Name != "" || l.flags() }

// flags reports whether the line has flags that make an instance.
func (l *line) flags() bool {
	for name := range l.settings {
		if name != "v" {
			return true
		}
	}
	return len(l.Config) > 0
}

// resolve makes the configuration and the log, and says what is noteworthy about them.
func (l *line) resolve(files []plans.File, stderr io.Writer) (plans.Config, *slog.Logger, error) {
	config, err := plans.Resolve(l.Config, files, l.settings, os.ReadFile)
	if err != nil {
		return plans.Config{}, nil, err
	}
	log := instance.NewLog(stderr, logSettings(config))
	for _, n := range config.Notes {
		switch n.Level {
		case plans.Warn:
			log.Warn(n.Text)
		default:
			log.Info(n.Text)
		}
	}
	return config, log, nil
}

func logSettings(c plans.Config) instance.LogSettings {
	return instance.LogSettings{Verbosity: c.Verbosity, Format: c.LogFormat, Time: c.LogTime, PID: c.LogPID}
}

// echo prints each command before it is run, if so much is to be said: from a verbosity
// on at which the log has no more than warnings.
func echo(log *slog.Logger, s instance.LogSettings, stderr io.Writer) func(plans.Command) {
	switch {
	case s.Verbosity == 0:
		return nil
	case s.Format == "text":
		return func(c plans.Command) { instance.Say(stderr, slog.LevelInfo, "[#] "+c.String()) }
	}
	return func(c plans.Command) {
		r := slog.NewRecord(time.Now(), slog.LevelInfo, "running a command", 0)
		r.AddAttrs(slog.String("command", c.String()))
		log.Handler().Handle(context.Background(), r) // whatever level is shown
	}
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
		if t.Monitor != plans.NoMonitor || len(t.StateHook) > 0 {
			lines = append(lines, "A script does not monitor "+t.Dev+", nor run its state-hook.")
		}
		switch {
		case t.Auth.Challenge && t.Role == plans.Client:
			lines = append(lines, t.Dev+" has to meet a challenge, which a script can't hear: after `up`, ipipou --reauth-only with these settings authenticates it.")
		case t.Role == plans.Client:
			lines = append(lines, t.Dev+" authenticates at the end of `up`, with `auth`, and with `keepalive SEC` again and again. A script can't read replies.")
		case t.Role == plans.Server:
			lines = append(lines, "A script can't listen: what authd finds out, `bind` and `rebind` are told by hand ("+t.Dev+").")
		}
	}
	if len(lines) > 2 && lines[len(lines)-1] != "" {
		lines = append(lines, "")
	}
	return append(lines, plans.Describe(c, secrets)...)
}

func fail(stderr io.Writer, err error, code int) int {
	instance.Say(stderr, slog.LevelError, "ipipou: "+oneLine(err))
	return code
}

func oneLine(err error) string {
	return instance.Printable(strings.ReplaceAll(err.Error(), "\n", "; "))
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

// release is the version of what is handed out, which packaging/build.sh sets.
var release string

func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
