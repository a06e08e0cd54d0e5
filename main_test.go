package main

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"ipipou/authd"
	"ipipou/datapath"
	"ipipou/instance"
	"ipipou/runner"
)

var update = flag.Bool("update", false, "write the golden files anew, and the generated parts of the manual")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ipipou": func() {
		runner.Path = os.Getenv("PATH") // the fakes are there
		main()
	}})
}

// The scripts run the program with an ip, nft, modprobe and sysctl that only write
// down what they were called with, and fail when told to.
func TestCLI(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/cli", UpdateScripts: *update,
		Setup: func(env *testscript.Env) error {
			fakes, err := os.ReadFile("testdata/cli/fake.sh")
			if err != nil {
				return err
			}
			for _, name := range []string{"ip", "nft", "modprobe", "sysctl", "hook"} {
				if err := os.MkdirAll(env.WorkDir+"/bin", 0o755); err != nil {
					return err
				}
				if err := os.WriteFile(env.WorkDir+"/bin/"+name, fakes, 0o755); err != nil {
					return err
				}
			}
			env.Setenv("PATH", env.WorkDir+"/bin:"+env.Getenv("PATH"))
			env.Setenv("CALLS", env.WorkDir+"/calls")
			env.Setenv("ANSWERS", env.WorkDir+"/answers")
			env.Setenv("IPIPOU_RUN_DIR", env.WorkDir+"/run")
			env.Setenv("STATE_DIRECTORY", env.WorkDir+"/state")
			return os.Chmod(env.WorkDir, 0o755)
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, fmt.Errorf("unknown condition %s", cond)
			}
			if os.Getuid() != 0 && os.Getenv("CI") != "" {
				return false, fmt.Errorf("CI has to run as root")
			}
			return os.Getuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"await": await, "counters": counters},
	})
}

// await FILE REGEXP waits until a line of the file matches.
func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await FILE REGEXP")
	}
	re, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	var data []byte
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if data, err = os.ReadFile(ts.MkAbs(args[0])); err == nil && re.Match(data) {
			return
		}
	}
	ts.Fatalf("no line like %s in %s:\n%s", args[1], args[0], data)
}

// counters FILE NUMBER[,NAME=N]... writes what bpftool prints of a map of counters, for
// two processors that have done half each.
func counters(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: counters FILE NUMBER[,NAME=N]...")
	}
	octets := func(b []byte) string { return `["0x` + strings.ReplaceAll(fmt.Sprintf("% x", b), " ", `","0x`) + `"]` }
	var entries []string
	for _, arg := range args[1:] {
		words := strings.Split(arg, ",")
		key, err := strconv.ParseUint(words[0], 10, 32)
		ts.Check(err)
		var halves [2][]byte
		for _, name := range datapath.Counters {
			n := uint64(0)
			for _, w := range words[1:] {
				if text, ok := strings.CutPrefix(w, name+"="); ok {
					n, err = strconv.ParseUint(text, 10, 64)
					ts.Check(err)
				}
			}
			halves[0] = binary.LittleEndian.AppendUint64(halves[0], n/2)
			halves[1] = binary.LittleEndian.AppendUint64(halves[1], n-n/2)
		}
		entries = append(entries, fmt.Sprintf(`{"key":%s,"values":[{"cpu":0,"value":%s},{"cpu":1,"value":%s}]}`,
			octets(binary.LittleEndian.AppendUint32(nil, uint32(key))), octets(halves[0]), octets(halves[1])))
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte("["+strings.Join(entries, ",")+"]\n"), 0o644))
}

// Every test that the threat model goes by is there.
func TestThreatModel(t *testing.T) {
	text, err := os.ReadFile("docs/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests []byte
	err = filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		tests = append(tests, data...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w*`).FindAllString(string(text), -1)
	for _, name := range names {
		if !strings.Contains(string(tests), "\nfunc "+name+"(") {
			t.Errorf("%s is said to show something, and is no test", name)
		}
	}
	for _, path := range regexp.MustCompile(`testdata/[\w./-]+`).FindAllString(string(text), -1) {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if len(names) < 40 {
		t.Errorf("found %d names: has the form changed?", len(names))
	}
}

// The log's lines and events in its page are the log's.
func TestLogsPage(t *testing.T) {
	text, err := os.ReadFile("docs/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"text", "logfmt", "json"} {
		var b bytes.Buffer
		log := instance.NewLog(&b, instance.LogSettings{Verbosity: 1, Format: format})
		log.Warn("ipipou0: 198.51.100.7:4242 refused: wrong token",
			authd.Event("refused", "ipipou0", netip.MustParseAddrPort("198.51.100.7:4242"), slog.String("reason", "token")), "repeated", 41)
		if !bytes.Contains(text, b.Bytes()) {
			t.Errorf("no such line: %s", b.Bytes())
		}
	}
	events := 0
	for _, dir := range []string{"authd", "instance"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if strings.HasSuffix(name, "_test.go") {
				continue
			}
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?:Event\(|event: |warning\{)"(\w+)"`).FindAllSubmatch(source, -1) {
				events++
				if !bytes.Contains(text, []byte("`"+string(m[1])+"`")) {
					t.Errorf("%s logs the event %s, which is not there", name, m[1])
				}
			}
		}
	}
	if events < 12 {
		t.Errorf("found %d events: has their form changed?", events)
	}
}

// The configuration of a name can be read again and again, as by status --watch.
func TestConfigAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "office.toml")
	if err := os.WriteFile(path, []byte("server = true\nfou-dev = \"lo\"\nauth-token = \"t\"\n[[tunnel]]\nnumber = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, _, err := parse([]string{"status", path}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if c, err := l.config(io.Discard); err != nil || len(c.Tunnels) != 1 {
			t.Errorf("%d tunnels, %v", len(c.Tunnels), err)
		}
	}
}
