package instance

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"ipipou/plans"
)

// none stands in a column that has nothing to say, for those who count columns.
const none = "-"

// most is how many tunnels are shown in detail; more make a table, whatever is asked for.
const most = 8

// A Style is how reports are shown to people.
type Style struct {
	Colours Palette
	Details bool // a paragraph for each tunnel, where they are few
	Now     time.Time
}

// WriteJSON writes one document, {"instances": [...]}: indented, or in one line.
func WriteJSON(w io.Writer, reports []Report, oneLine bool) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	if !oneLine {
		e.SetIndent("", "  ")
	}
	return e.Encode(struct {
		Instances []Report `json:"instances"`
	}{append([]Report{}, reports...)})
}

// A Palette colours words, or leaves them as they are.
type Palette bool

// Good is what is as it should be, Doubtful what may be so, Bad what is not; Strong is what
// stands out.
func (p Palette) Good(s string) string     { return p.paint(Green, s) }
func (p Palette) Doubtful(s string) string { return p.paint(Yellow, s) }
func (p Palette) Bad(s string) string      { return p.paint(Red, s) }
func (p Palette) Strong(s string) string   { return p.paint(Bold, s) }

func (p Palette) paint(c Colour, s string) string {
	if !p || s == "" {
		return s
	}
	return c.Paint(s)
}

// Show writes what people read: for each instance a line, and its tunnels.
func (s Style) Show(w io.Writer, reports []Report) error {
	var b bytes.Buffer
	for i, r := range reports {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintln(&b, s.heading(r))
		for _, d := range r.Drift {
			fmt.Fprintf(&b, "%s %s\n", s.Colours.Bad("drift:"), plain(d))
		}
		switch {
		case r.Fault != "" || len(r.Tunnels) == 0:
		case s.Details && len(r.Tunnels) <= most:
			s.details(&b, r)
		default:
			s.table(&b, r)
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// plain is a text in which nothing steers a terminal.
func plain(s string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return '?'
		}
		return c
	}, s)
}

// heading is the instance's line.
func (s Style) heading(r Report) string {
	name, said := plain(r.Name), ""
	switch r.Daemon {
	case Running:
		said = fmt.Sprintf("%s as process %d, started %s", s.Colours.Good("running"), r.PID, s.ago(r.Started))
		said += words(", backend ", r.Backend) + words(", ipipou ", r.Version)
	case Silent:
		said = s.Colours.Doubtful("daemon does not answer")
		if r.PID != 0 { // who may not read the lock does not know
			said += fmt.Sprintf(" (process %d)", r.PID)
		}
		said += ": " + plain(r.Why)
	case Dead:
		said = s.Colours.Bad("daemon not running") + ": it died and has left things behind, which the next start undoes, or: ipipou down " + name
	default:
		said = s.Colours.Bad("daemon not running")
	}
	if !r.ConfirmBy.IsZero() {
		left := max(0, r.ConfirmBy.Sub(s.Now)).Round(time.Second)
		said += "\n" + s.Colours.Doubtful(fmt.Sprintf("to be confirmed within %s, or all is undone:", left)) + " ipipou confirm " + name
	}
	return s.Colours.Strong(name) + ": " + said
}

// words are a text behind its introduction, nothing without it.
func words(introduction, text string) string {
	if text == "" {
		return ""
	}
	return introduction + plain(text)
}

// columns are those of the table.
var columns = []string{
	"TUNNEL", "STATE", "BACKEND", "LOCAL", "PEER", "INNER", "BOUND", "AUTH",
	"RX-PACKETS", "RX-BYTES", "TX-PACKETS", "TX-BYTES", "REFUSED", "DROPS",
}

// table has a line for each tunnel. Each cell but the last is one word.
func (s Style) table(w io.Writer, r Report) {
	rows := [][]string{columns}
	for _, t := range r.Tunnels {
		row := []string{t.Tunnel, string(t.State), string(t.Backend), t.Local, t.Peer, inside(t.Inner, ">", ","), s.age(t.Bound), s.age(t.Authenticated)}
		rows = append(rows, append(row, append(t.Traffic.cells(), reasons(t.Refused, ","), reasons(t.Drops, " "))...))
	}
	bpf := slices.ContainsFunc(r.Tunnels, func(t TunnelReport) bool { return t.Backend == plans.BPF && t.Traffic != nil })
	if bpf || len(r.Nobody.Drops)+len(r.Nobody.Refused) > 0 {
		row := []string{nobody, "", "", "", "", "", "", ""}
		rows = append(rows, append(row, append((*Traffic)(nil).cells(), reasons(r.Nobody.Refused, ","), reasons(r.Nobody.Drops, " "))...))
	}
	widths := make([]int, len(columns))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = plain(cmp.Or(cell, none))
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			text := cell
			switch {
			case n == 0:
				text = s.Colours.Strong(cell)
			case columns[i] == "STATE":
				text = s.state(State(cell))
			}
			if i == len(row)-1 {
				fmt.Fprintln(w, text)
				break
			}
			fmt.Fprint(w, text, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
		}
	}
}

// state is a state in its colour.
func (s Style) state(state State) string {
	text := plain(string(state))
	switch state {
	case Up:
		return s.Colours.Good(text)
	case Waiting:
		return s.Colours.Doubtful(text)
	case none, "":
		return text
	}
	return s.Colours.Bad(text)
}

// cells are the traffic's, nothing where there is none.
func (t *Traffic) cells() []string {
	if t == nil {
		return []string{"", "", "", ""}
	}
	return []string{strconv.FormatUint(t.RXPackets, 10), volume(t.RXBytes), strconv.FormatUint(t.TXPackets, 10), volume(t.TXBytes)}
}

// details have a paragraph for each tunnel, with what there is to say.
func (s Style) details(w io.Writer, r Report) {
	for _, t := range r.Tunnels {
		line := func(name, text string) {
			if text != "" {
				fmt.Fprintf(w, "  %s %s\n", s.Colours.Strong(name+":"), text)
			}
		}
		fmt.Fprintf(w, "\n%s %s\n", s.Colours.Strong("tunnel:"), plain(t.Tunnel))
		line("state", s.state(t.State)+words(", for ", s.span(t.Since)))
		line("form", plain(fmt.Sprintf("%s, mode %s, encap %s", t.Role, t.Mode, t.Encap))+words(", backend ", string(t.Backend)))
		line("local", plain(t.Local))
		line("peer", plain(t.Peer)+words(", bound ", s.ago(t.Bound)))
		line("inner", plain(inside(t.Inner, " > ", ", ")))
		line("last authentication", s.ago(t.Authenticated))
		if t.Traffic != nil {
			c := t.Traffic.cells()
			line("received", c[0]+" packets, "+bytesOf(c[1]))
			line("sent", c[2]+" packets, "+bytesOf(c[3]))
		}
		line("dropped", plain(reasons(t.Drops, " ")))
		line("refused", plain(reasons(t.Refused, " ")))
		if t.Keepalive > 0 {
			line("keepalive", "every "+seconds(t.Keepalive))
		}
		if t.Monitor != "" {
			line("monitor", plain(t.Monitor)+", every "+seconds(t.MonitorEvery))
		}
	}
	if text := reasons(r.Nobody.Drops, " "); text != "" {
		fmt.Fprintf(w, "\n%s %s\n", s.Colours.Strong("dropped, of no tunnel's:"), plain(text))
	}
	if text := reasons(r.Nobody.Refused, " "); text != "" {
		fmt.Fprintf(w, "\n%s %s\n", s.Colours.Strong("refused, of no tunnel's:"), plain(text))
	}
}

// bytesOf is a volume that says of what.
func bytesOf(volume string) string {
	if strings.HasSuffix(volume, "B") {
		return volume
	}
	return volume + " bytes"
}

func seconds(n float64) string { return time.Duration(n * float64(time.Second)).String() }

// reasons are counts by reason, such as `older=1 signature=3`.
func reasons(counts map[string]uint64, between string) string {
	var all []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%s=%d", reason, counts[reason]))
	}
	return strings.Join(all, between)
}

// inside are inner addresses, each with the other end's if it has one:
// 172.28.0.0>172.28.0.1.
func inside(inner []Inner, toPeer, between string) string {
	var all []string
	for _, a := range inner {
		word := a.Address
		if a.Peer != "" {
			word += toPeer + a.Peer
		}
		all = append(all, word)
	}
	return strings.Join(all, between)
}

// ago is how long ago something was, as one says it: `2 min ago`; "" if it was not.
func (s Style) ago(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	return s.span(at) + " ago"
}

// span is the time since then: `2 min`.
func (s Style) span(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	n, unit := s.since(at)
	return fmt.Sprintf("%d %s", n, map[byte]string{'s': "s", 'm': "min", 'h': "h", 'd': "days"}[unit])
}

// age is the same as one word: `2m`.
func (s Style) age(at time.Time) string {
	if at.IsZero() {
		return ""
	}
	n, unit := s.since(at)
	return strconv.Itoa(n) + string(unit)
}

// since is how long ago something was, in a unit of which that are two at least.
func (s Style) since(at time.Time) (n int, unit byte) {
	d := max(0, s.Now.Sub(at))
	switch {
	case d < 2*time.Minute:
		return int(d.Seconds()), 's'
	case d < 2*time.Hour:
		return int(d.Minutes()), 'm'
	case d < 48*time.Hour:
		return int(d.Hours()), 'h'
	}
	return int(d.Hours() / 24), 'd'
}

// volume is a number of bytes: as it is, and from a million on in MB and so on.
func volume(n uint64) string {
	if n < 1e6 {
		return strconv.FormatUint(n, 10)
	}
	f, units := float64(n)/1e6, []string{"MB", "GB", "TB", "PB", "EB"}
	for f >= 999.95 && len(units) > 1 { // it would be shown as 1000.0
		f, units = f/1000, units[1:]
	}
	return fmt.Sprintf("%.1f%s", f, units[0])
}
