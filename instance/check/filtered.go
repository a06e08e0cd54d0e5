package check

import (
	"fmt"
	"strings"
)

// A wall is all that filters on this host.
type wall struct {
	nft    *nftListing
	legacy map[bool]string // what iptables-legacy -S prints, for IPv4 and IPv6
}

// firewall are the lines of what lets packets in, or doesn't. Of many that have the same
// fate there is one.
func (c *checker) firewall(all []packet) []Line {
	if len(all) == 0 {
		return nil
	}
	w, lines := c.wall()
	known := len(lines) == 0
	passed := newRanges()
	first, others := map[string]int{}, map[int]int{}
	for _, p := range all {
		l := w.judge(p)
		alike := strings.ReplaceAll(l.Found, p.String(), "")
		switch i, seen := first[alike]; {
		case l.State == OK:
			passed.name(p.String())
		case seen:
			others[i]++
		default:
			first[alike] = len(lines)
			lines = append(lines, l)
		}
	}
	for i, n := range others {
		lines[i].Found += fmt.Sprintf(" (and so for %d more)", n)
	}
	if text := passed.String(); text != "" && known {
		how := "lets in "
		if w.nft == nil && w.legacy[false]+w.legacy[true] == "" {
			how = "none in the way of "
		}
		lines = append(lines, ok("firewall", how+text))
	}
	return lines
}

// wall reads the rules; lines are why some could not be read.
func (c *checker) wall() (w wall, lines []Line) {
	listing, problem := c.nftRules()
	if problem == nil && listing != "" {
		var err error
		if w.nft, err = parseNft(listing); err != nil {
			l := warning("firewall", oneLine(err.Error()), "")
			problem = &l
		}
	}
	if problem != nil {
		lines = append(lines, *problem)
	}
	w.legacy = map[bool]string{}
	for _, is6 := range []bool{false, true} {
		if w.legacy[is6], problem = c.iptablesRules(is6); problem != nil {
			lines = append(lines, *problem)
		}
	}
	return w, lines
}

// judge is the worst that is done to the packet.
func (w wall) judge(p packet) Line {
	worst := ok("firewall", "")
	var sets []*ruleset
	if w.nft != nil {
		sets = append(sets, w.nft.ruleset(p))
	}
	if text := w.legacy[p.is6]; text != "" {
		sets = append(sets, readIptables(text, p))
	}
	for _, rules := range sets {
		if l := rules.judge(p); l.State != OK && worst.State != Missing {
			worst = l
		}
	}
	return worst
}

// nftRules lists the rules of nft; "" if there are none. Where nf_tables is not loaded
// there can be none, and to ask would load it (nfnetlink_rcv_msg in
// net/netfilter/nfnetlink.c).
func (c *checker) nftRules() (listing string, problem *Line) {
	if p, _ := c.driver("nf_tables"); p != present {
		return "", nil
	}
	cannot := func(why, advice string) (string, *Line) {
		l := warning("firewall", "nft's rules can't be listed: "+why, advice)
		return "", &l
	}
	if _, err := c.LookPath("nft"); err != nil {
		return cannot(err.Error(), "")
	}
	listing, err := c.run("nft", "-j", "list", "ruleset")
	switch {
	case err != nil && notPermitted(err):
		return cannot("not permitted", "run as root")
	case err != nil:
		return cannot(oneLine(err.Error()), "")
	}
	return listing, nil
}

// iptablesRules lists the table filter of the kernel's older tables, where it is loaded;
// "" if not. What iptables-nft makes is among nft's rules.
func (c *checker) iptablesRules(is6 bool) (listing string, problem *Line) {
	tables, tool := "proc/net/ip_tables_names", "iptables-legacy"
	if is6 {
		tables, tool = "proc/net/ip6_tables_names", "ip6tables-legacy"
	}
	if !strings.Contains("\n"+c.read(tables)+"\n", "\nfilter\n") {
		return "", nil
	}
	if _, err := c.LookPath(tool); err != nil {
		// Before there were two of them.
		tool = strings.TrimSuffix(tool, "-legacy")
	}
	listing, err := c.run(tool, "-S")
	if err == nil {
		return listing, nil
	}
	l := warning("firewall", "the rules of the kernel's older tables (iptables) can't be listed: "+oneLine(err.Error()), packages("iptables", "iptables-legacy", "iptables-legacy"))
	return "", &l
}
