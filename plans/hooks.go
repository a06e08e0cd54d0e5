package plans

import "slices"

// before are the operator's steps around all others: his pre-up commands, and
// what runs when everything is undone. The latter is noted first, so that it
// also cleans up after a pre-up command that failed.
func (t Tunnel) before() []Step { return hooks("before the tunnel", t.Hooks.PreUp, t.Hooks.PostDown) }

// after are the operator's steps when the tunnel is up, and before it goes.
func (t Tunnel) after() []Step { return hooks("the tunnel is up", t.Hooks.PostUp, t.Hooks.PreDown) }

func hooks(when string, up, down [][]string) []Step {
	var steps []Step
	// Undone in reverse, they run in the order in which they were given.
	for _, argv := range slices.Backward(down) {
		steps = append(steps, Step{Comment: "the operator's own, for the way down", Undo: cmd(argv...), UndoOnce: true})
	}
	for _, argv := range up {
		steps = append(steps, Step{Comment: "the operator's own, " + when, Do: cmd(argv...)})
	}
	return steps
}
