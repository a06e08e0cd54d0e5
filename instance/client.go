package instance

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/authd"
	"ipipou/plans"
)

// A client is one client tunnel and what authenticates it.
type client struct {
	*mover
	auth *authd.Client
	way  *authd.Way // of the last authentication; nil: it is not known. mover.mu guards it
}

// newClient opens the sockets of a tunnel that is up, and authenticates it.
func newClient(in *Instance, t *plans.Tunnel, now *moment) (*client, error) {
	c := &client{mover: newMover(in, t, now)}
	conf, err := c.config()
	if err != nil {
		return nil, &Error{ExitSockets, err}
	}
	conf.Refresh = c.refresh
	c.watched(&conf)
	if c.auth, err = authd.NewClient(conf); err != nil {
		return nil, &Error{ExitSockets, err}
	}
	if err := c.auth.Send(); err != nil {
		c.auth.Close()
		return nil, &Error{ExitSend, fmt.Errorf("%s: sending the authentication: %w", t.Dev, err)}
	}
	in.Log.Info(fmt.Sprintf("%s: %s -> %s, authentication sent", t.Dev, conf.Local, conf.Remote),
		authd.Event("sent", t.Dev, conf.Remote, slog.String("local", conf.Local.String())))
	return c, nil
}

func (c *client) config() (authd.ClientConfig, error) {
	a := c.tunnel.Auth
	from, err := local(*c.tunnel, c.vars)
	return authd.ClientConfig{
		Name: c.tunnel.Dev, Local: from, Remote: c.remote(), Device: c.tunnel.FOUDev,
		Auth:        authOf(*c.tunnel),
		Inner:       inner(*c.tunnel),
		Diverted:    c.tunnel.Backend == plans.BPF,
		TTL:         a.TTL,
		Keepalive:   time.Duration(a.Keepalive) * time.Second,
		ExpectReply: a.Reply,
		Log:         c.in.Log,
	}, err
}

// refresh moves the tunnel if an end of it has another address, before an
// authentication is sent from it.
func (c *client) refresh() (from, to netip.AddrPort, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.follow(); err != nil {
		return from, to, err
	}
	from, err = local(*c.tunnel, c.vars)
	if err == nil && c.monitored() {
		c.way = c.wayNow(from.Addr())
		if c.lost.Load() {
			signal(c.look)
		}
	}
	return from, c.remote(), err
}

// Reauth sends one authentication for each client tunnel, for tunnels that
// another process has up.
func (in *Instance) Reauth(ctx context.Context) error {
	if err := privileged(unix.CAP_NET_RAW); err != nil {
		return err
	}
	in.prepare(nil)
	if err := in.facts(ctx); err != nil {
		return err
	}
	now := in.anew()
	for i := range in.Config.Tunnels {
		t := &in.Config.Tunnels[i]
		c := &client{mover: newMover(in, t, now)}
		conf, err := c.config()
		if err != nil {
			return err
		}
		conf.NoReply = !t.Auth.Challenge
		if err := reauth(ctx, conf); err != nil {
			return err
		}
		in.Log.Info(t.Dev+": authentication sent from port "+strconv.Itoa(int(t.FOUPort)),
			authd.Event("sent", t.Dev, conf.Remote, slog.String("local", conf.Local.String())))
	}
	return nil
}

// challengeFor is how long a single authentication waits for the server's
// challenge, and then for its word that it is met. Two more are sent meanwhile.
const challengeFor = 5 * time.Second

// reauth authenticates once, which takes an answer of the server's if it
// challenges.
func reauth(ctx context.Context, conf authd.ClientConfig) error {
	waiting, done := context.WithTimeout(ctx, challengeFor)
	defer done()
	up := false
	conf.OnUp = func() { up = true; done() }
	c, err := authd.NewClient(conf)
	if err != nil {
		return &Error{ExitSockets, err}
	}
	defer c.Close()
	if err := c.Send(); err != nil {
		return &Error{ExitSend, fmt.Errorf("%s: sending the authentication: %w", conf.Name, err)}
	}
	if conf.NoReply {
		return nil
	}
	if err := c.Run(waiting, nil); err != nil {
		return &Error{ExitSockets, err}
	}
	switch {
	case up:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return &Error{ExitSend, fmt.Errorf("%s: %s did not challenge us, or not accept us, within %v: has it --auth-challenge, our key and our secret?", conf.Name, conf.Remote, challengeFor)}
}

// authOf is what authd has to know of a tunnel's authentication.
func authOf(t plans.Tunnel) authd.Auth {
	a := authd.Auth{
		Token: t.Auth.Token, Key: t.Auth.Key, RemoteKey: t.Auth.RemoteKey, Secret: t.Auth.Secret,
		MaxSkew: time.Duration(t.Auth.MaxSkew) * time.Second, Challenge: t.Auth.Challenge,
	}
	if t.Auth.ByRemoteIP {
		a.RemoteIP = t.RemoteIP
	}
	if t.Auth.ByRemotePort {
		a.RemotePort = t.RemotePort
	}
	return a
}

// inner is what the tunnel's data looks like, which authd must know it by.
func inner(t plans.Tunnel) authd.Inner {
	switch t.Mode {
	case "gre":
		return authd.InnerGRE
	case "sit":
		return authd.InnerIPv6
	case "any4":
		return authd.InnerIPv4 | authd.InnerIPv6
	}
	return authd.InnerIPv4
}
