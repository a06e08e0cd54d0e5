// Package check looks at what a host can do for tunnels, and what it lacks for those of
// one configuration. It looks only: no kernel module is loaded, no file written and no
// packet sent, but for asking what a server's name stands for.
package check
