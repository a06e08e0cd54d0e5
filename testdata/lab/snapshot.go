package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// volatile are the JSON keys that change by themselves, or that tell one object from an equal one made later.
var volatile = regexp.MustCompile(`^(ifindex|link_index|link_netnsid|iif_index|handle|metainfo|stats|stats64|operstate|` +
	`packets|bytes|expires|refcnt|age|used|cache_info|.*_timer|.*_life_time|inet6_addr_gen_mode|permaddr)$`)

// volatileSysctls change by themselves, or are no settings.
var volatileSysctls = regexp.MustCompile(`nf_conntrack_count$|/stable_secret$|/flush$|/random/|tcp_fastopen_key$`)

// fallbacks are the folders of sysctls of the devices that the kernel's drivers make in each namespace. They are four
// fifths of all sysctls there, and no tunnel's.
var fallbacks = regexp.MustCompile(`/(tunl0|sit0|gre0|gretap0|erspan0|ip_vti0|ip6tnl0|ip6gre0|ip6_vti0)$`)

// Snapshot is all of the namespace that a tunnel may change: devices, addresses, routes, rules, FOU ports, nft rules,
// sysctls. One fact a line, sorted, and without what changes by itself; so equal states give equal strings.
func (ns *NS) Snapshot(t T) string {
	t.Helper()
	lines := ns.listed(t, "ip -6 -j rule; tc -j qdisc show; ", "IPv6 rule show", "qdisc show")
	err := ns.Do(func() error {
		for _, dir := range []string{"net/ipv4", "net/ipv6/conf", "net/netfilter"} {
			lines = append(lines, sysctls(dir)...)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n") + "\n"
}

// quick is Snapshot in a fraction of its time: without sysctls, qdiscs and IPv6's rules.
func (ns *NS) quick(t T) string {
	t.Helper()
	return strings.Join(ns.listed(t, ""), "\n") + "\n"
}

// listed is what `ip`, some more commands that write one list each, and nft list, in as few processes as can be.
func (ns *NS) listed(t T, commands string, titles ...string) (lines []string) {
	t.Helper()
	objects := []string{"link show", "addr show", "route show table all", "rule show", "fou show"}
	// A kernel without FOU has no ports of it: hence the force, and one answer less.
	out := ns.Run(t, "sh", "-ec", "printf '"+strings.Join(objects, `\n`)+"' | ip -force -d -j -batch - || :; echo; "+commands+"nft -j list ruleset")
	answers := json.NewDecoder(strings.NewReader(out))
	titles = append(append(objects, titles...), "nft list ruleset")
	for i := 0; ; i++ {
		var answer json.RawMessage
		err := answers.Decode(&answer)
		if err == io.EOF && i >= len(titles)-1 {
			return lines
		}
		if err != nil || i >= len(titles) {
			t.Fatalf("in %s: %d answers, then %v:\n%s", ns.Name, i, err, out)
		}
		facts, err := parseFacts(string(answer), i == 1)
		if err != nil {
			t.Fatalf("in %s: %s: %v", ns.Name, titles[i], err)
		}
		for _, fact := range facts {
			lines = append(lines, titles[i]+": "+fact)
		}
	}
}

// SameState fails the test with the difference if two snapshots differ.
func SameState(t T, what, before, after string) {
	t.Helper()
	if diff := Diff(before, after); diff != "" {
		t.Errorf("%s differs (- before, + after):\n%s", what, diff)
	}
}

// Diff is the lines that only one of two snapshots has.
func Diff(before, after string) string {
	var b strings.Builder
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]++
	}
	for line := range strings.Lines(after) {
		count[line]--
	}
	for _, line := range slices.Sorted(maps.Keys(count)) {
		for n := count[line]; n != 0; n -= sign(n) {
			b.WriteString(map[int]string{1: "- ", -1: "+ "}[sign(n)] + line)
		}
	}
	return b.String()
}

func sign(n int) int {
	if n < 0 {
		return -1
	}
	return 1
}

// parseFacts turns a tool's JSON into lines. A device's is one line a property, or a changed one would be hard to find
// in a long line; what else there is are short lines.
func parseFacts(text string, onlyAddrs bool) ([]string, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	var root any
	if err := json.Unmarshal([]byte(text), &root); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text)
	}
	if object, ok := root.(map[string]any); ok {
		root = object["nftables"]
	}
	list, ok := root.([]any)
	if !ok {
		return nil, fmt.Errorf("no list: %s", text)
	}
	var facts []string
	inOrder := map[string]int{}
	for _, item := range list {
		object, ok := clean(item).(map[string]any)
		if !ok || len(object) == 0 {
			continue
		}
		if name, ok := object["ifname"]; ok {
			for key, value := range object {
				if onlyAddrs && key != "addr_info" {
					continue // `ip link` said that
				}
				facts = append(facts, fmt.Sprintf("%v %s=%s", name, key, compact(value)))
			}
			continue
		}
		// The order of rules matters, unlike that of all else.
		order := ""
		if rule, ok := object["rule"].(map[string]any); ok {
			chain := fmt.Sprint(rule["table"], " ", rule["chain"])
			inOrder[chain]++
			order = fmt.Sprintf("%s #%d ", chain, inOrder[chain])
		}
		facts = append(facts, order+compact(object))
	}
	slices.Sort(facts)
	return facts, nil
}

// clean removes the volatile keys at any depth.
func clean(v any) any {
	switch v := v.(type) {
	case map[string]any:
		kept := map[string]any{}
		for key, value := range v {
			if !volatile.MatchString(key) {
				kept[key] = clean(value)
			}
		}
		// A set of nft's is listed in the order of its hashes.
		if elements, ok := kept["elem"].([]any); ok {
			slices.SortFunc(elements, func(a, b any) int { return strings.Compare(compact(a), compact(b)) })
		}
		return kept
	case []any:
		kept := []any{}
		for _, item := range v {
			// `ip` lists an empty object for each device that does not match.
			if item = clean(item); !isEmpty(item) {
				kept = append(kept, item)
			}
		}
		return kept
	}
	return v
}

func isEmpty(v any) bool {
	object, ok := v.(map[string]any)
	return ok && len(object) == 0
}

func compact(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// sysctls reads a folder of /proc/sys, which shows each thread its own namespace's.
func sysctls(dir string) []string {
	var lines []string
	root := os.DirFS("/proc/sys")
	fs.WalkDir(root, dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && fallbacks.MatchString(path) {
			return fs.SkipDir
		}
		if err != nil || entry.IsDir() || volatileSysctls.MatchString(path) {
			return nil // a device may go while we look
		}
		if text, err := fs.ReadFile(root, path); err == nil {
			lines = append(lines, "sysctl "+path+" = "+strings.Join(strings.Fields(string(text)), " "))
		}
		return nil
	})
	slices.Sort(lines)
	return lines
}

// Sysctl sets sysctls, named by their path below /proc/sys.
func (ns *NS) Sysctl(t T, values map[string]string) {
	t.Helper()
	err := ns.Do(func() error {
		for name, value := range values {
			if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("in %s: %v", ns.Name, err)
	}
}
