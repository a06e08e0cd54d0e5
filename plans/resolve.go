package plans

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Verbosity is how much the settings want to hear: each -v counts one, --verb N
// counts N.
func Verbosity(files []File, flags Settings) int {
	return newReader(merged(files, flags), nil).verbosity()
}

func merged(files []File, flags Settings) Settings {
	top := Settings{}
	v := 0
	for _, f := range files {
		n, _ := f.Top["v"].Value.(int)
		v += n
		top = top.over(f.Top)
	}
	n, _ := flags["v"].Value.(int)
	top = top.over(flags)
	top["v"] = Setting{Value: v + n}
	return top
}

// Resolve turns settings into a validated Config. Files are layered in their
// order, each [[tunnel]] over all tops, the flags over everything. The error is
// the first fault, with the place where it was given.
func Resolve(configs []string, files []File, flags Settings, read Files) (Config, error) {
	top := merged(files, flags)
	r := newReader(top, read)
	c := Config{
		Verbosity:  r.verbosity(),
		LogTime:    !r.flag("no-log-time"),
		LogPID:     !r.flag("no-log-pid"),
		ReauthOnly: r.flag("reauth-only"),
	}
	layers := []Settings{}
	for _, f := range files {
		for _, own := range f.Tunnels {
			layers = append(layers, top.over(own).over(flags))
		}
	}
	if len(layers) == 0 {
		layers = append(layers, top)
	}
	for i, layer := range layers {
		r := newReader(layer, read)
		t, err := r.tunnel()
		if err != nil {
			if len(layers) > 1 && !strings.Contains(err.Error(), ":") {
				err = fmt.Errorf("tunnel %d: %w", i+1, err)
			}
			return Config{}, err
		}
		c.Tunnels = append(c.Tunnels, t)
		for _, n := range r.notes {
			if len(layers) > 1 {
				n.Text = t.Dev + ": " + n.Text
			}
			c.Notes = append(c.Notes, n)
		}
	}
	if err := c.distinct(); err != nil {
		return Config{}, err
	}
	c.nameFacts()
	for i := range c.Tunnels {
		c.Tunnels[i].Table = c.table()
	}
	c.Name = c.Tunnels[0].Dev
	// Flags that make another tunnel of the same file make another instance.
	_, n := flags["number"]
	_, dev := flags["tunl-dev"]
	if len(configs) > 0 && (len(c.Tunnels) > 1 || !n && !dev) {
		c.Name = instanceName(configs[len(configs)-1])
	}
	if c.ReauthOnly && c.Servers() {
		return Config{}, errors.New(r.where("reauth-only") + ": only a client can authenticate itself anew")
	}
	return c, nil
}

// distinct refuses tunnels that would take each other's names, ports or addresses.
func (c Config) distinct() error {
	seen := map[string]Tunnel{}
	for i, t := range c.Tunnels {
		local := t.FOUDev
		if t.FOUIP.IsValid() {
			local = t.FOUIP.String()
		}
		keys := []string{
			"number " + strconv.Itoa(t.Number), // undos are named by it
			"tunl-dev " + t.Dev,
			"tunl-ip " + t.IP.String(),
			fmt.Sprintf("fou-local-port %d of %s", t.FOUPort, local),
		}
		if t.Mode == Server {
			keys = append(keys, "fou-local-ip-alt "+t.FOUIPAlt.String())
		}
		for _, key := range keys {
			if other, both := seen[key]; both {
				return fmt.Errorf("tunnel %d (%s): %s is also that of tunnel %s: give each [[tunnel]] its own number", i+1, t.Dev, key, other.Dev)
			}
			seen[key] = t
		}
	}
	return nil
}

// nameFacts names what the host has to tell: FOU_IP for the first device whose
// address is asked for, FOU_IP_2 for the next.
func (c *Config) nameFacts() {
	ips, devs := map[string]string{}, map[netip.Addr]string{}
	clients := 0
	for i := range c.Tunnels {
		t := &c.Tunnels[i]
		// A server's plans are each of one peer; clients stand in one plan.
		t.varPeerIP, t.varPeerPort = PeerIP, PeerPort
		if t.Mode == Client {
			t.varPeerIP, t.varPeerPort = numbered(PeerIP, clients), numbered(PeerPort, clients)
			clients++
		}
		if !t.FOUIP.IsValid() {
			if ips[t.FOUDev] == "" {
				ips[t.FOUDev] = numbered("FOU_IP", len(ips))
			}
			t.factIP = ips[t.FOUDev]
		}
		if t.FOUDev == "" {
			if devs[t.FOUIP] == "" {
				devs[t.FOUIP] = numbered("FOU_DEV", len(devs))
			}
			t.factDev = devs[t.FOUIP]
		}
	}
}

func numbered(name string, n int) string {
	if n == 0 {
		return name
	}
	return fmt.Sprintf("%s_%d", name, n+1)
}
