package instance

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// mayUseBPF reports whether BPF may come to carry the tunnels that are undecided.
func (in *Instance) mayUseBPF() bool {
	return in.Config.Undecided() && in.Config.BPFFault() == nil && lacking() == nil
}

// lacking says which program the BPF data path wants that this host does not have.
func lacking() error {
	for _, name := range []string{"bpftool", "tc"} {
		if _, err := runner.LookPath(name); err != nil {
			return err
		}
	}
	return nil
}

// mayMount tells beforehand that the BPF data path's file system can't be mounted.
func mayMount() error {
	have, err := current()
	if err == nil && have.permitted&caps(unix.CAP_SYS_ADMIN) == 0 {
		err = errors.New("not permitted: BPF wants CAP_SYS_ADMIN, for the maps' file system: run as root, or give it to the unit (bpf.conf among the package's examples)")
	}
	return err
}

// decide finds out what carries the tunnels that leave it to the host: the kernel's
// drivers where they are all there, else BPF.
func (in *Instance) decide(ctx context.Context) error {
	if in.Config.Undecided() {
		_, err := in.run.Run(ctx, in.Config.KernelDrivers(), map[string]string{})
		var step *runner.StepError
		switch fault := in.Config.BPFFault(); {
		case err == nil:
			in.Config = in.Config.Decided(plans.Kernel)
		case !errors.As(err, &step) || errors.Is(err, runner.ErrInterrupted):
			return err
		case fault != nil:
			return fmt.Errorf("%w; and the BPF data path can't stand in: %w", err, fault)
		case lacking() != nil:
			return fmt.Errorf("%w; and the BPF data path can't stand in: %w", err, lacking())
		case mayMount() != nil:
			return fmt.Errorf("%w; and the BPF data path can't stand in: %w", err, mayMount())
		default:
			in.Log.Warn(fmt.Sprintf("backend bpf: this kernel lacks a driver (%v)", err))
			in.Config = in.Config.Decided(plans.BPF)
		}
		if err := check(in.Config); err != nil {
			return err
		}
		if err := in.facts(ctx); err != nil { // of the backend
			return err
		}
	}
	kernel, bpf := in.Config.Backends()
	if bpf {
		if err := mayMount(); err != nil {
			return err
		}
	}
	switch {
	case kernel && bpf:
		in.Log.Info("backends: the kernel's drivers, and BPF programs where a tunnel wants them")
	case bpf:
		in.Log.Info("backend: BPF programs")
	default:
		in.Log.Info("backend: the kernel's drivers")
	}
	return nil
}
