package instance

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ipipou/authd"
	"ipipou/plans"
)

// A client is one client tunnel and the values its plans were run with.
type client struct {
	in     *Instance
	tunnel plans.Tunnel
	auth   *authd.Client
	again  chan struct{}

	mu    sync.Mutex
	vars  map[string]string
	index int  // of the outer interface; another when it was made anew
	move  bool // the last move failed half-way and is owed
}

// newClient opens the sockets of a tunnel that is up, and authenticates it.
func newClient(in *Instance, t plans.Tunnel) (*client, error) {
	c := &client{in: in, tunnel: t, vars: maps.Clone(in.vars), again: make(chan struct{}, 1)}
	c.index = c.outer()
	conf, err := c.config()
	if err != nil {
		return nil, &Error{ExitSockets, err}
	}
	conf.Refresh = c.refresh
	if c.auth, err = authd.NewClient(conf); err != nil {
		return nil, &Error{ExitSockets, err}
	}
	if err := c.auth.Send(); err != nil {
		c.auth.Close()
		return nil, &Error{ExitSend, fmt.Errorf("%s: sending the authentication: %w", t.Dev, err)}
	}
	in.Log.Info(fmt.Sprintf("%s: %s -> %s, authentication sent", t.Dev, conf.Local, conf.Remote))
	return c, nil
}

func (c *client) config() (authd.ClientConfig, error) {
	a := c.tunnel.Auth
	from, err := local(c.tunnel, c.vars)
	return authd.ClientConfig{
		Name: c.tunnel.Dev, Local: from, Remote: c.remote(), Device: c.tunnel.FOUDev,
		Auth:        authOf(c.tunnel),
		TTL:         a.TTL,
		Keepalive:   time.Duration(a.Keepalive) * time.Second,
		ExpectReply: a.Reply,
		Log:         c.in.Log,
	}, err
}

func (c *client) remote() netip.AddrPort {
	return netip.AddrPortFrom(c.tunnel.RemoteIP, c.tunnel.RemotePort)
}

func (c *client) trigger() {
	select {
	case c.again <- struct{}{}:
	default: // one is pending
	}
}

// outer is the index of the tunnel's outer interface, 0 if none was given.
func (c *client) outer() int {
	dev, err := net.InterfaceByName(c.tunnel.FOUDev)
	if err != nil {
		return 0
	}
	return dev.Index
}

// fresh asks for the tunnel's outer address and says whether that or its
// interface is another than before.
func (c *client) fresh() (vars map[string]string, changed bool, err error) {
	anew := c.outer() != c.index
	name := c.tunnel.IPVar()
	if name == "" {
		return c.vars, anew, nil
	}
	vars = maps.Clone(c.vars)
	for _, v := range c.in.Config.Facts() {
		if v.Name == name {
			if vars[name], err = c.in.run.Ask(v); err != nil {
				return nil, false, err
			}
		}
	}
	return vars, anew || vars[name] != c.vars[name], nil
}

func (c *client) stale() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, changed, err := c.fresh()
	return err == nil && changed
}

// refresh moves the tunnel if its outer address has changed, before an
// authentication is sent from it.
func (c *client) refresh() (from, to netip.AddrPort, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	vars, changed, err := c.fresh()
	if err != nil {
		return from, to, err
	}
	if changed || c.move {
		c.move = true
		index := c.outer()
		if _, err := c.in.run.Run(context.Background(), c.tunnel.Move(), vars); err != nil {
			return from, to, err
		}
		before, err := local(c.tunnel, c.vars)
		if err != nil {
			return from, to, err
		}
		after, err := local(c.tunnel, vars)
		if err != nil {
			return from, to, err
		}
		c.in.Log.Info(fmt.Sprintf("%s: own address changed, tunnel moved from %s to %s", c.tunnel.Dev, before.Addr(), after.Addr()))
		c.vars, c.index, c.move = vars, index, false
	}
	from, err = local(c.tunnel, c.vars)
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
	for _, t := range in.Config.Tunnels {
		c := &client{in: in, tunnel: t, vars: in.vars}
		conf, err := c.config()
		if err != nil {
			return err
		}
		conf.NoReply = true
		sender, err := authd.NewClient(conf)
		if err != nil {
			return &Error{ExitSockets, err}
		}
		err = sender.Send()
		sender.Close()
		if err != nil {
			return &Error{ExitSend, fmt.Errorf("%s: sending the authentication: %w", t.Dev, err)}
		}
		in.Log.Info(t.Dev + ": authentication sent from port " + strconv.Itoa(int(t.FOUPort)))
	}
	return nil
}

// authOf is what authd has to know of a tunnel's authentication.
func authOf(t plans.Tunnel) authd.Auth {
	a := authd.Auth{
		Token: t.Auth.Token, Key: t.Auth.Key, RemoteKey: t.Auth.RemoteKey, Secret: t.Auth.Secret,
		MaxSkew: time.Duration(t.Auth.MaxSkew) * time.Second,
	}
	if t.Auth.ByRemoteIP {
		a.RemoteIP = t.RemoteIP
	}
	if t.Auth.ByRemotePort {
		a.RemotePort = t.RemotePort
	}
	return a
}
