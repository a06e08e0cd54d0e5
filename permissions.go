package main

import (
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"ipipou/plans"
)

// warnOpen warns of a file whose secrets everybody can read, as wg-quick(8) does, and
// more loudly of one that others can write: it decides who gets in, and a configuration
// which commands run here.
func warnOpen(log *slog.Logger, s plans.Source) {
	info, err := os.Stat(s.Path)
	if err != nil || !info.Mode().IsRegular() { // a pipe has no mode that says something
		return
	}
	owner, mode := info.Sys().(*syscall.Stat_t), info.Mode().Perm()
	foreign := owner.Uid != 0 && int(owner.Uid) != os.Getuid()
	switch {
	case foreign:
		log.Error(fmt.Sprintf("%s belongs to user %d, who so decides what is done here with our privileges: chown it, or let its owner run ipipou", s.Path, owner.Uid))
	case mode&0o002 != 0, mode&0o020 != 0 && owner.Gid != 0:
		log.Error(fmt.Sprintf("%s can be written by others (mode %04o), who so decide what is done here with our privileges: chmod 600 %[1]s", s.Path, mode))
	}
	// A group may have been let in on purpose; others may not.
	if s.Secret && mode&0o007 != 0 {
		log.Error(fmt.Sprintf("%s holds a secret and is open to everybody (mode %04o): chmod 600 %[1]s", s.Path, mode))
	}
}
