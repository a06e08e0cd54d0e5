package check

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ipipou/plans"
)

// names are the lines of the tunnels' interfaces, whose names must be free.
func (c *checker) names(all []Interface) []Line {
	var lines []Line
	free := newRanges()
	runs, journal := c.Left(c.config.Name)
	for _, t := range c.config.Tunnels {
		switch exists := slices.ContainsFunc(all, func(i Interface) bool { return i.Name == t.Dev }); {
		case !exists:
			free.name(t.Dev)
		case runs:
			lines = append(lines, ok("name", t.Dev+" is up: "+c.config.Name+" runs"))
		case journal:
			lines = append(lines, ok("name", t.Dev+" was left behind by a dead "+c.config.Name+", after which the next start cleans up"))
		default:
			lines = append(lines, missing("name", "an interface "+t.Dev+" exists already, and is not ours", "give another tunl-dev or number, or remove it: ip link del dev "+t.Dev))
		}
	}
	if text := free.String(); text != "" {
		lines = append(lines, ok("name", text+": free"))
	}
	return slices.CompactFunc(lines, func(a, b Line) bool { return a == b }) // tunnels share interfaces
}

// sockets are the local ends of the UDP sockets that /proc/net/udp or udp6 has, the
// kernel's FOU listeners included: a header, then a socket a line, the address in its
// second word, in hexadecimal: words of 32 bits of a little- or big-endian host,
// a colon, the port (udp4_format_sock in net/ipv4/udp.c).
func sockets(text string, bigEndian bool) (all []netip.AddrPort) {
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		address, number, _ := strings.Cut(words[1], ":")
		b, err := hex.DecodeString(address)
		port, portErr := strconv.ParseUint(number, 16, 16)
		if err != nil || portErr != nil || len(b)%4 != 0 {
			continue
		}
		if !bigEndian {
			for word := range slices.Chunk(b, 4) {
				slices.Reverse(word)
			}
		}
		if a, ok := netip.AddrFromSlice(b); ok {
			all = append(all, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	return all
}

// ports are the lines of the tunnels' UDP ports, which must be free.
func (c *checker) ports() []Line {
	v4 := sockets(c.read("proc/net/udp"), c.BigEndian)
	v6 := sockets(c.read("proc/net/udp6"), c.BigEndian)
	runs, journal := c.Left(c.config.Name)
	var lines []Line
	free := newRanges()
	for i, t := range c.config.Tunnels {
		local := c.outsides[i].local
		if t.Encap == plans.None || !local.IsValid() {
			continue
		}
		own, both := v4, v6
		if local.Is6() {
			own, both = v6, nil
		}
		at := netip.AddrPortFrom(local, t.FOUPort)
		taken := func(s netip.AddrPort) bool {
			return s.Port() == t.FOUPort && (s.Addr() == local || s.Addr().IsUnspecified())
		}
		switch {
		case !slices.ContainsFunc(own, taken) && !slices.ContainsFunc(both, taken):
			free.name(fmt.Sprintf("UDP port %d", t.FOUPort))
		case runs:
			lines = append(lines, ok("port", fmt.Sprintf("%s is open: %s runs", at, c.config.Name)))
		case journal:
			lines = append(lines, ok("port", fmt.Sprintf("%s was left open by a dead %s, after which the next start cleans up", at, c.config.Name)))
		case !slices.ContainsFunc(own, taken):
			lines = append(lines, warning("port", fmt.Sprintf("UDP port %d is taken for IPv6, and perhaps for IPv4 too", t.FOUPort), holder(t.FOUPort)))
		default:
			lines = append(lines, missing("port", fmt.Sprintf("UDP port %d of %s is taken", t.FOUPort, local), holder(t.FOUPort)))
		}
	}
	if text := free.String(); text != "" {
		lines = append(lines, ok("port", text+": free"))
	}
	return slices.CompactFunc(lines, func(a, b Line) bool { return a == b })
}

func holder(port uint16) string {
	return fmt.Sprintf("see who has it: ss -lunp 'sport = :%d', or ip fou show; end that, or give another fou-local-port", port)
}

// ranges are names, some with numbers at their ends, for a line that is read.
type ranges struct{ numbers map[string][]int }

func newRanges() *ranges { return &ranges{map[string][]int{}} }

func (r *ranges) name(name string) {
	stem := strings.TrimRight(name, "0123456789")
	if n, err := strconv.Atoi(name[len(stem):]); err == nil && strconv.Itoa(n) == name[len(stem):] {
		r.numbers[stem] = append(r.numbers[stem], n)
		return
	}
	r.numbers[name] = nil
}

// String is like `ipipou0 to ipipou9, vpn`.
func (r *ranges) String() string {
	var b bytes.Buffer
	put := func(text string) {
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		b.WriteString(text)
	}
	stems := make([]string, 0, len(r.numbers))
	for stem := range r.numbers {
		stems = append(stems, stem)
	}
	slices.Sort(stems)
	for _, stem := range stems {
		all := slices.Compact(slices.Sorted(slices.Values(r.numbers[stem])))
		if len(all) == 0 {
			put(stem)
		}
		for len(all) > 0 {
			n := 1
			for n < len(all) && all[n] == all[n-1]+1 {
				n++
			}
			text := stem + strconv.Itoa(all[0])
			if n > 1 {
				if text += " to "; !strings.HasSuffix(stem, " ") {
					text += stem
				}
				text += strconv.Itoa(all[n-1])
			}
			put(text)
			all = all[n:]
		}
	}
	return b.String()
}
