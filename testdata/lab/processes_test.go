package lab

import (
	"strings"
	"testing"
)

// How the Python tool is used: a process for each tunnel. They know nothing of each other, and the second client
// behind the same public address gets its alternate address all the same.
func TestProcessForEachTunnel(t *testing.T) {
	t.Parallel()
	n := NewNet(t)
	dir := t.TempDir()
	before := n.Srv.Snapshot(t)
	var servers, clients [2]*Proc
	for i := range 2 {
		private, public := keygen(t)
		number := string(rune('0' + i))
		servers[i] = startIPIPOU(t, dir, n.Srv, "-s", "-vvv", "-b", "@s0", "-n"+number, "--auth-secret", "topsecret",
			"--auth-remote-pubkey-b64", public, "--reply-on-auth-ok")
		servers[i].WaitLog(t, "waiting for an authentication", commandTimeout)
		clients[i] = startIPIPOU(t, dir, []*NS{n.C1, n.C2}[i], "-c", "-vvv", "-b", "@c0", "-n", number,
			"-r", SrvAddr+":1000"+number, "--auth-key-b64", private, "--auth-secret", "topsecret", "--tunl-ip", clientInner[i], "--keepalive", "27")
		servers[i].WaitLog(t, "peer bound", commandTimeout)
		clients[i].WaitLog(t, ": up", commandTimeout)
	}
	if !strings.Contains(servers[1].Logs(), "using the alternate local address 172.29.0.1") {
		t.Error("the second tunnel did not take its alternate address")
	}
	for i, ns := range []*NS{n.C1, n.C2} {
		ns.Ping(t, serverInner[i])
		n.Srv.Ping(t, clientInner[i])
	}
	// The one that holds the main address ends; the other goes on.
	stop(t, servers[0])
	n.C2.Ping(t, serverInner[1])
	stop(t, servers[1], clients[0], clients[1])
	SameState(t, "the server", before, n.Srv.Snapshot(t))
}

// The Python tool's unit runs it as a user of systemd's making with two capabilities, all file systems read-only.
func TestCapabilitiesAreEnough(t *testing.T) {
	t.Parallel()
	n := NewNet(t)
	before := n.Srv.Snapshot(t)
	as := []string{"setpriv", "--reuid", "64999", "--regid", "64999", "--clear-groups", "--inh-caps", "-all,+net_admin,+net_raw",
		"--ambient-caps", "-all,+net_admin,+net_raw", "--bounding-set", "-all,+net_admin,+net_raw", "--no-new-privs"}
	start := func(ns *NS, args ...string) *Proc {
		return ns.Start(t, append(append(as, Bin(t)), args...)...)
	}
	server := start(n.Srv, "-s", "-vvv", "-b", "@s0", "-n", "7", "--auth-token", "t", "--reply-on-auth-ok", "--force-fou-local-ip-alt")
	server.WaitLog(t, "waiting for an authentication", commandTimeout)
	server.WaitLog(t, `journal is kept in /tmp/ipipou-64999`, commandTimeout)
	client := start(n.C1, "-vvv", "-b", "@c0", "-n", "8", "-r", SrvAddr+":10007", "--auth-token", "t", "--tunl-ip", "172.28.0.15")
	client.WaitLog(t, ": up", commandTimeout)
	n.C1.Ping(t, "172.28.0.14")
	stop(t, client, server)
	SameState(t, "the server", before, n.Srv.Snapshot(t))
}
