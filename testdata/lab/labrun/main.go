// Labrun runs one command in the lab's virtual machine, for looking around by hand:
//
//	go run ./testdata/lab/labrun uname -a
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"ipipou/testdata/lab"
)

func main() {
	var vm lab.VM
	flag.StringVar(&vm.Kernel, "kernel", "", "kernel: 5.10, 6.1 or 6.12 (default $IPIPOU_LAB_KERNEL or 6.1)")
	flag.IntVar(&vm.CPUs, "cpus", 0, "processors (default 2)")
	flag.StringVar(&vm.Memory, "memory", "", "memory (default 3000M)")
	flag.BoolVar(&vm.Icount, "icount", false, "let the clock count instructions, on one processor")
	flag.DurationVar(&vm.Timeout, "timeout", 10*time.Minute, "time limit")
	flag.Parse()
	vm.Argv, vm.Output = flag.Args(), os.Stdout
	vm.Dir, _ = os.Getwd()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	started := time.Now()
	err := vm.Setup(ctx, os.Stderr)
	var result lab.Result
	if err == nil {
		result, err = vm.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "labrun:", err)
		os.Exit(125)
	}
	fmt.Fprintf(os.Stderr, "labrun: exit %d; boot %v, command %v, all %v\n", result.Exit,
		result.Boot.Round(time.Millisecond), result.Run.Round(time.Millisecond), time.Since(started).Round(time.Millisecond))
	os.Exit(result.Exit)
}
