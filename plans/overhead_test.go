package plans

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What docs/static.md says of MTUs, which the lab has seen, is what the headers take.
func TestOverhead(t *testing.T) {
	text, err := os.ReadFile("../docs/static.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "<!-- modes -->\n")
	table, _, _ = strings.Cut(table, "<!-- /modes -->")
	rows := regexp.MustCompile("(?m)^\\| `(\\w+)`( with `key`)? \\|(.*)\\|(.*)\\|(.*)\\|$").FindAllStringSubmatch(table, -1)
	seen := 0
	for _, row := range rows {
		tunnel := Tunnel{Mode: Mode(row[1])}
		if row[2] != "" {
			tunnel.Key = "1"
		}
		for i, encap := range []Encap{None, FOU, GUE} {
			tunnel.Encap = encap
			_, mtu, given := strings.Cut(row[3+i], ", ")
			if !given {
				continue
			}
			seen++
			if got := strings.TrimSpace(mtu); got != strconv.Itoa(1500-tunnel.Overhead()) {
				t.Errorf("%s%s in %s: an MTU of %s, less headers it is %d", row[1], row[2], encap, got, 1500-tunnel.Overhead())
			}
		}
	}
	if len(rows) != 12 || seen != 30 {
		t.Errorf("%d rows with %d MTUs in docs/static.md", len(rows), seen)
	}
}
