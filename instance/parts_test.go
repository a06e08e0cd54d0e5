package instance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ipipou/plans"
	"ipipou/runner"
)

// A stocked is a mender of static tunnels, on a host that has just what `ip` was told to add.
type stocked struct {
	*mender
	log   strings.Builder
	lines []string        // what was added, as `ip` was told
	taken map[string]bool // what somebody else has in its place
	ran   int             // processes
	fails func()          // when something can't be added
}

func (s *stocked) exec(c plans.Command) (stdout, stderr string, err error) {
	s.ran++
	for _, l := range plans.Listings() {
		if c.String() == l.Look().String() {
			return s.list(l), "", nil
		}
	}
	head, lines := strings.TrimSuffix(strings.Join(c.Argv, " "), "-batch -"), strings.Split(strings.TrimSpace(c.Stdin), "\n")
	for i, line := range lines {
		if line = head + line; s.taken[line] || slices.Contains(s.lines, line) {
			if s.fails != nil {
				s.fails()
			}
			return "", fmt.Sprintf("RTNETLINK answers: File exists\nCommand failed -:%d\n", i+1), errors.New("exit status 2")
		}
		s.lines = append(s.lines, line)
	}
	return "", "", nil
}

var (
	addedAddress = regexp.MustCompile(`^ip address add (\S+)/(\d+) dev (\S+)$`)
	addedRoute   = regexp.MustCompile(`^ip route add (\S+) dev (\S+)(?: table (\d+))?$`)
	addedRule    = regexp.MustCompile(`^ip -4 rule add(?: to (\S+))?(?: from (\S+))? lookup (\S+) (?:suppress_prefixlength \d+ )?pref (\d+)$`)
)

func (s *stocked) list(l plans.Listing) string {
	form, json := map[plans.Listing]*regexp.Regexp{plans.Addresses: addedAddress, plans.Routes: addedRoute, plans.Rules: addedRule}[l], map[plans.Listing]string{
		plans.Addresses: `{"ifname":"$3","addr_info":[{"local":"$1","prefixlen":$2}]}`,
		plans.Routes:    `{"dst":"$1","dev":"$2","table":"$3"}`,
		plans.Rules:     `{"priority":$4,"src":"$2","dst":"$1","table":"$3"}`,
	}[l]
	var out []string
	for _, line := range s.lines {
		if l == plans.Listeners && strings.HasPrefix(line, "ip fou add ") {
			out = append(out, strings.TrimPrefix(line, "ip fou add "))
		} else if form != nil && form.MatchString(line) {
			out = append(out, form.ReplaceAllString(line, json))
		}
	}
	if l == plans.Listeners {
		return strings.Join(out, "\n")
	}
	return "[" + strings.Join(out, ",") + "]"
}

// newStocked has tunnels with addresses, routes, rules and listeners. The first has the interface lo, which is up, and the
// others have none.
func newStocked(t *testing.T, tunnels int) *stocked {
	t.Helper()
	text := "static = true\nencap = \"fou\"\nfou-dev = \"nosuch0\"\nfou-local-ip = \"192.0.2.1\"\n"
	for i := range tunnels {
		remote := fmt.Sprintf("198.51.%d.%d", 100+i/250, 1+i%250)
		dev, routes := fmt.Sprint("nosuch1", i), fmt.Sprintf("%q", remote) // which would carry its own packets
		if i == 0 {
			dev, routes = "lo", `"default", "10.77.0.0/24"`
		}
		text += fmt.Sprintf("[[tunnel]]\nnumber = %d\nfou-remote = \"%s:4000\"\nroutes = [%s]\n", i, remote, routes)
		text += fmt.Sprintf("tunl-dev = %q\ntunl-ip = \"10.%d.%d.1/30\"\n", dev, 100+i/250, i%250)
	}
	f, err := plans.Load("/test.toml", func(string) ([]byte, error) { return []byte(text), nil })
	if err != nil {
		t.Fatal(err)
	}
	config, err := plans.Resolve([]string{"/test.toml"}, []plans.File{f}, plans.Settings{}, os.ReadFile)
	if err != nil {
		t.Fatal(err)
	}
	journal, err := runner.OpenJournal(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { journal.Close() })
	s := &stocked{taken: map[string]bool{}}
	in := &Instance{Config: config.Decided(plans.Kernel), Log: slog.New(slog.NewTextHandler(&s.log, nil)), vars: map[string]string{}}
	in.prepare(journal)
	in.run.Exec = s.exec
	for _, v := range in.Config.Facts() {
		if v.Value != "" {
			in.vars[v.Name] = v.Value
		}
	}
	now := in.anew()
	var movers []*mover
	for i := range in.Config.Tunnels {
		movers = append(movers, newMover(in, &in.Config.Tunnels[i], now))
	}
	s.mender = newMender(in, nil, movers, now)
	// As Up does; of two ways to listen it takes the first.
	var up plans.Plan
	all := s.expected()
	slices.SortStableFunc(all, func(a, b plans.Part) int { return int(a.In - b.In) }) // for few processes
	for _, p := range all {
		if p.Key == "port 10000 ipproto 4" || p.Dev != "" && p.Dev != "lo" {
			continue
		}
		up.Steps = append(up.Steps, plans.Step{Do: p.Back[0].Do, Undo: p.Undo})
	}
	if _, err := in.run.Run(context.Background(), up, map[string]string{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// lose takes away what has the word in it.
func (s *stocked) lose(word string) {
	s.lines = slices.DeleteFunc(s.lines, func(line string) bool { return strings.Contains(line, word) })
}

func (s *stocked) look() bool { return s.parts(context.Background(), plans.Listings()...) }

// Whatever is lost is put back, and what was never made is not.
func TestPartsComeBack(t *testing.T) {
	s := newStocked(t, 1)
	before := slices.Sorted(slices.Values(s.lines))
	if len(before) != 8 || !s.look() || !slices.Equal(slices.Sorted(slices.Values(s.lines)), before) {
		t.Fatalf("it begins with %q, and the mender makes of it %q", before, s.lines)
	}
	for _, word := range []string{" address ", " route ", " rule ", " table 10000", " fou ", "ip "} {
		s.lose(word)
		if whole := s.look(); !whole || !slices.Equal(slices.Sorted(slices.Values(s.lines)), before) {
			t.Errorf("without %q the mender makes of it %q, whole %v\n%s", word, s.lines, whole, s.log.String())
		}
	}
	if said := s.log.String(); strings.Contains(said, "ERROR") || !strings.Contains(said, "the route 10.77.0.0/24 of lo (and 1 more) was gone: put back") {
		t.Errorf("it said\n%s", said)
	}
}

// What somebody else has put in the place of something is not touched, said once, and keeps nothing else from coming back.
func TestPartsTakenByOthers(t *testing.T) {
	s := newStocked(t, 1)
	whose := "ip route add 10.77.0.0/24 dev lo"
	s.lose(" route ")
	s.lose(" rule ")
	s.taken[whose] = true
	for range 2 {
		if s.look() {
			t.Error("it says that all is there")
		}
	}
	if len(s.lines) != 7 || slices.Contains(s.lines, whose) {
		t.Errorf("there is %q", s.lines)
	}
	if said := s.log.String(); strings.Count(said, "the route 10.77.0.0/24 of lo is gone, and can't be put back yet") != 1 || strings.Count(said, "ERROR") != 1 {
		t.Errorf("it said\n%s", said)
	}
	delete(s.taken, whose)
	if !s.look() || len(s.lines) != 8 {
		t.Errorf("when it is free there is %q", s.lines)
	}

	// Somebody makes way again, and puts ours back himself; the next time is told anew.
	for range 2 {
		s.lose(whose)
		s.taken[whose] = true
		s.log.Reset()
		if s.look() || !strings.Contains(s.log.String(), "10.77.0.0/24 of lo is gone, and can't be put back yet") {
			t.Errorf("it says\n%s", s.log.String())
		}
		delete(s.taken, whose)
		s.lines = append(s.lines, whose)
		if !s.look() {
			t.Error("it says that not all is there")
		}
	}
}

// What could not be put back since its interface went away meanwhile is not said to be back.
func TestPartsLoseTheirInterface(t *testing.T) {
	s := newStocked(t, 1)
	s.lose(" route ")
	s.taken["ip route add 10.77.0.0/24 dev lo"] = true
	s.fails = func() { s.names.taken["lo"] = true }
	if whole := s.look(); whole || strings.Contains(s.log.String(), "put back") {
		t.Errorf("whole %v, and it said\n%s", whole, s.log.String())
	}
	if !s.look() {
		t.Error("it waits for what is not there any more")
	}
}

// Nothing is put back that the journal does not have any more, nor on an interface that is somebody else's.
func TestPartsOfOthers(t *testing.T) {
	s := newStocked(t, 1)
	if err := s.in.run.Undo(); err != nil {
		t.Fatal(err)
	}
	s.names.taken["lo"] = true
	s.lines = nil
	if !s.look() || len(s.lines) > 0 {
		t.Errorf("it made %q", s.lines)
	}
}

// Many tunnels take as many looks as one, and what all of them have lost a process for many.
func TestPartsOfMany(t *testing.T) {
	const tunnels = 300
	s := newStocked(t, tunnels)
	before := len(s.lines)
	s.ran = 0
	if s.look(); s.ran != 4 {
		t.Errorf("to see that all is there took %d processes, want one for each of 4 listings\n%.900s", s.ran, s.log.String())
	}
	s.lose(" rule ")
	s.ran = 0
	if s.look(); len(s.lines) != before || s.ran > 4*tunnels/100+8 {
		t.Errorf("%d of %d lines are there after %d processes", len(s.lines), before, s.ran)
	}
}
