package check

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"ipipou/instance"
)

// Text writes the report for people: a line each, and what it comes to.
func (r Report) Text(w io.Writer, colours bool) error {
	width := 0
	for _, l := range r.Lines {
		width = max(width, len(l.Name))
	}
	var b bytes.Buffer
	for _, l := range r.Lines {
		colour := map[State]instance.Colour{OK: instance.Green, Warning: instance.Yellow, Missing: instance.Red}[l.State]
		state := fmt.Sprintf("%-7s", l.State)
		if colours {
			state = colour.Paint(state)
		}
		fmt.Fprintf(&b, "%s  %-*s  %s", state, width, l.Name, l.Found)
		if l.Advice != "" {
			fmt.Fprintf(&b, ": %s", l.Advice)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintln(&b, r.Summary)
	_, err := w.Write(b.Bytes())
	return err
}

// JSON writes it for programs, as Report has it.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}
