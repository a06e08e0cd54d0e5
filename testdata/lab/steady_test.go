package lab

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// The kernel replaces its own code when the first wants what hardly anybody does, and again when nobody does any more,
// by way of a breakpoint. qemu 7.2, on two processors, at times goes on with the breakpoint that it has translated
// when that has been replaced, and the processor never leaves it (a fault of its translator's locks, mended in 8.1).
// So somebody wants from the beginning to the end what tests want now and again: ping wants timestamps, and each nft
// table its hooks.
func init() {
	if !InGuest() {
		return
	}
	if err := keepWanted(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
	}
}

func keepWanted() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1)
	}
	if err != nil {
		return fmt.Errorf("keep timestamps: %w", err)
	}
	rules := ""
	for _, family := range []string{"ip", "ip6"} {
		rules += "table " + family + " wanted {\n"
		for _, hook := range []string{"prerouting", "input", "forward", "output", "postrouting"} {
			rules += fmt.Sprintf("chain %s {\ntype filter hook %[1]s priority 0\n}\n", hook)
		}
		rules += "}\n"
	}
	if out, err := exec.Command("sh", "-c", "printf '%s' \"$1\" | nft -f -", "sh", rules).CombinedOutput(); err != nil {
		return fmt.Errorf("keep netfilter's hooks: %w: %s", err, out)
	}
	return nil
}
