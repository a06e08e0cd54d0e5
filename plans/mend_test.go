package plans

import (
	"fmt"
	"strings"
	"testing"
)

// mends are the plans that put back what others take away, with what makes them.
func mends(c Config) (plans []Plan, text string) {
	var b strings.Builder
	add := func(title string, p Plan) {
		if len(p.Steps) > 0 {
			plans = append(plans, p)
			fmt.Fprintf(&b, "\n== %s\n\n", title)
			show(&b, "", p.Steps)
		}
	}
	for _, g := range c.Guards() {
		add(g.what+" ("+g.Look.String()+")", g.Mend)
	}
	seen := map[string]bool{}
	for _, t := range c.Tunnels {
		switch {
		case t.Backend == BPF && !seen[t.Dev]:
			add("the interface "+t.Dev, c.Remake(t.Dev))
			fallthrough
		case t.Backend == BPF:
			seen[t.Dev] = true
			add("and of tunnel "+t.Title(), t.Reroute())
		case t.Role == Server:
			add("let the peer of "+t.Dev+" in again", t.Reopen(false))
			add("by the alternate address", t.Reopen(true))
			add("the interface "+t.Dev, t.Relink(false))
			add("by the alternate address", t.Relink(true))
			add("the alternate address", t.Retake())
			add("the listeners on an outer interface that is gone", t.Leave())
			add("on its successor", t.Rehome(true, true))
		default:
			add("the interface "+t.Dev, t.Relink(false))
			add("the listeners on an outer interface that is gone", t.Leave())
		}
	}
	return plans, b.String()
}

func TestMends(t *testing.T) {
	configs := bpfConfigs(t)
	configs = map[string]Config{
		"hub": configs["hub"], "plain": configs["plain"],
		"server": resolve(t, "--server", "--fou-dev", "s0", "--auth-token", "t", "--auth-lifetime", "60",
			"--routes", "default", "--forward", "--post-up", "logger up", "--post-down", "logger down"),
		"client": resolve(t, "--fou-remote", "203.0.113.1:10000", "--fou-dev", "c0", "--tunl-ip", "172.28.0.1", "--auth-token", "t", "--routes", "default"),
		"nodes": resolve(t, "--static", "--mode", "ipip", "--encap", "fou", "--fou-dev", "s0", "--tunl-ip", "10.9.0.1/32", "--routes",
			"10.9.0.2/32 via 192.0.2.2 onlink"),
	}
	for name, c := range configs {
		t.Run(name, func(t *testing.T) {
			plans, text := mends(c)
			golden(t, "plans/mend-"+name+".txt", text)
			for _, p := range plans {
				p.Walk(func(s Step) {
					// But for what follows the outer interface, whose undos are others by then.
					if !s.Undo.IsZero() && !s.Passing && !strings.Contains(s.Undo.line(), "fou del") && !strings.Contains(s.Undo.line(), "address del") {
						t.Errorf("%s would be undone twice: %s", s.Do, s.Undo)
					}
				})
			}
		})
	}
}

// A table that only got the chain of alternate addresses is the same.
func TestGuardSame(t *testing.T) {
	const table = "table ip ipipou0 {\n\tset fou {\n\t\ttype ipv4_addr . inet_service\n\t}\n%s\n\tchain gate {\n\t\tdrop\n\t}\n}\n"
	plain := fmt.Sprintf(table, "")
	post := "\n\tchain post {\n\t\ttype filter hook postrouting priority srcnat; policy accept;\n\t\tip saddr set ip saddr . udp sport map @alt_out\n\t}\n"
	var g Guard
	if !g.Same(plain, fmt.Sprintf(table, post)) || !g.Same(fmt.Sprintf(table, post), plain) || !g.Same(plain, plain) {
		t.Error("the chain for alternate addresses makes it another table")
	}
	if g.Same(plain, strings.Replace(plain, "\t\tdrop\n", "", 1)) || g.Same(plain, "") {
		t.Error("a table without its rule is taken for the same")
	}
}
