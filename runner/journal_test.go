package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ipipou/plans"
)

// written is a journal as a process leaves it: undos with all they may have, in
// several plans, some of them dropped.
func written(t testing.TB) []byte {
	t.Helper()
	j := open(t, t.TempDir())
	full := Entry{Undo: c("nft -f -"), Key: "gate", Passing: true, Once: true, If: c("there"), Unless: []plans.Command{c("others")}}
	full.Undo.Stdin = "delete table ip ipipou0\n"
	ids, err := j.NoteAll([]Entry{full, {Undo: c("ip link del dev ipipou0")}, {Undo: c("ip link del dev ipipou1")}})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Drop(ids[1]); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"ip fou del port 10000", "-a 1", "-a 2"} {
		if _, err := j.Note(Entry{Undo: c(line)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Drop(ids[2], 5); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func open(t testing.TB, dir string) *Journal {
	t.Helper()
	j, err := OpenJournal(dir, "x")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
	return j
}

// all are the pending undos of a journal's bytes.
func all(data []byte) ([]Entry, []Damage) {
	p, damaged := parse(data)
	return p.since(0), damaged
}

// A journal that was cut anywhere is one that ends there: all whole records count,
// and what is left of the last is known to be just that.
func TestJournalCutAnywhere(t *testing.T) {
	data := written(t)
	for n := range len(data) + 1 {
		whole := data[:bytes.LastIndexByte(data[:n], '\n')+1]
		if n < len(data) && data[n] == '\n' {
			whole = data[:n+1]
		}
		want, _ := all(whole)
		got, damaged := all(data[:n])
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("cut at %d: %s", n, diff)
		}
		if rest := n > len(whole); rest != (len(damaged) == 1) || rest && !damaged[0].Cut {
			t.Errorf("cut at %d, %d behind the last record: %+v", n, n-len(whole), damaged)
		}
	}
}

// Of a journal with a byte that is another one now, all undos are left but that of the
// byte's own line, none is changed and none comes back, and the damage is told.
func TestJournalDamagedAnywhere(t *testing.T) {
	data := written(t)
	want, damaged := all(data)
	if len(want) != 3 || len(damaged) > 0 {
		t.Fatalf("%d undos, and damaged: %+v", len(want), damaged)
	}
	lines := bytes.Split(data, []byte{'\n'})
	lost := map[int]int{}
	for at := range data {
		line := 1 + bytes.Count(data[:at], []byte{'\n'})
		r, _, err := decode(lines[line-1])
		if err != nil {
			t.Fatal(err)
		}
		left := slices.DeleteFunc(slices.Clone(want), func(e Entry) bool {
			return r.Entry != nil && r.ID == e.ID && data[at] != '\n'
		})
		lost[len(want)-len(left)]++
		for _, flip := range []byte{0xff, 0x20, 1 << (at % 8)} { // 0x20: the other case
			bad := bytes.Clone(data)
			bad[at] ^= flip
			got, damaged := all(bad)
			if len(damaged) == 0 || damaged[0].Line != line || damaged[0].Cut {
				t.Errorf("byte %d ^ %d: damage %+v, want line %d", at, flip, damaged, line)
			}
			if !reflect.DeepEqual(left, got) {
				t.Fatalf("byte %d ^ %d: %s", at, flip, cmp.Diff(left, got))
			}
		}
	}
	if lost[0] == 0 || lost[1] == 0 {
		t.Errorf("undos lost, and how often: %v", lost)
	}
}

// What is left of a damaged line is shown, and the file is kept; what is whole is still
// to be undone, and none of the rest.
func TestJournalThatIsDamaged(t *testing.T) {
	data := written(t)
	lines := bytes.SplitAfter(data, []byte{'\n'})
	long := bytes.Repeat([]byte("x"), 3<<20)
	for name, test := range map[string]struct {
		data []byte
		want []string // the undos
		text []string
	}{
		"whole":        {data, []string{"nft", "ip", "-a"}, nil},
		"empty":        {nil, nil, nil},
		"blank lines":  {[]byte("\n\n" + string(lines[0])), []string{"nft"}, nil},
		"another undo": {bytes.Replace(lines[1], []byte("ipipou0"), []byte("ipipou1"), 1), nil, []string{"ip link del dev ipipou1"}},
		"no sum":       {lines[1][sumSize:], nil, []string{"ip link del dev ipipou0"}},
		"zeros":        {slices.Concat(lines[0], make([]byte, 4096), lines[1], lines[2]), []string{"nft", "ip", "ip"}, []string{strings.Repeat("\x00", 200)}},
		"a long line":  {slices.Concat(long, []byte("\n"), lines[0]), []string{"nft"}, []string{strings.Repeat("x", 200)}},
		"twice":        {slices.Concat(lines[1], lines[1]), []string{"ip"}, []string{"ip link del dev ipipou0"}},
		"no newline":   {slices.Concat(lines[0], bytes.TrimSpace(lines[1])), []string{"nft", "ip"}, nil},
		"a newline in": {bytes.Replace(lines[1], []byte("ipipou0"), []byte("ipi\npou"), 1), nil, []string{string(lines[1][:bytes.Index(lines[1], []byte("pou0"))]), `pou"]}}`}},
		"no record":    {[]byte(sum([]byte("{}")) + "{}\n" + sum([]byte("1")) + "1\n"), nil, []string{sum([]byte("{}")) + "{}", sum([]byte("1")) + "1"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "x.journal")
			for range 2 { // the copy of the first time is replaced
				if err := os.WriteFile(path, test.data, 0o644); err != nil {
					t.Fatal(err)
				}
				j := open(t, dir)
				var got, text []string
				for _, e := range j.Since(0) {
					got = append(got, e.Undo.Argv[0])
				}
				for _, d := range j.Damaged() {
					text = append(text, d.Text)
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(test.text, text); diff != "" {
					t.Error(diff)
				}
				kept, err := os.ReadFile(j.DamagedPath())
				if len(test.text) == 0 {
					if err == nil {
						t.Error("a file is kept that is not damaged")
					}
				} else if info, _ := os.Stat(j.DamagedPath()); err != nil || !bytes.Equal(kept, test.data) || info.Mode().Perm() != 0o600 {
					t.Errorf("kept are %d bytes of %d, %v", len(kept), len(test.data), err)
				}
				// What is on disk now is whole.
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				if again, damaged := all(data); len(again) != len(test.want) || len(damaged) > 0 {
					t.Errorf("%d undos were written, damaged: %+v", len(again), damaged)
				}
				if err := j.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A journal cut in a record is not kept: it is complete.
func TestJournalCutIsNotKept(t *testing.T) {
	dir, data := t.TempDir(), written(t)
	if err := os.WriteFile(filepath.Join(dir, "x.journal"), data[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	j := open(t, dir)
	if d := j.Damaged(); len(d) != 1 || !d[0].Cut {
		t.Errorf("%+v", d)
	}
	if _, err := os.Lstat(j.DamagedPath()); err == nil {
		t.Error("a file is kept that is not damaged")
	}
}

// What is no file is left alone, and so is the lock.
func TestJournalIsNoFile(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"link":      func(path string) error { return os.Symlink("/etc/passwd", path) },
		"device":    func(path string) error { return os.Symlink("/dev/zero", path) },
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "x.journal")
		if err := put(path); err != nil {
			t.Fatal(err)
		}
		_, err := OpenJournal(dir, "x")
		if err == nil || !strings.HasPrefix(err.Error(), path+": want the journal, a plain file: move away what is there") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Type().IsRegular() {
			t.Errorf("%s: left are %v", name, left)
		}
	}
}

// A write that fails leaves nothing behind, not even a part of a record, for its steps
// are not run.
func TestJournalOnAFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("CI has to run as root")
		}
		t.Skip("must be root")
	}
	dir := t.TempDir()
	room := fmt.Sprint("mode=0700,size=", 2*os.Getpagesize()) // for the lock, and a page of the journal
	if err := unix.Mount("ipipou", dir, "tmpfs", 0, room); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	j := open(t, dir)
	if _, err := j.Note(Entry{Undo: c("-a"), Key: "k"}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(j.path)
	if err != nil {
		t.Fatal(err)
	}
	many := slices.Repeat([]Entry{{Undo: c("-b"), Key: "k"}}, os.Getpagesize()/10)
	if ids, err := j.NoteAll(many); !errors.Is(err, unix.ENOSPC) || ids != nil {
		t.Errorf("noted %v, %v", ids, err)
	}
	if after, err := os.ReadFile(j.path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("written were %d bytes after %d, %v", len(after)-len(before), len(before), err)
	}
	if left := j.Since(0); len(left) != 1 || j.Pending("k").Undo.String() != "-a" {
		t.Errorf("pending are %v", left)
	}
	id, err := j.Note(Entry{Undo: c("-c"), Key: "k"})
	if err != nil || id != 2+len(many) {
		t.Errorf("id %d, %v, want one that never was", id, err)
	}
	if err := j.Drop(id); err != nil || j.Pending("k") != nil {
		t.Errorf("%v, pending %v", err, j.Pending("k"))
	}
}

// Any bytes: no panic, no undo that is not a line of them, and what is written of the
// rest reads the same. Behind a whole journal they take nothing away from it but what a
// whole record of theirs drops.
func FuzzJournal(f *testing.F) {
	good := written(f)
	whole, _ := all(good)
	f.Add(good)
	f.Add(good[:len(good)/2])
	for _, at := range []int{0, 8, 9, 40, bytes.IndexByte(good, '\n'), len(good) - 1} {
		bad := bytes.Clone(good)
		bad[at] ^= 0xff
		f.Add(bad)
	}
	f.Add([]byte("00000000 {\"id\":1,\"undo\":{\"argv\":[\"ip\"]}}\n\x00\x00\n\n{}"))
	f.Add([]byte(`{"id":1,"undo":{"argv":["ip"]},"key":"k"}` + "\n" + `{"id":1,"undo":{"argv":["nft"]},"drop":[1]}` + "\n" + `{"drop":[1,9]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 0 && data[0] == '{' { // a mutation finds no sum
			var summed []byte
			for line := range bytes.Lines(data) {
				summed = append(append(summed, sum(bytes.TrimSuffix(line, []byte{'\n'}))...), line...)
			}
			data = summed
		}
		entries, damaged := all(data)
		last := 0
		var again []record
		for _, e := range entries {
			r := record{Entry: &e}
			if line, err := encode(r); err != nil || e.ID <= last || len(e.Undo.Argv) == 0 {
				t.Errorf("entry %+v after id %d (%q, %v)", e, last, line, err)
			}
			last = e.ID
			again = append(again, r)
		}
		for _, d := range damaged {
			if len(d.Text) > 200 || len(d.Text) == 0 || d.Line < 1 || d.Line > 1+bytes.Count(data, []byte{'\n'}) {
				t.Errorf("%+v", d)
			}
		}
		rewritten, err := encode(again...)
		if err != nil {
			t.Fatal(err)
		}
		same, damaged := all(rewritten)
		if diff := cmp.Diff(entries, same); diff != "" || len(damaged) > 0 {
			t.Errorf("rewritten: %s %+v", diff, damaged)
		}
		var written []Entry
		dropped := map[int]bool{}
		for i := range data {
			r, _, err := decode(data[i:])
			if err != nil {
				continue
			}
			if r.Entry != nil {
				written = append(written, *r.Entry)
			}
			for _, id := range r.Drop {
				dropped[id] = true
			}
		}
		for _, e := range entries {
			if !slices.ContainsFunc(written, func(w Entry) bool { return cmp.Equal(e, w) }) {
				t.Errorf("%+v came from nowhere", e)
			}
		}
		after, _ := all(slices.Concat(good, data))
		for _, e := range slices.DeleteFunc(slices.Clone(whole), func(e Entry) bool { return dropped[e.ID] }) {
			if !slices.ContainsFunc(after, func(a Entry) bool { return cmp.Equal(e, a) }) {
				t.Errorf("%+v has gone", e)
			}
		}
	})
}

// A life of n undos: noted at once, looked up, read again, dropped one by one in the
// order that they were noted in.
func BenchmarkJournal(b *testing.B) {
	for _, n := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			if info, err := os.Stat("/dev/shm"); err == nil && info.Mode()&fs.ModeDir != 0 { // as /run is
				if dir, err = os.MkdirTemp("/dev/shm", "ipipou-"); err != nil {
					b.Fatal(err)
				}
				defer os.RemoveAll(dir)
			}
			entries := make([]Entry, n)
			for i := range entries {
				entries[i] = Entry{Undo: c("ip link del dev ipipou0"), Key: fmt.Sprint("link ", i)}
			}
			for b.Loop() {
				j := open(b, dir)
				ids, err := j.NoteAll(entries)
				if err != nil {
					b.Fatal(err)
				}
				if err := j.Close(); err != nil {
					b.Fatal(err)
				}
				j = open(b, dir)
				for i, id := range ids {
					if j.Pending(entries[i].Key) == nil {
						b.Fatal("not pending")
					}
					if err := j.Drop(id); err != nil {
						b.Fatal(err)
					}
				}
				if err := j.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/undo")
		})
	}
}

// Note is NoteAll of one entry.
func (j *Journal) Note(e Entry) (int, error) {
	ids, err := j.NoteAll([]Entry{e})
	if err != nil {
		return 0, err
	}
	return ids[0], nil
}
