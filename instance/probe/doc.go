// Package probe asks the other end of a tunnel, by ICMP echo requests through it, whether
// the path there is alive.
package probe
