package probe

import (
	"context"
	"crypto/rand"
	"net/netip"
	"slices"
	"time"
)

// keepSent is how many requests are remembered: an answer may come when the next ones have
// been sent.
const keepSent = 2 * LostAfter

// Config is whom to ask, and who wants to know.
type Config struct {
	Device   string     // the tunnel's interface; it may be deleted and made anew
	From, To netip.Addr // inner addresses of one family
	Every    time.Duration

	// OnUp is called at the first answer after Begin or a loss; OnLost after LostAfter
	// requests in a row without one, with the last error of sending, if there is one; OnAsk
	// for each request while the path is lost. All are called from Run.
	OnUp   func()
	OnLost func(err error)
	OnAsk  func()
}

// A Prober asks again and again.
type Prober struct {
	cfg   Config
	open  func(device string, from, to netip.Addr, got func([]byte)) (sender, error)
	begin chan struct{}
	hurry chan struct{}
}

// sender is what the tests replace.
type sender interface {
	send([]byte) error
	close()
}

// New returns a Prober that waits for Begin. It opens no socket yet.
func New(cfg Config) *Prober {
	return &Prober{cfg: cfg, open: open, begin: make(chan struct{}, 1), hurry: make(chan struct{}, 1)}
}

// Begin has Run ask now and from now on, as if nothing were known of the path: another peer
// is at its end. It is safe for concurrent use and does not block, as Hurry.
func (p *Prober) Begin() { signal(p.begin) }

// Hurry has Run ask now, after Begin: something has happened that may have mended the path.
func (p *Prober) Hurry() { signal(p.hurry) }

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // one is pending
	}
}

// Run asks until ctx ends. It needs CAP_NET_RAW. What goes wrong, as when the interface is
// not there, makes a request an unanswered one.
func (p *Prober) Run(ctx context.Context) {
	replies := make(chan echo)
	a := asker{cfg: p.cfg, open: p.open, got: func(b []byte) {
		if e, err := parseReply(b, p.cfg.To.Is6()); err == nil {
			select {
			case replies <- e:
			case <-ctx.Done():
			}
		}
	}}
	defer a.close()
	pulse := pulse{every: p.cfg.Every}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		timer.Stop()
		if !pulse.at.IsZero() {
			timer.Reset(time.Until(pulse.at))
		}
		select {
		case <-ctx.Done():
			return
		case <-p.begin:
			a.sent = nil
			pulse.begin(time.Now())
		case <-p.hurry:
			pulse.hurry(time.Now())
		case e := <-replies:
			if a.answers(e) && pulse.answered(time.Now()) {
				p.cfg.OnUp()
			}
		case <-timer.C:
			before := a.err
			lost := pulse.ask(time.Now())
			a.ask()
			if lost {
				p.cfg.OnLost(before)
			}
			if pulse.lost {
				p.cfg.OnAsk()
			}
		}
	}
}

// An asker is Run's: the socket, and what was sent.
type asker struct {
	cfg  Config
	open func(device string, from, to netip.Addr, got func([]byte)) (sender, error)
	got  func([]byte) // by the socket's goroutine
	conn sender       // nil: none is open
	seq  uint16
	sent []echo
	err  error // of the last request
}

// ask sends a request. A socket that can't is of no use any more, if its interface has been
// made anew; the next may.
func (a *asker) ask() {
	a.seq++
	e := echo{seq: a.seq}
	var random [10]byte
	rand.Read(random[:])
	e.id = uint16(random[8])<<8 | uint16(random[9])
	copy(e.nonce[:], random[:8])
	a.sent = append(a.sent, e)
	a.sent = slices.Delete(a.sent, 0, max(0, len(a.sent)-keepSent))
	for range 2 {
		fresh := a.conn == nil
		if fresh {
			if a.conn, a.err = a.open(a.cfg.Device, a.cfg.From, a.cfg.To, a.got); a.err != nil {
				a.conn = nil
				return
			}
		}
		if a.err = a.conn.send(e.request(a.cfg.To.Is6())); a.err == nil {
			return
		}
		a.close()
		if fresh {
			return
		}
	}
}

// answers reports whether e answers a request, once.
func (a *asker) answers(e echo) bool {
	i := slices.Index(a.sent, e)
	if i < 0 {
		return false
	}
	a.sent = slices.Delete(a.sent, i, i+1)
	return true
}

func (a *asker) close() {
	if a.conn != nil {
		a.conn.close()
		a.conn = nil
	}
}
