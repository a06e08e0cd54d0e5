// Package authd decides who the peer of an ipip- or GRE-over-FOU tunnel is. It
// speaks the UDP handshake of ipipou, wire protocol versions 1 and 2, on raw sockets
// and hands over an address and port; it never configures anything and never
// builds a command line.
//
// # Wire protocol, version 1
//
// One UDP datagram from the client's FOU address and port to the server's:
//
//	address and/or port only   any payload; our client sends an empty one
//	token                      the token's bytes, exactly
//	ed25519                    signature (64) || Unix seconds (5, big-endian) || salt (4)
//
// The signed message is time || salt || secret. A payload longer than
// [SignedLen] bytes is signed as payload[64:] || secret. The salt is any that the
// key did not use in this second; ours begins with a hint at the key, by which a
// server of many peers on one port finds whose payload it is ([Payload]). If the server replies,
// it answers with its own signature || time || salt where it has a key of its
// own and the peer's public key, else with the received payload, its bytes
// reversed. Every datagram stands alone; there is no session.
//
// # Wire protocol, version 2
//
// With [Auth.Challenge] at both ends, four datagrams: the client's hello, which names
// its key; the server's challenge, a MAC of where the hello seemed to come from; the
// client's signature of it, which alone binds; the server's word that it did. They
// begin as version 1 never does, so both may be on one port. docs/protocol.md describes both versions, with test vectors.
//
// # Sockets
//
// Auth datagrams are read from packet sockets (packet(7), SOCK_DGRAM), which
// see a packet before netfilter does, so the firewall may drop all that is not
// from a known peer. A classic BPF program ([Filter]) keeps the tunnels' data in
// the kernel. They are sent from raw sockets (raw(7), IPPROTO_RAW), because the
// source port belongs to the kernel's FOU receiver.
//
// The package is for Linux. Sockets belong to the network namespace of the
// thread that calls [NewServer], [NewClient] or [WatchAddrs].
package authd
