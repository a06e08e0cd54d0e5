package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// smallHost is a root file system with busybox, iproute2, nft and openssl, and the libraries they need: no Go, no
// bash, no socat, and an nc that knows TCP only. It returns the command that runs a shell in there.
func smallHost(t testing.TB) (root string, shell []string) {
	t.Helper()
	root = t.TempDir()
	for _, dir := range []string{"bin", "sbin", "proc", "dev", "etc", "run", "tmp", "sys"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(from, to string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := run("", "cp", "-L", from, filepath.Join(root, to)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"busybox", "ip", "nft", "openssl"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		where := "/sbin/"
		if name == "busybox" {
			where = "/bin/"
		}
		put(path, where+name)
		out, err := run("", "ldd", path)
		if err != nil && name != "busybox" { // which is static
			t.Fatal(err)
		}
		for _, lib := range regexp.MustCompile(`(?m)(?:=> |^\s)(/\S+) \(0x`).FindAllStringSubmatch(out, -1) {
			put(lib[1], lib[1])
		}
	}
	for _, dir := range []string{"proc", "dev", "sys"} {
		at := filepath.Join(root, dir)
		if _, err := run("", "mount", "--bind", "/"+dir, at); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	if _, err := run("", "chroot", root, "/bin/busybox", "--install", "-s", "/bin"); err != nil {
		t.Fatal(err)
	}
	return root, []string{"chroot", root, "/bin/env", "-i", "PATH=/bin:/sbin", "/bin/sh"}
}

// onSmallHost prints a script for a small host.
func onSmallHost(t testing.TB, ns *NS, args ...string) (s *scriptHost, root string) {
	t.Helper()
	root, shell := smallHost(t)
	out, err := run("", append([]string{Bin(t), "--print-only"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "tunnel.sh"), []byte(out), 0o644); err != nil {
		t.Fatal(err)
	}
	return &scriptHost{ns: ns, env: shell, path: "/tunnel.sh"}, root
}

// A client that is a host without Go: its script authenticates to our server, roams, and is undone.
func TestSmallHostClient(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"ed25519", "token"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			p := newPair(t, "", "")
			config, want := p.config[1], "secret"
			if scheme == "token" {
				want = "token"
				config = filepath.Join(p.dir, "token.toml")
				write(t, config, "fou-dev = \"c0\"\nfou-remote = \""+SrvAddr+":10000\"\ntunl-ip = \"172.28.0.1\"\nauth-token = \"lab token\"\n")
				write(t, p.config[0], "server = true\nfou-dev = \"s0\"\nverb = 3\nauth-token = \"lab token\"\n[[tunnel]]\nnumber = 0\n[[tunnel]]\nnumber = 1\n")
			}
			before := p.C1.Snapshot(t)
			p.startServer(t)
			script, root := onSmallHost(t, p.C1, "--config", config)
			text, err := os.ReadFile(config)
			if err != nil {
				t.Fatal(err)
			}
			// Without its files it says which one it wants, and nothing is done.
			if out := script.exits(t, 2, "up"); !strings.Contains(out, "/etc/ipipou/"+scriptName(config)+"."+want) {
				t.Errorf("no word of the missing %s: %s", want, out)
			}
			SameState(t, "the client after `up` without its files", before, p.C1.Snapshot(t))
			for key, file := range map[string]string{"auth-key-b64": "key", "auth-secret": "secret", "auth-token": "token"} {
				if m := regexp.MustCompile(`(?m)^` + key + ` = "(.*)"$`).FindSubmatch(text); m != nil {
					write(t, filepath.Join(root, "etc/ipipou", scriptName(config)+"."+file), string(m[1])+"\n")
				}
			}
			script.do(t, "up")
			p.server.WaitLog(t, `ipipou0: peer bound at`, commandTimeout)
			p.works(t, 0)
			TransferTCP(t, p.C1, p.Srv, serverInner[0], 500_000)
			TransferTCP(t, p.Srv, p.C1, clientInner[0], 500_000)

			// The router maps it anew: `auth` tells the server.
			n := p.server.Len()
			p.NATForce(t, C1Addr, RtrAddr3+":4000")
			script.do(t, "auth")
			p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+RtrAddr3+`:4000`, commandTimeout)
			p.works(t, 0)

			// Its own address changes: `keepalive` notices by itself.
			keepalive := p.C1.Start(t, script.argv("keepalive", "1")...)
			keepalive.WaitLog(t, `authentication sent`, commandTimeout)
			n = p.server.Len()
			p.NATForce(t, C1Addr, "")
			p.C1.batch(t, "addr add 10.1.1.9/32 dev c0", "addr del "+C1Addr+"/24 dev c0", "addr del 10.1.1.9/32 dev c0",
				"addr add 10.1.1.9/24 dev c0", "route replace default via 10.1.1.1")
			p.NATForce(t, "10.1.1.9", RtrAddr2+":4001")
			p.server.WaitLogFrom(t, n, `ipipou0: peer moved from \S+ to `+RtrAddr2+`:4001`, commandTimeout)
			p.works(t, 0)
			TransferTCP(t, p.C1, p.Srv, serverInner[0], 500_000)

			script.do(t, "down")
			if code := keepalive.Wait(t, commandTimeout); code != 0 {
				t.Errorf("keepalive ended with %d after `down`, want 0", code)
			}
			p.C1.batch(t, "addr add "+C1Addr+"/32 dev c0", "addr del 10.1.1.9/24 dev c0", "addr del "+C1Addr+"/32 dev c0",
				"addr add "+C1Addr+"/24 dev c0", "route replace default via 10.1.1.1")
			SameState(t, "the client after down", before, p.C1.Snapshot(t))
			if left, err := os.ReadDir(filepath.Join(root, "run/ipipou")); err == nil && len(left) > 0 {
				t.Errorf("files left behind: %v", left)
			}
		})
	}
}

func scriptName(config string) string { return strings.TrimSuffix(filepath.Base(config), ".toml") }

func write(t testing.TB, path, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A server, and one end of a static tunnel with all that can hang on it, on a small host.
func TestSmallHostOthers(t *testing.T) {
	t.Parallel()
	p := newPair(t, "", "")
	before := p.Srv.Snapshot(t)
	script, _ := onSmallHost(t, p.Srv, "--config", p.config[0])
	script.do(t, "up")
	client := p.ipipou(t, p.C1, "--config", p.config[1])
	client.WaitLog(t, `authentication sent`, commandTimeout)
	script.do(t, "bind", RtrAddr, fmt.Sprint(10000), "ipipou0")
	p.works(t, 0)
	script.do(t, "down")
	SameState(t, "the server after down", before, p.Srv.Snapshot(t))

	static, _ := onSmallHost(t, p.Srv, "--mode", "any4", "--encap", "gue", "--fou-local", SrvAddr+"@s0", "--fou-remote", BadAddr,
		"--tunl-ip", "10.9.0.1/30,fd09::1/64", "--routes", "default,10.42.2.0/24", "--forward", "--masquerade", "--bridge", "br0 10.42.1.1/24")
	other := startIPIPOU(t, p.dir, p.Bad, "--mode", "any4", "--encap", "gue", "--fou-local", BadAddr+"@b0", "--fou-remote", SrvAddr,
		"--tunl-ip", "10.9.0.2/30,fd09::2/64", "-vv")
	static.do(t, "up")
	other.WaitLog(t, `ipipou0: up`, commandTimeout)
	p.Bad.Ping(t, "10.9.0.1")
	p.Bad.Ping(t, "fd09::1")
	TransferTCP(t, p.Bad, p.Srv, "10.9.0.1", 500_000)
	if status := static.do(t, "status"); !strings.Contains(status, "sit any remote "+BadAddr) || !strings.Contains(status, "chain disguise") {
		t.Errorf("status:\n%s", status)
	}
	static.do(t, "down")
	SameState(t, "the static end after down", before, p.Srv.Snapshot(t))
	stop(t, client, other)
}
