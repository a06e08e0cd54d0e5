package authd

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sim runs an exchange for so many seconds and returns when it sent and what it
// told. fails says whether a send at that second fails, answers whether one is
// answered at once.
type sim struct {
	e       *exchange
	now     time.Time
	sends   []int
	events  map[int]event
	fails   func(sec int) bool
	answers func(sec int) bool
}

func newSim(keepalive time.Duration, expect, deaf bool) *sim {
	return &sim{
		e:      newExchange(keepalive, expect, deaf, time.Unix(0, 0)),
		now:    time.Unix(0, 0),
		events: make(map[int]event),
	}
}

func (s *sim) sec() int { return int(s.now.Unix()) }

func (s *sim) tell(ev event) {
	if ev != nothing {
		s.events[s.sec()] = ev
	}
}

func (s *sim) send() {
	if s.fails != nil && s.fails(s.sec()) {
		s.tell(s.e.failed(s.now))
		return
	}
	s.sends = append(s.sends, s.sec())
	s.e.sent(s.now)
	if s.answers != nil && s.answers(s.sec()) {
		s.tell(s.e.answered())
	}
}

func (s *sim) run(until int) {
	for {
		next := s.e.next()
		if next.IsZero() || next.Unix() > int64(until) {
			s.now = time.Unix(int64(until), 0)
			return
		}
		s.now = next
		send, ev := s.e.due(s.now)
		s.tell(ev)
		if send {
			s.send()
		}
	}
}

func (s *sim) check(t *testing.T, sends []int, events map[int]event) {
	t.Helper()
	if diff := cmp.Diff(sends, s.sends); diff != "" {
		t.Errorf("sends: %s", diff)
	}
	if diff := cmp.Diff(events, s.events); diff != "" {
		t.Errorf("events: %s", diff)
	}
}

func always(int) bool { return true }

func TestExchangeSilentServer(t *testing.T) {
	s := newSim(0, false, false)
	s.run(1000)
	s.check(t, []int{1, 3, 7, 15, 31, 63}, map[int]event{123: isSilent})

	// What has changed is worth as many tries; it is told just once.
	s.sends = nil
	s.e.restart()
	s.send()
	s.run(2000)
	s.check(t, []int{1000, 1001, 1003, 1007, 1015, 1031, 1063}, map[int]event{123: isSilent})
}

func TestExchangeSilentServerKeepalive(t *testing.T) {
	s := newSim(100*time.Second, false, false)
	s.run(500)
	// The tick at 100 is one of the tries, and the last of them.
	s.check(t, []int{1, 3, 7, 15, 31, 63, 100, 200, 300, 400, 500}, map[int]event{100: isSilent})
}

func TestExchangeExpected(t *testing.T) {
	s := newSim(0, true, false)
	s.run(320)
	s.check(t, []int{1, 3, 7, 15, 31, 63, 123, 183, 243, 303}, map[int]event{7: isLost})
	s.answers = always
	s.run(1000)
	s.check(t, []int{1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363}, map[int]event{7: isLost, 363: isUp})
}

func TestExchangeKeepaliveCapsBackoff(t *testing.T) {
	s := newSim(5*time.Second, true, false)
	s.run(25)
	s.check(t, []int{1, 3, 5, 10, 15, 20, 25}, map[int]event{5: isLost})
}

// A tick half a second after a repetition blames nobody for it.
func TestExchangeTickTooSoon(t *testing.T) {
	s := newSim(3500*time.Millisecond, true, false)
	s.run(8)
	s.check(t, []int{1, 3, 3, 7}, map[int]event{7: isLost})
}

// Only what goes unanswered in a row counts.
func TestExchangeNotInARow(t *testing.T) {
	s := newSim(10*time.Second, true, false)
	s.tell(s.e.answered())
	s.answers = func(sec int) bool { return sec%10 == 3 }
	s.run(40)
	s.check(t, []int{10, 11, 13, 20, 21, 23, 30, 31, 33, 40}, map[int]event{0: isUp})
}

func TestExchangeAnswered(t *testing.T) {
	s := newSim(10*time.Second, false, false)
	s.tell(s.e.answered())
	s.answers = func(sec int) bool { return sec <= 20 || sec >= 40 }
	s.run(60)
	s.check(t, []int{10, 20, 30, 31, 33, 37, 40, 50, 60}, map[int]event{0: isUp, 37: isLost, 40: isUp})
}

// Once heard, a server is waited for for ever.
func TestExchangeLostForEver(t *testing.T) {
	s := newSim(0, false, false)
	s.tell(s.e.answered())
	s.run(50)
	s.e.restart()
	s.send()
	s.run(400)
	s.check(t, []int{50, 51, 53, 57, 65, 81, 113, 173, 233, 293, 353}, map[int]event{0: isUp, 57: isLost})
}

func TestExchangeLateAnswer(t *testing.T) {
	s := newSim(0, false, false)
	s.run(200)
	s.tell(s.e.answered())
	s.check(t, []int{1, 3, 7, 15, 31, 63}, map[int]event{123: isSilent, 200: isUp})
	s.tell(s.e.answered())
	s.run(400)
	s.check(t, []int{1, 3, 7, 15, 31, 63}, map[int]event{123: isSilent, 200: isUp})
}

func TestExchangeFailing(t *testing.T) {
	s := newSim(0, false, false)
	s.tell(s.e.answered())
	s.fails = func(sec int) bool { return sec < 1000 }
	s.answers = always
	s.send()
	tried := 0
	for s.e.next().Unix() < 1000 {
		s.run(int(s.e.next().Unix()))
		tried++
	}
	// After 1, 2, 4, 8, 16, 32 and each 60 s.
	if want := 6 + (1000-63)/60; tried != want {
		t.Errorf("tried %d times, want %d", tried, want)
	}
	s.run(2000)
	s.check(t, []int{1023}, map[int]event{0: isUp, 3: isLost, 1023: isUp})
}

// Sends that fail do not count as tries that a server left unanswered.
func TestExchangeFailingFirst(t *testing.T) {
	s := newSim(0, false, false)
	s.fails = func(sec int) bool { return sec >= 1 && sec < 100 }
	s.run(1000)
	// Failed at 1, 2, 4, 8, 16, 32, 64.
	s.check(t, []int{124, 125, 127, 131, 139, 155, 187}, map[int]event{247: isSilent})
}

func TestExchangeDeaf(t *testing.T) {
	s := newSim(0, true, true)
	if next := s.e.next(); !next.IsZero() {
		t.Errorf("next %v", next)
	}
	s = newSim(30*time.Second, true, true)
	s.fails = func(sec int) bool { return sec >= 60 && sec < 70 }
	s.run(130)
	s.check(t, []int{30, 75, 90, 120}, map[int]event{})
}

// While other evidence says that the path is dead, authentications are repeated for ever, answered or not, by a server
// that never replies too.
func TestExchangeDeadPath(t *testing.T) {
	s := newSim(0, false, false)
	s.run(200) // it has given up
	if !s.e.path(true) || s.e.path(true) {
		t.Error("to send once, at once")
	}
	s.send()
	s.run(500)
	s.check(t, []int{1, 3, 7, 15, 31, 63, 200, 201, 203, 207, 215, 231, 263, 323, 383, 443}, map[int]event{123: isSilent})
	s.sends = nil
	s.answers = always
	s.run(600)
	if s.e.path(false) {
		t.Error("to send when the path is back")
	}
	s.run(2000)
	s.check(t, []int{503, 563}, map[int]event{123: isSilent, 503: isUp})
}

// What was not answered while the path was dead is no reason to call the server lost when it is back: it is asked at
// once.
func TestExchangePathIsBack(t *testing.T) {
	s := newSim(0, true, false)
	s.tell(s.e.answered())
	s.e.path(true)
	s.send()
	s.run(6)
	if !s.e.path(false) {
		t.Error("nothing to send when the path is back, and authentications are unanswered")
	}
	s.send()
	s.run(7)
	s.answers = always
	s.run(100)
	s.check(t, []int{0, 1, 3, 6, 7, 9}, map[int]event{0: isUp})
}

// A keepalive of a second, whose ticks come a moment sooner than that after the last was sent.
func TestExchangeKeepaliveOfASecond(t *testing.T) {
	s := newSim(time.Second, true, false)
	for sec := 1; sec <= 3; sec++ {
		s.now = time.Unix(int64(sec), 0)
		send, ev := s.e.due(s.now)
		s.tell(ev)
		if !send {
			t.Errorf("nothing sent after %d s", sec)
		}
		s.e.sent(s.now.Add(time.Millisecond))
	}
	s.check(t, nil, map[int]event{3: isLost})
}
