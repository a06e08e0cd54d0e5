package authd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestReplayState(t *testing.T) {
	var s ReplayState
	salt := func(n byte) [4]byte { return [4]byte{n} }
	for i, tt := range []struct {
		stamp Stamp
		want  error
	}{
		{Stamp{0, salt(1)}, nil}, // nothing is older than nothing
		{Stamp{0, salt(1)}, ErrReplayed},
		{Stamp{100, salt(1)}, nil},
		{Stamp{100, salt(1)}, ErrReplayed},
		{Stamp{100, salt(2)}, nil},
		{Stamp{99, salt(3)}, ErrOlder},
		{Stamp{0, salt(3)}, ErrOlder},
		{Stamp{100, salt(1)}, ErrReplayed},
		{Stamp{100, salt(2)}, ErrReplayed},
		{Stamp{1<<40 - 1, salt(1)}, nil},
		{Stamp{100, salt(9)}, ErrOlder},
	} {
		err := s.check(tt.stamp)
		if !errors.Is(err, tt.want) {
			t.Errorf("%d: %v, want %v", i, err, tt.want)
		}
		if err == nil {
			s.accept(tt.stamp)
		}
	}
	if err := s.check(Stamp{1<<40 - 8, salt(1)}); !strings.Contains(err.Error(), "by 7 s") || !strings.Contains(err.Error(), "clock") {
		t.Errorf("%v", err)
	}
}

func TestReplayStateBounded(t *testing.T) {
	s := ReplayState{Time: 5}
	for i := range byte(maxSalts) {
		st := Stamp{5, [4]byte{i}}
		if err := s.check(st); err != nil {
			t.Fatal(err)
		}
		s.accept(st)
	}
	if err := s.check(Stamp{5, [4]byte{200}}); !errors.Is(err, ErrRate) {
		t.Errorf("%v", err)
	}
	if err := s.check(Stamp{5, [4]byte{3}}); !errors.Is(err, ErrReplayed) {
		t.Errorf("%v", err)
	}
	if err := s.check(Stamp{6, [4]byte{200}}); err != nil {
		t.Errorf("a second later: %v", err)
	}
}

func TestFileStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "dir")
	s := FileStore{Dir: dir}
	id := replayID([]byte("key"))
	if h := sha256.Sum256([]byte("key")); id != hex.EncodeToString(h[:]) {
		t.Errorf("id %s", id)
	}
	if got, err := s.Load(id); err != nil || !cmp.Equal(got, ReplayState{}) {
		t.Errorf("absent: %v, %v", got, err)
	}
	full := ReplayState{Time: 1<<40 - 1}
	for i := range byte(maxSalts) {
		full.Salts = append(full.Salts, [4]byte{0xff, 0, i, 1})
	}
	for _, want := range []ReplayState{{}, {Time: 7, Salts: [][4]byte{{1, 2, 3, 4}}}, full} {
		if err := s.Save(id, want); err != nil {
			t.Fatal(err)
		}
		got, err := s.Load(id)
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
	es, err := os.ReadDir(dir)
	if err != nil || len(es) != 1 || es[0].Name() != id {
		t.Fatalf("%v, %v", es, err)
	}
	if fi, err := es[0].Info(); err != nil || fi.Mode() != 0o600 {
		t.Errorf("%v, %v", fi, err)
	}
}

func TestFileStoreDamaged(t *testing.T) {
	s := FileStore{Dir: t.TempDir()}
	id := replayID(nil)
	for name, content := range map[string]string{
		"empty":          "",
		"cut":            `{"time":7,"salts":["010`,
		"not an object":  `[]`,
		"negative":       `{"time":-1}`,
		"too late":       `{"time":1099511627776}`,
		"short salt":     `{"time":7,"salts":["0102"]}`,
		"odd salt":       `{"time":7,"salts":["0102030x"]}`,
		"too many salts": `{"time":7,"salts":[` + strings.Repeat(`"01020304",`, maxSalts) + `"01020304"]}`,
		"huge":           `{"time":7}` + strings.Repeat(" ", maxReplayFile),
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, id), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := s.Load(id); err == nil || !cmp.Equal(got, ReplayState{}) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if err := s.Save(id, ReplayState{Time: 9}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(id); err != nil || got.Time != 9 {
		t.Errorf("replaced: %v, %v", got, err)
	}
}

func TestFileStoreFails(t *testing.T) {
	dir := t.TempDir()
	for _, id := range []string{"", "..", "../x", strings.Repeat("g", 64), strings.Repeat("0", 62)} {
		s := FileStore{Dir: dir}
		if err := s.Save(id, ReplayState{}); err == nil {
			t.Errorf("saved as %q", id)
		}
		if _, err := s.Load(id); err == nil {
			t.Errorf("loaded %q", id)
		}
	}
	// A folder where the file should be: neither may be left behind.
	id := replayID(nil)
	if err := os.MkdirAll(filepath.Join(dir, id, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := (FileStore{Dir: dir}).Save(id, ReplayState{}); err == nil {
		t.Error("replaced a folder")
	}
	if _, err := (FileStore{Dir: dir}).Load(id); err == nil {
		t.Error("loaded a folder")
	}
	if es, _ := os.ReadDir(dir); len(es) != 1 {
		t.Errorf("left behind: %v", es)
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	if err := (FileStore{Dir: file}).Save(id, ReplayState{}); err == nil {
		t.Error("saved in a file")
	}
}

func FuzzReplayFile(f *testing.F) {
	f.Add([]byte(`{"time":1700000000,"salts":["0a1b2c3d","00000000"]}`))
	f.Add([]byte(`{"time":-1,"salts":null}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseReplay(b)
		if err != nil {
			if !cmp.Equal(st, ReplayState{}) {
				t.Fatalf("%v with %v", st, err)
			}
			return
		}
		out, err := formatReplay(st)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseReplay(out)
		if diff := cmp.Diff(st, again); diff != "" || err != nil {
			t.Fatalf("%v %s", err, diff)
		}
	})
}
