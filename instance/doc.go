// Package instance runs the tunnels of one configuration: it brings them up,
// binds peers as package authd finds them, moves a client when its address
// changes, and leaves the host as it was.
//
// It is where the others meet and does little itself: what is done is said by
// package plans, done by package runner, and why is known by package authd.
package instance
