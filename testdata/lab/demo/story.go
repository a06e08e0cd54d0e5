package main

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"ipipou/testdata/lab"
)

const wait = time.Minute

func (d *demo) story() {
	d.net = lab.NewNet(d)
	d.clients = []*lab.NS{d.net.C1, d.net.C2}
	hosts := []*lab.NS{d.net.Srv, d.net.C1, d.net.C2}
	d.configure()

	d.heading("The network")
	d.say("Two clients behind one NAT router, a server in public, and a stranger next to it:")
	d.text("",
		"client 1  10.1.1.2 ──┐                                  ┌── 203.0.113.1   server",
		"                     ├── router, seen as 203.0.113.2 ───┤",
		"client 2  10.1.2.2 ──┘                                  └── 203.0.113.66  stranger", "")
	d.say("The server's configuration, of two tunnels in one process:")
	d.text(d.shown(0)...)

	d.heading("The plan")
	d.say("`ipipou --config server.toml --print-only` prints all that it would do as a shell script.")
	d.say("Its first operation:")
	d.text(d.plan(0, "up")...)
	d.say("And what it does when client 1 has proven who it is:")
	d.text(d.plan(0, "bind_0")...)

	var before []string
	for _, ns := range hosts {
		before = append(before, ns.Snapshot(d))
	}

	d.heading("The server starts")
	server := d.start("server", d.net.Srv, 0)
	d.server = server
	server.waitFor(d.path.tunnel(1) + `: waiting for an authentication`)

	var clients []*process
	for i := range d.clients {
		d.heading(fmt.Sprintf("Client %d starts", i+1))
		clients = append(clients, d.startClient(i, `peer bound at`))
	}
	d.say(d.path.together...)

	d.heading("Both tunnels carry packets")
	for i, ns := range d.clients {
		d.ping(i)
		d.transfer(fmt.Sprintf("client %d to server", i+1), ns, d.net.Srv, d.path.serverInner[i])
		d.transfer(fmt.Sprintf("server to client %d", i+1), d.net.Srv, ns, clientInner[i])
	}
	d.transfer("client 1 to server", d.net.C1, d.net.Srv, lab.SrvAddr)
	d.say("(The last one went beside the tunnels, for comparison. " + d.path.rate + ")")

	d.heading("Client 1 moves to another public port")
	d.say("The router forgets client 1 and gives it " + lab.RtrAddr2 + ":4242 from now on. The server has it at:")
	d.at(lab.RtrAddr + ":10000")
	addresses := d.addresses()
	d.net.NATForce(d, lab.C1Addr, lab.RtrAddr2+":4242")
	clients[0].signal(syscall.SIGUSR1, "client 1 is told to authenticate anew (SIGUSR1; --keepalive does it by itself):")
	server.waitFor(d.path.tunnel(0) + `: peer moved from \S+ to ` + regexp.QuoteMeta(lab.RtrAddr2) + `:4242`)
	clients[0].show()
	d.say("and now at:")
	d.at(lab.RtrAddr2 + ":4242")
	if now := d.addresses(); now != addresses {
		d.Errorf("the interface is not the one it was:\n%s%s", addresses, now)
	}
	d.say("It is the same interface, and its addresses and routes stayed.")
	d.ping(0)
	d.ping(1)

	d.heading("A stranger")
	d.stranger()

	d.heading("Client 2 is killed")
	clients[1].signal(syscall.SIGKILL, "kill -9 leaves everything as it is, and the tunnel goes on: no process carries it.")
	clients[1].Wait(d, wait)
	d.ping(1)
	d.say("Started again, it undoes first what was left.")
	clients[1] = d.startClient(1, `\S+ authenticated by`)
	if !strings.Contains(clients[1].Logs(), "undoing them first") {
		d.Error("client 2 found nothing to undo")
	}
	d.ping(1)

	d.heading("The end")
	for _, p := range append(clients, server) {
		p.signal(syscall.SIGTERM, p.name+" is stopped (SIGTERM):")
		if code := p.Wait(d, wait); code != 0 {
			d.Errorf("%s ended with exit code %d", p.name, code)
		}
		p.show()
	}
	d.say("Interfaces, addresses, routes, rules, " + d.path.also + "nft's rulesets and sysctls, compared with before the start:")
	for i, ns := range hosts {
		name := []string{"server", "client 1", "client 2"}[i]
		if diff := lab.Diff(before[i], ns.Snapshot(d)); diff != "" {
			d.Errorf("%s is not as it was (- before, + after):\n%s", name, diff)
			continue
		}
		if files, err := filepath.Glob(filepath.Join(d.dir, ns.Name, "run", "*")); err != nil || len(files) > 0 {
			d.Errorf("files are left on %s: %v (%v)", name, files, err)
		}
		d.say(fmt.Sprintf("  %-8s  the same, all %d facts", name, strings.Count(before[i], "\n")))
	}
}

// startClient starts a client, up to where both ends say that the tunnel is there.
func (d *demo) startClient(i int, said string) *process {
	c := d.start(fmt.Sprintf("client %d", i+1), d.clients[i], i+1)
	if i > 0 {
		c.like = "client 1"
	}
	c.waitFor(fmt.Sprintf(`ipipou%d: up`, i))
	d.server.waitFor(d.path.tunnel(i) + `: ` + said)
	return c
}
