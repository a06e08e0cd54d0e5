package authd

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// challengedLab is a client that speaks version 2, and who answers it.
type challengedLab struct {
	*clientLab
	server *challengeLab
	sent   []message2
	nonces map[nonce]bool
	// lose says which of what the server would answer is lost on the way.
	lose func(n int, answer message2) bool
}

func newChallengedLab(t *testing.T, keepalive time.Duration) *challengedLab {
	t.Helper()
	l := &challengedLab{server: newChallengeLab(t, 1), nonces: make(map[nonce]bool)}
	a := l.server.keys[0]
	own := peerKey(1000)
	a.RemoteKey = public(own)
	l.server.auths[0].Key = own
	l.clientLab = newClientLab(t, ClientConfig{Auth: a, Keepalive: keepalive})
	answers := 0
	l.onSend = func(d Datagram) {
		l.sent = append(l.sent, type2(d.Payload))
		var answer []byte
		switch type2(d.Payload) {
		case helloMsg:
			h, err := parseHello(d.Payload)
			if err != nil || l.nonces[h.nonce] {
				t.Errorf("%x: %v, or a nonce for the second time", d.Payload, err)
			}
			l.nonces[h.nonce] = true
			_, answer, _ = l.server.ask(l.server.e, d.Src, d.Payload)
		case proofMsg:
			if _, err := l.server.admit(d.Src, d.Payload); err != nil {
				t.Errorf("the proof: %v", err)
			}
			answer, _ = accept2(l.server.auths[0], d.Payload)
		}
		answers++
		if l.lose == nil || !l.lose(answers, type2(answer)) {
			l.reply(answer)
		}
	}
	return l
}

func (l *challengedLab) expect(t *testing.T, up, lost int, at []int, sent ...message2) {
	t.Helper()
	if l.up != up || l.lost != lost {
		t.Errorf("up %d times and lost %d times, want %d and %d", l.up, l.lost, up, lost)
	}
	if diff := cmp.Diff(at, seconds(l.at)); diff != "" {
		t.Errorf("sent at: %s", diff)
	}
	if diff := cmp.Diff(sent, l.sent); diff != "" {
		t.Errorf("sent: %s", diff)
	}
}

func TestClientMeetsTheChallenge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newChallengedLab(t, 0)
		l.run(t, time.Hour, nil)
		l.expect(t, 1, 0, []int{0, 0}, helloMsg, proofMsg)
		if !l.log.has("ipipou0: up, 198.51.100.1:10000 replies") {
			t.Error(l.log.lines())
		}
	})
}

func TestClientKeepaliveIsAnotherChallenge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newChallengedLab(t, 25*time.Second)
		l.run(t, time.Minute, func() {
			time.Sleep(10 * time.Second)
			l.again <- struct{}{}
		})
		l.expect(t, 1, 0, []int{0, 0, 10, 10, 25, 25, 50, 50},
			helloMsg, proofMsg, helloMsg, proofMsg, helloMsg, proofMsg, helloMsg, proofMsg)
	})
}

// What is lost is repeated from the beginning, and for as long as it takes: the
// server answers, or it is not up.
func TestClientAsksAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		lose func(n int, answer message2) bool
		lost int
		at   []int
		sent []message2
	}{
		"the challenge": {
			func(n int, _ message2) bool { return n <= 2 }, 0,
			[]int{0, 1, 3, 3}, []message2{helloMsg, helloMsg, helloMsg, proofMsg},
		},
		"the acceptance": {
			func(n int, _ message2) bool { return n == 2 }, 0,
			[]int{0, 0, 1, 1}, []message2{helloMsg, proofMsg, helloMsg, proofMsg},
		},
		"all, for long": {
			func(n int, _ message2) bool { return n <= 9 }, 1,
			[]int{0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 243},
			[]message2{helloMsg, helloMsg, helloMsg, helloMsg, helloMsg, helloMsg, helloMsg, helloMsg, helloMsg, helloMsg, proofMsg},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newChallengedLab(t, 0)
				l.lose = tt.lose
				l.run(t, time.Hour, nil)
				l.expect(t, 1, tt.lost, tt.at, tt.sent...)
			})
		})
	}
}

// Nobody but the server makes the client sign, and nothing but an acceptance of
// its proof makes it up.
func TestClientIgnoresOthersChallenges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newChallengedLab(t, 0)
		l.lose = func(int, message2) bool { return true }
		l.run(t, 500*time.Millisecond, func() {
			synctest.Wait()
			h, err := parseHello(l.out[0].Payload)
			if err != nil {
				t.Fatal(err)
			}
			right, wrong := challenge{nonce: h.nonce}.build(), challenge{}.build()
			l.in <- BuildUDP(documentedServer, clientAddr, 64, right)
			l.in <- BuildUDP(serverAddr, documentedServer, 64, right)
			l.reply(wrong)
			l.reply(acceptance{nonce: h.nonce}.build(l.server.auths[0].Key, []byte("s")))
			l.reply(Reverse(l.out[0].Payload))
			l.reply(h.build())
		})
		l.expect(t, 0, 0, []int{0}, helloMsg)
		if !l.log.has("reply of 198.51.100.1:10000 ignored: reply does not match what was sent") {
			t.Error(l.log.lines())
		}
	})
}

func TestClientCantSendItsProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newChallengedLab(t, 0)
		answer := l.onSend
		l.onSend = func(d Datagram) {
			answer(d)
			if len(l.sent) == 1 {
				l.breaks(errors.New("no route"))
			}
		}
		l.run(t, 10*time.Second, func() {
			time.Sleep(500 * time.Millisecond)
			l.breaks(nil)
		})
		l.expect(t, 1, 0, []int{0, 1, 1}, helloMsg, helloMsg, proofMsg)
		if !l.log.has(`ipipou0: challenge not met, will ask for another" error="no route"`) {
			t.Error(l.log.lines())
		}
	})
}

func TestNewClientRefusesWhatCantMeetAChallenge(t *testing.T) {
	key := peerKey(1)
	for name, cfg := range map[string]ClientConfig{
		"no key":  {Auth: Auth{Challenge: true}},
		"a token": {Auth: Auth{Challenge: true, Token: []byte("t")}},
		"deaf":    {Auth: Auth{Challenge: true, Key: key}, NoReply: true},
	} {
		cfg.Local, cfg.Remote = clientAddr, serverAddr
		if _, err := newClient(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
