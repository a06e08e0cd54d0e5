// Package plans says what would be done to a host: it turns settings (flags,
// TOML, the Python tool's .conf) into validated tunnels, and tunnels into
// plans, lists of explicit commands each with its undo.
//
// The package is pure. It starts no process, opens no socket and reads no
// clock: the same input gives the same bytes. What only the host can tell (the
// address of a device) and what only authentication reveals (the peer's
// address and port) stand in the commands as ${NAME}; package runner puts the
// values in, and [Script] renders them as shell variables. So what is printed
// is what is run.
package plans
