// Package lab boots a stock Debian kernel in an emulated machine and runs a command there, with this host's files as
// its root. Tests use it for what needs a kernel of their own: ipip, fou, nft, network namespaces.
package lab

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed setup.sh
var setupScript string

//go:embed guest.sh
var guestScript []byte

// VM is what to boot and what to run in it. Only Argv is required.
type VM struct {
	Argv []string
	Env  []string // NAME=value, added to PATH, HOME and LANG
	Dir  string   // default /
	// Output receives the command's stdout and stderr, and nothing else.
	Output io.Writer

	// Kernel is 5.10, 6.1 or 6.12; by default what the environment's IPIPOU_LAB_KERNEL says, or 6.1.
	Kernel  string
	CPUs    int           // default 2
	Memory  string        // as qemu's -m wants it, default 3000M
	Timeout time.Duration // of boot and command together; 0: none but the context's
	// Icount makes the guest's clock count instructions, on one cpu: a benchmark then gives the same figure each time,
	// whatever else the host does.
	Icount bool
}

// Result is what became of the command.
type Result struct {
	Exit int           // the command's exit status, as a shell has it
	Boot time.Duration // from the start of qemu to the start of the command
	Run  time.Duration // of the command
}

// Cache is the directory with the kernels and their initramfs. The guest sees it at the same path.
func Cache() string {
	if dir := os.Getenv("IPIPOU_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/ipipou-lab"
}

const defaultKernel = "6.1"

func (v VM) kernel() string {
	return cmp.Or(v.Kernel, os.Getenv("IPIPOU_LAB_KERNEL"), defaultKernel)
}

// kernelDir is where setup.sh puts this machine's kernel.
func (v VM) kernelDir() string {
	if v.kernel() == defaultKernel {
		return Cache()
	}
	return filepath.Join(Cache(), v.kernel())
}

// Setup installs and builds whatever Run needs and is not there yet. Its progress goes to w.
func (v VM) Setup(ctx context.Context, w io.Writer) error {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "sh", "-c", setupScript, "setup.sh")
	cmd.Env = append(os.Environ(), "IPIPOU_LAB_KERNEL="+v.kernel())
	cmd.Stdout = io.MultiWriter(w, &out)
	cmd.Stderr = cmd.Stdout
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("set up the lab: %w: %s", err, lastLines(out.String(), 3))
	}
	return nil
}

// Run boots the machine, runs the command and shuts the machine down. An error means that the command did not come to
// an end of its own; a command that fails is no error but an exit status.
func (v VM) Run(ctx context.Context) (Result, error) {
	if os.Geteuid() != 0 {
		return Result{}, errors.New("the lab needs root: the virtual machine's root is the host's")
	}
	if len(v.Argv) == 0 {
		return Result{}, errors.New("no command for the virtual machine")
	}
	if v.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, v.Timeout, fmt.Errorf("no end after %v", v.Timeout))
		defer cancel()
	}
	j, err := newJob(v)
	if err != nil {
		return Result{}, err
	}
	defer os.RemoveAll(j.dir)
	return j.run(ctx)
}

// A job is one run of one machine, with its files in a directory that the guest sees at the same path.
type job struct {
	VM
	dir    string
	stream *stream
}

func newJob(v VM) (*job, error) {
	if v.CPUs == 0 {
		v.CPUs = 2
	}
	if v.Icount {
		v.CPUs = 1
	}
	if v.Memory == "" {
		v.Memory = "3000M"
	}
	if v.Output == nil {
		v.Output = io.Discard
	}
	dir, err := tempDir("run")
	if err != nil {
		return nil, err
	}
	j := &job{VM: v, dir: dir, stream: newStream(v.Output)}
	files := map[string][]byte{
		"init":    append([]byte("set -- "+quote(dir)+"\n"), guestScript...),
		"command": []byte(j.command()),
		"mark":    []byte(j.stream.mark),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			os.RemoveAll(dir)
			return nil, err
		}
	}
	return j, nil
}

// command is the script that guest.sh runs.
func (j *job) command() string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8",
	}
	dir := j.Dir
	if dir == "" {
		dir = "/"
	}
	words := []string{"exec", "env", "-i"}
	for _, word := range append(append(env, j.Env...), j.Argv...) {
		words = append(words, quote(word))
	}
	return "cd " + quote(dir) + " || exit 125\n" + strings.Join(words, " ") + "\n"
}

func (j *job) run(ctx context.Context) (Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	virtiofsd, fsSocket, err := j.startVirtiofsd(ctx)
	if err != nil {
		cancel(nil)
		return Result{}, err
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		err := virtiofsd.Wait()
		// Without its root the guest would only hang. But a qemu that ends takes virtiofsd with it, and is about to tell.
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Second):
			cancel(fmt.Errorf("virtiofsd ended: %v", err))
		}
	}()
	defer func() {
		cancel(nil)
		<-gone
	}()

	listener, err := net.Listen("unix", j.path("output.sock"))
	if err != nil {
		return Result{}, err
	}
	defer listener.Close()
	started := time.Now()
	qemu := j.process(ctx, "qemu", "qemu-system-x86_64", j.qemuArgs(fsSocket)...)
	if err := qemu.Start(); err != nil {
		return Result{}, fmt.Errorf("start qemu: %w", err)
	}
	read := make(chan error, 1)
	go func() { read <- j.stream.readFrom(listener) }()
	waitErr := qemu.Wait()
	// A qemu that never connected leaves the reader in Accept.
	listener.Close()
	readErr := <-read

	s := j.stream
	if !s.exited || (readErr != nil && !errors.Is(readErr, net.ErrClosed)) {
		return Result{}, j.failure(ctx, waitErr, readErr)
	}
	return Result{Exit: s.exit, Boot: s.bootedAt.Sub(started), Run: s.exitedAt.Sub(s.bootedAt)}, nil
}

// startVirtiofsd hands virtiofsd a socket that is listening already, so that qemu need not wait for it.
func (j *job) startVirtiofsd(ctx context.Context) (*exec.Cmd, string, error) {
	socket := j.path("virtiofsd.sock")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, "", err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	file, err := listener.File()
	if err != nil {
		return nil, "", err
	}
	defer file.Close()
	// sandbox=chroot asks for no namespaces, which containers often can't have. The limit on open files is left as it
	// is for the same reason.
	path, args := "/usr/lib/qemu/virtiofsd", []string{
		"--fd=3", "-o", "source=/,cache=always,sandbox=chroot", "--rlimit-nofile=0", "--thread-pool-size=0",
	}
	if _, err := os.Stat(path); err != nil {
		path, args = "/usr/libexec/virtiofsd", []string{
			"--fd=3", "--shared-dir=/", "--cache=always", "--sandbox=chroot", "--rlimit-nofile=0",
		}
	}
	cmd := j.process(ctx, "virtiofsd", path, args...)
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		return nil, "", fmt.Errorf("start virtiofsd: %w", err)
	}
	return cmd, socket, nil
}

func (j *job) qemuArgs(fsSocket string) []string {
	cmdline := []string{
		"console=ttyS0", "panic=-1", "oops=panic", "loglevel=5", "mitigations=off", "nokaslr",
		// The guest's TSC is the host's, or the count of instructions; left to find out, the kernel may call it unstable
		// and read a slow device instead.
		"tsc=reliable",
		// With programs at the same addresses each time the emulator finds what it has translated of them before: a start
		// takes a third less, and its memory does not fill with what is never run again.
		"norandmaps",
		"lab.modules=" + filepath.Join(j.kernelDir(), "modules"),
		"lab.init=" + j.path("init"),
	}
	args := []string{
		// No -cpu: the default model, though it has fewer features than `max`, runs the kernel twice as fast.
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-m", j.Memory, "-smp", strconv.Itoa(j.CPUs),
		"-object", "memory-backend-memfd,id=mem,size=" + j.Memory + ",share=on",
		"-machine", "q35,accel=tcg,memory-backend=mem,hpet=off",
		"-kernel", filepath.Join(j.kernelDir(), "vmlinuz"), "-initrd", filepath.Join(j.kernelDir(), "initramfs"),
		"-append", strings.Join(cmdline, " "),
		"-chardev", "file,id=console,path=" + j.path("console.log"), "-serial", "chardev:console",
		"-chardev", "socket,id=fs,path=" + fsSocket, "-device", "vhost-user-fs-pci,chardev=fs,tag=host",
		"-chardev", "socket,id=out,path=" + j.path("output.sock"),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=out,name=lab",
		// Or the guest waits for entropy before it makes its first key.
		"-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng",
	}
	if j.Icount {
		return append(args, "-icount", "shift=0,sleep=off")
	}
	return append(args, "-rtc", "base=utc,clock=host")
}

// process makes a child that logs to a file of its name and dies with the context, and with this process.
func (j *job) process(ctx context.Context, name, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	if log, err := os.Create(j.path(name + ".log")); err == nil {
		cmd.Stdout, cmd.Stderr = log, log
		context.AfterFunc(ctx, func() { log.Close() })
	}
	// A group of its own, so that an interrupt at the terminal is handled here, in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return cmd
}

// failure says why there is no exit status, with the last words of all who may know.
func (j *job) failure(ctx context.Context, waitErr, readErr error) error {
	var b strings.Builder
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(&b, "virtual machine killed: %v", context.Cause(ctx))
	case j.stream.bootedAt.IsZero():
		b.WriteString("virtual machine did not boot")
	default:
		b.WriteString("virtual machine died before the command ended")
	}
	if j.stream.bootedAt.IsZero() && ctx.Err() != nil {
		b.WriteString(", while booting")
	}
	if waitErr != nil {
		fmt.Fprintf(&b, "; qemu: %v", waitErr)
	}
	if readErr != nil && !errors.Is(readErr, net.ErrClosed) {
		fmt.Fprintf(&b, "; output: %v", readErr)
	}
	for _, name := range []string{"virtiofsd", "qemu", "console"} {
		if text, _ := os.ReadFile(j.path(name + ".log")); len(bytes.TrimSpace(text)) > 0 {
			fmt.Fprintf(&b, "\n--- %s, last lines:\n%s", name, lastLines(string(text), 50))
		}
	}
	return errors.New(b.String())
}

func (j *job) path(name string) string { return filepath.Join(j.dir, name) }

// tempDir makes a directory in one of the cache's, and removes those that runs which were killed have left there.
func tempDir(name string) (string, error) {
	parent := filepath.Join(Cache(), name)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	entries, _ := os.ReadDir(parent)
	for _, entry := range entries {
		if info, err := entry.Info(); err == nil && time.Since(info.ModTime()) > 24*time.Hour {
			os.RemoveAll(filepath.Join(parent, entry.Name()))
		}
	}
	return os.MkdirTemp(parent, "")
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
