package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A statusFile is what /proc/PID/status says of privileges: sets of capabilities, and NoNewPrivs.
type statusFile map[string]uint64

func parseStatus(t testing.TB, text string) statusFile {
	t.Helper()
	s := statusFile{}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":\t")
		if !strings.HasPrefix(name, "Cap") && name != "NoNewPrivs" {
			continue
		}
		n, err := strconv.ParseUint(value, 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		s[name] = n
	}
	if len(s) != 6 {
		t.Fatalf("privileges %v in\n%s", s, text)
	}
	return s
}

func readStatus(t testing.TB, path string) statusFile {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseStatus(t, string(text))
}

func (s statusFile) is(t testing.TB, who string, want statusFile) {
	t.Helper()
	for name, n := range want {
		if s[name] != n {
			t.Errorf("%s: %s is %#x, want %#x", who, name, s[name], n)
		}
	}
}

// all checks every thread of the process.
func (want statusFile) all(t testing.TB, p *Proc) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid()))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %v (%v)", tasks, err)
	}
	for _, path := range tasks {
		readStatus(t, path).is(t, path, want)
	}
}

func capabilities(numbers ...uint) (set uint64) {
	for _, n := range numbers {
		set |= 1 << n
	}
	return set
}

// noting wraps a command so that `ip` notes with what privileges it is run; children reads that. It is put over the
// real one in a mount table of its own, wherever PATH finds it.
func noting(t testing.TB) (wrap []string, children func() []statusFile) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\ncat /proc/self/status >>" + dir + "/status\nexec " + dir + "/real \"$@\"\n"
	if err := os.WriteFile(dir+"/ip", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	setup := `ip=$(command -v ip) && cp "$ip" "$0/real" && mount --bind "$0/ip" "$ip" && exec "$@"`
	return []string{"unshare", "-m", "sh", "-c", setup, dir}, func() (all []statusFile) {
		t.Helper()
		text, err := os.ReadFile(dir + "/status")
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range strings.Split(string(text), "Name:\t")[1:] {
			all = append(all, parseStatus(t, one))
		}
		return all
	}
}

// confined runs a tunnel, and checks what it and its commands may do: own in effect, coming and then up permitted.
func confined(t *testing.T, ns *NS, ready string, own, coming, up uint64, args ...string) {
	t.Helper()
	host := readStatus(t, "/proc/self/status")["CapBnd"]
	own, coming, up = own&host, coming&host, up&host
	wrap, children := noting(t)
	dir := t.TempDir()
	p := ns.Start(t, append(append(wrap, "env", "IPIPOU_RUN_DIR="+dir+"/run", "STATE_DIRECTORY="+dir+"/state", Bin(t)), args...)...)
	p.WaitLog(t, ready, commandTimeout)
	statusFile{"CapEff": own, "CapPrm": up, "CapInh": 0, "CapBnd": up, "CapAmb": 0, "NoNewPrivs": 1}.all(t, p)
	stop(t, p)
	all := children()
	if len(all) < 2 {
		t.Fatalf("%d commands were noted", len(all))
	}
	want := coming
	for i, c := range all {
		if i == len(all)-1 || c["CapPrm"] == up {
			want = up // and never more again
		}
		c.is(t, fmt.Sprintf("ip, call %d of %d", i+1, len(all)), statusFile{"CapEff": want, "CapPrm": want, "CapBnd": want, "NoNewPrivs": 1})
	}
}

// oneHost is a host with an outer interface and nobody at its other end.
func oneHost(t testing.TB) *NS {
	t.Helper()
	ns := NewNS(t, "prv")
	ns.batch(t, "link add s0 type veth peer name s1", "addr add "+SrvAddr+"/24 dev s0", "link set s0 up", "link set s1 up")
	return ns
}

// With BPF: what its file system and maps want, and no more.
func TestBPFPrivileges(t *testing.T) {
	t.Parallel()
	ns := oneHost(t)
	net, raw, admin := capabilities(unix.CAP_NET_ADMIN), capabilities(unix.CAP_NET_RAW), capabilities(unix.CAP_SYS_ADMIN)
	more := capabilities(unix.CAP_SYS_MODULE, unix.CAP_SYS_RESOURCE)
	confined(t, ns, `waiting for an authentication`, net|raw, net|raw|admin|more, net|raw|admin,
		"-s", "--verb", "2", "--backend", "bpf", "-b", "@s0", "--auth-token", "t")
	confined(t, ns, `ipipou0: up`, net, net|admin|more, net|admin,
		"--static", "--verb", "2", "--backend", "bpf", "--fou-dev", "s0", "--fou-remote", BadAddr, "--tunl-ip", "10.7.0.2/30")
	// A port that takes a privilege.
	low := capabilities(unix.CAP_NET_BIND_SERVICE)
	confined(t, ns, `ipipou0: up`, net|low, net|low|admin|more, net|low|admin, "--static", "--verb", "2", "--backend", "bpf",
		"--encap", "fou", "--fou-local", ":443@s0", "--fou-remote", BadAddr, "--tunl-ip", "10.7.0.2/30")
}

// With the kernel's drivers: NET_ADMIN and NET_RAW; and where there are hooks they have what the operator has.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	ns := oneHost(t)
	net, raw, module := capabilities(unix.CAP_NET_ADMIN), capabilities(unix.CAP_NET_RAW), capabilities(unix.CAP_SYS_MODULE)
	low := capabilities(unix.CAP_NET_BIND_SERVICE)
	confined(t, ns, `waiting for an authentication`, net|raw|low, net|raw|low|module, net|raw|low,
		"-s", "--verb", "2", "--backend", "kernel", "-b", ":443@s0", "--auth-token", "t")

	host := readStatus(t, "/proc/self/status")
	dir := t.TempDir()
	config := tomlFile(t, dir, "hooked", `static = true`, `verb = 2`, `fou-dev = "s0"`, `fou-remote = "`+BadAddr+`"`, `tunl-ip = "10.7.0.2/30"`,
		`post-up = ["cp", "/proc/self/status", "`+dir+`/status"]`)
	p := startIPIPOU(t, dir, ns, "--config", config)
	p.WaitLog(t, `ipipou0: up`, commandTimeout)
	p.WaitLog(t, `INFO .*hooks run as the operator would run them`, commandTimeout)
	readStatus(t, dir+"/status").is(t, "a hook", statusFile{"CapEff": host["CapEff"], "CapPrm": host["CapPrm"], "CapBnd": host["CapBnd"], "NoNewPrivs": 0})
	statusFile{"CapEff": net & host["CapEff"], "CapBnd": host["CapBnd"], "NoNewPrivs": 0}.all(t, p)
	stop(t, p)
}
