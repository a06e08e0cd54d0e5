package probe

import "time"

const (
	// retryAfter is how long a request waits for its answer before the next is sent; while
	// the path is lost it doubles, up to the interval.
	retryAfter = time.Second

	// LostAfter requests in a row without an answer the path is lost.
	LostAfter = 3
)

// pulse is the state of a path over time: when to ask, and what follows. It has no clock
// and no socket.
type pulse struct {
	every time.Duration
	at    time.Time // when the next request is due; zero: nobody is asked

	waiting bool // the last request is unanswered
	sent    time.Time
	missed  int // unanswered in a row
	step    int // of the backoff
	up      bool
	lost    bool
}

// begin starts anew, with a request now: nothing is known of the path.
func (p *pulse) begin(now time.Time) { *p = pulse{every: p.every, at: now} }

// hurry has a request follow now; what is known stays.
func (p *pulse) hurry(now time.Time) {
	if !p.at.IsZero() {
		p.at, p.step = now, 0
	}
}

// ask notes that a request is sent now, and reports whether the path is lost by that: the
// last one has had its time.
func (p *pulse) ask(now time.Time) (lost bool) {
	if p.waiting && now.Sub(p.sent) >= p.patience() {
		p.missed++
	}
	if p.missed >= LostAfter && !p.lost {
		p.lost, p.up, p.step, lost = true, false, 0, true
	}
	wait := p.patience()
	if p.lost {
		wait = min(retryAfter<<min(p.step, 30), p.every)
		p.step++
	}
	p.waiting, p.sent, p.at = true, now, now.Add(wait)
	return lost
}

// answered notes an answer, and reports whether the path is up by that.
func (p *pulse) answered(now time.Time) (up bool) {
	up = !p.up
	p.up, p.lost, p.waiting, p.missed, p.step = true, false, false, 0, 0
	p.at = now.Add(p.every)
	return up
}

// patience is how old a request must be to count as unanswered.
func (p *pulse) patience() time.Duration { return min(retryAfter, p.every) }
