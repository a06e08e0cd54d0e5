package instance

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A Colour is one of a terminal's (ECMA-48, SGR).
type Colour string

// The colours of what is well, may be wrong, and is wrong; of what is less important, and
// of what stands out.
const (
	Green  Colour = "32"
	Yellow Colour = "33"
	Red    Colour = "31"
	Dim    Colour = "2"
	Bold   Colour = "1"
)

// Paint is the text in the colour.
func (c Colour) Paint(text string) string { return "\x1b[" + string(c) + "m" + text + "\x1b[0m" }

// Colours reports whether what is written to w may have them: w is a terminal that knows
// them, and nobody has said that he wants none (no-color.org).
func Colours(w io.Writer) bool {
	return Terminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// Terminal reports whether w is one.
func Terminal(w io.Writer) bool {
	f, isFile := w.(*os.File)
	if !isFile {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
