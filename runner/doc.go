// Package runner does what a plan says. It fills in variables, prints each
// command, runs it, writes its undo to a journal before it, and undoes in
// reverse order. It knows commands, not tunnels.
package runner
