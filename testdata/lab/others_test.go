package lab

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What others have is in the way of a tunnel by BPF, or is used; in no case is it touched.
func TestBPFThingsOfOthers(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	s := &solo{dir: w.dir}
	args := []string{"--static", "--backend", "bpf", "--encap", "fou", "--fou-dev", "a0", "--fou-remote", "192.0.2.2", "--tunl-ip", "10.9.0.1/30"}
	forward := append(args[:len(args):len(args)], "--forward", "--bridge", "br0 10.42.0.1/24")
	// uses has the program come up and go with what others have, and say that it uses it.
	uses := func(t *testing.T, line string, args ...string) {
		t.Helper()
		before := snapshots(t, w.a)
		p := static(t, w.dir, end{w.a, args})[0]
		p.WaitLog(t, line, commandTimeout)
		stop(t, p)
		sameStates(t, "with things of others", w.dir, before)
	}
	t.Run("interface", func(t *testing.T) {
		w.a.batch(t, "link add ipipou0 type bridge")
		s.fails(t, w.a, 52, `interface ipipou0 exists already`, args...)
		w.a.batch(t, "link del ipipou0")
	})
	t.Run("UDP port", func(t *testing.T) {
		conn := w.a.ListenUDP(t, "192.0.2.1:10000")
		s.fails(t, w.a, 54, `UDP port: .*address already in use`, args...)
		conn.Close()
	})
	t.Run("qdisc and filter", func(t *testing.T) {
		w.a.Run(t, "tc", "qdisc", "add", "dev", "a0", "clsact")
		w.a.Run(t, "tc", "filter", "add", "dev", "a0", "ingress", "pref", "17281", "bpf", "direct-action", "bytecode", "1,6 0 0 0")
		filters := w.a.Run(t, "tc", "filter", "show", "dev", "a0", "ingress")
		uses(t, `WARN a0 has a queueing discipline for filters already: it is used, and will stay`, args...)
		if now := w.a.Run(t, "tc", "filter", "show", "dev", "a0", "ingress"); now != filters {
			t.Errorf("the filters are now\n%sthey were\n%s", now, filters)
		}
		w.a.Run(t, "tc", "qdisc", "del", "dev", "a0", "clsact")
	})
	t.Run("filter that comes later", func(t *testing.T) {
		p := static(t, w.dir, end{w.a, args})[0]
		w.a.Run(t, "tc", "filter", "add", "dev", "a0", "egress", "pref", "1", "bpf", "direct-action", "bytecode", "1,6 0 0 0")
		stop(t, p)
		if filters := w.a.Run(t, "tc", "filter", "show", "dev", "a0", "egress"); filters == "" {
			t.Error("the filter that somebody added is gone")
		}
		w.a.Run(t, "tc", "qdisc", "del", "dev", "a0", "clsact")
	})
	t.Run("directory of the pins", func(t *testing.T) {
		kept := filepath.Join(w.dir, w.a.Name, "run", "ipipou0.bpf", "kept")
		if err := os.MkdirAll(filepath.Dir(kept), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(kept, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		p := static(t, w.dir, end{w.a, args})[0]
		p.Signal(t, syscall.SIGTERM)
		p.Wait(t, commandTimeout)
		if _, err := os.Stat(kept); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(filepath.Dir(kept)); err != nil {
			t.Fatal(err)
		}
		stop(t, static(t, w.dir, end{w.a, args})...) // what was left to be done is done now
	})
	t.Run("table", func(t *testing.T) {
		w.a.RunInput(t, "table inet ipipou0 {\n chain c {\n }\n}\n", "nft", "-f", "-")
		s.fails(t, w.a, 40, `File exists`, forward...)
		w.a.Run(t, "nft", "delete", "table", "inet", "ipipou0")
	})
	t.Run("bridge and router", func(t *testing.T) {
		w.a.batch(t, "link add br0 type bridge", "link set br0 up", "link set br0 down", "addr add 10.42.0.1/24 dev br0")
		w.a.Sysctl(t, map[string]string{"net/ipv4/ip_forward": "1"})
		uses(t, `WARN the bridge br0 exists already: it is used, and will stay`, forward...)
		w.a.Sysctl(t, map[string]string{"net/ipv4/ip_forward": "0"})
		w.a.batch(t, "link del br0")
	})
	t.Run("no bridge", func(t *testing.T) {
		w.a.batch(t, "link add br0 type veth peer name br1")
		s.fails(t, w.a, 1, `test -d /sys/class/net/br0/bridge`, forward...)
		w.a.batch(t, "link del br0")
	})
}

// A table of the nodes' name is somebody else's.
func TestMembersOfOthers(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	config := tomlFile(t, w.dir, "node", `backend = "kernel"`, `mode = "ipip"`, `encap = "fou"`,
		"[[node]]", `name = "a"`, `fou-local-ip = "192.0.2.1"`, `tunl-ip = "10.99.0.1"`,
		"[[node]]", `name = "b"`, `fou-local-ip = "192.0.2.2"`, `tunl-ip = "10.99.0.2"`,
		"[[node]]", `name = "c"`, `fou-local-ip = "192.0.2.3"`, `tunl-ip = "10.99.0.3"`)
	w.a.RunInput(t, "table ip ipipou0-nodes {\n chain c {\n }\n}\n", "nft", "-f", "-")
	(&solo{dir: w.dir}).fails(t, w.a, 40, `File exists`, "--config", config, "--node", "a")
}
