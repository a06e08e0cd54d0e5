package lab

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// holdStaticKeys keeps switches on that the kernel has in its own code (static keys, jump_label.c) and turns by writing
// there: that somebody takes time stamps of packets, as ping does, has FOU, has nft rules at a hook, has filters where packets come in or go out. The emulator's
// processors now and then go on with the old code, an int3, and the machine hangs for good. One holder for the life of
// the machine, and nothing is turned any more. Where time counts instructions there is one processor, and no such fault.
func holdStaticKeys() error {
	if os.Getenv("IPIPOU_LAB_ICOUNT") == "1" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1); err != nil {
		return err
	}
	rules := ""
	for _, family := range []string{"ip", "ip6"} {
		rules += "table " + family + " held {\n"
		for _, hook := range []string{"prerouting", "input", "forward", "output", "postrouting"} {
			rules += fmt.Sprintf("chain %s {\ntype filter hook %s priority 0\n}\n", hook, hook)
		}
		rules += "}\n"
	}
	if _, err := run(rules, "nft", "-f", "-"); err != nil {
		return err
	}
	commands := []string{"qdisc add dev lo clsact"}
	for _, way := range []string{"ingress", "egress"} {
		commands = append(commands, "filter add dev lo "+way+" bpf bytecode '1,6 0 0 4294967295'")
	}
	if _, err := run(strings.Join(commands, "\n")+"\n", "tc", "-batch", "-"); err != nil {
		return err
	}
	for _, family := range []string{"-4", "-6"} {
		if _, err := run("", "ip", family, "fou", "add", "port", "1", "gue"); err != nil {
			return err
		}
	}
	return nil
}
