package lab

import (
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// A server on whose host connection tracking is not even loaded: it works, and still isn't loaded afterwards.
//
// The first test of all: a connection that another one closed as it ended keeps its namespace, and so the modules, for
// minutes, while nobody acknowledges its end.
func TestNoConnectionTrackingLoaded(t *testing.T) {
	// A network without NAT, for that would load it.
	sw, srv, client := NewNS(t, "nct"), NewNS(t, "nct"), NewNS(t, "nct")
	sw.batch(t, "link add br0 type bridge", "link set br0 up",
		veth("p-srv", 1, "s0", srv), veth("p-cli", 2, "c0", client), "link set p-srv up master br0", "link set p-cli up master br0")
	srv.batch(t, "addr add "+SrvAddr+"/24 dev s0", "link set s0 up")
	client.batch(t, "addr add "+BadAddr+"/24 dev c0", "link set c0 up")
	for _, ns := range []*NS{sw, srv, client} {
		ns.waitRunning(t)
	}
	loaded := func() bool {
		out, err := run("", "lsmod")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(out, "nf_conntrack")
	}
	if loaded() {
		t.Cleanup(func() {
			if err := LoadModules(); err != nil {
				t.Error(err)
			}
		})
		Eventually(t, commandTimeout, func() error {
			_, err := run("", "modprobe", "-r", "nft_ct", "nft_masq", "nft_nat", "nft_chain_nat", "nf_nat", "nf_conntrack_netlink", "nf_conntrack")
			return err
		})
	}
	if loaded() {
		t.Fatal("connection tracking can't be unloaded")
	}
	before := srv.Snapshot(t)
	dir := t.TempDir()
	server := startIPIPOU(t, dir, srv, "-s", "-vvv", "-b", "@s0", "--auth-token", "t", "--reply-on-auth-ok")
	server.WaitLog(t, "waiting for an authentication", commandTimeout)
	c := startIPIPOU(t, dir, client, "-vvv", "-b", "@c0", "-r", SrvAddr+":10000", "--auth-token", "t", "--tunl-ip", "172.28.0.1")
	c.WaitLog(t, ": up", commandTimeout)
	client.Ping(t, "172.28.0.0")
	TransferTCP(t, client, srv, "172.28.0.0", 5_000_000)
	if loaded() {
		t.Error("connection tracking was loaded")
	}
	server.Signal(t, syscall.SIGINT)
	if code := server.Wait(t, commandTimeout); code != 0 {
		t.Errorf("exit %d", code)
	}
	stop(t, c)
	SameState(t, "the server", before, srv.Snapshot(t))
}

// All that `ipipou check` looks at is there as a module, and none of it was loaded when the machine had booted: it said
// so, for the host and for what a server takes, and loaded nothing.
func TestCheckLoadsNothing(t *testing.T) {
	if atBoot.err != nil {
		t.Fatal(atBoot.err)
	}
	for _, name := range []string{"ipip", "fou", "sit", "ip_gre", "ip6_tunnel", "tun", "cls_bpf", "sch_ingress", "nf_tables"} {
		if strings.Contains("\n"+atBoot.before, "\n"+name+"\n") {
			t.Errorf("%s was loaded: this proves nothing of it", name)
		}
		if !regexp.MustCompile(`(?m)^ok +` + name + ` +a module, not loaded yet \(`).MatchString(atBoot.host) {
			t.Errorf("no line of %s, a module, in\n%s", name, atBoot.host)
		}
	}
	for _, want := range []string{`ok +firewall +none in the way of UDP port 10000`, `kernel drivers: yes; BPF: yes`} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(atBoot.host) {
			t.Errorf("no line like %s in\n%s", want, atBoot.host)
		}
	}
	for _, want := range []string{`ok +backend +the kernel's drivers: .*`, `ok +fou +a module, not loaded yet .*`, `ipipou0 will come up, carried by the kernel's drivers`} {
		if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(atBoot.server) {
			t.Errorf("no line like %s in\n%s", want, atBoot.server)
		}
	}
	if atBoot.after != atBoot.before {
		t.Errorf("modules before:\n%s\nafter:\n%s", atBoot.before, atBoot.after)
	}
}
