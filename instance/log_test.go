package instance

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ipipou/authd"
)

var formats = []string{"text", "logfmt", "json"}

// The format is the Python tool's: scripts and journald read it.
func TestLogFormat(t *testing.T) {
	var b bytes.Buffer
	log := NewLog(&b, LogSettings{Verbosity: 3, Format: "text", Time: true, PID: true})
	log.Info("up", "source", "a b")
	want := fmt.Sprintf(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} %d  INFO up source="a b"\n$`, os.Getpid())
	if !regexp.MustCompile(want).MatchString(b.String()) {
		t.Errorf("%q does not match %s", b.String(), want)
	}
	b.Reset()
	log = NewLog(&b, LogSettings{Verbosity: 1, Format: "text"})
	log.Error("e")
	log.Warn("w")
	log.Info("i")
	log.With(slog.String("k", "v")).Warn("x")
	if got := b.String(); got != "ERROR e\n WARN w\n WARN x k=v\n" {
		t.Errorf("%q", got)
	}
}

// A level more is shown for each -v, in all formats.
func TestLogLevels(t *testing.T) {
	for _, format := range formats {
		for verbosity := range 5 {
			var b bytes.Buffer
			log := NewLog(&b, LogSettings{Verbosity: verbosity, Format: format})
			log.Error("said")
			log.Warn("said")
			log.Info("said")
			log.Debug("said")
			if n, want := strings.Count(b.String(), "said"), min(verbosity+1, 4); n != want {
				t.Errorf("%s at %d: %d lines, want %d", format, verbosity, n, want)
			}
		}
	}
}

// An event is words in text, and fields in the others.
func TestLogFields(t *testing.T) {
	for format, want := range map[string]string{
		"text":   " WARN office: refused error=\"no route\"\n",
		"logfmt": "level=WARN msg=\"office: refused\" event=refused tunnel=office peer=192.0.2.1:7 reason=token error=\"no route\"\n",
		"json": `{"level":"WARN","msg":"office: refused","event":"refused","tunnel":"office","peer":"192.0.2.1:7",` +
			`"reason":"token","error":"no route"}` + "\n",
	} {
		event := authd.Event("refused", "office", netip.MustParseAddrPort("192.0.2.1:7"), slog.String("reason", "token"))
		for _, s := range []LogSettings{{Time: false, PID: false}, {Time: true, PID: false}, {Time: false, PID: true}, {Time: true, PID: true}} {
			var b bytes.Buffer
			s.Verbosity, s.Format = 1, format
			NewLog(&b, s).Warn("office: refused", event, "error", errors.New("no route"))
			got := b.String()
			timed := regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:`).MatchString(got)
			if timed != s.Time {
				t.Errorf("%s, time %v: %s", format, s.Time, got)
			}
			if pid := regexp.MustCompile(fmt.Sprintf(`(^| |pid=|"pid":)%d\b`, os.Getpid())).MatchString(got); pid != s.PID {
				t.Errorf("%s, pid %v: %s", format, s.PID, got)
			}
			if s.Time || s.PID {
				continue
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", format, diff)
			}
		}
	}
}

// The journal is told the priority of each line, and nobody else.
func TestLogPriorities(t *testing.T) {
	said := func(toJournal bool, format string) string {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		stream := "0:0"
		if toJournal {
			info, err := w.Stat()
			if err != nil {
				t.Fatal(err)
			}
			st := info.Sys().(*syscall.Stat_t)
			stream = fmt.Sprintf("%d:%d", st.Dev, st.Ino)
		}
		t.Setenv("JOURNAL_STREAM", stream)
		log := NewLog(w, LogSettings{Verbosity: 3, Format: format})
		log.Error("e")
		log.With("k", "v").Warn("w")
		log.Info("i")
		log.Debug("d\nd")
		Say(w, slog.LevelError, "two\nlines")
		w.Close()
		all, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return string(all)
	}
	for _, format := range formats {
		plain := strings.Split(said(false, format), "\n")
		var want []string
		for i, line := range plain[:len(plain)-1] {
			want = append(want, []string{"<3>", "<4>", "<6>", "<7>", "<3>", "<3>"}[i]+line)
		}
		got := strings.Split(strings.TrimSuffix(said(true, format), "\n"), "\n")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}

// Whatever is said stays within its line, and steers no terminal; what can be printed
// is said as it is.
func FuzzLog(f *testing.F) {
	for _, s := range []string{"up", "ipipou0: wrong \"host\\name\"", "a\nERROR b", "a\rb", "\x1b[2J", "\xff\xc3", "\u202e\u2028\u0085", "", "="} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, msg, value string) {
		for _, format := range formats {
			var b bytes.Buffer
			NewLog(&b, LogSettings{Verbosity: 1, Format: format}).Warn(msg, "error", value)
			line, ended := strings.CutSuffix(b.String(), "\n")
			if !ended || strings.ContainsAny(line, "\n\r\x1b\x00") || !utf8.ValidString(line) {
				t.Errorf("%s: %q", format, b.String())
			}
			switch format {
			case "text":
				if !printable(line) {
					t.Errorf("%q", line)
				}
				if printable(msg) && !strings.HasPrefix(line, " WARN "+msg+" error=") {
					t.Errorf("%q became %q", msg, line)
				}
			case "json":
				var got struct{ Level, Msg, Error string }
				if err := json.Unmarshal(b.Bytes(), &got); err != nil {
					t.Fatal(err)
				}
				if utf8.ValidString(msg) && utf8.ValidString(value) && (got.Msg != msg || got.Error != value) {
					t.Errorf("%q, %q became %q", msg, value, line)
				}
			}
		}
	})
}
