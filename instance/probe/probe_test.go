package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pinged is a prober in a bubble of synctest, and the other end.
type pinged struct {
	*Prober
	start  time.Time
	mu     sync.Mutex
	alive  bool
	fails  error
	delay  time.Duration
	asked  []int // seconds at which requests were sent
	events []string
	forge  func(got func([]byte), reply []byte) // also called with each reply, and nil
	opened int
	open   int
}

func newPinged(t *testing.T, every time.Duration) *pinged {
	p := &pinged{start: time.Now(), alive: true}
	say := func(what string) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.events = append(p.events, fmt.Sprintf("%s %d", what, p.sec()))
	}
	p.Prober = New(Config{
		Device: "ipipou0", From: netip.MustParseAddr("fd00::1"), To: netip.MustParseAddr("fd00::2"), Every: every,
		OnUp: func() { say("up") }, OnLost: func(err error) { say("lost") }, OnAsk: func() {},
	})
	p.Prober.open = func(_ string, _, _ netip.Addr, got func([]byte)) (sender, error) {
		p.opened++
		p.open++
		if p.forge != nil {
			p.forge(got, nil)
		}
		return &line{p, got}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if p.open != 0 {
			t.Errorf("%d sockets are open in the end", p.open)
		}
	})
	return p
}

// set changes the other end.
func (p *pinged) set(alive bool, delay time.Duration, fails error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.alive, p.delay, p.fails = alive, delay, fails
}

func (p *pinged) sec() int { return int(time.Since(p.start) / time.Second) }

// line is the socket.
type line struct {
	p   *pinged
	got func([]byte)
}

func (l *line) send(b []byte) error {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	if l.p.fails != nil {
		return l.p.fails
	}
	l.p.asked = append(l.p.asked, l.p.sec())
	if l.p.alive {
		b = slices.Clone(b)
		b[0] = reply6
		time.AfterFunc(l.p.delay, func() { l.got(b) })
		if l.p.forge != nil {
			l.p.forge(l.got, b)
		}
	}
	return nil
}

func (l *line) close() { l.p.open-- }

// then does something a while after what until waits for, so that requests and checks are not at the same time.
func (p *pinged) then(f func()) {
	time.Sleep(300 * time.Millisecond)
	f()
}

// until waits until so many seconds after the start.
func (p *pinged) until(sec int) {
	time.Sleep(time.Until(p.start.Add(time.Duration(sec)*time.Second + 500*time.Millisecond)))
	synctest.Wait()
}

func (p *pinged) check(t *testing.T, asked []int, events ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.asked, asked) || !slices.Equal(p.events, events) {
		t.Errorf("asked at %v, want %v; said %q, want %q", p.asked, asked, p.events, events)
	}
	p.asked, p.events = nil, nil
}

func TestPinging(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t, 10*time.Second)
		p.until(30)
		p.check(t, nil)
		p.Hurry() // nobody is asked yet
		p.until(40)
		p.check(t, nil)
		p.then(p.Begin)
		p.until(65)
		p.check(t, []int{40, 50, 60}, "up 40")

		p.set(false, 0, nil) // lost within the interval and three seconds, then asked less and less often
		p.until(100)
		p.check(t, []int{70, 71, 72, 73, 74, 76, 80, 88, 98}, "lost 73")
		p.set(true, 0, nil)
		p.until(119)
		p.check(t, []int{108, 118}, "up 108")

		p.set(false, 0, nil) // one that is lost is no event, nor two
		p.until(130)
		p.set(true, 0, nil)
		p.until(141)
		p.check(t, []int{128, 129, 130, 140})

		p.set(true, 1600*time.Millisecond, nil) // a long way
		p.until(167)
		p.check(t, []int{150, 151, 163, 164})
		p.set(true, 0, nil)

		p.then(p.Hurry)
		p.until(169)
		p.check(t, []int{167})
		p.set(false, 0, nil)
		p.until(182)
		p.check(t, []int{177, 178, 179, 180, 181}, "lost 180")
		p.set(true, 0, nil)
		p.then(p.Hurry)
		p.until(183)
		p.check(t, []int{182}, "up 182")
		p.then(p.Begin) // another peer
		p.until(184)
		p.check(t, []int{183}, "up 183")
	})
}

// A path is lost as soon if there is a reason to ask more often, be it always.
func TestHurryingOverADeadPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t, 10*time.Second)
		p.set(false, 0, nil)
		p.then(p.Begin)
		for range 10 {
			time.Sleep(400 * time.Millisecond)
			p.Hurry()
		}
		p.until(5)
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.events) != 1 || p.events[0] != "lost 3" && p.events[0] != "lost 4" {
			t.Errorf("said %q, want it lost after three seconds", p.events)
		}
	})
}

// Without an interface, requests are unanswered; with a new one, the next has another socket.
func TestPingingOverNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t, 10*time.Second)
		p.then(p.Begin)
		p.until(5)
		p.check(t, []int{0}, "up 0")
		p.set(true, 0, errors.New("no such device"))
		p.until(15)
		p.check(t, nil, "lost 13")
		p.set(true, 0, nil)
		p.until(16)
		p.check(t, []int{16}, "up 16")
		if p.open != 1 || p.opened < 3 {
			t.Errorf("%d sockets are open, %d were", p.open, p.opened)
		}
	})
}

// What answers no request, or one that was answered already, is no answer.
func TestForgedReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPinged(t, 10*time.Second)
		p.forge = func(got func([]byte), reply []byte) {
			for sec := range 20 {
				time.AfterFunc(time.Duration(sec)*time.Second, func() {
					got(reply)
					got(echo{id: 1, seq: 2}.request(true))
					got([]byte{reply6, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0})
				})
			}
		}
		p.Begin()
		p.until(5)
		p.set(false, 0, nil)
		p.until(20)
		p.check(t, []int{0, 10, 11, 12, 13, 14, 16, 20}, "up 0", "lost 13")
		time.Sleep(time.Minute)
	})
}

// packet4 is a reply as a raw socket gets it.
func packet4(e echo, options int) []byte {
	b := make([]byte, 20+options)
	b[0] = byte(0x40 | len(b)/4)
	reply := e.request(false)
	reply[0] = reply4
	binary.BigEndian.PutUint16(reply[2:], 0)
	binary.BigEndian.PutUint16(reply[2:], ^sum(reply))
	return append(b, reply...)
}

func FuzzEcho(f *testing.F) {
	e := echo{1, 2, [8]byte{3, 4, 5}}
	for _, options := range []int{0, 4, 40} {
		b := packet4(e, options)
		if got, err := parseReply(b, false); got != e || err != nil {
			f.Errorf("%x: %v, %v", b, got, err)
		}
		f.Add(b, false)
	}
	reply := e.request(true)
	f.Add(slices.Clone(reply), true) // a request is no reply
	reply[0] = reply6
	if got, err := parseReply(reply, true); got != e || err != nil {
		f.Errorf("%x: %v, %v", reply, got, err)
	}
	f.Add(reply, true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		e, err := parseReply(b, v6)
		if err != nil {
			return
		}
		want := e.request(v6)
		if got := b[len(b)-12:]; !slices.Equal(got, want[4:]) {
			t.Errorf("%x is taken for %x", got, want[4:])
		}
	})
}
