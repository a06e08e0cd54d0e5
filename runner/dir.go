package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// RunDir is where journals are kept.
const RunDir = "/run/ipipou"

// Dir finds a directory for journals: $IPIPOU_RUN_DIR, systemd's
// $RUNTIME_DIRECTORY, /run/ipipou. Where none can be written (the Python
// tool's unit has ProtectSystem=strict and no RuntimeDirectory), it is one of
// our own in the directory for temporary files, and fallback is the reason.
func Dir() (dir string, fallback error, err error) {
	for _, name := range []string{"IPIPOU_RUN_DIR", "RUNTIME_DIRECTORY"} {
		if dir = filepath.SplitList(os.Getenv(name) + ":")[0]; dir != "" {
			return dir, nil, Ready(dir)
		}
	}
	if fallback = Ready(RunDir); fallback == nil {
		return RunDir, nil, nil
	}
	dir = filepath.Join(os.TempDir(), fmt.Sprintf("ipipou-%d", os.Getuid()))
	return dir, fallback, Ready(dir)
}

// Ready makes the directory, and refuses one that others could write to: undos
// are commands that we run.
func Ready(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	// Not Lstat: what systemd preserves for a dynamic user is behind a link.
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	if !info.IsDir() || info.Mode().Perm()&0o022 != 0 || owner != 0 && int(owner) != os.Getuid() {
		return fmt.Errorf("%s: want a directory of our own that nobody else can write", dir)
	}
	return unix.Access(dir, unix.W_OK|unix.X_OK)
}
