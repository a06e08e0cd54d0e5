package instance

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// An Instance is the tunnels of one configuration, to be run once.
type Instance struct {
	Config plans.Config
	Log    *slog.Logger
	// Echo is called with each command that is about to change the host.
	Echo func(plans.Command)
	// Again makes clients authenticate anew (SIGUSR1).
	Again <-chan struct{}
	// Version is what reports say of this program.
	Version string
	// ConfirmWithin is how long after the start all is undone, unless it is confirmed (see
	// Confirm); 0: never.
	ConfirmWithin time.Duration

	run   *runner.Runner
	board *board
	hooks *stateHooks
	// news holds one while the board has changes that systemd does not know.
	news     chan struct{}
	started  time.Time // since when the instance is up
	confirm  confirmation
	reports  sharing              // for metrics
	statuses sharing              // with the drift
	dir      string               // of the journal
	asked    map[string]plans.Var // facts that may change, by name
	named    chan struct{}        // the name of a tunnel's other end stands for another address
	mu       sync.Mutex
	now      *moment
	vars     map[string]string // read and changed by values and learn, once the instance is up
}

// Run brings the instance up, runs it until ctx ends or it fails, and undoes
// all it did. The error is for ExitCode.
func (in *Instance) Run(ctx context.Context) (err error) {
	needed := []uint{unix.CAP_NET_ADMIN}
	if slices.ContainsFunc(in.Config.Tunnels, rawSockets) {
		needed = append(needed, unix.CAP_NET_RAW)
	}
	if err := privileged(needed...); err != nil {
		return err
	}
	if err := check(in.Config); err != nil && (!in.mayUseBPF() || check(in.Config.Decided(plans.BPF)) != nil) {
		return err
	}
	journal, err := in.journal()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, journal.Close()) }()
	in.prepare(journal)
	in.named = make(chan struct{}, 1)
	in.hooks = newStateHooks(in)
	in.board = newBoard(in.Config, time.Now, in.changed)
	in.news = make(chan struct{}, 1)
	if left := journal.Since(0); len(left) > 0 {
		in.Log.Warn(fmt.Sprintf("an earlier %s died and left %d things behind: undoing them first", in.Config.Name, len(left)))
		if err := in.recover(journal); err != nil {
			return err
		}
	}
	in.confine(false) // what an earlier one left may want other privileges
	if err := in.facts(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // a name was being resolved; nothing has been done
		}
		return err
	}
	if err := in.decide(ctx); err != nil {
		return err
	}
	served, err := in.listenMetrics()
	if err != nil {
		return err
	}
	defer served.close()
	ports, err := in.reserve()
	if err != nil {
		return err
	}
	defer ports.Close()
	if _, err := in.run.Run(ctx, in.Config.Up(), in.vars); err != nil {
		return err
	}
	in.confine(true)
	debug.FreeOSMemory() // the plan of many tunnels took some, and may be the last for days
	err = in.answering(served, func() error { return in.serve(ctx) })
	in.notify(notifyStopping, "STATUS=cleaning up")
	in.Log.Info("cleaning up")
	return errors.Join(err, in.run.Undo())
}

// changed is told of each change of a tunnel's state or peer.
func (in *Instance) changed(title string, s standing) {
	in.hooks.changed(title, s)
	signal(in.news)
}

func (in *Instance) prepare(j *runner.Journal) {
	in.run = &runner.Runner{Exec: runner.Command(runner.DefaultTimeout), Journal: j, Log: in.Log, Echo: in.Echo}
}

// check looks for every program that a plan of the instance may need.
func check(c plans.Config) error { return runner.Check(Plans(c)) }

// Plans are those whose programs must be there when an instance of c starts.
func Plans(c plans.Config) iter.Seq[plans.Plan] {
	return func(yield func(plans.Plan) bool) {
		if !yield(c.Up()) {
			return
		}
		for _, t := range c.Tunnels {
			if t.Role == plans.Server && !yield(t.Bind()) {
				return
			}
		}
	}
}

func (in *Instance) journal() (*runner.Journal, error) {
	dir, fallback, err := runner.Dir()
	if err != nil {
		return nil, err
	}
	if fallback != nil {
		in.Log.Warn(fmt.Sprintf("the journal is kept in %s, where it may not outlive a crash: %v (a unit wants RuntimeDirectory=ipipou)", dir, fallback))
	}
	in.dir = dir
	j, err := runner.OpenJournal(dir, in.Config.Name)
	if err != nil {
		return nil, err
	}
	in.damaged(j)
	// The lock is ours: whose socket is there is dead.
	if err := removed(socketPath(dir, in.Config.Name)); err != nil {
		return nil, errors.Join(err, j.Close())
	}
	return j, nil
}

// damaged names what can't be undone, as errors: by default nothing less is shown.
func (in *Instance) damaged(j *runner.Journal) {
	const most = 20 // of a file that is something else altogether
	named := 0
	for _, d := range j.Damaged() {
		if d.Cut {
			in.Log.Debug(fmt.Sprintf("%s:%d: a record was being written, its step has not been run: %q", j.Path(), d.Line, d.Text))
			continue
		}
		if named++; named <= most {
			in.Log.Error(fmt.Sprintf("%s:%d: damaged, so this is not undone, and is to be removed by hand if it is still there: %q (the file as it was: %s)",
				j.Path(), d.Line, d.Text, j.DamagedPath()))
		}
	}
	if named > most {
		in.Log.Error(fmt.Sprintf("%s: %d more damaged lines (see %s)", j.Path(), named-most, j.DamagedPath()))
	}
}

// facts asks the host for what the plans need to know. Another end that was
// named by its host name is resolved here.
func (in *Instance) facts(ctx context.Context) error {
	for i := range in.Config.Tunnels {
		t := &in.Config.Tunnels[i]
		if t.RemoteHost == "" || t.RemoteIP.IsValid() {
			continue
		}
		ip, err := resolve(ctx, *t)
		if err != nil {
			return &Error{plans.ExitUsage, fmt.Errorf("--fou-remote: %w", err)}
		}
		t.RemoteIP = ip
	}
	in.vars = map[string]string{plans.RunDir: in.dir}
	in.asked = changing(in.Config)
	for _, v := range in.Config.Facts() {
		value, err := in.run.Ask(v, in.vars)
		if err != nil {
			return &Error{plans.ExitUsage, err}
		}
		if v.Name != "" {
			in.vars[v.Name] = value
		}
	}
	return nil
}

// local is the tunnel's outer endpoint, by the values of vars.
func local(t plans.Tunnel, vars map[string]string) (netip.AddrPort, error) {
	ip := t.FOUIP
	if !ip.IsValid() {
		var err error
		if ip, err = netip.ParseAddr(vars[t.IPVar()]); err != nil {
			return netip.AddrPort{}, err
		}
	}
	return netip.AddrPortFrom(ip, t.FOUPort), nil
}

// closeAll closes the clients' sockets, all at once: the kernel waits some
// milliseconds for each (synchronize_net in packet_release, net/packet/af_packet.c).
func closeAll(clients []*client) {
	var closing sync.WaitGroup
	for _, c := range clients {
		closing.Go(func() { c.auth.Close() })
	}
	closing.Wait()
}

// serve runs the servers and clients until ctx ends or one of them fails.
func (in *Instance) serve(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	var parts []func(context.Context) error
	var clients []*client
	var servers []plans.Tunnel
	var movers []*mover
	var listening *server
	watched := map[string]bool{} // interfaces of server tunnels
	now := in.anew()
	defer func() { closeAll(clients) }()
	for i := range in.Config.Tunnels {
		t := &in.Config.Tunnels[i]
		switch t.Role {
		case plans.Server:
			servers = append(servers, *t)
			if t.Backend == plans.BPF && !watched[t.Dev] {
				watched[t.Dev] = true
				s := &static{newMover(in, t, now)}
				movers = append(movers, s.mover)
				parts = append(parts, s.run)
			}
		case plans.Static:
			s := &static{newMover(in, t, now)}
			movers = append(movers, s.mover)
			parts = append(parts, s.run)
		default:
			c, err := newClient(in, t, now)
			if err != nil {
				return err
			}
			clients = append(clients, c)
			movers = append(movers, c.mover)
			parts = append(parts, func(ctx context.Context) error { return c.auth.Run(ctx, c.again) })
		}
	}
	for _, m := range movers {
		if m.refreshes() {
			parts = append(parts, m.watch)
		}
		if m.tunnel.Monitor == plans.MonitorPing && m.tunnel.Role == plans.Static {
			in.pinged(m)
		}
		if m.ping != nil {
			parts = append(parts, running(m.ping))
		}
	}
	if len(servers) > 0 {
		s, err := newServer(ctx, in, servers, fail)
		if err != nil {
			return err
		}
		defer s.auth.Close()
		parts = append(parts, s.auth.Serve)
		parts = append(parts, s.pinged()...)
		listening = s
	}
	mends := newMender(in, listening, movers, now)
	if listening != nil {
		listening.mends = mends
	}
	parts = append(parts, mends.run)
	for _, t := range in.Config.Tunnels {
		if t.Role == plans.Static {
			if t.Monitor != plans.MonitorPing { // else it is up when the other end answers
				in.board.set(t.Title(), Up, netip.AddrPortFrom(t.RemoteIP, t.RemotePort))
			}
			in.Log.Info(t.Dev + ": up") // and what is taken away from now on is noticed
		}
	}
	in.notify(notifyReady, in.summary())
	parts = append(parts, in.hooks.run, in.tell)
	var all sync.WaitGroup
	for _, part := range parts {
		all.Go(func() {
			if err := part(ctx); err != nil {
				fail(&Error{ExitSockets, err})
			}
		})
	}
	all.Go(func() { in.triggers(ctx, clients, movers, fail) })
	all.Go(func() {
		if err := in.confirm.wait(ctx); err != nil {
			fail(err)
		}
	})
	if listening == nil {
		// Clients make little garbage, so that a thousand of them collect it once in some
		// seconds at most, and what it takes meanwhile is less.
		debug.SetGCPercent(20)
	}
	release() // to open sockets and to sign took some
	all.Wait()
	mends.names.check(in.Config.Tunnels)
	var own *Error
	if errors.As(context.Cause(ctx), &own) {
		return own
	}
	return nil
}
