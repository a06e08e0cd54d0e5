package authd

import "time"

const (
	// firstWait is how long a client waits for a reply before it sends again;
	// it doubles up to maxWait.
	firstWait = time.Second
	maxWait   = time.Minute

	// maxTries is how often an authentication is repeated to a server that
	// was never heard: after 1, 2, 4, 8, 16, 32 s.
	maxTries = 6

	// lostAfter authentications in a row without an answer the peer is lost.
	lostAfter = 3
)

// event is what an [exchange] tells the client.
type event int

const (
	nothing event = iota
	isUp
	isLost
	isSilent // the server does not reply
)

// exchange is the state of a client's authentications over time: what to do
// when. It has no clock and no socket.
type exchange struct {
	keepalive time.Duration // 0: never
	expect    bool          // the server is known to reply
	deaf      bool          // replies are not listened for

	retryAt time.Time // zero: nothing to repeat
	tickAt  time.Time // zero: no keepalive
	sentAt  time.Time

	step        int  // of the backoff
	tries       int  // repetitions of this authentication
	dead        bool // the path is known to be dead, whatever the server answers
	outstanding bool // sent and unanswered
	failing     bool // the last send failed
	gaveUp      bool // the server does not seem to reply, only keepalive sends
	told        bool // and that was logged
	unanswered  int  // in a row
	state       event
}

// newExchange returns an exchange that has one authentication outstanding since
// now.
func newExchange(keepalive time.Duration, expect, deaf bool, now time.Time) *exchange {
	e := &exchange{keepalive: keepalive, expect: expect, deaf: deaf}
	if keepalive > 0 {
		e.tickAt = now.Add(keepalive)
	}
	e.sent(now)
	return e
}

// next returns when due has something to do, or the zero time.
func (e *exchange) next() time.Time {
	if e.retryAt.IsZero() || !e.tickAt.IsZero() && e.tickAt.Before(e.retryAt) {
		return e.tickAt
	}
	return e.retryAt
}

// due says whether to send at the time now. Call sent or failed after it.
func (e *exchange) due(now time.Time) (send bool, ev event) {
	if !e.tickAt.IsZero() && !now.Before(e.tickAt) {
		e.tickAt = now.Add(e.keepalive)
		send = true
	}
	retry := !e.retryAt.IsZero() && !now.Before(e.retryAt)
	if retry || send && e.outstanding {
		// A tick may follow a repetition too closely to blame the server.
		if e.outstanding && now.Sub(e.sentAt) >= e.grace() {
			ev = e.miss()
		}
		if !e.expect && !e.failing && !e.dead && e.tries >= maxTries {
			e.gaveUp, e.outstanding, e.retryAt = true, false, time.Time{}
			if !e.told {
				e.told = true
				ev = isSilent
			}
			return send, ev
		}
		e.step++
		e.tries++
		send = true
	}
	return send, ev
}

// sent notes that an authentication was sent.
func (e *exchange) sent(now time.Time) {
	if e.failing {
		// The network is back: what was tried before did not count.
		e.failing, e.step, e.tries = false, 0, 0
	}
	e.sentAt = now
	e.outstanding = !e.deaf && !e.gaveUp
	e.retryAt = time.Time{}
	if e.outstanding || e.dead {
		e.retryAt = now.Add(e.wait())
	}
}

// failed notes that an authentication could not be sent.
func (e *exchange) failed(now time.Time) (ev event) {
	if !e.failing {
		e.failing, e.step = true, 0
	}
	e.outstanding = false
	e.retryAt = now.Add(e.wait())
	return e.miss()
}

// restart notes that something has changed, so that a new authentication follows
// now and its repetitions begin anew.
func (e *exchange) restart() {
	e.step, e.tries, e.gaveUp = 0, 0, false
}

// path notes whether the path is dead by other evidence than the server's silence, and
// says whether to send now. While it is dead authentications are repeated for ever,
// answered or not; then again only those that are unanswered. Of what was not answered
// because the path was dead the server is not to blame.
func (e *exchange) path(dead bool) (send bool) {
	if e.dead == dead {
		return false
	}
	e.dead = dead
	switch {
	case dead, e.outstanding:
		e.restart()
		send = true
	case !e.failing:
		e.step, e.tries, e.retryAt = 0, 0, time.Time{}
	}
	if !dead {
		e.unanswered, e.outstanding = 0, false
	}
	return send
}

// answered notes a good reply.
func (e *exchange) answered() (ev event) {
	e.expect = true
	e.unanswered = 0
	e.gaveUp = false
	switch {
	case e.failing:
	case e.dead:
		e.outstanding = false
	default:
		e.outstanding, e.step, e.tries, e.retryAt = false, 0, 0, time.Time{}
	}
	if e.state != isUp {
		e.state = isUp
		ev = isUp
	}
	return ev
}

// miss counts an authentication without an answer.
func (e *exchange) miss() (ev event) {
	if e.deaf {
		return nothing
	}
	e.unanswered++
	if e.expect && e.unanswered >= lostAfter && e.state != isLost {
		e.state = isLost
		ev = isLost
	}
	return ev
}

// wait returns how long to wait for a reply at this step. A shorter keepalive
// needs no care: its tick sends anyway.
func (e *exchange) wait() time.Duration {
	if e.step < maxTries {
		return firstWait << e.step
	}
	return maxWait
}

// grace returns how old an authentication must be to count as unanswered: a bit less than
// the wait for it, which began before it was sent.
func (e *exchange) grace() time.Duration {
	wait := firstWait
	if e.keepalive > 0 {
		wait = min(wait, e.keepalive)
	}
	return wait * 9 / 10
}
