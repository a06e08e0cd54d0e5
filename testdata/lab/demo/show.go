package main

import (
	"fmt"
	"strings"

	"ipipou/testdata/lab"
)

// A demo prints, and is the lab.T of the lab's helpers.
type demo struct {
	path     dataPath
	net      *lab.Net
	server   *process
	clients  []*lab.NS
	dir      string
	cleanups []func()
	failed   bool
	sections int
}

func (d *demo) heading(text string) {
	d.sections++
	fmt.Printf("\n━━ %d. %s %s\n", d.sections, text, strings.Repeat("━", max(0, 70-len([]rune(text)))))
}

func (d *demo) say(lines ...string) { fmt.Println(strings.Join(lines, "\n")) }

func (d *demo) text(lines ...string) {
	for _, line := range lines {
		d.labelled("", line)
	}
}

// labelled prints a line behind a label, folded to 100 columns.
func (d *demo) labelled(label, line string) {
	if label != "" {
		label = fmt.Sprintf("%-8s │ ", label)
	} else {
		label = "  "
	}
	room := 100 - len([]rune(label))
	indent := line[:len(line)-len(strings.TrimLeft(line, " "))] + "      "
	for i := 0; ; i++ {
		part := []rune(line)
		if len(part) <= room {
			fmt.Println(label + line)
			return
		}
		cut := strings.LastIndex(string(part[:room-1]), " ")
		if cut <= len(indent) {
			fmt.Println(label + line)
			return
		}
		fmt.Println(label + line[:cut] + ` \`)
		line = indent + line[cut+1:]
	}
}

func (d *demo) Helper() {}

func (d *demo) Cleanup(f func()) { d.cleanups = append(d.cleanups, f) }

func (d *demo) Failed() bool { return d.failed }

func (d *demo) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (d *demo) Error(args ...any) {
	d.failed = true
	fmt.Print("\nFAILED: ", fmt.Sprintln(args...))
}

func (d *demo) Errorf(format string, args ...any) { d.Error(fmt.Sprintf(format, args...)) }

// Fatal ends the story; show recovers.
func (d *demo) Fatal(args ...any) {
	d.Error(args...)
	panic(d)
}

func (d *demo) Fatalf(format string, args ...any) { d.Fatal(fmt.Sprintf(format, args...)) }
