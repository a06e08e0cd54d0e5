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

	waiting bool      // what was asked is unanswered
	since   time.Time // when the first request was sent of those that wait for one answer
	missed  int       // times in a row that none came
	step    int       // of the backoff
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

// ask notes that a request is sent now, and reports whether the path is lost by that: those
// before have had their time. Who hurries all the time does not put that off.
func (p *pulse) ask(now time.Time) (lost bool) {
	switch {
	case !p.waiting:
		p.since = now
	case now.Sub(p.since) >= p.patience():
		p.missed, p.since = p.missed+1, now
	}
	if p.missed >= LostAfter && !p.lost {
		p.lost, p.up, p.step, lost = true, false, 0, true
	}
	wait := p.patience()
	if p.lost {
		wait = min(retryAfter<<min(p.step, 30), p.every)
		p.step++
	}
	p.waiting, p.at = true, now.Add(wait)
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
