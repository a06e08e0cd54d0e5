package plans

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// need skips a test that can't run here, which must not be in CI.
func need(t *testing.T, err error) {
	t.Helper()
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal(err)
	} else if err != nil {
		t.Skip(err)
	}
}

// shellHost runs pieces of shell behind what every script has, with few
// programs, whose arguments are all written to a file.
type shellHost struct{ dir, shell, ns string }

func newShellHost(t *testing.T, shell string, tools ...string) *shellHost {
	t.Helper()
	h := &shellHost{dir: t.TempDir(), shell: shell}
	h.tool(t, "ip", "echo iproute2") // for find_ip; the rest doesn't use it
	for _, tool := range append(tools, "mkdir", "rm", "nft", "openssl", "date", "sleep") {
		var command string
		for _, program := range strings.Fields(tool) {
			path, err := exec.LookPath(program)
			if need(t, err); command == "" {
				command = "exec " + path
			} else {
				command += " " + program
			}
		}
		h.tool(t, filepath.Base(tool[strings.LastIndex(tool, " ")+1:]), command+` "$@"`)
	}
	h.write(t, "script", "set -u\nNAME=t\n"+runtime+authenticate+send+"find_ip\nload\n")
	return h
}

// hosts are the two shells that scripts are for, with their ways to show bytes.
func hosts(t *testing.T, f func(*testing.T, *shellHost)) {
	for shell, tools := range map[string][]string{"dash": {"dash", "od", "cat"}, "busybox sh": {"busybox", "busybox hexdump", "busybox cat"}} {
		t.Run(shell, func(t *testing.T) { f(t, newShellHost(t, shell, tools...)) })
	}
}

func (h *shellHost) path(name string) string { return filepath.Join(h.dir, name) }

func (h *shellHost) write(t *testing.T, name, text string) string {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(h.path(name)), 0o755), os.WriteFile(h.path(name), []byte(text), 0o755)); err != nil {
		t.Fatal(err)
	}
	return h.path(name)
}

func (h *shellHost) tool(t *testing.T, name, command string) {
	t.Helper()
	os.Remove(h.path("bin/" + name)) // it may be running
	h.write(t, "bin/"+name, "#!/bin/dash\nfor w in "+name+" \"$@\"; do printf '%s ' \"$w\"; done >>"+h.path("argv")+"\n"+command+"\n")
}

func (h *shellHost) command(t *testing.T, code string) *exec.Cmd {
	t.Helper()
	// Busybox's shell takes applets before PATH where it was built so.
	argv := strings.Fields(h.shell + " " + h.write(t, fmt.Sprintf("run%d.sh", time.Now().UnixNano()), ". "+h.path("script")+"\n"+code))
	if h.ns != "" {
		argv = append([]string{"ip", "netns", "exec", h.ns, "env", "PATH=" + h.path("bin")}, argv...)
		argv[6] = h.path("bin/" + argv[6])
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = append(os.Environ(), "IPIPOU_RUN_DIR="+h.path("run"))
	if h.ns == "" {
		cmd.Env = append(cmd.Env, "PATH="+h.path("bin"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// run gives standard output and error, the exit code, and leaves no files.
func (h *shellHost) run(t *testing.T, code string) (out, says string, exit int) {
	t.Helper()
	var o, e strings.Builder
	cmd := h.command(t, code)
	cmd.Stdout, cmd.Stderr = &o, &e
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	h.clean(t)
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

func (h *shellHost) clean(t *testing.T) {
	t.Helper()
	files, _ := filepath.Glob(h.path("run/*"))
	for _, f := range files {
		t.Errorf("%s is left", f)
	}
}

// silent checks that no program was given a secret, in any form.
func (h *shellHost) silent(t *testing.T, says string, secrets ...[]byte) {
	t.Helper()
	argv, _ := os.ReadFile(h.path("argv"))
	for _, s := range secrets {
		for _, form := range []string{string(s), hex.EncodeToString(s), base64.StdEncoding.EncodeToString(s)} {
			if len(s) > 3 && strings.Contains(says+string(argv), form) {
				t.Errorf("%q is told in %q or shown in\n%s", form, says, argv)
			}
		}
	}
}

const report = ` || { say "$ERR"; exit 9; }; printf %s "$PAYLOAD"`

func TestTokenPayload(t *testing.T) {
	var all []byte
	for i := range 256 {
		all = append(all, byte(i))
	}
	hosts(t, func(t *testing.T, h *shellHost) {
		for file, want := range map[string]string{
			"hunter2": "hunter2", "hunter2\n": "hunter2", "hunter2\r\n": "hunter2", "hunter2\n\n": "hunter2\n", "a\nb\\c%s\\n\n": "a\nb\\c%s\\n",
			" 'x' \"$(id)\" * \t": " 'x' \"$(id)\" * \t", string(all): string(all), "пароль\n": "пароль", "\x00": "\x00", strings.Repeat("xyz4", 368): strings.Repeat("xyz4", 368),
		} {
			out, says, exit := h.run(t, "payload_token '"+h.write(t, "a token", file)+"'"+report)
			if out != hex.EncodeToString([]byte(want)) || says != "" || exit != 0 {
				t.Errorf("%q: %s, want %x; %s, exit %d", file, out, want, says, exit)
			}
			text := base64.StdEncoding.EncodeToString([]byte(want))
			for _, text := range []string{text, text + "\n", "\t" + text[:4] + "\r\n" + text[4:] + "\r\n"} {
				h.write(t, "b64", text)
				if out, says, exit := h.run(t, "payload_token_b64 "+h.path("b64")+report); out != hex.EncodeToString([]byte(want)) || exit != 0 {
					t.Errorf("%q: %s; %s, exit %d", text, out, says, exit)
				}
			}
			h.silent(t, says, []byte(want))
		}
		for _, bad := range []string{"payload_token nowhere", "payload_token " + h.dir, "payload_token_b64 nowhere",
			"payload_token " + h.write(t, "empty", "\r\n"), "payload_token_b64 " + h.path("empty"),
			"payload_token " + h.write(t, "long", strings.Repeat("x", 1473)), "payload_token_b64 " + h.write(t, "half", "YWI"),
			"payload_token_b64 " + h.write(t, "none", "YW=I"), "payload_token_b64 " + h.write(t, "more", "YWI=\nYWI=")} {
			out, says, exit := h.run(t, bad+report)
			if out != "" || exit != 9 || !strings.Contains(says, strings.Fields(bad)[1]) || strings.Count(says, "\n") != 1 {
				t.Errorf("%s: %s, exit %d, says %s", bad, out, exit, says)
			}
		}
	})
}

func TestSignedPayload(t *testing.T) {
	const seed = "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso="
	hosts(t, func(t *testing.T, h *shellHost) {
		salts := map[string]bool{}
		for _, c := range []struct{ key, file, secret string }{
			{h.write(t, "key", seed), "", "netprickle.com"},
			{h.write(t, "key.nl", seed+"\r\n"), "s3cr\x00et \\x %d\xff\n\r\n", "s3cr\x00et \\x %d\xff\n"},
			{"testdata/ssh/id_ed25519", "long " + strings.Repeat("'\"", 2000), "long " + strings.Repeat("'\"", 2000)},
		} {
			text, err := os.ReadFile(c.key)
			if err != nil {
				t.Fatal(err)
			}
			key, err := ParsePrivateKey(text)
			if err != nil {
				t.Fatal(err)
			}
			file := "''"
			if c.file != "" {
				file = h.write(t, "secret", c.file)
			}
			out, says, exit := h.run(t, "payload_ed25519 "+c.key+" "+file+report)
			p, err := hex.DecodeString(out)
			if err != nil || len(p) != 73 || exit != 0 {
				t.Fatalf("%s: %q: %v; exit %d, %s", c.key, out, err, exit, says)
			}
			if !ed25519.Verify(key.Public().(ed25519.PublicKey), append(bytes.Clone(p[64:]), c.secret...), p[:64]) {
				t.Errorf("%s: the signature is wrong", c.key)
			}
			if at := time.Unix(int64(binary.BigEndian.Uint64(append(make([]byte, 3), p[64:69]...))), 0); time.Since(at).Abs() > time.Minute {
				t.Errorf("signed at %v", at)
			}
			salts[string(p[69:])] = true
			h.silent(t, says, key.Seed(), []byte(c.secret), text)
		}
		if len(salts) != 3 {
			t.Errorf("salts: %v", salts)
		}
		for _, bad := range []string{"nowhere ''", "testdata/ssh/id_locked ''", "testdata/ssh/id_rsa ''", "testdata/ssh/id_ed25519.pub ''",
			h.write(t, "short", seed[:40]) + " ''", h.write(t, "void", "") + " ''", "testdata/ssh/id_ed25519 nowhere", "testdata/ssh/id_ed25519 " + h.path("void")} {
			out, says, exit := h.run(t, "payload_ed25519 "+bad+report)
			name := strings.TrimPrefix(strings.TrimSuffix(bad, " ''"), "testdata/ssh/id_ed25519 ")
			if out != "" || exit != 9 || !strings.Contains(says, name) || strings.Count(says, "\n") != 1 {
				t.Errorf("%s: %s, exit %d, says %s", bad, out, exit, says)
			}
		}
		h.tool(t, "openssl", `case $1 in rand) echo 01020304 ;; version) echo OpenSSL 1.1.1n ;; *) echo usage; exit 1 ;; esac`)
		for _, want := range []string{"want 3.0 or later, have OpenSSL 1.1.1n", "openssl is not installed"} {
			if _, says, exit := h.run(t, "payload_ed25519 testdata/ssh/id_ed25519 ''"+report); exit != 9 || !strings.Contains(says, want) {
				t.Errorf("exit %d, %s", exit, says)
			}
			os.Remove(h.path("bin/openssl"))
		}
	})
}

func TestLocked(t *testing.T) {
	hosts(t, func(t *testing.T, h *shellHost) {
		step := "step() { n=$(cat " + h.path("n") + "); sleep 0.05; echo $((n + 1)) >" + h.path("n") + "; }\n"
		h.write(t, "n", "0")
		h.write(t, "run/t.undo.lock/4194303", "") // no such process: the kernel counts to 4194302
		all := make(chan error)
		for _, code := range []string{"locked step", "locked locked step", "go() { step; exit 0; }; locked go", "fn() { step; die 0 x; }; locked fn", "(locked step)"} {
			cmd := h.command(t, step+code)
			go func() { all <- cmd.Run() }()
		}
		for range 5 {
			if err := <-all; err != nil {
				t.Error(err)
			}
		}
		if n, _ := os.ReadFile(h.path("n")); string(n) != "5\n" {
			t.Errorf("n is %s", n)
		}
		h.clean(t)
		out, says, exit := h.run(t, "no() { return 7; }; locked no; echo $?; die() { say \"$2\"; exit 6; }\n"+
			"go() { kill -TERM $$; echo done; }; locked go; echo not here")
		if out != "7\ndone\n" || exit != 6 || !strings.Contains(says, "interrupted") {
			t.Errorf("%q, %q, exit %d", out, says, exit)
		}
		if h.shell != "dash" {
			return // its `sleep` is its own, and this would take ten seconds
		}
		h.tool(t, "sleep", "")
		if out, says, exit = h.run(t, fmt.Sprintf("die() { rm -r $JOURNAL.lock; say \"$2\"; exit 6; }\nmkdir -p $JOURNAL.lock; : >$JOURNAL.lock/%d; locked echo x", os.Getpid())); out != "" || exit != 6 ||
			!strings.Contains(says, fmt.Sprint("process ", os.Getpid(), " is at work")) {
			t.Errorf("%q, %q, exit %d", out, says, exit)
		}
	})
}

func TestKeepalive(t *testing.T) {
	hosts(t, func(t *testing.T, h *shellHost) {
		const up = "mkdir -p ${JOURNAL%/*}; echo --- >$JOURNAL; beat() { echo beat; ERR=weak STEP=heart; "
		out, says, exit := h.run(t, up+"[ -e $JOURNAL.1 ] || { : >$JOURNAL.1; return 1; }; rm $JOURNAL.1 $JOURNAL; exit 1; }; keepalive_loop 1 locked beat")
		if out != "beat\nbeat\n" || exit != 0 || says != "t: heart: weak\nt: is down, so there is nothing to keep alive\n" {
			t.Errorf("%q, %q, exit %d", out, says, exit)
		}
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
			cmd := h.command(t, up+"}; keepalive_loop 50 beat")
			pipe, err := cmd.StdoutPipe()
			if err = errors.Join(err, cmd.Start()); err != nil {
				t.Fatal(err)
			}
			pipe.Read(make([]byte, 5))
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			cmd.Process.Signal(sig)
			io.ReadAll(pipe) // till nobody has it, `sleep` neither
			if err := cmd.Wait(); err != nil || time.Since(began) > 5*time.Second {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			os.Remove(h.path("run/t.undo"))
			h.clean(t)
		}
		for _, sec := range []string{"", "0", "x", "1s"} {
			if _, _, exit := h.run(t, "keepalive_loop '"+sec+"' false"); exit != 2 {
				t.Errorf("%q: exit %d", sec, exit)
			}
		}
	})
}
