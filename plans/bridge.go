package plans

import "net/netip"

// bridging makes the bridge for a network behind this end. One that is there
// already is somebody else's: it is used, and stays.
func (t Tunnel) bridging() []Step {
	if t.Bridge == nil {
		return nil
	}
	name := t.Bridge.Name
	steps := []Step{{
		Comment: "bridge for the network behind this end",
		Do:      cmd("ip", "link", "add", "name", name, "type", "bridge"),
		Undo:    cmd("ip", "link", "del", "dev", name),
		Taken:   cmd("ip", "-br", "link", "show"),
		Lines:   []string{name + " *", name + "@*"},
		Else: []Else{{
			When: Exists,
			Say:  "the bridge " + name + " exists already: it is used, and will stay",
			Steps: []Step{{
				Comment: "it must be a bridge",
				Do:      cmd("test", "-d", "/sys/class/net/"+name+"/bridge"),
			}, {
				Comment: "one that was down (its flags are even) is down again afterwards",
				Undo:    cmd("ip", "link", "set", "dev", name, "down"),
				If:      cmd("grep", "-q", "[02468ace]$", "/sys/class/net/"+name+"/flags"),
			}},
		}},
	}}
	for _, a := range t.Bridge.Addrs {
		words := []string{"ip", "address", "add", a.String(), "dev", name}
		if a.Addr().Is6() {
			words = append(words, "nodad")
		}
		steps = append(steps, Step{
			Do:    cmd(words...),
			Undo:  cmd("ip", "address", "del", a.String(), "dev", name),
			Taken: cmd("ip", "-o", "address", "show", "to", netip.PrefixFrom(a.Addr(), a.Addr().BitLen()).String()),
			Lines: []string{"*"},
			Else: []Else{{
				When: Exists,
				Say:  name + " has the address " + a.String() + " already: it is used, and will stay",
			}},
		})
	}
	return append(steps, Step{Do: cmd("ip", "link", "set", "dev", name, "up")})
}
