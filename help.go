package main

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// listed is a command in the list of them, within 80 columns.
func listed(c command) string {
	const columns, behind = 80, 33
	text, line := "", fmt.Sprintf("    %-*s", behind-4, "ipipou "+c.word+" "+c.usage)
	for _, word := range strings.Fields(c.about) {
		if len(line)+1+len(word) > columns {
			text += line + "\n"
			line = strings.Repeat(" ", behind)
		}
		line += " " + word
	}
	return text + line + "\n"
}

// groups are the headings of the help, in their order.
var groups = []kong.Group{
	{Key: "Output", Title: "Output:"},
	{Key: "Mode", Title: "Mode:"},
	{Key: "Outer path", Title: "Outer path:"},
	{Key: "Tunnel", Title: "Tunnel:"},
	{Key: "Network", Title: "Network:"},
	{Key: "Authentication", Title: "Authentication:"},
	{Key: "Monitoring", Title: "Monitoring:"},
	{Key: "Gate", Title: "Gate:"},
	{Key: "Log", Title: "Log:"},
	{Key: "Audit", Title: "Audit:"},
}

// parser reads what the command takes; exit is called where kong is done with the line
// by itself.
func (l *line) parser(stdout io.Writer, exit func(int)) (*kong.Kong, error) {
	root, options := l.grammar()
	parser, err := kong.New(root, append(options, kong.Writers(stdout, io.Discard), kong.Exit(exit), kong.ExplicitGroups(groups),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}))...)
	if err != nil {
		return nil, err
	}
	// The flags stand in the order of what takes them, and the help goes by that.
	place := func(f *kong.Flag) int {
		return slices.IndexFunc(groups, func(g kong.Group) bool { return f.Group != nil && f.Group.Key == g.Key })
	}
	slices.SortStableFunc(parser.Model.Flags, func(a, b *kong.Flag) int { return place(a) - place(b) })
	return parser, nil
}
