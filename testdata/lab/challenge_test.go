package lab

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

// Two clients behind one public address, on one port, meet the server's challenge, roam, and do so again; what
// somebody on the way has caught of it is of no use to him, and neither end takes the other for version 1.
func TestBPFChallenge(t *testing.T) {
	t.Parallel()
	newHub(t).meetChallenges(t)
}

// The same with the kernel's own drivers, whose listeners see version 2 too.
func TestChallenge(t *testing.T) {
	if !long() {
		t.Skip("it takes IPIPOU_LAB_LONG=1: the daemon has the same to do as with BPF")
	}
	t.Parallel()
	newPair(t, "", "").meetChallenges(t)
}

func (p *pair) meetChallenges(t *testing.T) {
	for _, config := range p.config {
		edit(t, config, "verb = 3\n", "verb = 3\nauth-challenge = true\n")
	}
	before := snapshots(t, p.Srv, p.C1, p.C2)
	caught := p.Srv.Sniff(t, "s0")
	p.start(t)
	p.works(t, 0)
	p.works(t, 1)
	proof := func(from string) packet {
		return caught.wait(t, "a proof from "+from, func(p packet) bool {
			return bytes.HasPrefix(p.payload, []byte("\xf0ipipou\x03")) && p.src.String() == from
		})
	}
	first := p.server.WaitLog(t, p.tunnel(0)+` bound at (\S+)`, commandTimeout)[1]
	proofs := []packet{proof(first)}

	// The one moves to another port of the router's, the other to another address, at a call beside the daemon's.
	moves := func(i int, to string, move func()) {
		t.Helper()
		n := p.server.Len()
		p.NATForce(t, []string{C1Addr, C2Addr}[i], to)
		move()
		p.server.WaitLogFrom(t, n, fmt.Sprintf(`%s moved from \S+ to %s\n`, p.tunnel(i), to), commandTimeout)
		proofs = append(proofs, proof(to))
		p.works(t, 0)
		p.works(t, 1)
	}
	moves(0, RtrAddr+":4000", func() { p.client[0].Signal(t, syscall.SIGUSR1) })
	moves(1, RtrAddr2+":4001", func() {
		if out, err := p.C2.Try("env", "IPIPOU_RUN_DIR="+p.dir, Bin(t), "--config", p.config[2], "--reauth-only"); err != nil {
			t.Errorf("--reauth-only: %q, %v", out, err)
		}
	})

	bound := p.Srv.Snapshot(t)
	resent := p.server.Len()
	for i, proof := range proofs {
		p.Bad.SendUDP(t, fmt.Sprintf("%s:%d", BadAddr, 5000+i), proof.dst.String(), proof.payload)
		p.Bad.SendUDP(t, first, proof.dst.String(), proof.payload)
	}
	p.server.WaitLogFrom(t, resent, BadAddr+`:\d+ refused: not a challenge that was given to this address`, commandTimeout)
	p.server.WaitLogFrom(t, resent, first+` refused: (older than the newest accepted|the challenge was given too long ago)`, commandTimeout)
	if logs := p.server.Logs()[resent:]; strings.Contains(logs, "authenticated") {
		t.Errorf("a proof that was sent again authenticates:\n%s", logs)
	}
	SameState(t, "the server after proofs that were sent again", bound, p.Srv.Snapshot(t))
	p.works(t, 0)
	p.works(t, 1)

	stop(t, p.client[0])
	edit(t, p.config[1], "auth-challenge = true\n", "reply-on-auth-ok = true\n")
	version1 := p.ipipou(t, p.C1, "--config", p.config[1])
	p.server.WaitLogFrom(t, resent, `refused: version 1, and this tunnel wants --auth-challenge: set it on the client too`, commandTimeout)
	stop(t, p.server, version1, p.client[1])
	sameStates(t, "after the challenges", p.dir, before)
}
