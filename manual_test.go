package main

import (
	"flag"
	"os"
	"testing"

	"ipipou/plans"
)

var update = flag.Bool("update", false, "write the golden files anew, and the generated parts of the manual")

// golden compares with a file, or writes it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; go test . -run %s -update writes it anew", path, t.Name())
	}
}

func TestHelp(t *testing.T) {
	t.Setenv("COLUMNS", "80")
	for _, c := range commands {
		args, path := []string{"--help"}, "testdata/help.txt"
		if c.word != "" {
			args, path = []string{c.word, "--help"}, "testdata/help-"+c.word+".txt"
		}
		golden(t, path, printed(t, args...))
	}
}

// All that an option's help names as its values it can be, and nothing else.
func TestValues(t *testing.T) {
	seed := "RuBZkT23na2Q4QH1xfmZCfRgSgPt5s362UPAFbecTso="
	for _, o := range plans.Options {
		if o.Values == nil {
			continue
		}
		for _, value := range append([]string{"neither"}, o.Values...) {
			err := os.ErrNotExist
			for _, base := range [][]string{
				{"--fou-dev", "eth0", "--fou-remote", "203.0.113.1:10000", "--tunl-ip", "172.28.0.1", "--auth-key-b64", seed},
				{"--static", "--fou-dev", "eth0", "--fou-remote", "203.0.113.1"},
				{"--static", "--fou-dev", "eth0", "--fou-remote", "2001:db8::1"},
				{"--static", "--fou-dev", "eth0"},
			} {
				if l, _, fault := parse(append(base, "--"+o.Name, value), nil); fault != nil {
					t.Fatal(fault)
				} else if _, err = plans.Resolve(nil, nil, l.settings, os.ReadFile); err == nil {
					break
				}
			}
			if (err == nil) != (value != "neither") {
				t.Errorf("--%s %s: %v", o.Name, value, err)
			}
		}
	}
}
