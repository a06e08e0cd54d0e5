package instance

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ipipou/plans"
	"ipipou/runner"
)

// Whatever is written to the socket, what is taken for a request is one, in few bytes, and
// what is not is told in one line that can be sent.
func FuzzRequest(f *testing.F) {
	for _, text := range []string{"status\n", "confirm\n", "status", "", "\n", "status \n", "confirm\nstatus\n", strings.Repeat("x", 100), "\xff\x00\n"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		from := strings.NewReader(string(data))
		got, err := parseRequest(from)
		if read := len(data) - from.Len(); read > requestSize {
			t.Errorf("%d bytes read", read)
		}
		first, _, ended := strings.Cut(string(data), "\n")
		switch {
		case err == nil && (!ended || string(got) != first || got != askStatus && got != askConfirm):
			t.Errorf("%q is taken for %q", data, got)
		case err != nil && (got != "" || strings.ContainsAny(err.Error(), "\n\r\x1b")):
			t.Errorf("%q is %q, %q", data, got, err)
		case err != nil && ended && (first == string(askStatus) || first == string(askConfirm)):
			t.Errorf("%q is refused: %v", data, err)
		}
	})
}

// Whatever an instance answers, there is one line to be said, or what was asked for.
func FuzzReply(f *testing.F) {
	full := fullReport()
	for _, r := range []reply{{}, {Error: "no"}, {Confirmed: "confirmed"}, {Status: &full}, {Status: &Report{Format: 2}}} {
		data, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(""))
	f.Add([]byte(`{"status":{"format":1,"started":"yesterday"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var r reply
		err := r.read(data)
		if err == nil && (r.Error != "" || r.Status == nil && r.Confirmed == "") {
			t.Errorf("%q is taken for %+v", data, r)
		}
		if err != nil && strings.ContainsAny(silence(err), "\n\r") {
			t.Errorf("%q: %q", data, err)
		}
		if err == nil && r.Status != nil {
			var b strings.Builder
			if err := (Style{Now: noon, Details: true}).Show(&b, []Report{*r.Status}); err != nil || strings.ContainsAny(b.String(), "\r\x1b") {
				t.Errorf("%q, %v", &b, err)
			}
		}
	})
}

// asked is an instance that can be asked, in a directory of its own.
func asked(t *testing.T) (in *Instance, path string) {
	t.Helper()
	in = &Instance{Config: plans.Config{Name: "office"}, Log: slog.New(slog.DiscardHandler), dir: t.TempDir()}
	in.board = newBoard(in.Config, time.Now, in.changed)
	in.run = &runner.Runner{}
	c, err := in.listen()
	if err != nil {
		t.Fatal(err)
	}
	go c.serve()
	t.Cleanup(func() {
		if err := c.close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(c.path); err == nil {
			t.Error("the socket is left")
		}
	})
	return in, c.path
}

// Clients that say nothing keep nobody from being answered, for longer than they may.
func TestSilentClients(t *testing.T) {
	in, path := asked(t)
	in.confirm.begin(time.Hour)
	var silent []net.Conn
	for range maxAsking {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		silent = append(silent, conn)
	}
	a, err := ask(path, askConfirm)
	if err != nil || a.Confirmed != "confirmed" {
		t.Errorf("%+v, %v", a, err)
	}
	said, err := io.ReadAll(silent[0])
	if err != nil || !strings.Contains(string(said), "no request") {
		t.Errorf("the silent one is told %q, %v", said, err)
	}
}

// Nobody but us can connect.
func TestSocketMode(t *testing.T) {
	_, path := asked(t)
	info, err := os.Lstat(path)
	if err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%s, %v", info.Mode(), err)
	}
}

// Also of a name that is too long for a socket's address, but not for a file.
func TestLongSocket(t *testing.T) {
	for name, fits := range map[string]bool{strings.Repeat("n", 77): true, strings.Repeat("n", 78): false} {
		in := &Instance{Config: plans.Config{Name: name}, Log: slog.New(slog.DiscardHandler), dir: filepath.Join(t.TempDir(), strings.Repeat("d", 60))}
		if err := os.Mkdir(in.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		c, err := in.listen()
		if !fits {
			if err == nil || !strings.HasSuffix(err.Error(), ".sock: its name has more than 82 bytes") {
				t.Errorf("a name that is too long: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		go c.serve()
		if a, err := ask(c.path, askConfirm); err != nil || a.Confirmed == "" {
			t.Errorf("%+v, %v", a, err)
		}
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}
}

// Who confirms in time keeps it, who is late is told so, and otherwise it ends by itself.
func TestConfirmation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var none, kept, late, stopped confirmation
		if err := none.wait(ctx); err != nil || !none.deadline().IsZero() {
			t.Errorf("nothing to wait for: %v", err)
		}
		start := time.Now()
		for _, c := range []*confirmation{&kept, &late, &stopped} {
			c.begin(time.Minute)
			if at := c.deadline(); at != start.Add(time.Minute) {
				t.Errorf("deadline %s", at)
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- kept.wait(ctx) }()
		time.Sleep(59 * time.Second)
		if said, err := kept.confirm(); said != "confirmed" || err != nil || !kept.deadline().IsZero() {
			t.Errorf("%s, %v", said, err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		for _, c := range []*confirmation{&none, &kept} {
			if said, err := c.confirm(); said != "there is nothing to be confirmed" || err != nil {
				t.Errorf("%s, %v", said, err)
			}
		}
		err := late.wait(ctx)
		if ExitCode(err) != plans.ExitGeneral || err.Error() != "not confirmed within 1m0s: undone" {
			t.Errorf("%v", err)
		}
		if _, err := late.confirm(); err == nil || !strings.Contains(err.Error(), "too late") {
			t.Errorf("%v", err)
		}
		cancel()
		if err := stopped.wait(ctx); err != nil {
			t.Errorf("it was stopped before: %v", err)
		}
		if said, err := stopped.confirm(); err == nil || !stopped.deadline().IsZero() {
			t.Errorf("what is being undone is %s", said)
		}
	})
}

// What is said of who gives no answer.
func TestSilence(t *testing.T) {
	dir := t.TempDir()
	_, err := ask(filepath.Join(dir, "nosuch.sock"), askStatus)
	if got := silence(err); !strings.HasPrefix(got, "it is starting or ending just now") {
		t.Error(got)
	}
	l, err := listenUnix(filepath.Join(dir, "ends.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if conn, err := l.Accept(); err == nil {
			io.CopyN(io.Discard, conn, int64(len(askStatus))+1)
			conn.Close()
		}
	}()
	if _, err := ask(filepath.Join(dir, "ends.sock"), askStatus); err == nil || silence(err) != "it ended without an answer" {
		t.Errorf("%v", err)
	}
	if got := silence(errors.New("a\nb")); got != "a; b" {
		t.Error(got)
	}
}
