package authd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
)

// ServerTunnel is one tunnel of a server.
//
// Several may have one Local. They have one Device and Diverted then, and each peer is told by
// a RemoteKey or a Token that no other there has; RemoteIP and RemotePort are
// demanded besides. By its source and hint (see [Payload]) a payload is found as
// quickly as with one tunnel; else all keys are tried, 2000 a second, or 1000 if
// its time is not near ours. What looks like data of one tunnel is no
// authentication of another.
type ServerTunnel struct {
	Name   string         // for the log: "ipipou0"
	Local  netip.AddrPort // FOU endpoint, IPv4
	Device string         // outer interface, "": any
	Auth   Auth
	Inner  Inner // what its data is
	Reply  bool  // answer a valid authentication; with Auth.Challenge it is
	TTL    uint8 // of replies and keepalives, in hops; 0: the system's

	// Keepalive is between two empty datagrams to the bound peer, or up to a tenth less; they
	// keep the mappings of NATs on the way; 0: none. Lifetime is for how long after an
	// authentication they are sent; 0: for ever.
	Keepalive, Lifetime time.Duration

	// Its packets come as if for another host: the BPF data path diverts them.
	Diverted bool
}

func (t ServerTunnel) replies() bool { return t.Reply || t.Auth.Challenge }

// ServerConfig configures a [Server].
type ServerConfig struct {
	Tunnels []ServerTunnel
	Log     *slog.Logger     // nil: discarded
	Now     func() time.Time // nil: time.Now
	Store   ReplayStore      // nil: memory only

	// Bind is called from one goroutine at a time for every valid
	// authentication, with an index into Tunnels, but for one that a newer of
	// its tunnel comes after while it waits. Nil means that the peer is
	// bound (new, moved or already there); then the reply is sent. The error
	// is logged by the callee, not by authd.
	Bind func(tunnel int, peer netip.AddrPort) error

	// Refused is called for every datagram that is refused, with the index of the tunnel
	// that it was for, or -1 where several have its endpoint, and a [Reason]. It is
	// called by several goroutines, in floods very often, and must not block. May be nil.
	Refused func(tunnel int, reason string)
}

// Server listens for the authentications of its tunnels' peers.
type Server struct {
	tunnels []ServerTunnel
	log     *slog.Logger
	now     func() time.Time
	store   ReplayStore
	bind    func(tunnel int, peer netip.AddrPort) error
	refused func(tunnel int, reason string)

	endpoints map[netip.AddrPort]*endpoint
	checker   *checker
	folds     *folder
	unproved  [verifiers]chan *quest
	unbound   *waiting
	answers   chan challenged
	senders   map[string]datagramSender // by device
	shared    packetReceiver            // of all tunnels but the address-only; nil without

	mu   sync.Mutex
	open map[int]*openTunnel // the address-only ones

	keeping *keeping
}

// openTunnel is an address-only tunnel. Its filter changes with its peer, so it
// has a socket of its own.
type openTunnel struct {
	conn packetReceiver
	peer netip.AddrPort // invalid: none bound
}

// packetReceiver and datagramSender are what the tests replace.
type packetReceiver interface {
	recv(ctx context.Context, buf []byte) (n int, from arrival, err error)
	arrivedOn(index int, device string) bool
	setFilter(filter []bpf.Instruction) error
	Close() error
}

type datagramSender interface {
	send(src, dst netip.AddrPort, ttl uint8, payload []byte) error
	Close() error
}

// NewServer checks cfg, loads the replay states and opens the sockets: one
// packet socket for each address-only tunnel and one for all others, and a raw
// socket for each device that replies go out on. It needs CAP_NET_RAW. Errors
// name the tunnel.
func NewServer(cfg ServerConfig) (_ *Server, err error) {
	s, err := newServer(cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()

	var shared []int
	for i, t := range s.tunnels {
		if !t.Auth.addressOnly() {
			shared = append(shared, i)
			continue
		}
		c, err := listenPacket(Filter(openFilter(t, netip.AddrPort{})), s.log)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		s.open[i] = &openTunnel{conn: c}
	}
	if len(shared) > 0 {
		first := s.tunnels[shared[0]]
		c, err := listenPacket(Filter(s.sharedFilter(shared)), s.log)
		if err != nil {
			return nil, fmt.Errorf("%s and %d more: %w", first.Name, len(shared)-1, err)
		}
		s.shared = c
	}
	for i, t := range s.tunnels {
		s.tunnels[i].TTL = systemTTL(t.TTL)
		if !t.replies() && t.Keepalive == 0 || s.senders[t.Device] != nil {
			continue
		}
		snd, err := newRawSender(t.Device)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		s.senders[t.Device] = snd
	}
	return s, nil
}

// newServer is the part of NewServer without sockets.
func newServer(cfg ServerConfig) (*Server, error) {
	if len(cfg.Tunnels) == 0 {
		return nil, errors.New("authd: no tunnels")
	}
	if cfg.Bind == nil {
		return nil, errors.New("authd: no Bind")
	}
	s := &Server{
		tunnels: slices.Clone(cfg.Tunnels),
		log:     cfg.Log,
		now:     cfg.Now,
		store:   cfg.Store,
		bind:    cfg.Bind,
		refused: cfg.Refused,

		endpoints: make(map[netip.AddrPort]*endpoint),
		unbound:   newWaiting(len(cfg.Tunnels)),
		answers:   make(chan challenged, answersLen),
		senders:   make(map[string]datagramSender),
		open:      make(map[int]*openTunnel),
		keeping:   newKeeping(cfg.Tunnels),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.refused == nil {
		s.refused = func(int, string) {}
	}
	s.folds = newFolder(s.log, s.now)
	for k := range s.unproved {
		s.unproved[k] = make(chan *quest, proveLen)
	}

	auths := make([]Auth, len(s.tunnels))
	for i, t := range s.tunnels {
		if err := s.checkTunnel(t); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		e := s.endpoints[t.Local]
		if e == nil {
			e = newEndpoint(t)
			s.endpoints[t.Local] = e
		}
		if err := e.add(i, s.tunnels); err != nil {
			return nil, fmt.Errorf("%s: %w", t.Name, err)
		}
		auths[i] = t.Auth
	}
	for _, t := range s.tunnels {
		if e := s.endpointOf(t); e.inner.looks(t.Auth.Token) {
			e.likeData[len(t.Auth.Token)] = true
		}
	}
	s.checker = newChecker(auths, s.now)
	s.load()
	return s, nil
}

func (s *Server) checkTunnel(t ServerTunnel) error {
	if err := t.Auth.validate(); err != nil {
		return err
	}
	if t.Auth.Token != nil && t.Auth.RemoteKey != nil {
		return errors.New("both a token and a remote key to authenticate by")
	}
	if t.Auth.Challenge && t.Auth.RemoteKey == nil {
		return errors.New("a challenge is for a key to sign, and there is no remote key")
	}
	if err := checkEndpoint(t.Local); err != nil {
		return err
	}
	if err := t.Inner.validate(); err != nil {
		return err
	}
	if t.Keepalive < 0 || t.Lifetime < 0 {
		return errors.New("the keepalive or the lifetime is negative")
	}
	if t.Auth.sameKeys() && !t.Auth.Challenge {
		s.log.Warn(t.Name + ": both ends have the same key, so a reply can be sent back as an authentication")
	}
	return nil
}

func checkEndpoint(a netip.AddrPort) error {
	if !a.Addr().Is4() || a.Addr().IsUnspecified() || a.Port() == 0 {
		return fmt.Errorf("%s is not an IPv4 address and port", a)
	}
	return nil
}

// load takes over what earlier runs accepted.
func (s *Server) load() {
	if s.store == nil {
		return
	}
	for id := range s.checker.replay {
		st, err := s.store.Load(id)
		if err != nil {
			s.log.Warn("replays from before this start may be accepted", "error", err)
		}
		s.checker.restore(id, st)
	}
}

func (s *Server) sharedFilter(tunnels []int) FilterSpec {
	var f FilterSpec
	for _, i := range tunnels {
		t := s.tunnels[i]
		if !slices.Contains(f.Dst, t.Local.Addr()) {
			f.Dst = append(f.Dst, t.Local.Addr())
		}
		f.Ports = append(f.Ports, t.Local.Port())
		f.Inner |= t.Inner.kinds()
	}
	// The filter looks for every kind of data on every port.
	for _, i := range tunnels {
		if token := s.tunnels[i].Auth.Token; f.Inner.looks(token) {
			f.InnerLens = append(f.InnerLens, len(token))
		}
	}
	return f
}

func openFilter(t ServerTunnel, peer netip.AddrPort) FilterSpec {
	return FilterSpec{
		Dst:        []netip.Addr{t.Local.Addr()},
		Ports:      []uint16{t.Local.Port()},
		Inner:      t.Inner,
		AnyPayload: true,
		Peer:       peer,
		RemoteIP:   t.Auth.RemoteIP,
		RemotePort: t.Auth.RemotePort,
	}
}

// Serve authenticates peers until ctx ends, then it returns nil, or until a
// socket fails for good. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var (
		wg     sync.WaitGroup
		failed = make(chan error, 1+len(s.open))
	)
	receive := func(conn packetReceiver, name string) {
		wg.Go(func() {
			err := s.receive(ctx, conn)
			if ctx.Err() == nil {
				failed <- fmt.Errorf("%s: %w", name, err)
				cancel()
			}
		})
	}
	if s.shared != nil {
		receive(s.shared, "authd")
	}
	for i, o := range s.open {
		receive(o.conn, s.tunnels[i].Name)
	}
	for _, c := range s.unproved {
		wg.Go(func() { s.proving(ctx, c) })
	}
	wg.Go(func() { s.answering(ctx) })
	wg.Go(func() { s.work(ctx) })
	wg.Go(func() { s.keepalives(ctx) })
	wg.Wait()
	s.folds.flush()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// Close closes the sockets.
func (s *Server) Close() error {
	var errs []error
	if s.shared != nil {
		errs = append(errs, s.shared.Close())
	}
	for _, o := range s.open {
		errs = append(errs, o.conn.Close())
	}
	for _, snd := range s.senders {
		errs = append(errs, snd.Close())
	}
	return errors.Join(errs...)
}

func (s *Server) endpointOf(t ServerTunnel) *endpoint { return s.endpoints[t.Local] }
