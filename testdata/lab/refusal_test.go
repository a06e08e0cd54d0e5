package lab

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// forgers are addresses of Bad's, one for each thing that it tries: refusals of one kind from one address are folded.
type forgers struct {
	*solo
	wire *sniffer
	used int
	srcs []string
}

func newForgers(t testing.TB) *forgers {
	t.Helper()
	f := &forgers{solo: newSolo(t)}
	var add []string
	for i := range 60 {
		add = append(add, fmt.Sprintf("addr add 203.0.113.%d/32 dev b0", 100+i))
	}
	f.Bad.batch(t, add...)
	f.wire = f.Bad.Sniff(t, "b0")
	return f
}

func (f *forgers) source() string {
	f.used++
	return fmt.Sprintf("203.0.113.%d:7000", 99+f.used)
}

// refused sends a payload and waits for the line that says why it was refused.
func (f *forgers) refused(t testing.TB, payload []byte, reason string) {
	t.Helper()
	f.refusedFrom(t, f.source(), payload, reason)
}

func (f *forgers) refusedFrom(t testing.TB, src string, payload []byte, reason string) {
	t.Helper()
	f.srcs = append(f.srcs, src)
	n := f.server.Len()
	f.Bad.SendUDP(t, src, SrvAddr+":10000", payload)
	f.server.WaitLogFrom(t, n, ` WARN ipipou0: `+regexp.QuoteMeta(src)+` refused: `+regexp.QuoteMeta(reason), commandTimeout)
}

// accepted sends a payload that makes its source the peer.
func (f *forgers) accepted(t testing.TB, payload []byte) string {
	t.Helper()
	src := f.source()
	n := f.server.Len()
	f.Bad.SendUDP(t, src, SrvAddr+":10000", payload)
	f.server.WaitLogFrom(t, n, `ipipou0: peer (bound at|moved from \S+ to) `+regexp.QuoteMeta(src)+`\n`, commandTimeout)
	f.wire.wait(t, "the reply to "+src, func(p packet) bool { return p.dst.String() == src && p.src.String() == SrvAddr+":10000" })
	return src
}

// saidOnce checks, of servers that have ended, that each refusal was logged once and as a warning, that no reply went
// to one, and that no secret was logged.
func (f *forgers) saidOnce(t testing.TB, logs string, secrets ...[]byte) {
	t.Helper()
	for _, src := range f.srcs {
		about := regexp.QuoteMeta(src) + `\b`
		if n := count(logs, `(WARN|ERROR|INFO) .*`+about); n != 1 {
			t.Errorf("%d lines about the refusal of %s, want 1", n, src)
		}
		if p, ok := f.wire.find(func(p packet) bool { return p.dst.String() == src && p.src.String() == SrvAddr+":10000" }); ok {
			t.Errorf("an answer to %s, who was refused: %x", src, p.payload)
		}
	}
	for _, s := range secrets {
		for _, form := range []string{string(s), base64.StdEncoding.EncodeToString(s), hex.EncodeToString(s), fmt.Sprint(s)} {
			if strings.Contains(logs, form) {
				t.Errorf("a secret is in the log, as %q", form)
			}
		}
	}
}

func flipped(b []byte, i int) []byte {
	b = slices.Clone(b)
	b[i] ^= 1
	return b
}

// Signatures that are wrong, old or have been seen change nothing, also not right after a restart.
func TestRefusedSignatures(t *testing.T) {
	t.Parallel()
	f := newForgers(t)
	client, server, stranger := newKey(t), newKey(t), newKey(t)
	const secret = "the lab's own secret"
	args := []string{"--fou-dev", "s0", "--auth-key-b64", server.private, "--auth-remote-pubkey-b64", client.public,
		"--auth-secret", secret, "--auth-max-time-discrepancy", "600", "--reply-on-auth-ok"}
	before := f.Srv.Snapshot(t)
	f.startServer(t, args...)
	closed := f.Srv.Snapshot(t)

	now := time.Now()
	good := client.sign(secret, now, 1)
	f.refused(t, stranger.sign(secret, now, 2), "bad signature")
	f.refused(t, server.sign(secret, now, 2), "bad signature")
	f.refused(t, client.sign("the lab's own Secret", now, 2), "bad signature")
	f.refused(t, client.sign("", now, 2), "bad signature")
	f.refused(t, client.sign("netprickle.com", now, 2), "bad signature")
	f.refused(t, flipped(good, 0), "bad signature")
	f.refused(t, flipped(good, 68), "bad signature")
	f.refused(t, flipped(good, 72), "bad signature")
	f.refused(t, make([]byte, 73)[:64:64], "wrong payload length")
	f.refused(t, good[:72], "wrong payload length")
	f.refused(t, nil, "wrong payload length")
	f.refused(t, append(slices.Clone(good), 0), "bad signature")
	f.refused(t, client.sign(secret, now.Add(-time.Hour), 2), "time discrepancy too large: the sender's clock is 3")
	f.refused(t, client.sign(secret, now.Add(time.Hour), 2), "time discrepancy too large: the sender's clock is 3")
	SameState(t, "the server after refusals, with no peer", closed, f.Srv.Snapshot(t))

	peer := f.accepted(t, good)
	bound := f.Srv.Snapshot(t)
	const seen, older = "replayed: this very time and salt were accepted before", "older than the newest accepted"
	f.refused(t, good, seen)
	f.refused(t, client.sign(secret, now.Add(-time.Second), 3), older+", by 1 s")
	f.refused(t, client.sign(secret, now.Add(-time.Minute), 3), older)
	f.refused(t, flipped(good, 71), "bad signature")
	SameState(t, "the server after refusals, with a peer at "+peer, bound, f.Srv.Snapshot(t))

	// A peer that sends from elsewhere is let in; and what made it the peer is no good any more.
	newer := client.sign(secret, now.Add(2*time.Second), 4)
	f.accepted(t, newer)
	f.refused(t, newer, seen)
	f.refused(t, good, older)

	// Not even a daemon that could not say farewell forgets.
	kill(t, f.server)
	logs := f.server.Logs()
	f.startServer(t, args...)
	f.refused(t, newer, seen)
	f.refused(t, good, older)
	f.refused(t, client.sign(secret, now.Add(time.Second), 5), older)
	SameState(t, "the server after a restart and refusals", closed, f.Srv.Snapshot(t))
	f.accepted(t, client.sign(secret, now.Add(2*time.Second), 6))
	stop(t, f.server)
	SameState(t, "the server in the end", before, f.Srv.Snapshot(t))
	logs += f.server.Logs()
	f.saidOnce(t, logs, []byte(secret), server.Seed(), client.Seed(), good, newer, good[:64])
}

func TestRefusedTokens(t *testing.T) {
	t.Parallel()
	f := newForgers(t)
	token := []byte("a token of the lab's")
	f.startServer(t, "--fou-dev", "s0", "--auth-token", string(token), "--reply-on-auth-ok")
	closed := f.Srv.Snapshot(t)
	for _, i := range []int{0, len(token) / 2, len(token) - 1} {
		f.refused(t, flipped(token, i), "wrong token")
	}
	back := slices.Clone(token)
	slices.Reverse(back)
	f.refused(t, back, "wrong token")
	for _, other := range [][]byte{nil, token[:1], token[:len(token)-1], append(slices.Clone(token), 0), append(slices.Clone(token), token...)} {
		f.refused(t, other, fmt.Sprintf("wrong payload length: %d bytes", len(other)))
	}
	SameState(t, "the server after refusals", closed, f.Srv.Snapshot(t))

	// Repeats are counted, not repeated.
	src := f.source()
	for range 20 {
		f.Bad.SendUDP(t, src, SrvAddr+":10000", flipped(token, 3))
	}
	f.accepted(t, token)
	stop(t, f.server)
	lines, told := 0, 0
	for _, m := range regexp.MustCompile(`(?m) WARN .*`+regexp.QuoteMeta(src)+` .*?(?: repeated=(\d+))?$`).FindAllStringSubmatch(f.server.Logs(), -1) {
		repeated, _ := strconv.Atoi(m[1])
		lines, told = lines+1, told+1+repeated
	}
	if told != 20 || lines > 5 { // a line in ten seconds
		t.Errorf("%d lines about %d wrong tokens of one source, and there were 20", lines, told)
	}
	f.saidOnce(t, f.server.Logs(), token, back)
}
