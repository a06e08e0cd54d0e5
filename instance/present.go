package instance

import (
	"maps"
	"net"
	"net/netip"
)

// present are this host's interfaces by their names, and their addresses.
func present() (links map[string]net.Interface, addrs map[netip.Addr]bool, err error) {
	links, addrs = map[string]net.Interface{}, map[netip.Addr]bool{}
	devices, err := net.Interfaces()
	if err != nil {
		return nil, nil, err
	}
	for _, d := range devices {
		links[d.Name] = d
	}
	all, err := net.InterfaceAddrs()
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs[p.Addr()] = true
		}
	}
	return links, addrs, err
}

// here reports whether an address is one of this host's.
func here(addr netip.Addr) bool {
	_, addrs, err := present()
	return err == nil && addrs[addr]
}

// index is that of an interface, 0 if there is none of that name.
func index(name string) int {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return dev.Index
}

// values are what the instance's plans know of the host.
func (in *Instance) values() map[string]string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return maps.Clone(in.vars)
}

// learn takes over the values that have changed.
func (in *Instance) learn(vars map[string]string) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for name, value := range vars {
		if _, known := in.vars[name]; known {
			in.vars[name] = value
		}
	}
}
