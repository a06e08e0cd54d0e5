package instance

import (
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"ipipou/plans"
	"ipipou/runner"
)

// inWordsOfNft has nft say the plan's tables in its own words, in which it prints those of
// the host: they are made in a network namespace of our own, which ends with the thread.
func (s *surveyor) inWordsOfNft(sets []plans.Ruleset) (listings map[string]string, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, after the processes that it
		// waits for.
		runtime.LockOSThread()
		if err = unix.Unshare(unix.CLONE_NEWNET); err != nil {
			err = fmt.Errorf("no network namespace to bring them into one form: %w", err)
			return
		}
		listings, err = s.listed(sets)
	}()
	<-done
	return listings, err
}

// listed makes tables and lists them. Only those are made that the host has: what their
// rules need of the kernel is there.
func (s *surveyor) listed(sets []plans.Ruleset) (map[string]string, error) {
	listings := map[string]string{}
	for _, r := range sets {
		if s.tables[r.Table] == "" {
			continue
		}
		for _, stdin := range r.Stdins {
			c := plans.Command{Argv: []string{"nft", "-f", "-"}, Stdin: stdin}
			if _, stderr, err := s.exec(c); err != nil {
				return nil, &runner.StepError{Command: c, Stderr: stderr, Err: err}
			}
		}
		stdout, err := s.look(plans.Command{Argv: append([]string{"nft", "-s", "list", "table"}, strings.Fields(r.Table)...)})
		if err != nil {
			return nil, err
		}
		listings[r.Table] = stdout
	}
	return listings, nil
}
