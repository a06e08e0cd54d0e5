package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hooks are commands of an operator's that note when they are called, and what the tunnel is then.
type hooks struct{ script, log string }

func newHooks(t testing.TB, dir string) *hooks {
	t.Helper()
	h := &hooks{filepath.Join(dir, "hook.sh"), filepath.Join(dir, "hooks.log")}
	// All by the shell itself: each program more takes its time here.
	text := `state=absent flags=0
if [ -e /sys/class/net/ipipou0/flags ]; then
  read -r flags </sys/class/net/ipipou0/flags
  state=down
fi
if [ $((flags & 1)) = 1 ]; then state=up; fi
echo "$1 $state" >>` + h.log + `
while [ -e "$0.hold-$1" ]; do sleep 0.1; done
[ ! -e "$0.fail-$1" ] || { echo "no $1 today" >&2; exit 7; }
`
	if err := os.WriteFile(h.script, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return h
}

// lines are a configuration with two commands at each place.
func (h *hooks) lines() (lines []string) {
	for _, place := range []string{"pre-up", "post-up", "pre-down", "post-down"} {
		lines = append(lines, fmt.Sprintf("%s = [[\"sh\", %q, %q], [\"sh\", %q, \"%[3]s-2\"]]", place, h.script, place, h.script))
	}
	return lines
}

// called is all that has been noted since the last time.
func (h *hooks) called(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(h.log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	os.Remove(h.log)
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", ", ")
}

// bad makes a hook misbehave, until the function is called that is returned.
func (h *hooks) bad(t testing.TB, how, place string) (good func()) {
	t.Helper()
	path := h.script + "." + how + "-" + place
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	return func() { os.Remove(path) }
}

const (
	goingUp     = "pre-up absent, pre-up-2 absent, post-up up, post-up-2 up"
	goingDown   = "pre-down up, pre-down-2 up, post-down absent, post-down-2 absent"
	upAndFailed = "pre-up absent, pre-up-2 absent, post-up up, "
)

func TestHooks(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	h := newHooks(t, w.dir)
	args := []string{"--config", tomlFile(t, w.dir, "hooks", append([]string{
		"mode = \"ipip\"", "encap = \"fou\"", "fou-dev = \"a0\"", "fou-remote = \"192.0.2.2\"", "tunl-ip = \"10.9.0.1\"",
	}, h.lines()...)...)}
	before, quick := snapshots(t, w.a), w.a.quick(t)
	calls := func(t *testing.T, when, want string) {
		t.Helper()
		if got := h.called(t); got != want {
			t.Errorf("%s: called were\n%s\nwant\n%s", when, got, want)
		}
	}
	ends := func(t *testing.T, p *Proc, sig syscall.Signal, code int) {
		t.Helper()
		p.Signal(t, sig)
		if got := p.Wait(t, commandTimeout); got != code {
			t.Errorf("exit %d at %v, want %d", got, sig, code)
		}
		SameState(t, w.a.Name+" in the end", quick, w.a.quick(t))
		noJournal(t, w.dir, w.a)
	}
	t.Run("killed", func(t *testing.T) {
		kill(t, static(t, w.dir, end{w.a, args})[0])
		calls(t, "killed", goingUp)
		p := static(t, w.dir, end{w.a, args})[0]
		p.WaitLog(t, `WARN an earlier \S+ died and left \d+ things behind`, commandTimeout)
		calls(t, "restarted", goingDown+", "+goingUp)
		ends(t, p, syscall.SIGTERM, 0)
		calls(t, "down", goingDown)
	})
	t.Run("failing on the way up", func(t *testing.T) {
		for place, want := range map[string]string{
			"pre-up":    "pre-up absent, post-down absent, post-down-2 absent",
			"post-up-2": goingUp + ", " + goingDown,
		} {
			good := h.bad(t, "fail", place)
			(&solo{dir: w.dir}).fails(t, w.a, 1, `no `+place+` today`, args...)
			calls(t, place+" failing", want)
			good()
		}
	})
	t.Run("failing on the way down", func(t *testing.T) {
		good := h.bad(t, "fail", "pre-down")
		p := static(t, w.dir, end{w.a, args})[0]
		ends(t, p, syscall.SIGINT, 200)
		if n := count(p.Logs(), "ERROR .*no pre-down today"); n != 1 {
			t.Errorf("%d errors in the log, want 1", n)
		}
		calls(t, "pre-down failing", goingUp+", "+goingDown)
		good()
	})
	t.Run("interrupted", func(t *testing.T) {
		good := h.bad(t, "hold", "post-up")
		p := startIPIPOU(t, w.dir, w.a, args...)
		Eventually(t, commandTimeout, func() error {
			if text, _ := os.ReadFile(h.log); !strings.Contains(string(text), "post-up up") {
				return fmt.Errorf("not there yet: %q", text)
			}
			return nil
		})
		p.Signal(t, syscall.SIGINT)
		good()
		ends(t, p, syscall.SIGINT, 0)
		if got := h.called(t); !strings.HasPrefix(got, upAndFailed) || !strings.HasSuffix(got, goingDown) {
			t.Errorf("called were %s", got)
		}
	})
	sameStates(t, "in the end", w.dir, before)
}

// A server's hooks are around a tunnel that comes with its client, and a client's around its own.
func TestHooksOfAuthenticated(t *testing.T) {
	t.Parallel()
	s := newSolo(t)
	server, client := newHooks(t, t.TempDir()), newHooks(t, t.TempDir())
	with := func(h *hooks, more ...string) []string {
		args := append(more, "--auth-token", "t")
		for _, place := range []string{"pre-up", "post-up", "pre-down", "post-down"} {
			args = append(args, "--"+place, "sh "+h.script+" "+place)
		}
		return args
	}
	s.startServer(t, with(server, "--fou-dev", "s0")...)
	if got := server.called(t); got != "" {
		t.Errorf("before there is a client, the server called %s", got)
	}
	s.startClient(t, with(client)...)
	s.works(t)
	s.roam(t, RtrAddr2+":4000")
	s.works(t)
	stop(t, s.client, s.server)
	const want = "pre-up absent, post-up up, pre-down up, post-down absent"
	for who, h := range map[string]*hooks{"server": server, "client": client} {
		if got := h.called(t); got != want {
			t.Errorf("the %s called\n%s\nwant\n%s", who, got, want)
		}
	}
}
