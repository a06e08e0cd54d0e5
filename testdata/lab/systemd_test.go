package lab

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// A box is a host with a systemd of its own: a namespace, and a copy of all files.
type box struct {
	*NS
	pid int // of its systemd
}

// newBox boots it, and installs this tree's package as version 1.
func newBox(t *testing.T, ns *NS) *box {
	t.Helper()
	p := ns.Start(t, "sh", "systemd.sh", t.TempDir())
	b := &box{NS: ns}
	Eventually(t, commandTimeout, func() (err error) {
		unshare, err := child(p.Pid())
		if err == nil {
			b.pid, err = child(unshare)
		}
		if err == nil {
			err = b.try("systemctl", "is-active", "-q", "lab.target")
		}
		if err != nil && p.ended() {
			t.Fatalf("no systemd: %s", p.Logs())
		}
		return err
	})
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := run("", b.command("journalctl", "--no-pager", "-o", "short-precise", "-n", "200", "-u", "ipipou@*")...)
			t.Logf("the journal of %s:\n%s", ns.Name, out)
		}
		if err := syscall.Kill(b.pid, syscall.SIGKILL); err != nil {
			t.Error(err)
		}
		p.Wait(t, commandTimeout)
	})
	b.do(t, "dpkg", "-i", Package(t, "1"))
	return b
}

// child is the one child of a process.
func child(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

func (b *box) command(argv ...string) []string {
	return append([]string{"nsenter", "-t", strconv.Itoa(b.pid), "-m", "-u", "-i", "-n", "-p", "-C", "env", "-i", "HOME=/root",
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"}, argv...)
}

func (b *box) try(argv ...string) error {
	_, err := run("", b.command(argv...)...)
	return err
}

// do runs a command on the host, and returns what it printed.
func (b *box) do(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := run("", b.command(argv...)...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// write makes a file that only root can read.
func (b *box) write(t *testing.T, path, text string) {
	t.Helper()
	b.copied(t, path, text, "600")
}

func (b *box) copied(t *testing.T, path, text, mode string) {
	t.Helper()
	if _, err := run(text, b.command("install", "-D", "-m", mode, "/dev/stdin", path)...); err != nil {
		t.Fatal(err)
	}
}

// shows waits until a unit's property has a value.
func (b *box) shows(t *testing.T, unit, property, want string) {
	t.Helper()
	Eventually(t, commandTimeout, func() error {
		if got := b.do(t, "systemctl", "show", "-P", property, unit); got != want {
			return fmt.Errorf("%s of %s is %q, want %q", property, unit, got, want)
		}
		return nil
	})
}

// journal waits until the journal of a unit has a line with a text, at that priority or a more urgent one.
func (b *box) journal(t *testing.T, unit, priority, text string) (all string) {
	t.Helper()
	Eventually(t, commandTimeout, func() error {
		all = b.do(t, "journalctl", "--no-pager", "-o", "cat", "-p", priority, "_SYSTEMD_UNIT="+unit+".service")
		if !strings.Contains(all, text) {
			return fmt.Errorf("no %q in the journal of %s at %s:\n%s", text, unit, priority, all)
		}
		return nil
	})
	return all
}

// gone fails the test if something of an instance is left in its run-time directory.
func (b *box) gone(t *testing.T, name string) {
	t.Helper()
	if left := b.do(t, "sh", "-c", `ls -A "$0" 2>/dev/null || :`, "/run/ipipou/"+name+"/"); left != "" {
		t.Errorf("in /run/ipipou/%s: %s", name, left)
	}
}

// The unit under a systemd: a server and a client, both the dynamic user's with root's configurations.
func TestSystemd(t *testing.T) {
	t.Parallel()
	p := newPair(t, "forward = true\nforward-to = [\"lo\"]\n", "")
	before := p.Srv.Snapshot(t)
	b := newBox(t, p.Srv)
	for i, name := range []string{"office", "", "branch"} {
		if name == "" {
			continue
		}
		text, err := os.ReadFile(p.config[i])
		if err != nil {
			t.Fatal(err)
		}
		b.write(t, "/etc/ipipou/"+name+".toml", string(text))
	}
	// The client is another host's, of the same systemd.
	b.copied(t, "/etc/systemd/system/ipipou@branch.service.d/lab.conf",
		"[Service]\nNetworkNamespacePath=/run/netns/"+p.C2.Name+"\nRestartSec=1\n", "644")
	b.do(t, "systemctl", "daemon-reload")

	// It is started when it is up, not before.
	b.do(t, "systemctl", "start", "ipipou@office")
	p.Srv.Run(t, "nft", "list", "table", "ip", "ipipou0")
	b.shows(t, "ipipou@office", "StatusText", "0 of 2 tunnels up")
	if on := p.Srv.Run(t, "cat", "/proc/sys/net/ipv4/ip_forward"); on != "1\n" {
		t.Errorf("the unit's process could not turn forwarding on: it is %q", on)
	}
	p.client[0] = p.ipipou(t, p.C1, "--config", p.config[1])
	p.client[0].WaitLog(t, `ipipou0: up`, commandTimeout)
	p.works(t, 0)
	b.shows(t, "ipipou@office", "StatusText", "1 of 2 tunnels up")
	b.do(t, "systemctl", "start", "ipipou@branch")
	p.C2.Run(t, "ip", "link", "show", "dev", "ipipou1")
	b.shows(t, "ipipou@branch", "StatusText", "1 of 1 tunnels up")
	b.shows(t, "ipipou@office", "StatusText", "2 of 2 tunnels up")
	p.works(t, 1)
	TransferTCP(t, p.C2, p.Srv, serverInner[1], 1<<20)

	// Capabilities of what serves are those of the threat model, and no more.
	pid := b.do(t, "systemctl", "show", "-P", "MainPID", "ipipou@office")
	own := capabilities(12, 13) // NET_ADMIN, NET_RAW
	parseStatus(t, b.do(t, "cat", "/proc/"+pid+"/status")+"\n").is(t, "the unit's process",
		statusFile{"CapEff": own, "CapPrm": own, "CapAmb": own, "NoNewPrivs": 1})

	// To reload is to authenticate anew.
	seen := b.do(t, "journalctl", "--no-pager", "-o", "cat", "-u", "ipipou@office")
	b.do(t, "systemctl", "reload", "ipipou@branch")
	b.journal(t, "ipipou@branch", "info", "SIGUSR1: authenticating anew")
	Eventually(t, commandTimeout, func() error {
		now := b.do(t, "journalctl", "--no-pager", "-o", "cat", "-u", "ipipou@office")
		if count(now, "ipipou1: .* authenticated") <= count(seen, "ipipou1: .* authenticated") {
			return errors.New("the server has not heard of it")
		}
		return nil
	})
	b.shows(t, "ipipou@branch", "ActiveState", "active")

	// Who is killed is started anew, and undoes what was left.
	b.do(t, "systemctl", "kill", "-s", "KILL", "ipipou@branch")
	warnings := b.journal(t, "ipipou@branch", "warning", "an earlier branch died and left")
	if strings.Contains(warnings, "SIGUSR1") {
		t.Errorf("among the warnings there is other:\n%s", warnings)
	}
	b.shows(t, "ipipou@branch", "StatusText", "1 of 1 tunnels up")
	p.works(t, 1)

	// An upgrade takes no tunnel down.
	b.do(t, "dpkg", "-i", Package(t, "2"))
	if v := b.do(t, "ipipou", "--version"); v != "2" {
		t.Errorf("version %q after the upgrade", v)
	}
	if now := b.do(t, "systemctl", "show", "-P", "MainPID", "ipipou@office"); now != pid {
		t.Errorf("after the upgrade process %s serves, it was %s", now, pid)
	}
	p.works(t, 1)
	TransferTCP(t, p.Srv, p.C2, clientInner[1], 1<<20)

	// `down` finds an instance of a unit's; what ends by itself is not started anew.
	if done := b.do(t, "ipipou", "down", "branch"); !strings.HasPrefix(done, "branch: stopped (process ") {
		t.Error(done)
	}
	b.shows(t, "ipipou@branch", "ActiveState", "inactive")
	b.gone(t, "branch")
	if out, err := p.C2.Try("ip", "link", "show", "dev", "ipipou1"); err == nil {
		t.Errorf("left: %s", out)
	}
	stop(t, p.client[0])
	b.do(t, "systemctl", "stop", "ipipou@office")
	b.gone(t, "office")
	SameState(t, "the server", before, p.Srv.Snapshot(t))

	b.servesPythonUnit(t, p)

	// To remove the package is to stop what runs, and a purge leaves the operator's files alone.
	b.do(t, "systemctl", "enable", "ipipou@office")
	b.do(t, "systemctl", "start", "ipipou.target")
	b.shows(t, "ipipou@office", "ActiveState", "active")
	b.do(t, "dpkg", "--purge", "ipipou")
	SameState(t, "the server, without the package", before, p.Srv.Snapshot(t))
	places := "/etc/ipipou /etc/systemd /usr/bin/ipipou /usr/lib/systemd/system /usr/share/doc/ipipou /var/lib/ipipou /var/lib/private /run/ipipou /run/private"
	left := strings.Fields(b.do(t, "sh", "-c", "find "+places+" -name '*ipipou*' 2>/dev/null || :"))
	// The second is the test's own.
	if want := []string{"/etc/ipipou", "/etc/systemd/system/ipipou@branch.service.d"}; !slices.Equal(left, want) {
		t.Errorf("a purge leaves %q, want %q", left, want)
	}
}

// pythonUnit does what the Python tool's does.
const pythonUnit = `[Unit]
After=network-online.target nss-lookup.target
Wants=network-online.target nss-lookup.target

[Service]
Type=simple
DynamicUser=yes
AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW
ProtectSystem=strict
StandardInput=null
ExecStartPre=+/sbin/modprobe fou
ExecStartPre=+/sbin/modprobe ipip
ExecStart=/usr/local/bin/ipipou --config %i --no-log-time --no-log-pid
ExecReload=/bin/kill -SIGUSR1 $MAINPID
KillMode=process
TimeoutStopSec=3s
SuccessExitStatus=200
`

// servesPythonUnit runs a server of the Python tool's: its unit, its configuration, its path of the program.
func (b *box) servesPythonUnit(t *testing.T, p *pair) {
	t.Helper()
	b.copied(t, "/etc/systemd/system/ipipou@.service", pythonUnit, "644")
	b.copied(t, "/etc/ipipou/lab.conf", "server\nfou-dev s0\nauth-token t\nreply-on-auth-ok\nnumber 7\nverb 2\n", "644")
	b.do(t, "ln", "-s", "/usr/bin/ipipou", "/usr/local/bin/ipipou")
	b.do(t, "systemctl", "daemon-reload")
	b.do(t, "systemctl", "start", "ipipou@lab")
	b.journal(t, "ipipou@lab", "info", "ipipou7: waiting for an authentication")
	client := p.ipipou(t, p.C1, "-b", "@c0", "-n", "8", "-r", SrvAddr+":10007", "--auth-token", "t", "--reply-on-auth-ok", "--tunl-ip", "172.28.0.15", "--verb", "2")
	client.WaitLog(t, "ipipou8: up", commandTimeout)
	p.C1.Ping(t, "172.28.0.14")
	stop(t, client)
	b.do(t, "systemctl", "stop", "ipipou@lab")
	b.shows(t, "ipipou@lab", "Result", "success")
	b.do(t, "rm", "/etc/systemd/system/ipipou@.service", "/usr/local/bin/ipipou", "/etc/ipipou/lab.conf")
	b.do(t, "systemctl", "daemon-reload")
}

// exposed fails the test if systemd finds more to object to in a unit than docs/systemd.md says.
func (b *box) exposed(t *testing.T, unit, row string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/systemd.md")
	if err != nil {
		t.Fatal(err)
	}
	score := regexp.MustCompile(`(?m)^\| ` + row + ` \| (\d)\.(\d) \|`).FindSubmatch(text)
	if score == nil {
		t.Fatalf("docs/systemd.md has no score of %s", row)
	}
	b.do(t, "systemd-analyze", "security", "--no-pager", "--threshold="+string(score[1])+string(score[2]), unit)
}

// What the unit does not allow, the drop-ins among the examples do: BPF, and hooks that want root.
func TestBPFUnit(t *testing.T) {
	t.Parallel()
	ns := oneHost(t)
	ns.Run(t, "sh", "-c", "test -c /dev/net/tun || modprobe tun") // a boot by systemd makes the node (kmod-static-nodes.service)
	ns.Run(t, "tc", "qdisc", "add", "dev", "s0", "clsact")        // which two instances that share it leave
	before := ns.Snapshot(t)
	b := newBox(t, ns)
	dropIn := func(name, conf string) {
		b.do(t, "sh", "-c", `mkdir -p "$1" && cp "/usr/share/doc/ipipou/examples/$2" "$1" && systemctl daemon-reload`, "sh",
			"/etc/systemd/system/ipipou@"+name+".service.d", conf)
	}
	common := "static = true\nbackend = \"bpf\"\nfou-dev = \"s0\"\nfou-remote = \"" + BadAddr + "\"\nverb = 2\n"
	b.write(t, "/etc/ipipou/bpf.toml", common+"tunl-ip = \"10.7.0.1/30\"\n")
	b.write(t, "/etc/ipipou/hooks.toml", common+"number = 1\nmode = \"sit\"\ntunl-ip = \"fd00::1/64\"\npre-up = [\"touch\", \"/hooked\"]\npost-down = [\"rm\", \"/hooked\"]\n")

	if err := b.try("systemctl", "start", "ipipou@bpf"); err == nil {
		t.Error("BPF works without the drop-in: who needs it?")
	}
	b.journal(t, "ipipou@bpf", "err", "give it to the unit (bpf.conf among")
	b.do(t, "systemctl", "stop", "ipipou@bpf")
	dropIn("bpf", "bpf.conf")
	dropIn("bpf", "modules.conf") // neither takes away what the other has
	b.do(t, "systemctl", "start", "ipipou@bpf")
	ns.Run(t, "ip", "link", "show", "dev", "ipipou0")
	if pre := b.do(t, "systemctl", "show", "-P", "ExecStartPre", "ipipou@bpf"); count(pre, "fou ipip |tun |fou ip_gre ") != 3 {
		t.Errorf("modules are loaded by %s", pre)
	}
	if out := b.do(t, "ipipou", "status", "--config", "bpf"); !strings.Contains(out, "10.7.0.1") {
		t.Errorf("status: %s", out)
	}

	b.exposed(t, "ipipou@office", "the unit")
	b.exposed(t, "ipipou@bpf", "with bpf.conf")

	dropIn("hooks", "hooks.conf")
	b.do(t, "systemctl", "start", "ipipou@hooks")
	b.do(t, "test", "-e", "/hooked")
	// Killed, it is started anew: the mount was in a namespace that is gone.
	b.do(t, "systemctl", "kill", "-s", "KILL", "ipipou@bpf")
	b.do(t, "systemctl", "stop", "ipipou@bpf")
	b.do(t, "systemctl", "start", "ipipou@bpf")
	b.journal(t, "ipipou@bpf", "warning", "an earlier bpf died and left")
	b.shows(t, "ipipou@bpf", "StatusText", "1 of 1 tunnels up")
	for _, name := range []string{"bpf", "hooks"} {
		b.do(t, "systemctl", "stop", "ipipou@"+name)
		b.shows(t, "ipipou@"+name, "Result", "success")
		b.gone(t, name)
	}
	b.do(t, "test", "!", "-e", "/hooked")
	SameState(t, "the host", before, ns.Snapshot(t))
}
