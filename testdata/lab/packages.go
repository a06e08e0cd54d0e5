package lab

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// buildPackages builds this tree's Debian package twice, as versions 1 and 2, where the guest sees it. That takes a
// while, so it is done only for tests that are asked for.
func buildPackages(ctx context.Context, root, dir string) error {
	if !asked("TestSystemd") && !asked("TestBPFUnit") {
		return nil
	}
	for _, version := range []string{"1", "2"} {
		cmd := exec.CommandContext(ctx, filepath.Join(root, "packaging/build.sh"), "deb", filepath.Join(dir, version))
		cmd.Env = append(os.Environ(), "VERSION="+version)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build the package: %w\n%s", err, out)
		}
	}
	return nil
}

// asked reports whether a test is among those to be run.
func asked(test string) bool {
	matches := func(name string, none bool) bool {
		f := flag.Lookup(name)
		if f == nil { // this is no test
			return false
		}
		if f.Value.String() == "" {
			return none
		}
		re, err := regexp.Compile(f.Value.String())
		return err == nil && re.MatchString(test)
	}
	return matches("test.run", true) && !matches("test.skip", false)
}

// Package is the path of this tree's Debian package, as version 1 or 2.
func Package(t T, version string) string {
	t.Helper()
	found, _ := filepath.Glob(filepath.Join(filepath.Dir(Bin(t)), version, "*.deb")) // only a bad pattern is an error
	if len(found) != 1 {
		t.Fatalf("packages of version %s: %q", version, found)
	}
	return found[0]
}
