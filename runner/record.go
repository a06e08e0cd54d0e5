package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"regexp"
)

// record is a line of the journal: an entry, or the ids of entries that are
// not pending any more.
type record struct {
	*Entry
	Drop []int `json:"drop,omitempty"`
}

// A line is the CRC-32C (RFC 3720, 12.1) of the JSON in eight hexadecimal digits, a
// blank, the JSON object and a newline. Without the sum a flipped bit could make the
// undo of one interface that of another.
const sumSize = len("01234567 ")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(text []byte) string { return fmt.Sprintf("%08x ", crc32.Checksum(text, castagnoli)) }

// encode makes a line of each record.
func encode(records ...record) (b []byte, err error) {
	for _, r := range records {
		text, err := json.Marshal(r)
		if err != nil {
			return nil, fmt.Errorf("journal: %w", err)
		}
		b = fmt.Appendf(b, "%s%s\n", sum(text), text)
	}
	return b, nil
}

var errNoRecord = errors.New("not a record")

// decode reads the record at the start of a line, of size bytes. The error is
// io.ErrUnexpectedEOF if the line is the beginning of one.
func decode(line []byte) (r record, size int, err error) {
	if !begins(line) {
		return r, 0, errNoRecord
	}
	if len(line) <= sumSize {
		return r, 0, io.ErrUnexpectedEOF
	}
	d := json.NewDecoder(bytes.NewReader(line[sumSize:]))
	if err := d.Decode(&r); err != nil {
		return r, 0, err
	}
	size = sumSize + int(d.InputOffset())
	if sum(line[sumSize:size]) != string(line[:sumSize]) {
		return r, 0, errNoRecord
	}
	return r, size, nil
}

// begins reports whether a line has what a record starts with, as far as it goes.
func begins(line []byte) bool {
	for i, c := range line[:min(len(line), sumSize+1)] {
		switch {
		case i < sumSize-1 && (c >= '0' && c <= '9' || c >= 'a' && c <= 'f'):
		case i == sumSize-1 && c == ' ', i == sumSize && c == '{':
		default:
			return false
		}
	}
	return len(line) > 0
}

// Damage is a part of a journal that can't be read.
type Damage struct {
	Line int    // from 1 on
	Text string // what can be seen of it, up to 200 bytes of any value: the undo's words, if they are there
	// Cut means that it is the beginning of a record at the very end, which was being
	// written: its step has not been run.
	Cut bool
}

// parse reads what is pending according to a journal, and what of it is damaged. A record
// counts if its sum is right, also behind damage within its line, where a newline was lost.
//
// A damaged entry is not undone. A damaged drop would bring undos back, and what they
// undo may be somebody else's by now (a step that failed because the thing was there
// already): so each is written twice. Where both are lost, or cut off, those undos are
// run, a hook's too, as after a kill -9 just before the drop was written: what is gone is
// no fault then, and a hook for the way down rather comes twice than never.
func parse(data []byte) (p *pending, damaged []Damage) {
	p = newPending()
	for n := 1; len(data) > 0; n++ {
		line, rest, ended := bytes.Cut(data, []byte{'\n'})
		data = rest
		var lost []byte
		for i := 0; i < len(line); {
			r, size, err := decode(line[i:])
			if err != nil || !p.apply(r) {
				lost = append(lost, line[i])
				size = 1
			}
			i += size
		}
		if len(lost) > 0 {
			_, _, err := decode(lost)
			cut := !ended && bytes.HasSuffix(line, lost) && errors.Is(err, io.ErrUnexpectedEOF)
			damaged = append(damaged, Damage{n, legible(lost), cut})
		}
	}
	return p, damaged
}

// apply reports whether the record makes sense.
func (p *pending) apply(r record) bool {
	switch {
	case r.Entry == nil && len(r.Drop) > 0:
		p.drop(r.Drop)
	case r.Entry != nil && len(r.Drop) == 0 && r.ID > p.last && len(r.Undo.Argv) > 0:
		p.add(*r.Entry)
	default:
		return false
	}
	return true
}

var undoWords = regexp.MustCompile(`"undo":\{"argv":\["(.+?)"\]`)

func legible(line []byte) string {
	if m := undoWords.FindSubmatch(line); m != nil {
		line = bytes.ReplaceAll(m[1], []byte(`","`), []byte{' '})
	}
	return string(line[:min(len(line), 200)])
}
