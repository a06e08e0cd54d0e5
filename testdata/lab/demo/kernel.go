package main

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"ipipou/testdata/lab"
)

// kernel is the kernel's own ipip and FOU, in the virtual machine: this host's kernel may have neither.
var kernel = dataPath{
	remote:      [2]string{lab.SrvAddr + ":10000", lab.SrvAddr + ":10001"},
	serverInner: [2]string{"172.28.0.0", "172.28.0.2"},
	tunnel:      func(i int) string { return fmt.Sprintf("ipipou%d", i) },
	together: []string{
		"Both clients come from one public address. The kernel can't have two tunnels between the same",
		"two addresses, so the second one has an alternate local address, which nft rewrites.",
	},
	size: 20_000_000,
	rate: "Emulated: a program works out each instruction.",
	also: "FOU ports, ",
	run: func(ctx context.Context) (int, error) {
		started := time.Now()
		fmt.Println("Booting a stock Debian kernel under emulation; the network of the demo is in there.")
		result, err := lab.Again(ctx, lab.VM{Timeout: 10 * time.Minute})
		if err == nil {
			fmt.Printf("%.0f s in all, of which the machine took %.0f s to boot.\n", time.Since(started).Seconds(), result.Boot.Seconds())
		}
		return result.Exit, err
	},
	settle:   lab.LoadModules,
	at:       (*demo).linkAt,
	counters: (*demo).gateCounters,
}

// linkAt is where the first tunnel's interface leads to.
func (d *demo) linkAt() (shown, peer string) {
	out := d.net.Srv.Run(d, "ip", "-d", "link", "show", "dev", "ipipou0")
	ends := regexp.MustCompile(`ipip remote (\S+) local \S+|encap fou\b.*encap-dport (\d+)`).FindAllStringSubmatch(out, -1)
	if len(ends) != 2 {
		d.Fatalf("ip -d link show said: %s", out)
	}
	return "ip -d link show ipipou0:  " + ends[0][0] + "  …  " + ends[1][0], ends[0][1] + ":" + ends[1][2]
}

// gateCounters are those of the gate's drop rules, and of the first tunnel's interface.
func (d *demo) gateCounters() (drops map[string]int, received int) {
	n := 0
	for line := range strings.Lines(d.net.Srv.Run(d, "nft", "list", "table", "ip", "ipipou0")) {
		if m := regexp.MustCompile(`counter packets (\d+) bytes \d+ drop`).FindStringSubmatch(line); m != nil {
			count, err := strconv.Atoi(m[1])
			if err != nil {
				d.Fatal(err)
			}
			n += count
		}
	}
	return map[string]int{"drop": n}, int(d.net.Srv.Counters(d, "ipipou0").RX.Packets)
}
