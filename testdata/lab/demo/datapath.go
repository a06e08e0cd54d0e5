package main

import "context"

// A dataPath is what carries the tunnels, and what is different about it in the story.
type dataPath struct {
	run    func(context.Context) (exit int, err error) // runs this program again where the demo is to be
	settle func() error                                // comes first there

	// More lines of the configurations: the server's top, its tunnels, the clients.
	server       string
	peer, client [2]string
	remote       [2]string // for the clients
	serverInner  [2]string // of the server's ends

	tunnel   func(i int) string // what the server's log calls it
	together []string           // how two clients behind one address are told apart
	size     int64              // of a transfer
	rate     string             // about its rate
	also     string             // what else is compared in the end
	skip     [3]string          // lines of the plan, from and to, that are not shown, and what they do

	at func(*demo) (shown, peer string) // where the server has client 1
	// counters are of what the server has dropped, by reason, and of what came out of the first tunnel.
	counters func(*demo) (drops map[string]int, received int)
}

// inner addresses of the clients' ends.
var clientInner = [2]string{"172.28.0.1", "172.28.0.3"}
