package instance

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"

	"ipipou/plans"
)

// A difference is what the plan and the host say of an object, in one list.
type difference struct {
	object string
	lines  []marked
}

// A marked line is on both sides (' '), only in the plan ('-') or only on the host ('+').
type marked struct {
	mark byte
	text string
	of   string // Title of the tunnel
}

// Diff writes how the host differs from what the instance would have there: what is
// missing as -, what is beside it as +, by object, in the manner of `diff -u`. It asks the
// host alone, changes nothing and loads no module. Lines with # say what could not be
// compared. The operator's own commands are not looked at.
func Diff(ctx context.Context, c plans.Config, w io.Writer, colour bool) (same bool, err error) {
	var s *surveyor
	var differences []difference
	for range 2 { // a peer may be moving, or the instance be putting something back
		if s, err = survey(ctx, c, true); err != nil {
			return false, err
		}
		differences = slices.DeleteFunc(s.compare(), func(d difference) bool { return !d.differs() })
		if len(differences) == 0 {
			break
		}
	}
	var b bytes.Buffer
	for _, note := range s.notes {
		b.WriteString("# " + note + "\n")
	}
	if len(differences) > 0 {
		b.WriteString("--- " + c.Name + " (planned)\n+++ host\n")
	}
	for _, d := range differences {
		b.WriteString("@@ " + d.object + " @@\n")
		d.write(&b, colour)
	}
	_, err = w.Write(b.Bytes())
	return len(differences) == 0, err
}

// Drift is what the plan says should be on the host and is not, by the title of the
// tunnel that misses it, or "" for the whole instance: "address 172.28.0.0 is missing". It
// takes a fixed number of commands, however many tunnels there are. Rules of nft are not
// looked at, only that their chains are there, and the elements that let peers in.
func Drift(ctx context.Context, c plans.Config) (drift map[string][]string, err error) {
	for again := range 2 { // a peer may be moving, or the instance be putting something back
		s, err := survey(ctx, c, false)
		if err != nil {
			return nil, err
		}
		now := map[string][]string{}
		for _, d := range s.compare() {
			for of, texts := range d.missing(s.absent(d.object)) {
				now[of] = append(now[of], texts...)
			}
		}
		if again > 0 {
			now = inBoth(drift, now)
		}
		if drift = now; len(drift) == 0 {
			break
		}
	}
	return drift, nil
}

// inBoth is what each of the tunnels lacked at both looks.
func inBoth(before, now map[string][]string) map[string][]string {
	both := map[string][]string{}
	for of, texts := range now {
		for _, text := range texts {
			if slices.Contains(before[of], text) {
				both[of] = append(both[of], text)
			}
		}
	}
	return both
}

// missing says what of the plan is not there, by the title of the tunnel. altogether is
// whether nothing is.
func (d difference) missing(altogether bool) map[string][]string {
	missing := map[string][]string{}
	for _, l := range d.lines {
		if l.mark != '-' {
			continue
		}
		if altogether {
			return map[string][]string{l.of: {d.object + " is missing"}}
		}
		where := " (" + d.object + ")"
		if dev, _, _ := strings.Cut(l.of, "/"); d.object == "interface "+dev {
			where = ""
		}
		text := l.text + where + " is missing"
		for _, other := range d.lines {
			if other.mark == '+' && single(l.text) && head(other.text) == head(l.text) {
				text = other.text + where + ", not " + l.text
			}
		}
		missing[l.of] = append(missing[l.of], text)
	}
	return missing
}

func (d difference) differs() bool {
	return slices.ContainsFunc(d.lines, func(l marked) bool { return l.mark != ' ' })
}

// around is how many lines that are the same are shown before and behind others.
const around = 3

func (d difference) write(b *bytes.Buffer, colour bool) {
	near := make([]bool, len(d.lines))
	for i, l := range d.lines {
		if l.mark != ' ' {
			for j := max(0, i-around); j <= min(len(d.lines)-1, i+around); j++ {
				near[j] = true
			}
		}
	}
	for i, l := range d.lines {
		switch {
		case near[i]:
			line := string(l.mark) + l.text
			if code, marked := map[byte]Colour{'-': Red, '+': Green}[l.mark]; colour && marked {
				line = code.Paint(line)
			}
			b.WriteString(line + "\n")
		case i == 0 || near[i-1]:
			b.WriteString(" ...\n")
		}
	}
}

// values are the first words of lines of which an object has one: another one on the
// host is another value.
var values = []string{
	"link", "encap", "mtu", "group", "state", "csum", "key", "ttl", "tos", "pmtudisc", "encaplimit",
	"outer", "peer", "filter", "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding",
}

func single(line string) bool { return slices.Contains(values, firstWord(line)) }

// head is what two lines have in common that say the same of different values.
func head(line string) string {
	word, rest, _ := strings.Cut(line, " ")
	if word == "peer" || word == "filter" {
		more, _, _ := strings.Cut(rest, " ")
		word += " " + more
	}
	return word
}

// compareLines marks an object's lines. auto are lines of the host that count for nothing
// unless they are planned.
func compareLines(o plans.Object, host []string, auto map[string]bool) difference {
	d := difference{object: o.Name}
	if o.Ordered {
		d.lines = ordered(o.Lines, host)
		return d
	}
	left := map[string]bool{}
	for _, text := range host {
		left[text] = true
	}
	planned := map[string]bool{}
	for _, l := range o.Lines {
		forms := append([]string{l.Text}, l.Or...)
		i := slices.IndexFunc(forms, func(form string) bool { return left[form] })
		if i < 0 {
			d.lines = append(d.lines, marked{'-', l.Text, l.Of})
		} else {
			d.lines = append(d.lines, marked{' ', l.Text, l.Of})
			planned[forms[i]] = true
		}
	}
	for _, text := range host {
		own := slices.Contains(o.Own, "*") || slices.Contains(o.Own, firstWord(text)) ||
			single(text) && slices.ContainsFunc(o.Lines, func(l plans.Line) bool { return head(l.Text) == head(text) })
		if planned[text] || auto[text] || !own {
			continue
		}
		at := len(d.lines)
		if i := slices.IndexFunc(d.lines, func(l marked) bool { return l.mark == '-' && single(text) && head(l.text) == head(text) }); i >= 0 {
			at = i + 1
		}
		d.lines = slices.Insert(d.lines, at, marked{'+', text, ""})
	}
	return d
}

func firstWord(line string) string { return strings.Fields(line + " .")[0] }

// ordered marks lines whose order counts, with as many as possible in common.
func ordered(plan []plans.Line, host []string) (out []marked) {
	same := 0
	for same < len(plan) && same < len(host) && plan[same].Text == host[same] {
		out = append(out, marked{' ', plan[same].Text, plan[same].Of})
		same++
	}
	plan, host = plan[same:], host[same:]
	// common[i][j] is how many lines plan[i:] and host[j:] have in common.
	common := make([][]int, len(plan)+1)
	for i := range common {
		common[i] = make([]int, len(host)+1)
	}
	for i := len(plan) - 1; i >= 0; i-- {
		for j := len(host) - 1; j >= 0; j-- {
			if plan[i].Text == host[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	for i, j := 0, 0; i < len(plan) || j < len(host); {
		switch {
		case i < len(plan) && j < len(host) && plan[i].Text == host[j]:
			out = append(out, marked{' ', plan[i].Text, plan[i].Of})
			i, j = i+1, j+1
		case j == len(host) || i < len(plan) && common[i+1][j] >= common[i][j+1]:
			out = append(out, marked{'-', plan[i].Text, plan[i].Of})
			i++
		default:
			out = append(out, marked{'+', host[j], ""})
			j++
		}
	}
	return out
}
