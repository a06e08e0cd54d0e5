package instance

import (
	"bytes"
	"os"
	"testing"
)

// Colours are for terminals, unless somebody does not want them.
func TestColours(t *testing.T) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	file, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	is := func(term, noColour string, terminals bool) {
		t.Helper()
		t.Setenv("TERM", term)
		t.Setenv("NO_COLOR", noColour)
		if Colours(file) || Colours(&bytes.Buffer{}) {
			t.Error("colours in a file")
		}
		if got := Colours(terminal); got != terminals {
			t.Errorf("TERM=%s NO_COLOR=%s: colours %v", term, noColour, got)
		}
	}
	is("xterm", "", true)
	is("", "", true)
	is("dumb", "", false)
	is("xterm", "1", false)
}
