// Demo shows the program at work: it makes a server, a NAT router and two clients and lets one see what happens to
// them. For `make demo` that is in network namespaces of this host, and BPF carries the tunnels; for `make demo-kernel`
// in the lab's virtual machine, with the kernel's own FOU.
//
//	go run ./testdata/lab/demo [-kernel]
//
// It exits with 1 if anything is not as it says.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ipipou/testdata/lab"
)

func main() {
	onKernel := flag.Bool("kernel", false, "in a virtual machine, with the kernel's FOU")
	flag.Parse()
	path := bpf
	if *onKernel {
		path = kernel
	}
	if lab.InGuest() || lab.IsApart() {
		os.Exit(show(path))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	exit, err := path.run(ctx)
	if ctx.Err() != nil {
		err = errors.New("interrupted") // whatever that came to
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		exit = 1
	}
	os.Exit(exit)
}

// show is the demo itself, where path.run has brought it.
func show(path dataPath) (exit int) {
	d := &demo{path: path}
	if err := path.settle(); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 1
	}
	defer func() {
		if r := recover(); r != nil && r != any(d) {
			panic(r)
		}
		for i := len(d.cleanups) - 1; i >= 0; i-- {
			d.cleanups[i]()
		}
		if d.Failed() {
			fmt.Println("\nThe demo FAILED.")
			exit = 1
		}
	}()
	started := time.Now()
	d.story()
	if !d.Failed() {
		fmt.Printf("\nAll of it was as it says, in %.1f s.\n", time.Since(started).Seconds())
	}
	return 0
}
