package check

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"ipipou/plans"
)

// Exposed is what is wrong with who may read and write a file of settings, a line each,
// with what to do: a file whose secrets everybody can read, as wg-quick(8) warns of it;
// and, worse, one that others can write, for it decides who gets in, and a configuration
// which commands run here.
func Exposed(s plans.Source, stat func(string) (fs.FileInfo, error)) (faults []string) {
	info, err := stat(s.Path)
	if err != nil || !info.Mode().IsRegular() { // a pipe has no mode that says something
		return nil
	}
	owner, mode := info.Sys().(*syscall.Stat_t), info.Mode().Perm()
	foreign := owner.Uid != 0 && int(owner.Uid) != os.Getuid()
	switch {
	case foreign:
		faults = append(faults, fmt.Sprintf("%s belongs to user %d, who so decides what is done here with our privileges: chown it, or let its owner run ipipou", s.Path, owner.Uid))
	case mode&0o002 != 0, mode&0o020 != 0 && owner.Gid != 0:
		faults = append(faults, fmt.Sprintf("%s can be written by others (mode %04o), who so decide what is done here with our privileges: chmod 600 %[1]s", s.Path, mode))
	}
	// A group may have been let in on purpose; others may not.
	if s.Secret && mode&0o007 != 0 {
		faults = append(faults, fmt.Sprintf("%s holds a secret and is open to everybody (mode %04o): chmod 600 %[1]s", s.Path, mode))
	}
	return faults
}

// sources are the lines of the files that the settings were read from.
func (c *checker) sources() []Line {
	var lines []Line
	for _, s := range c.config.Sources {
		faults := Exposed(s, c.Stat)
		for _, f := range faults {
			lines = append(lines, warning("file", f, ""))
		}
		if len(faults) == 0 {
			lines = append(lines, ok("file", s.Path+" is for its owner"))
		}
	}
	return lines
}
