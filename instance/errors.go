package instance

import (
	"errors"

	"ipipou/plans"
	"ipipou/runner"
)

// Exit codes beside those of single steps (see package plans), as the Python
// tool has them.
const (
	ExitSockets = 20
	ExitBind    = 100
	ExitRebind  = 101
	ExitSend    = 120
)

// An Error ends the instance with an exit code.
type Error struct {
	Code int
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// ExitCode is the exit code for what Run returned.
func ExitCode(err error) int {
	var own *Error
	var step *runner.StepError
	switch {
	case err == nil, errors.Is(err, runner.ErrInterrupted):
		if errors.Is(err, runner.ErrUndo) {
			return plans.ExitCleanup
		}
		return 0
	case errors.As(err, &own):
		return own.Code
	case errors.As(err, &step):
		return plans.ExitCode(step.Command.Argv)
	case errors.Is(err, runner.ErrUndo):
		return plans.ExitCleanup
	}
	return plans.ExitGeneral
}
