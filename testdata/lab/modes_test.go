package lab

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A mode is a pair of command lines whose tunnel has to work.
type mode struct {
	name           string
	server, client []string
	seenAs         string // what the router maps the client to, "": its own choice
	then           func(t *testing.T, s *solo)
}

// runModes runs each mode on one network, which must be the same after them all.
func runModes(t *testing.T, modes []mode) {
	s := newSolo(t)
	server, client := s.Srv.Snapshot(t), s.C1.Snapshot(t)
	for _, m := range modes {
		t.Run(m.name, func(t *testing.T) {
			s.NATForce(t, C1Addr, m.seenAs)
			s.startServer(t, m.server...)
			s.startClient(t, m.client...)
			s.works(t)
			if m.then != nil {
				m.then(t, s)
				s.works(t)
			}
			asPlanned(t, s.client, s.server)
			stop(t, s.client, s.server)
			for _, p := range []*Proc{s.server, s.client} {
				if logs := p.Logs(); count(logs, "ERROR") > 0 {
					t.Errorf("%s: errors in the log", p)
				}
			}
		})
	}
	SameState(t, "the server after all modes", server, s.Srv.Snapshot(t))
	SameState(t, "the client after all modes", client, s.C1.Snapshot(t))
	noJournal(t, s.dir, s.Srv)
	noJournal(t, s.dir, s.C1)
}

// roam maps the client to another address, and lets it say so.
func (s *solo) roam(t testing.TB, to string) {
	t.Helper()
	n := s.server.Len()
	s.NATForce(t, C1Addr, to)
	s.client.Signal(t, syscall.SIGUSR1)
	s.moves(t, n, to)
}

// refusedAs waits for the server's word that it refuses a source.
func (s *solo) refusedAs(t testing.TB, n int, src, reason string) {
	t.Helper()
	s.server.WaitLogFrom(t, n, ` WARN ipipou0: `+regexp.QuoteMeta(src)+` refused: `+reason, commandTimeout)
}

// authOf wants what comes from the client's FOU port to the server's and is no tunnel data; replyOf, the way back.
func authOf(p packet) bool {
	return p.dst.String() == SrvAddr+":10000" && p.src.Port() == 10000 && !isInner(p.payload)
}

func replyOf(p packet) bool { return p.src.String() == SrvAddr+":10000" && !isInner(p.payload) }

// onTheWire checks an authentication and its reply as the router hears them.
func onTheWire(t testing.TB, what string, p packet, ttl byte) {
	t.Helper()
	if p.ttl != ttl {
		t.Errorf("%s: TTL %d on the wire, want %d", what, p.ttl, ttl)
	}
	if p.checksum == 0 || !p.right {
		t.Errorf("%s: UDP checksum %#04x is wrong", what, p.checksum)
	}
}

func TestTokenModes(t *testing.T) {
	t.Parallel()
	token, binary := []byte("a token of this lab's"), []byte{0, 1, 2, 0xff, 'E', '\n', '"', '$', '{', 0x80}
	b64 := base64.StdEncoding.EncodeToString(binary)
	runModes(t, []mode{{
		name:   "token and reply",
		server: []string{"-b", SrvAddr, "--auth-token", string(token), "--reply-on-auth-ok", "--auth-packet-ttl", "55"},
		client: []string{"--auth-token", string(token), "--reply-on-auth-ok", "--auth-packet-ttl", "77"},
		then: func(t *testing.T, s *solo) {
			clientSide, serverSide := s.Rtr.Sniff(t, "r1"), s.Rtr.Sniff(t, "r0")
			n := s.client.Len()
			s.client.Signal(t, syscall.SIGUSR1)
			s.client.WaitLogFrom(t, n, `reply source=`+SrvAddr+`:10000 length=\d+ ok=true`, commandTimeout)
			auth := clientSide.wait(t, "an authentication", authOf)
			onTheWire(t, "the authentication", auth, 77)
			if !bytes.Equal(auth.payload, token) || auth.src.String() != C1Addr+":10000" {
				t.Errorf("authentication of %s: %q", auth.src, auth.payload)
			}
			reply := serverSide.wait(t, "a reply", replyOf)
			onTheWire(t, "the reply", reply, 55)
			slices.Reverse(reply.payload)
			if !bytes.Equal(reply.payload, token) || reply.dst.String() != RtrAddr+":10000" {
				t.Errorf("reply to %s, reversed: %q", reply.dst, reply.payload)
			}
			// Signals that mean nothing end nothing.
			for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR2} {
				for _, p := range []*Proc{s.server, s.client} {
					p.Signal(t, sig)
					p.WaitLog(t, regexp.QuoteMeta(sig.String())+": ignored", commandTimeout)
				}
			}
			s.server.Signal(t, syscall.SIGUSR1)
			s.server.WaitLog(t, "SIGUSR1: ignored", commandTimeout)
			for _, p := range []*Proc{s.server, s.client} {
				if strings.Contains(p.Logs(), string(token)) {
					t.Errorf("%s: the token is in the log", p)
				}
			}
		},
	}, {
		name:   "binary token without reply",
		server: []string{"--fou-dev", "s0", "--auth-token-b64", b64, "--no-nft-counter"},
		client: []string{"--auth-token-b64", b64},
		then: func(t *testing.T, s *solo) {
			clientSide, serverSide := s.Rtr.Sniff(t, "r1"), s.Rtr.Sniff(t, "r0")
			s.roam(t, RtrAddr2+":4000")
			if auth := clientSide.wait(t, "an authentication", authOf); !bytes.Equal(auth.payload, binary) {
				t.Errorf("authentication %q, want %q", auth.payload, binary)
			}
			s.works(t)
			if p, ok := serverSide.find(replyOf); ok {
				t.Errorf("a reply that nobody asked for: %+v", p)
			}
			if rules := s.Srv.Run(t, "nft", "list", "table", "ip", "ipipou0"); strings.Contains(rules, "counter") {
				t.Errorf("counters in\n%s", rules)
			}
		},
	}, {
		name:   "token from one address and port only",
		seenAs: RtrAddr + ":4000",
		server: []string{"--fou-dev", "s0", "--auth-token", string(token), "--auth-by-remote-ip", "--auth-by-remote-port", "-r", RtrAddr + ":4000"},
		client: []string{"--auth-token", string(token)},
		then: func(t *testing.T, s *solo) {
			for to, reason := range map[string]string{
				RtrAddr2 + ":4000": "source address is not the allowed one",
				RtrAddr + ":4001":  "source port is not the allowed one",
			} {
				n := s.server.Len()
				s.NATForce(t, C1Addr, to)
				s.client.Signal(t, syscall.SIGUSR1)
				s.refusedAs(t, n, to, reason)
			}
			s.NATForce(t, C1Addr, RtrAddr+":4000")
		},
	}})
}

func TestAddressModes(t *testing.T) {
	t.Parallel()
	dataRoams := func(to string) func(t *testing.T, s *solo) {
		return func(t *testing.T, s *solo) {
			n := s.server.Len()
			s.NATForce(t, C1Addr, to)
			// Nothing is said but in the tunnel.
			s.C1.Ping(t, serverInner[0])
			s.moves(t, n, to)
		}
	}
	runModes(t, []mode{{
		name:   "by address",
		server: []string{"--fou-dev", "s0", "--auth-by-remote-ip", "-r", RtrAddr, "--reply-on-auth-ok"},
		client: []string{"--reply-on-auth-ok"},
		then: func(t *testing.T, s *solo) {
			s.client.WaitLog(t, `ipipou0: up`, commandTimeout)
			dataRoams(RtrAddr+":4000")(t, s)
			s.works(t)
			s.roam(t, RtrAddr+":4001")
			// A stranger's data and greetings move nothing. The latter are refused aloud.
			n := s.server.Len()
			was := s.Srv.Counters(t, "ipipou0")
			s.Bad.SendUDP(t, BadAddr+":10000", SrvAddr+":10000", IPv4Echo(clientInner[0], serverInner[0], 1, 1))
			s.Bad.SendUDP(t, BadAddr+":10000", SrvAddr+":10000", []byte("hello"))
			s.refusedAs(t, n, BadAddr+":10000", "source address is not the allowed one")
			if now := s.Srv.Counters(t, "ipipou0"); now.RX != was.RX {
				t.Errorf("a stranger reached the tunnel: %+v, before %+v", now.RX, was.RX)
			}
		},
	}, {
		name:   "by port",
		server: []string{"-b", "@s0", "--auth-by-remote-port", "-r", ":10000"},
		then: func(t *testing.T, s *solo) {
			dataRoams(RtrAddr2+":10000")(t, s)
			n := s.server.Len()
			s.NATForce(t, C1Addr, RtrAddr2+":4000")
			s.client.Signal(t, syscall.SIGUSR1)
			s.refusedAs(t, n, RtrAddr2+":4000", "source port is not the allowed one")
			s.roam(t, RtrAddr3+":10000")
		},
	}, {
		name:   "whoever comes",
		server: []string{"--fou-dev", "s0"},
		then: func(t *testing.T, s *solo) {
			if n := count(s.server.Logs(), `WARN no authentication: whoever sends a packet becomes the peer`); n != 1 {
				t.Errorf("%d warnings that nobody has to prove anything, want 1", n)
			}
			dataRoams(RtrAddr2+":4000")(t, s)
		},
	}})
}

func TestKeyModes(t *testing.T) {
	t.Parallel()
	client, server := newKey(t), newKey(t)
	const secret = "the lab's own secret"
	serverKey := []string{"--auth-key-b64", server.private, "--auth-remote-pubkey-b64", client.public, "--auth-secret", secret, "--reply-on-auth-ok"}
	clientKey := []string{"--auth-key-b64", client.private, "--auth-remote-pubkey-b64", server.public, "--auth-secret", secret, "--reply-on-auth-ok"}
	with := func(args []string, more ...string) []string { return append(slices.Clone(args), more...) }
	checksums := func(on bool) func(t *testing.T, s *solo) {
		return func(t *testing.T, s *solo) {
			// The tunnel's first ends, and those that were set on it later.
			for _, to := range []string{RtrAddr2 + ":4000", ""} {
				for _, ns := range []*NS{s.Srv, s.C1} {
					if l := ns.link(t, "ipipou0"); l.LinkInfo.Data.Encap.Csum != on || l.LinkInfo.Data.Encap.Type != "fou" {
						t.Errorf("in %s: %+v, want checksums: %v", ns.Name, l, on)
					}
				}
				wires := map[*NS]*sniffer{s.C1: s.Rtr.Sniff(t, "r1"), s.Srv: s.Rtr.Sniff(t, "r0")}
				s.works(t)
				for ns, wire := range wires {
					p := wire.wait(t, "tunnel data", func(p packet) bool { return isInner(p.payload) })
					if (p.checksum != 0) != on {
						t.Errorf("from %s: UDP checksum %#04x, want one: %v", ns.Name, p.checksum, on)
					}
				}
				if to != "" {
					s.roam(t, to)
				}
			}
		}
	}
	runModes(t, []mode{{
		name:   "keys and address",
		server: with(serverKey, "--fou-dev", "s0", "--auth-by-remote-ip", "-r", RtrAddr),
		client: clientKey,
		then: func(t *testing.T, s *solo) {
			clientSide, serverSide := s.Rtr.Sniff(t, "r1"), s.Rtr.Sniff(t, "r0")
			n := s.server.Len()
			s.NATForce(t, C1Addr, RtrAddr2+":4000")
			s.client.Signal(t, syscall.SIGUSR1)
			s.refusedAs(t, n, RtrAddr2+":4000", "source address is not the allowed one")
			s.roam(t, RtrAddr+":4001")
			auth := clientSide.wait(t, "an authentication", authOf)
			onTheWire(t, "the authentication", auth, 64)
			if !client.signed(secret, auth.payload) {
				t.Errorf("authentication %x", auth.payload)
			}
			reply := serverSide.wait(t, "a reply", replyOf)
			onTheWire(t, "the reply", reply, 64)
			if !server.signed(secret, reply.payload) {
				t.Errorf("reply %x", reply.payload)
			}
		},
	}, {
		name:   "forced alternate address, no device",
		server: with(serverKey, "-b", SrvAddr+":10000", "--force-fou-local-ip-alt"),
		client: clientKey,
		then: func(t *testing.T, s *solo) {
			for _, to := range []string{RtrAddr + ":4000", RtrAddr3 + ":4001"} {
				s.roam(t, to)
				s.works(t)
				if l := s.Srv.link(t, "ipipou0").LinkInfo.Data; l.Local != "172.29.0.0" || l.Remote+":"+fmt.Sprint(l.Encap.Dport) != to {
					t.Errorf("the tunnel is %+v, want it from 172.29.0.0 to %s", l, to)
				}
				if out := s.Srv.Run(t, "ip", "-4", "-o", "addr", "show", "dev", "s0"); !strings.Contains(out, "172.29.0.0/32") {
					t.Errorf("the alternate address is not on s0:\n%s", out)
				}
			}
		},
	}, {
		name:   "checksums",
		server: with(serverKey, "--fou-dev", "s0", "--encap-csum"),
		client: with(clientKey, "--encap-csum"),
		then:   checksums(true),
	}, {
		name:   "no checksums",
		server: with(serverKey, "--fou-dev", "s0", "--no-encap-csum"),
		client: with(clientKey, "--no-encap-csum"),
		then:   checksums(false),
	}, {
		name:   "reply of a server without a key",
		server: []string{"--fou-dev", "s0", "--auth-remote-pubkey-b64", client.public, "--auth-secret", secret, "--reply-on-auth-ok"},
		client: []string{"--auth-key-b64", client.private, "--auth-secret", secret},
		then: func(t *testing.T, s *solo) {
			s.client.WaitLog(t, `ipipou0: up`, commandTimeout)
			if n := count(s.client.Logs(), "WARN"); n > 0 {
				t.Errorf("%d warnings of the client", n)
			}
		},
	}})
}

// The Python tool's unit files and configuration do, and so does its way to authenticate from a second process.
func TestLegacyUnit(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	before := s.Srv.Snapshot(t)
	client, server := newKey(t), newKey(t)
	files := map[string]string{
		"lab-server0.conf": "# the Python tool's example\n--server\n\tnumber 0\n  fou-dev s0\n-auth-secret of the lab\n" +
			"auth-key-b64 " + server.private + "\nauth-remote-pubkey-b64 " + client.public + "\nreply-on-auth-ok\nqueue-number 1234\n\n",
		"lab-client0.conf": "client\nnumber 0\nfou-dev c0\nfou-remote " + SrvAddr + ":10000\ntunl-ip " + clientInner[0] +
			"\nauth-secret of the lab\nauth-key-b64 " + client.private + "\nauth-remote-pubkey-b64 " + server.public + "\n",
	}
	if err := os.MkdirAll("/etc/ipipou", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		path := "/etc/ipipou/" + name
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
	}
	s.server = s.launch(t, s.Srv, "--config", "lab-server0", "--no-log-time", "--no-log-pid", "--verb", "3")
	s.server.WaitLog(t, `(?m)^ INFO ipipou0: waiting for an authentication at 203\.0\.113\.1:10000$`, commandTimeout)
	s.client = s.launch(t, s.C1, "--config", "lab-client0", "--no-log-time", "--no-log-pid", "-v", "-v", "-v")
	s.client.WaitLog(t, `(?m)^ INFO ipipou0: up, 203\.0\.113\.1:10000 replies$`, commandTimeout)
	s.works(t)

	n := s.server.Len()
	s.NATForce(t, C1Addr, RtrAddr+":4000")
	out, err := s.C1.Try(Bin(t), "--config", "lab-client0", "--reauth-only")
	if err != nil || out != "" {
		t.Errorf("--reauth-only: %q, %v", out, err)
	}
	s.moves(t, n, RtrAddr+":4000")
	s.works(t)
	stop(t, s.client, s.server)
	for _, p := range []*Proc{s.server, s.client} {
		for line := range strings.Lines(p.Logs()) {
			if regexp.MustCompile(`^\d`).MatchString(line) {
				t.Errorf("time or process number in %q", line)
			}
		}
		if n := count(p.Logs(), "WARN|ERROR"); n > 0 && p == s.client {
			t.Errorf("%s: %d warnings or errors", p, n)
		}
	}
	SameState(t, "the server in the end", before, s.Srv.Snapshot(t))
}
