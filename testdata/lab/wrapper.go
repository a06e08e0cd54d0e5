package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"ipipou/runner"
)

// wrapped are the tools before which wrapper.sh can stand; `true` is for hooks.
var wrapped = []string{"ip", "nft", "tc", "bpftool", "modprobe", "sysctl", "mount", "umount", "mkdir", "rmdir", "rm", "dd", "true"}

// buildWrapped builds the program at root once more, beside its binary, with wrapper.sh for its tools: where it looks
// for them is set when it is built.
func buildWrapped(ctx context.Context, root, bin string) error {
	tools := filepath.Join(filepath.Dir(bin), "tools")
	if err := os.Mkdir(tools, 0o755); err != nil {
		return err
	}
	for _, tool := range wrapped {
		if err := os.Symlink(filepath.Join(root, "testdata/lab/wrapper.sh"), filepath.Join(tools, tool)); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin+"-wrapped", "-ldflags", "-X ipipou/runner.Path="+tools+":"+runner.Path, ".")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build ipipou with wrapped tools: %w\n%s", err, out)
	}
	return nil
}
