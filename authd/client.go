package authd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// keepSent is how many of what was sent are remembered, for what answers them may
// come when the next has been sent already.
const keepSent = 8

// replyBuf is for one reply, in bytes: the longest but that to a long token. What is longer
// is cut, and so is no reply. A thousand clients have one each.
const replyBuf = 512

// newest forgets the oldest of too many.
func newest[T any](sent []T) []T {
	return slices.Delete(sent, 0, max(0, len(sent)-keepSent))
}

// ClientConfig configures a [Client].
type ClientConfig struct {
	Name   string         // for the log: "ipipou0"
	Local  netip.AddrPort // our FOU endpoint, IPv4
	Remote netip.AddrPort // the server's, IPv4
	Device string         // outer interface, "": as routed
	Auth   Auth           // RemoteIP and RemotePort are not used: replies are from Remote
	TTL    uint8          // of what is sent, in hops; 0: the system's
	Inner  Inner          // what the tunnel's data is

	// Its packets come as if for another host: the BPF data path diverts them.
	Diverted bool

	Keepalive   time.Duration // between authentications; 0: never
	ExpectReply bool          // the operator said that the server replies; one that challenges does
	NoReply     bool          // do not listen for replies: only Send is called

	Log *slog.Logger     // nil: discarded
	Now func() time.Time // nil: time.Now

	// Refresh is called before each authentication and returns the endpoints
	// to use: the local address may have changed, and the caller has by then
	// moved the tunnel. An error is treated as one of sending. nil: fixed.
	Refresh func() (local, remote netip.AddrPort, err error)

	// OnUp is called, from Run, at the first reply and the first after a
	// loss; OnLost when the server is known to reply and did not to three
	// authentications in a row, also if it never did. Both may be nil.
	OnUp, OnLost func()
	// OnReply is called, from Run, at every good reply; OnRefused with the [Reason] of
	// what is no good one. Both may be nil.
	OnReply   func()
	OnRefused func(reason string)
}

// Client authenticates us to a server.
type Client struct {
	cfg   ClientConfig
	folds *folder
	out   datagramSender
	in    packetReceiver // nil with NoReply

	// What replies are checked by; used by Run alone.
	rate bucket
	seen ReplayState
	hint bool // it was logged that replies are not verified

	rand io.Reader

	mu            sync.Mutex
	local, remote netip.AddrPort
	sent          [][]byte    // the last keepSent payloads
	signed        ReplayState // the salts of this second
	dialogue      *dialogue   // of version 2; nil: version 1
	dead          bool        // what Path was told last

	path chan struct{} // it was told something
}

// NewClient checks cfg and opens the sockets: a raw one to send by and, unless
// cfg.NoReply, a packet socket that hears the server. It needs CAP_NET_RAW.
func NewClient(cfg ClientConfig) (*Client, error) {
	c, err := newClient(cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	c.cfg.TTL = systemTTL(cfg.TTL)
	if !cfg.NoReply {
		// Before the first authentication, not to miss its reply.
		in, err := listenPacket(Filter(c.filter(c.local, c.remote)), c.cfg.Log)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", cfg.Name, err)
		}
		c.in = in
	}
	out, err := newRawSender(cfg.Device)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", cfg.Name, err)
	}
	c.out = out
	return c, nil
}

// newClient is the part of NewClient without sockets.
func newClient(cfg ClientConfig) (*Client, error) {
	if err := cfg.Auth.validate(); err != nil {
		return nil, err
	}
	if cfg.Auth.Token != nil && cfg.Auth.Key != nil {
		return nil, errors.New("both a token and a key to authenticate by")
	}
	if err := errors.Join(checkEndpoint(cfg.Local), checkEndpoint(cfg.Remote)); err != nil {
		return nil, err
	}
	if err := cfg.Inner.validate(); err != nil {
		return nil, err
	}
	if cfg.Keepalive < 0 {
		return nil, errors.New("the keepalive is negative")
	}
	if cfg.Auth.Challenge && cfg.Auth.Key == nil {
		return nil, errors.New("a challenge is signed by a key, and there is none")
	}
	if cfg.Auth.Challenge && cfg.NoReply {
		return nil, errors.New("a challenge has to be heard")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	c := &Client{
		cfg:    cfg,
		folds:  newFolder(cfg.Log, cfg.Now),
		rand:   rand.Reader,
		local:  cfg.Local,
		remote: cfg.Remote,
		path:   make(chan struct{}, 1),
	}
	if cfg.Auth.Challenge {
		c.dialogue = newDialogue(cfg.Auth)
		c.cfg.ExpectReply = true
	}
	return c, nil
}

// filter passes replies. A token may look like data when it is reversed.
func (c *Client) filter(local, remote netip.AddrPort) FilterSpec {
	f := FilterSpec{
		Dst:   []netip.Addr{local.Addr()},
		Ports: []uint16{local.Port()},
		Src:   remote,
		Inner: c.cfg.Inner,
	}
	if c.cfg.Inner.looks(Reverse(c.cfg.Auth.Token)) {
		f.InnerLens = []int{len(c.cfg.Auth.Token)}
	}
	return f
}

// Close closes the sockets.
func (c *Client) Close() error {
	var errs []error
	if c.in != nil {
		errs = append(errs, c.in.Close())
	}
	if c.out != nil {
		errs = append(errs, c.out.Close())
	}
	return errors.Join(errs...)
}

// Remote is the server's endpoint, to which the last authentication went. It is safe for
// concurrent use.
func (c *Client) Remote() netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.remote
}

// Path tells Run whether the path to the server is dead by other evidence than its
// silence, such as pings through the tunnel. Then it authenticates at once, and again
// after 1, 2, 4, 8, 16, 32 and then each 60 s, even if it is answered, until it is told
// that the path is not dead. It is safe for concurrent use and does not block.
func (c *Client) Path(dead bool) {
	c.mu.Lock()
	c.dead = dead
	c.mu.Unlock()
	select {
	case c.path <- struct{}{}:
	default: // one is pending
	}
}

// Send sends one authentication now, or asks for a challenge, which Run meets. Its
// error wraps that of the system call, or Refresh's. It is safe for concurrent use.
func (c *Client) Send() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.refresh(); err != nil {
		return err
	}
	p, err := c.payload()
	if err != nil {
		return err
	}
	// Remembered first: the reply may be there before send returns.
	c.sent = newest(append(c.sent, p))
	c.cfg.Log.Debug(c.cfg.Name+": authenticating", "local", c.local, "remote", c.remote, "length", len(p))
	return c.out.send(c.local, c.remote, c.cfg.TTL, p)
}

// payload returns one that was not sent before: a salt has 65536 values in a
// second, and the server would take the second of the same for a replay.
func (c *Client) payload() ([]byte, error) {
	if c.dialogue != nil {
		return c.dialogue.ask(c.rand)
	}
	for {
		p, err := Payload(c.cfg.Auth, c.cfg.Now(), c.rand)
		if err != nil || c.cfg.Auth.Key == nil {
			return p, err
		}
		st, err := ParseStamp(p)
		if err != nil {
			return nil, err
		}
		if st.Time != c.signed.Time {
			c.signed = ReplayState{Time: st.Time}
		}
		if !slices.Contains(c.signed.Salts, st.Salt) {
			c.signed.Salts = append(c.signed.Salts, st.Salt)
			return p, nil
		}
	}
}

// refresh follows the endpoints.
func (c *Client) refresh() error {
	if c.cfg.Refresh == nil {
		return nil
	}
	local, remote, err := c.cfg.Refresh()
	if err != nil {
		return fmt.Errorf("endpoints: %w", err)
	}
	if local == c.local && remote == c.remote {
		return nil
	}
	if err := errors.Join(checkEndpoint(local), checkEndpoint(remote)); err != nil {
		return err
	}
	if c.in != nil {
		if err := c.in.setFilter(Filter(c.filter(local, remote))); err != nil {
			return err
		}
	}
	c.local, c.remote = local, remote
	return nil
}

// Run keeps us authenticated until ctx ends, then it returns nil, or until the
// reply socket fails for good. It takes its start as the time of an
// authentication, so call Send before.
//
// It sends again when again yields a value, each Keepalive, when Path says so,
// and when no reply comes: after 1, 2, 4, 8, 16, 32 and then each 60 s, or
// Keepalive if that is less. For a server that was never heard and of which ExpectReply is not said,
// it gives up waiting after those six; Keepalive goes on.
func (c *Client) Run(ctx context.Context, again <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	defer c.folds.flush()

	replies := make(chan Datagram)
	failed := make(chan error, 1)
	if c.in != nil {
		wg.Go(func() { failed <- c.receive(ctx, replies) })
	}

	e := newExchange(c.cfg.Keepalive, c.cfg.ExpectReply, c.in == nil, c.cfg.Now())
	lastErr := ""
	attempt := func() {
		err := c.Send()
		if err == nil {
			lastErr = ""
			e.sent(c.cfg.Now())
			return
		}
		if err.Error() != lastErr {
			lastErr = err.Error()
			c.cfg.Log.Warn(c.cfg.Name+": authentication not sent, will try again", Event("failed", c.cfg.Name, c.Remote()), "error", err)
		}
		c.tell(e.failed(c.cfg.Now()))
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Stop()
		if next := e.next(); !next.IsZero() {
			timer.Reset(next.Sub(c.cfg.Now()))
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%s: %w", c.cfg.Name, err)
		case _, ok := <-again:
			if !ok {
				again = nil
				continue
			}
			e.restart()
			apart(attempt)
		case <-c.path:
			c.mu.Lock()
			dead := c.dead
			c.mu.Unlock()
			if e.path(dead) {
				apart(attempt)
			}
		case d := <-replies:
			apart(func() {
				if c.hear(d) {
					if c.cfg.OnReply != nil {
						c.cfg.OnReply()
					}
					c.tell(e.answered())
				}
			})
		case <-timer.C:
			send, ev := e.due(c.cfg.Now())
			apart(func() {
				c.tell(ev)
				if send {
					attempt()
				}
			})
		}
	}
}

// apart does f on a goroutine of its own, and waits for it. A signature takes some 16 KiB
// of stack, and a goroutine that waits would keep them until the next collection: those of
// a thousand clients that start together are more than all else that they have. Nor are a
// thousand at it at once.
func apart(f func()) {
	signing <- struct{}{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	<-done
	<-signing
}

// signing has one for each that is at it. There are more than processors, for some wait for
// the system.
var signing = make(chan struct{}, 64)

func (c *Client) receive(ctx context.Context, replies chan<- Datagram) error {
	buf := make([]byte, max(replyBuf, 15*4+udpHeaderLen+len(c.cfg.Auth.Token)))
	for {
		n, from, err := c.in.recv(ctx, buf)
		if err != nil {
			return err
		}
		if !from.expected(c.cfg.Diverted) {
			continue
		}
		d, err := ParseUDP(buf[:n])
		if err != nil {
			c.cfg.Log.Debug(c.cfg.Name+": no reply", "source", d.Src, "error", err)
			continue
		}
		d.Payload = bytes.Clone(d.Payload)
		select {
		case replies <- d:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// hear reports whether d answers us.
func (c *Client) hear(d Datagram) bool {
	c.mu.Lock()
	local, remote := c.local, c.remote
	c.mu.Unlock()
	// The filter saw to that, but the endpoints may have moved since.
	if d.Src != remote || d.Dst != local {
		return false
	}
	if len(d.Payload) == 0 && (c.cfg.Auth.Key != nil || len(c.cfg.Auth.Token) > 0) {
		return false // the server's keepalive, which is for NAT on the way
	}
	if c.dialogue != nil && isVersion2(d.Payload) && type2(d.Payload) == challengeMsg {
		c.prove(d)
		return false
	}
	verified, err := c.verify(d)
	c.cfg.Log.Debug(c.cfg.Name+": reply", "source", d.Src, "length", len(d.Payload), "ok", err == nil)
	if err != nil {
		c.ignored(d, err)
		return false
	}
	if !verified && !c.hint {
		c.hint = true
		c.cfg.Log.Info(c.cfg.Name + ": the server signs its replies, give --auth-remote-pubkey-b64 to verify replies")
	}
	return true
}

// prove meets a challenge.
func (c *Client) prove(d Datagram) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, err := c.dialogue.prove(d.Payload)
	if err != nil {
		c.ignored(d, err)
		return
	}
	c.cfg.Log.Debug(c.cfg.Name+": meeting the challenge", "local", c.local, "remote", c.remote)
	if err := c.out.send(c.local, c.remote, c.cfg.TTL, p); err != nil {
		c.cfg.Log.Warn(c.cfg.Name+": challenge not met, will ask for another", Event("failed", c.cfg.Name, c.remote), "error", err)
	}
}

func (c *Client) ignored(d Datagram, err error) {
	if c.cfg.OnRefused != nil {
		c.cfg.OnRefused(Reason(err))
	}
	c.folds.warn(warning{event: "ignored", format: "%s: reply of %s ignored: %v", name: c.cfg.Name, src: d.Src, err: err})
}

// verify reports whether a reply proves more than that somebody sees what we
// send. Without the server's key it cannot be had when the server signs.
func (c *Client) verify(d Datagram) (verified bool, err error) {
	a := c.cfg.Auth
	now := c.cfg.Now()
	allow := func() bool {
		c.rate.refill(now, prefixRate, prefixBurst)
		return c.rate.take(1)
	}
	if c.dialogue != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.dialogue.accepted(allow, d.Payload)
	}
	if a.RemoteKey != nil {
		return true, checkSigned(a, &c.seen, now, allow, d.Payload)
	}
	rev := Reverse(d.Payload)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.sent {
		if bytes.Equal(p, rev) {
			return true, nil
		}
	}
	if a.Key != nil && len(d.Payload) == SignedLen {
		return false, nil
	}
	return false, fmt.Errorf("%w: %d bytes", ErrReply, len(d.Payload))
}

// noReply is the reason of who was not heard.
var noReply = slog.String("reason", "no-reply")

// tell logs and passes on a change.
func (c *Client) tell(ev event) {
	remote := c.Remote()
	switch ev {
	case isUp:
		c.cfg.Log.Info(fmt.Sprintf("%s: up, %s replies", c.cfg.Name, remote), Event("up", c.cfg.Name, remote))
		if c.cfg.OnUp != nil {
			c.cfg.OnUp()
		}
	case isLost:
		c.cfg.Log.Warn(fmt.Sprintf("%s: lost, %d authentications without a reply of %s", c.cfg.Name, lostAfter, remote),
			Event("lost", c.cfg.Name, remote, noReply))
		if c.cfg.OnLost != nil {
			c.cfg.OnLost()
		}
	case isSilent:
		c.cfg.Log.Info(fmt.Sprintf("%s: %s does not reply (it may not have --reply-on-auth-ok)", c.cfg.Name, remote),
			Event("silent", c.cfg.Name, remote, noReply))
	}
}
