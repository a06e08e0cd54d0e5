package plans

import (
	"fmt"

	"ipipou/datapath"
)

// sharing marks the tunnels of one interface: only BPF can carry them.
func (c *Config) sharing() {
	count := map[string]int{}
	for _, t := range c.Tunnels {
		count[t.Dev]++
	}
	for i := range c.Tunnels {
		t := &c.Tunnels[i]
		t.bpf.shared = count[t.Dev] > 1
		if t.bpf.shared && t.Backend == Auto && t.Role == Server {
			t.Backend = BPF
		}
	}
}

// fitting refuses tunnels of one interface that can't be told from each other, and
// what the maps have no room for.
func (c Config) fitting() error {
	first, has, proves := map[string]int{}, map[string]int{}, map[string]int{}
	arrives := map[string]Tunnel{}
	for i, t := range c.Tunnels {
		fault := func(format string, args ...any) error {
			return fmt.Errorf("tunnel %d (%s): %s", i+1, t.Dev, fmt.Sprintf(format, args...))
		}
		_, known := first[t.Dev]
		for _, is6 := range []bool{false, true} {
			if known {
				break // its prefixes are those of all
			}
			if n := len(datapath.Lengths(t.bpf.prefixes, is6)); n > datapath.MaxLengths && t.Backend == BPF && !t.sole() {
				return fault("its peers' networks have %d different prefix lengths, and the BPF data path takes %d", n, datapath.MaxLengths)
			}
		}
		for _, what := range t.arrivals() {
			if other, taken := arrives[what]; taken && t.Dev != other.Dev {
				return fault("%s is also for tunnel %s, and the BPF data path tells tunnels by that", what, other.Dev)
			}
			arrives[what] = t
		}
		if !t.bpf.shared {
			continue
		}
		if option, why := t.beyondBPF(); option != "" {
			return fault("several tunnels have this interface, which takes backend bpf: %s: %s", option, why)
		}
		if j, others := first[t.Dev]; !others {
			first[t.Dev] = i
		} else if name := t.unlike(c.Tunnels[j]); name != "" {
			return fault("%s is not that of tunnel %d, which has the same tunl-dev %s: give it at the top of the file, for all, or another tunl-dev", name, j+1, t.Dev)
		}
		for _, p := range t.behind() {
			key := t.Dev + " " + p.String()
			if j, taken := has[key]; taken {
				return fault("%s is also behind tunnel %d: of one interface, give each its own tunl-peer-ip or routes", p, j+1)
			}
			has[key] = i
		}
		proof := t.Dev + " " + string(t.Auth.RemoteKey) + string(t.Auth.Token)
		if j, taken := proves[proof]; taken {
			return fault("has the key or token of tunnel %d: by it peers of one port are told from each other", j+1)
		}
		if t.Auth.RemoteKey == nil && t.Auth.Token == nil {
			return fault("has no key or token: by it peers of one port are told from each other")
		}
		proves[proof] = i
	}
	return nil
}

// arrivals are what BPF tells the tunnel's packets by.
func (t Tunnel) arrivals() (what []string) {
	switch {
	case t.Backend != BPF:
		return nil
	case t.Encap == FOU:
		return []string{"UDP port " + t.port()}
	}
	from := " from anywhere"
	if t.hasRemote() {
		from = " from " + t.RemoteHost
		if t.RemoteIP.IsValid() {
			from = " from " + t.RemoteIP.String()
		}
	}
	if t.how().inner4 {
		what = append(what, "protocol 4"+from)
	}
	if t.how().inner6 {
		what = append(what, "protocol 41"+from)
	}
	return what
}

// shares reports whether tunnels may have one interface and port: servers that
// BPF carries, which tell their peers by key and by inner address.
func (t Tunnel) shares(other Tunnel) bool {
	return t.Dev == other.Dev && t.Role == Server && other.Role == Server && t.Backend != Kernel && other.Backend != Kernel
}

// unlike says in which setting tunnels of one interface differ that must not.
func (t Tunnel) unlike(other Tunnel) string {
	type pair struct {
		name string
		a, b any
	}
	for _, p := range []pair{
		{"fou-local-port", t.FOUPort, other.FOUPort},
		{"fou-dev", t.FOUDev, other.FOUDev},
		{"fou-local-ip", t.FOUIP, other.FOUIP},
		{"mode", t.Mode, other.Mode},
		{"encap", t.Encap, other.Encap},
		{"ttl", t.TTL, other.TTL},
		{"tos", t.TOS, other.TOS},
		{"mtu", t.MTU, other.MTU},
		{"backend", t.Backend, other.Backend},
		{"bridge", t.Bridge == nil, other.Bridge == nil},
	} {
		if p.a != p.b {
			return p.name
		}
	}
	return ""
}
