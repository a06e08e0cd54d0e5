package check

import (
	"strings"
)

// firewall are the lines of what lets packets in, or doesn't.
func (c *checker) firewall(all []packet) []Line {
	if len(all) == 0 {
		return nil
	}
	var lines []Line
	var passed []string
	listing, problem := c.nftRules()
	if problem != nil {
		lines = append(lines, *problem)
	}
	legacy := map[bool]string{}
	for _, is6 := range []bool{false, true} {
		var problem *Line
		if legacy[is6], problem = c.iptablesRules(is6); problem != nil {
			lines = append(lines, *problem)
		}
	}
	unread := len(lines) > 0
	for _, p := range all {
		worst := ok("firewall", "")
		var sets []*ruleset
		if listing != "" {
			rules, err := readNft(listing, p)
			if err != nil {
				return append(lines, warning("firewall", oneLine(err.Error()), ""))
			}
			sets = append(sets, rules)
		}
		if text := legacy[p.is6]; text != "" {
			sets = append(sets, readIptables(text, p))
		}
		for _, rules := range sets {
			if l := rules.judge(p); l.State != OK && worst.State != Missing {
				worst = l
			}
		}
		if worst.State == OK {
			if text := p.String(); len(passed) < 5 {
				passed = append(passed, text)
			} else {
				passed[4] = "and so on"
			}
			continue
		}
		if len(lines) == 0 || lines[len(lines)-1] != worst {
			lines = append(lines, worst)
		}
	}
	if len(passed) > 0 && !unread {
		what := "lets in "
		if listing == "" && legacy[false] == "" && legacy[true] == "" {
			what = "none in the way of "
		}
		lines = append(lines, ok("firewall", what+strings.Join(passed, ", ")))
	}
	return lines
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
