// Package packaging tests what is handed out: programs for other processors, and the
// Debian package. What systemd makes of it is tested in the lab.
package packaging

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// emulators run the programs of each GOARCH here; "": this machine does.
var emulators = map[string]string{
	"amd64": "", "arm64": "qemu-aarch64-static", "arm": "qemu-arm-static", "mips": "qemu-mips-static", "mipsle": "qemu-mipsel-static",
}

// env is what builds are told, so that commits don't make them differ.
var env = append(os.Environ(), "VERSION=1.2.3", "SOURCE_DATE_EPOCH=1700000000")

// build runs build.sh of a copy of the sources, in another directory each time, and returns
// the files that it made.
func build(t *testing.T, what string) map[string][]byte {
	t.Helper()
	sources, out := filepath.Join(t.TempDir(), "sources"), t.TempDir()
	// Where a file was made or changed last is not to count.
	output(t, "sh", "-c", `mkdir "$0" && cd .. && tar -c --exclude=./.git --exclude=./dist --exclude=./testdata . | tar -xm -C "$0"`, sources)
	cmd := exec.Command(sources+"/packaging/build.sh", what, out)
	cmd.Env, cmd.Stderr = env, os.Stderr
	printed, err := cmd.Output()
	if err != nil {
		t.Fatalf("build.sh %s: %v", what, err)
	}
	made := map[string][]byte{}
	for _, path := range strings.Fields(string(printed)) {
		if made[filepath.Base(path)], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	return made
}

// again fails the test if the same sources give other bytes elsewhere.
func again(t *testing.T, what string, first map[string][]byte) {
	t.Helper()
	second := build(t, what)
	for name, content := range first {
		if !bytes.Equal(content, second[name]) {
			t.Errorf("%s: built twice, and not the same", name)
		}
	}
}

func output(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(argv, " "), err, out, stderr.Bytes())
	}
	return string(out)
}

// need skips a test without a tool, or in CI fails it.
func need(t *testing.T, tool string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err == nil {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed", tool)
	}
	t.Skipf("%s is not installed", tool)
}

// Programs for routers are static, run, and print the same script as here.
func TestDist(t *testing.T) {
	made := build(t, "dist")
	if len(made) != len(emulators) {
		t.Fatalf("%d programs, want %d", len(made), len(emulators))
	}
	again(t, "dist", made)
	dir := t.TempDir()
	script := map[string]string{}
	for arch, emulator := range emulators {
		name := "ipipou-1.2.3-linux-" + arch
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, made[name], 0o755); err != nil {
			t.Fatal(err)
		}
		static(t, path)
		if bytes.Contains(made[name], []byte(filepath.Dir(dir))) || bytes.Contains(made[name], []byte("vcs.revision")) {
			t.Errorf("%s: knows where it was built", name)
		}
		run := []string{path}
		if emulator != "" || runtime.GOARCH != arch {
			need(t, emulator)
			run = []string{emulator, path}
		}
		if v := output(t, append(run, "--version")...); v != "1.2.3\n" {
			t.Errorf("%s --version: %q", name, v)
		}
		script[arch] = output(t, append(run, "--print-only", "-b", "@eth0", "-r", "203.0.113.1:10000", "--tunl-ip", "172.28.0.1", "--auth-token", "t")...)
	}
	for arch, text := range script {
		if text != script["amd64"] || len(text) < 10_000 {
			t.Errorf("the script that %s prints (%d bytes) is not amd64's (%d)", arch, len(text), len(script["amd64"]))
		}
	}
}

// static fails the test if the program wants an interpreter or a library.
func static(t *testing.T, path string) {
	t.Helper()
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	interpreted := slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
	libraries, err := f.ImportedLibraries()
	if interpreted || len(libraries) > 0 || err != nil {
		t.Errorf("%s is not static: interpreter %v, libraries %v (%v)", path, interpreted, libraries, err)
	}
}

// The package has what it should, for root alone to change, and lintian and systemd have
// nothing against it.
func TestDeb(t *testing.T) {
	for _, tool := range []string{"dpkg-deb", "lintian", "systemd-analyze"} {
		need(t, tool)
	}
	made := build(t, "deb")
	again(t, "deb", made)
	name := "ipipou_1.2.3_" + runtime.GOARCH + ".deb"
	dir := t.TempDir()
	path, root := filepath.Join(dir, name), filepath.Join(dir, "root")
	if err := os.WriteFile(path, made[name], 0o644); err != nil {
		t.Fatal(err)
	}
	has := map[string]bool{}
	for line := range strings.Lines(output(t, "dpkg-deb", "-c", path)) {
		f := strings.Fields(line)
		has[f[0]+" "+f[5]] = true
		if f[1] != "root/root" || f[3] != "2023-11-14" {
			t.Errorf("owner or time: %s", line)
		}
	}
	for _, want := range []string{
		"-rwxr-xr-x ./usr/bin/ipipou", "drwxr-xr-x ./etc/ipipou/",
		"-rw-r--r-- ./usr/lib/systemd/system/ipipou@.service", "-rw-r--r-- ./usr/lib/systemd/system/ipipou.target",
		"-rw-r--r-- ./usr/share/doc/ipipou/examples/bpf.conf", "-rw-r--r-- ./usr/share/doc/ipipou/examples/hooks.conf",
		"-rw-r--r-- ./usr/share/doc/ipipou/examples/reference.toml", "-rw-r--r-- ./usr/share/doc/ipipou/examples/server.toml",
		"-rw-r--r-- ./usr/share/man/man8/ipipou.8.gz", "-rw-r--r-- ./usr/share/man/man5/ipipou.toml.5.gz",
		"-rw-r--r-- ./usr/share/bash-completion/completions/ipipou", "-rw-r--r-- ./usr/share/zsh/vendor-completions/_ipipou",
		"-rw-r--r-- ./usr/share/fish/vendor_completions.d/ipipou.fish",
		"-rw-r--r-- ./usr/share/doc/ipipou/README.md.gz", "-rw-r--r-- ./usr/share/doc/ipipou/copyright",
	} {
		if !has[want] {
			t.Errorf("the package lacks %s", want)
		}
	}
	if d := output(t, "dpkg-deb", "-f", path, "Depends", "Recommends"); d != "Depends: iproute2, kmod\nRecommends: nftables, bpftool, conntrack\n" {
		t.Errorf("it wants %q", d)
	}
	output(t, "lintian", "--allow-root", "--fail-on", "error,warning", path)
	output(t, "dpkg-deb", "-x", path, root)
	static(t, root+"/usr/bin/ipipou")
	valid(t, root)
}

// valid fails the test if systemd does not know a key of the unit, or a program that it
// starts is not where the unit says.
func valid(t *testing.T, root string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"ipipou@.service", "ipipou.target"} {
		text, err := os.ReadFile(root + "/usr/lib/systemd/system/" + name)
		if err == nil {
			text = bytes.ReplaceAll(text, []byte("/usr/bin/ipipou"), []byte(root+"/usr/bin/ipipou"))
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", dir+"/ipipou@.service", dir+"/ipipou.target")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// A purge takes away what the package and its units have made, and nothing of others: not
// the journal of an instance that was started by hand, which may run on.
func TestPurge(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	const made = `set -e
for dir in /run /var/lib /etc/systemd; do mount -t tmpfs tmpfs $dir; done
cd /
mkdir -p run/private/ipipou/office run/ipipou/root run/ipipou/hub.bpf var/lib/private/ipipou etc/systemd/system/multi-user.target.wants etc/systemd/system/ipipou.target.wants
ln -s ../private/ipipou/office run/ipipou/office
ln -s private/ipipou var/lib/ipipou
ln -s /x/ipipou@.service etc/systemd/system/multi-user.target.wants/ipipou@office.service
ln -s /x/ipipou@.service etc/systemd/system/ipipou.target.wants/ipipou@office.service
`
	const others = `touch run/ipipou/hub.lock run/ipipou/hub.journal
ln -s /x/other.service etc/systemd/system/ipipou.target.wants/other.service
`
	const purge = `sh "$0" purge
find run/ipipou var/lib etc/systemd/system/*.wants 2>/dev/null | sort | tr '\n' ' '`
	for more, want := range map[string]string{
		"rmdir run/ipipou/hub.bpf\n": "etc/systemd/system/multi-user.target.wants var/lib var/lib/private ",
		others: "etc/systemd/system/ipipou.target.wants etc/systemd/system/ipipou.target.wants/other.service etc/systemd/system/multi-user.target.wants " +
			"run/ipipou run/ipipou/hub.bpf run/ipipou/hub.journal run/ipipou/hub.lock var/lib var/lib/private ",
	} {
		script, err := filepath.Abs("deb/postrm")
		if err != nil {
			t.Fatal(err)
		}
		if left := output(t, "unshare", "--mount", "sh", "-c", made+more+purge, script); left != want {
			t.Errorf("left are %q, want %q", left, want)
		}
	}
}
