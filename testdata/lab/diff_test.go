package lab

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"ipipou/instance"
	"ipipou/plans"
)

// diff is what `ipipou diff` prints in the namespace, which has to end with that code.
func diff(t testing.TB, ns *NS, want int, args ...string) string {
	t.Helper()
	out, err := ns.Try(append([]string{Bin(t), "diff"}, args...)...)
	if code := exitCode(err); code != want {
		t.Errorf("ipipou diff in %s: exit %d, want %d: %v\n%s", ns.Name, code, want, err, out)
	}
	return out
}

// asPlanned checks that hosts have just what the plans of instances say that run there.
func asPlanned(t testing.TB, procs ...*Proc) {
	t.Helper()
	for _, p := range procs {
		diff(t, p.ns, 0, p.argv[slices.Index(p.argv, Bin(t))+1:]...)
	}
}

// A change is one that somebody makes, and how it is seen.
type change struct {
	does, undoes string // commands; "": the next change starts from it
	want         string // the changed lines, each with the object's name before the first of it
}

// changed are a diff's lines without those that are the same on both sides.
func changed(out string) string {
	var lines []string
	for line := range strings.Lines(out) {
		if strings.ContainsAny(line[:1], "-+@") && !strings.HasPrefix(line, "--- ") && !strings.HasPrefix(line, "+++ ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return strings.Join(lines, "\n")
}

// differs makes changes on a host that is as planned, and undoes them.
func differs(t *testing.T, ns *NS, args []string, changes []change) {
	t.Helper()
	diff(t, ns, 0, args...)
	for _, c := range changes {
		ns.Run(t, "sh", "-c", c.does)
		want := 1
		if c.want == "" {
			want = 0
		}
		if got := changed(diff(t, ns, want, args...)); got != c.want {
			t.Errorf("after `%s`:\n%s\nwant\n%s", c.does, got, c.want)
		}
		if c.undoes != "" {
			ns.Run(t, "sh", "-c", c.undoes)
			diff(t, ns, 0, args...)
		}
	}
}

// missing checks what `ipipou status` says that a host lacks.
func missing(t *testing.T, ns *NS, config string, want map[string][]string) {
	t.Helper()
	var got map[string][]string
	err := ns.Do(func() error {
		f, err := plans.Load(config, os.ReadFile)
		if err != nil {
			return err
		}
		c, err := plans.Resolve([]string{config}, []plans.File{f}, plans.Settings{}, os.ReadFile)
		if err != nil {
			return err
		}
		got, err = instance.Drift(t.Context(), c)
		return err
	})
	if err != nil || !maps.EqualFunc(got, want, slices.Equal) {
		t.Errorf("%s in %s lacks %q, want %q: %v", config, ns.Name, got, want, err)
	}
}

// What somebody takes away from a host, or adds to what is ours, is the difference, and just that.
func TestBPFDiff(t *testing.T) {
	t.Parallel()
	t.Run("static", func(t *testing.T) {
		t.Parallel()
		w := newWire(t)
		config := tomlFile(t, w.dir, "a", `static = true`, `backend = "bpf"`, `mode = "any4"`, `fou-dev = "a0"`, `fou-remote = "192.0.2.2"`,
			`tunl-ip = ["10.9.0.1/24", "fd00::1/64"]`, `routes = ["10.1.0.0/24", "10.2.0.0/24 via 10.9.0.2 metric 7", "fd01::/64", "default"]`,
			`forward = true`, `forward-to = ["lan0"]`, `masquerade = true`, `bridge = { name = "br0", address = "10.42.0.1/24" }`, `tunl-dev = "ipipou0"`)
		args := []string{"--config", config}
		before := w.a.Snapshot(t)
		if out := changed(diff(t, w.a, 1, args...)); !strings.Contains(out, "-link type tun\n") {
			t.Errorf("before it is up:\n%s", out)
		}
		SameState(t, "the host, which was only looked at,", before, w.a.Snapshot(t))
		script := printed(t, w.a, w.dir, nil, args...)
		script.do(t, "up")
		handle := strings.Fields(w.a.Run(t, "sh", "-c", "tc filter show dev ipipou0 egress | grep -o 'handle 0x.*' | head -1"))[1]
		ours := "@@ interface ipipou0 @@\n"
		differs(t, w.a, args, []change{
			{"ip addr add 10.9.0.9 dev ipipou0; ip addr del 10.9.0.1/24 dev ipipou0", "ip addr add 10.9.0.1/24 dev ipipou0; ip addr del 10.9.0.9 dev ipipou0",
				ours + "-address 10.9.0.1/24\n+address 10.9.0.9"},
			{"ip route del 10.1.0.0/24", "ip route add 10.1.0.0/24 dev ipipou0", ours + "-route 10.1.0.0/24"},
			{"ip -6 route add fd02::/64 dev ipipou0", "ip -6 route del fd02::/64", ours + "+route fd02::/64"},
			{"ip route del default table 10000", "ip route add default dev ipipou0 table 10000", ours + "-route default table 10000"},
			{"ip rule del pref 29002", "ip rule add lookup 10000 pref 29002", "@@ rules @@\n-rule 29002 from all to all lookup 10000"},
			{"ip link set ipipou0 mtu 1300", "ip link set ipipou0 mtu 1480", ours + "-mtu 1480\n+mtu 1300"},
			// What is others' is none of our business.
			{"ip addr add 192.0.2.77/24 dev a0; ip route add 10.3.0.0/24 via 192.0.2.2; ip rule add pref 100 lookup 77; nft add table ip x", "", ""},
			{"nft flush chain inet ipipou0 disguise", "", "@@ nft table inet ipipou0, chain disguise @@\n" +
				"-iifname \"ipipou0\" oifname != \"ipipou0\" masquerade\n-oifname \"ipipou0\" fib saddr type != local masquerade"},
			{"nft 'add rule inet ipipou0 disguise iifname \"ipipou0\" oifname != \"ipipou0\" masquerade;" +
				"add rule inet ipipou0 disguise oifname \"ipipou0\" fib saddr type != local masquerade'", "", ""},
			{"sysctl -q -w net.ipv4.ip_forward=0", "sysctl -q -w net.ipv4.ip_forward=1", "@@ sysctl @@\n-net/ipv4/ip_forward = 1\n+net/ipv4/ip_forward = 0"},
			{"ip addr del 10.42.0.1/24 dev br0", "ip addr add 10.42.0.1/24 dev br0", "@@ interface br0 @@\n-address 10.42.0.1/24"},
			{"tc filter del dev a0 ingress", "", "@@ interface a0 @@\n-filter ingress bpf pref 17280 handle " + handle},
		})
		missing(t, w.a, config, map[string][]string{"ipipou0": {"filter ingress bpf pref 17280 handle " + handle + " (interface a0) is missing"}})
		w.a.batch(t, "link del ipipou0")
		missing(t, w.a, config, map[string][]string{"ipipou0": {
			"interface ipipou0 is missing", "filter ingress bpf pref 17280 handle " + handle + " (interface a0) is missing"}})
	})
	// Who is bound is no difference, from wherever he came.
	t.Run("hub", func(t *testing.T) {
		t.Parallel()
		p := newHub(t)
		p.startServer(t)
		if out := diff(t, p.Srv, 0, "--config", p.config[0]); out != "# nobody is bound: ipipou0/0, ipipou0/1\n" {
			t.Errorf("of a server that waits: %q", out)
		}
		p.startClient(t, 0)
		p.startClient(t, 1)
		missing(t, p.Srv, p.config[0], map[string][]string{})
		asPlanned(t, p.server, p.client[0], p.client[1])
		stop(t, p.server, p.client[0], p.client[1])
	})
}
