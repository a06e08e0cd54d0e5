package plans

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
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
		LogFormat:  cmp.Or(r.text("log-format"), "text"),
		Metrics:    r.metrics(),
		ReauthOnly: r.flag("reauth-only"),
	}
	if !slices.Contains([]string{"text", "logfmt", "json"}, c.LogFormat) {
		r.fail("log-format", "%q is none of text, logfmt, json", c.LogFormat)
	}
	if r.err != nil {
		return Config{}, r.err
	}
	for _, f := range files {
		c.Sources = append(c.Sources, f.source())
	}
	layers, err := layersOf(top, files, flags, read)
	if err != nil {
		return Config{}, err
	}
	c.Tunnels = make([]Tunnel, 0, len(layers))
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
		for _, f := range r.files {
			if !slices.Contains(c.Sources, f) { // tunnels share them
				c.Sources = append(c.Sources, f)
			}
		}
		for _, n := range r.notes {
			if len(layers) > 1 {
				n.Text = t.Dev + ": " + n.Text
			}
			c.Notes = append(c.Notes, n)
		}
	}
	c.sharing()
	if err := c.distinct(); err != nil {
		return Config{}, err
	}
	c.nameFacts()
	table := c.table()
	for i := range c.Tunnels {
		c.Tunnels[i].Table = table
	}
	c.Name = c.Tunnels[0].Dev
	// Flags that make another tunnel of the same file make another instance.
	_, n := flags["number"]
	_, dev := flags["tunl-dev"]
	if len(configs) > 0 && (len(c.Tunnels) > 1 || !n && !dev) {
		c.Name = instanceName(configs[len(configs)-1])
		if node := r.text("node"); node != "" {
			c.Name += "-" + node
		}
	}
	c.place()
	if err := c.fitting(); err != nil {
		return Config{}, err
	}
	if c.ReauthOnly && slices.ContainsFunc(c.Tunnels, func(t Tunnel) bool { return t.Role != Client }) {
		return Config{}, errors.New(r.where("reauth-only") + ": only a client can authenticate itself anew")
	}
	return c, nil
}

// layersOf are the settings of each tunnel of the instance.
func layersOf(top Settings, files []File, flags Settings, read Files) ([]Settings, error) {
	var layers []Settings
	nodes := false
	for _, f := range files {
		nodes = nodes || len(f.Nodes) > 0
		for _, own := range f.Tunnels {
			layers = append(layers, top.over(own).over(flags))
		}
	}
	if _, named := top["node"]; named || nodes {
		layer, err := nodeLayer(top, files, flags, read)
		return []Settings{layer}, err
	}
	if len(layers) == 0 {
		layers = append(layers, top)
	}
	return layers, nil
}

// distinct refuses tunnels that would take each other's names, ports or addresses.
func (c Config) distinct() error {
	seen := map[string]*Tunnel{}
	for i, t := range c.Tunnels {
		local := t.FOUDev
		if t.FOUIP.IsValid() {
			local = t.FOUIP.String()
		}
		keys := []string{
			"number " + strconv.Itoa(t.Number), // undos are named by it
			"tunl-dev " + t.Dev,
		}
		if t.Encap != None {
			keys = append(keys, fmt.Sprintf("fou-local-port %d of %s, %s,", t.FOUPort, local, t.how().outer()))
		}
		if t.Role != Static { // unnumbered links share an address
			for _, a := range t.Addrs {
				keys = append(keys, "tunl-ip "+a.IP.String())
			}
		}
		if t.Role == Server {
			keys = append(keys, "fou-local-ip-alt "+t.FOUIPAlt.String())
		}
		for _, r := range t.Routes {
			if r.To.Bits() == 0 && r.Table == 0 {
				r.Metric = 0 // each such route has a table of its own, where a metric has no say
			}
			keys = append(keys, fmt.Sprintf("route %s, metric %d, table %d,", r.To, r.Metric, r.Table))
		}
		for _, key := range keys {
			if other, both := seen[key]; both && t.shares(*other) && !strings.HasPrefix(key, "number") && !strings.HasPrefix(key, "route") {
				continue
			} else if both {
				hint := "give each [[tunnel]] its own number"
				switch {
				case strings.HasPrefix(key, "route") && strings.Contains(key, "/0,"):
					hint = "one of them can have a default route, or give them tables and rules of your own"
				case strings.HasPrefix(key, "route"):
					hint = "give one of them another metric or table"
				case strings.HasPrefix(key, "fou-local-port") && t.Number != other.Number:
					hint = "give one of them another fou-local-port"
				}
				return fmt.Errorf("tunnel %d (%s): %s is also that of tunnel %s: %s", i+1, t.Dev, key, other.Dev, hint)
			}
			seen[key] = &c.Tunnels[i]
		}
		if t.Bridge != nil {
			if other, both := seen["tunl-dev "+t.Bridge.Name]; both {
				return fmt.Errorf("tunnel %d (%s): bridge %s is the interface of tunnel %s: give it another name", i+1, t.Dev, t.Bridge.Name, other.Dev)
			}
		}
	}
	return nil
}

// nameFacts names what the host has to tell: FOU_IP for the first device whose
// address is asked for, FOU_IP_2 for the next.
func (c *Config) nameFacts() {
	ips, devs := map[string]string{}, map[netip.Addr]string{}
	families := c.families()
	clients := 0 // and static tunnels
	for i := range c.Tunnels {
		t := &c.Tunnels[i]
		t.families = families
		// A server's plans are each of one peer; clients stand in one plan.
		t.varPeerIP, t.varPeerPort = PeerIP, PeerPort
		if t.Role != Server {
			t.varPeerIP, t.varPeerPort = numbered(PeerIP, clients), numbered(PeerPort, clients)
			clients++
		}
		if of := t.how().outer() + " " + t.FOUDev; !t.FOUIP.IsValid() {
			if ips[of] == "" {
				ips[of] = numbered("FOU_IP", len(ips))
			}
			t.factIP = ips[of]
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
