package lab

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// modules are loaded before there is any namespace, for some make a device in each (ipip: tunl0). A test that compares
// a namespace before and after must not find a device there that it did not make.
var modules = []string{
	"ipip", "sit", "ip_gre", "ip6_tunnel", "ip6_gre", "ip_vti", "fou", "fou6", "veth", "bridge", "nf_tables", "nft_chain_nat",
	"nft_masq", "nft_ct", "nf_conntrack_netlink",
}

// Main is a package's TestMain. On the host it boots the machine and runs this same test binary in there, with the same
// arguments; in the guest it runs the tests. The environment tells the two apart.
//
//	IPIPOU_LAB=1          this is the guest
//	IPIPOU_LAB_KERNEL     5.10, 6.1 (default) or 6.12
//	IPIPOU_LAB_HOST=1     no machine: tests that want nothing of its kernel run on the host's (TestBPF…)
//	IPIPOU_LAB_ICOUNT=1   let the guest's clock count instructions, for benchmarks
//	IPIPOU_BIN            in the guest: path of the ipipou binary, built from this tree
func Main(m *testing.M) {
	if InGuest() {
		os.Exit(runInGuest(m))
	}
	flag.Parse()
	run := runInMachine
	if os.Getenv("IPIPOU_LAB_HOST") == "1" {
		run = func() (int, error) { return runOnHost(m) }
	}
	code, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		code = 1
		// A short run on a machine that can't have the lab is no failure, unless it is CI, which must not miss it.
		if testing.Short() && os.Getenv("CI") == "" && isSetupError(err) {
			fmt.Println("lab: skipped (-short)")
			code = 0
		}
	}
	os.Exit(code)
}

// atBoot is what `ipipou check` says of the machine, and what is loaded before and after: it can be seen only once.
var atBoot struct {
	before, host, server, after string
	err                         error
}

func lookAtBoot() {
	loaded := []string{"cut", "-d ", "-f1", "/proc/modules"}
	for _, look := range []struct {
		into *string
		argv []string
	}{
		{&atBoot.before, loaded},
		{&atBoot.host, []string{os.Getenv("IPIPOU_BIN"), "check"}},
		{&atBoot.server, []string{os.Getenv("IPIPOU_BIN"), "check", "-s", "-b", "127.0.0.1@lo", "--auth-token", "t"}},
		{&atBoot.after, loaded},
	} {
		out, err := run("", look.argv...)
		*look.into, atBoot.err = out, errors.Join(atBoot.err, err)
	}
}

func runInGuest(m *testing.M) int {
	lookAtBoot()
	err := LoadModules()
	if err == nil {
		err = holdStaticKeys()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		return 1
	}
	flag.Parse()
	// A test waits a quarter of its time or more, for packets and for processes: two processors have room for three.
	if parallel := flag.Lookup("test.parallel"); parallel.Value.String() == parallel.DefValue {
		if err := parallel.Value.Set(fmt.Sprint(runtime.NumCPU() * 3 / 2)); err != nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			return 1
		}
	}
	return m.Run()
}

// Bin is the path of the ipipou binary built from this tree.
func Bin(t T) string {
	t.Helper()
	bin := os.Getenv("IPIPOU_BIN")
	if bin == "" {
		t.Fatal("no IPIPOU_BIN: the lab found no program to build, or this is not the lab")
	}
	return bin
}

// A setupError is one of the host's, before there is a machine.
type setupError struct{ error }

func isSetupError(err error) bool {
	_, ok := err.(setupError)
	return ok
}

// runOnHost runs the tests right here, in namespaces.
func runOnHost(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 0, setupError{fmt.Errorf("must be root: namespaces want it")}
	}
	bin, err := buildBinary(context.Background())
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(filepath.Dir(bin))
	commandTimeout = 20 * time.Second // nothing is emulated
	os.Setenv("IPIPOU_BIN", bin)
	return m.Run(), nil
}

func runInMachine() (int, error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	defer stop()
	vm := VM{Icount: os.Getenv("IPIPOU_LAB_ICOUNT") == "1"}
	// The tests' own limit is kept by the guest, which can tell where it was exceeded; this is for a guest that hangs.
	if limit := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); limit > 0 && !vm.Icount {
		vm.Timeout = limit + time.Minute
	}
	result, err := Again(ctx, vm)
	if err == nil && testing.Verbose() {
		fmt.Printf("lab: boot %.1fs, tests %.1fs\n", result.Boot.Seconds(), result.Run.Seconds())
	}
	return result.Exit, err
}

// Again runs this same program once more, with the same arguments, in the machine: set up if need be, with ipipou built
// from this tree at hand (Bin). InGuest tells the program where it is.
func Again(ctx context.Context, vm VM) (Result, error) {
	if os.Geteuid() != 0 {
		return Result{}, setupError{fmt.Errorf("must be root: the virtual machine's root is the host's")}
	}
	if err := vm.Setup(ctx, os.Stderr); err != nil {
		return Result{}, setupError{err}
	}
	dir, err := os.Getwd()
	if err != nil {
		return Result{}, err
	}
	self, err := os.Executable()
	if err != nil {
		return Result{}, err
	}
	bin, err := buildBinary(ctx)
	if err != nil {
		return Result{}, err
	}
	if bin != "" {
		defer os.RemoveAll(filepath.Dir(bin))
	}
	vm.Argv = append([]string{self}, os.Args[1:]...)
	vm.Dir, vm.Env, vm.Output = dir, guestEnv(bin), os.Stdout
	return vm.Run(ctx)
}

// InGuest reports whether this is the machine that Main or Again booted.
func InGuest() bool { return os.Getenv("IPIPOU_LAB") == "1" }

// LoadModules is done once in the guest, before there is any namespace.
func LoadModules() error {
	if out, err := exec.Command("modprobe", append([]string{"-a"}, modules...)...).CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe: %w\n%s", err, out)
	}
	return nil
}

func guestEnv(bin string) []string {
	env := []string{
		"IPIPOU_LAB=1", "IPIPOU_BIN=" + bin, "GOTRACEBACK=" + os.Getenv("GOTRACEBACK"),
		fmt.Sprintf("IPIPOU_LAB_TIME=%d", time.Now().Unix()), // a test compares clocks
	}
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "IPIPOU_") && name != "IPIPOU_BIN" && name != "IPIPOU_LAB" {
			env = append(env, e)
		}
	}
	return env
}

// buildBinary builds this tree's ipipou where the guest sees it, in a directory of its own: runs may overlap.
func buildBinary(ctx context.Context) (string, error) {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Dir(filepath.Dir(filepath.Dir(file)))
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		return "", fmt.Errorf("find the module's root: %w (built with -trimpath?)", err)
	}
	if sources, _ := filepath.Glob(filepath.Join(root, "*.go")); len(sources) == 0 {
		return "", nil // the lab is older than the program
	}
	dir, err := tempDir("bin")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "ipipou")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, ".")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("build ipipou: %w\n%s", err, out)
	}
	for _, build := range []func() error{
		func() error { return buildWrapped(ctx, root, bin) },
		func() error { return buildPackages(ctx, root, dir) },
	} {
		if err := build(); err != nil {
			os.RemoveAll(dir)
			return "", err
		}
	}
	return bin, nil
}
