package instance

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ipipou/plans"
)

var update = flag.Bool("update", false, "write the golden files anew")

// noon is the time of the reports here.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// fullReport has something in all fields that go together: two peers of one interface, of
// which one is bound, a tunnel to two nodes, and a client that has been lost.
func fullReport() Report {
	before := func(d time.Duration) time.Time { return noon.Add(-d) }
	return Report{
		Format: ReportFormat, Name: "office", Daemon: Running, Version: "v1.2.3", PID: 4711, Started: before(3 * time.Hour), Backend: "kernel+bpf",
		ConfirmBy: noon.Add(40 * time.Second), Drift: []string{"nft table ip ipipou0 is gone"},
		Tunnels: []TunnelReport{
			{
				Tunnel: "ipipou0/0", Device: "ipipou0", Role: "server", Mode: "ipip", Encap: plans.FOU, Backend: plans.BPF, State: Up, Since: before(2 * time.Minute),
				Local: "203.0.113.1:10000", Peer: "198.51.100.7:4000", Bound: before(2 * time.Minute), Authenticated: before(20 * time.Second),
				Inner: []Inner{{"172.28.0.0", "172.28.0.1"}}, Keepalive: 20, Monitor: "ping", MonitorEvery: 10,
				Traffic: &Traffic{1234567, 1234567890, 5, 999999},
				Dropped: Dropped{Drops: map[string]uint64{"too-big": 1, "source": 7}, Refused: map[string]uint64{"signature": 3, "older": 1}},
			},
			{
				Tunnel: "ipipou0/1", Device: "ipipou0", Role: "server", Mode: "ipip", Encap: plans.FOU, Backend: plans.BPF, State: Waiting, Since: before(3 * time.Hour),
				Local: "203.0.113.1:10000", Inner: []Inner{{"172.28.0.0", "172.28.0.3"}}, Traffic: &Traffic{},
			},
			{
				Tunnel: "ipipou2", Device: "ipipou2", Role: "static", Mode: "ipip", Encap: plans.None, Backend: plans.BPF, State: Up, Since: before(72 * time.Hour),
				Local: "203.0.113.1", Peer: "198.51.100.7", Inner: []Inner{{Address: "10.9.0.1/24"}, {Address: "10.9.1.1/24"}}, Traffic: &Traffic{1, 2, 3, 4},
			},
			{
				Tunnel: "ipipou2", Device: "ipipou2", Role: "static", Mode: "ipip", Encap: plans.None, Backend: plans.BPF, State: Up, Since: before(72 * time.Hour),
				Local: "203.0.113.1", Peer: "198.51.100.8", Inner: []Inner{{Address: "10.9.0.1/24"}, {Address: "10.9.1.1/24"}}, Traffic: &Traffic{5, 6, 8, 7},
			},
			{
				Tunnel: "ipipou3", Device: "ipipou3", Role: "client", Mode: "sit", Encap: plans.FOU, Backend: plans.Kernel, State: Lost, Since: before(30 * time.Second),
				Local: "192.0.2.1:10003", Peer: "203.0.113.9:10003", Bound: before(50 * time.Hour), Authenticated: before(2 * time.Hour), Keepalive: 25,
				Monitor: "auth", MonitorEvery: 25, Inner: []Inner{{"fd09::1", "fd09::2"}}, Traffic: &Traffic{1, 84, 2, 168},
			},
			{
				Tunnel: "ipipou4", Device: "ipipou4", Role: "client", Mode: "ipip", Encap: plans.FOU, Backend: plans.Kernel, State: State(absent),
				Local: ":10004@eth0", Inner: []Inner{{"172.28.0.9", "172.28.0.8"}},
			},
		},
		Nobody: Dropped{Drops: map[string]uint64{"stranger": 7}, Refused: map[string]uint64{"length": 9}},
	}
}

// What people and programs read, in all its forms.
func TestShow(t *testing.T) {
	deaf := Report{Format: ReportFormat, Name: "home", Daemon: Silent, PID: 12, Why: "not permitted: run as root, or as its user", Tunnels: []TunnelReport{}}
	dead := Report{Format: ReportFormat, Name: "lab\x1b[2J", Daemon: Dead, Tunnels: []TunnelReport{}}
	all := []Report{fullReport(), deaf, dead}
	for _, c := range []struct {
		file  string
		style Style
	}{
		{"table.txt", Style{}},
		{"table-colours.txt", Style{Colours: true}},
		{"details.txt", Style{Details: true}},
		{"report.json", Style{}},
	} {
		t.Run(c.file, func(t *testing.T) {
			c.style.Now = noon
			var b bytes.Buffer
			show := func() error { return c.style.Show(&b, all) }
			if c.file == "report.json" {
				show = func() error { return WriteJSON(&b, all[:1], false) }
			}
			if err := show(); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", "status", c.file)
			if *update {
				if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(want), b.String()); d != "" {
				t.Error(d)
			}
			if bytes.Contains(b.Bytes(), []byte("\x1b")) != bool(c.style.Colours) || bytes.Contains(b.Bytes(), []byte("\x1b[2J")) {
				t.Error("what steers a terminal is there, or is not")
			}
		})
	}
}

// A report comes back as it was sent.
func TestReportTravels(t *testing.T) {
	want := fullReport()
	data, err := json.Marshal(reply{Status: &want})
	if err != nil {
		t.Fatal(err)
	}
	var got reply
	if err := got.read(data); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, *got.Status); d != "" {
		t.Error(d)
	}
}

func TestAges(t *testing.T) {
	s := Style{Now: noon}
	for d, want := range map[time.Duration]string{
		-time.Minute: "0 s ago 0s", 0: "0 s ago 0s", 119 * time.Second: "119 s ago 119s", 2 * time.Minute: "2 min ago 2m",
		119 * time.Minute: "119 min ago 119m", 2 * time.Hour: "2 h ago 2h", 47 * time.Hour: "47 h ago 47h", 48 * time.Hour: "2 days ago 2d",
		1000 * 24 * time.Hour: "1000 days ago 1000d",
	} {
		if got := s.ago(noon.Add(-d)) + " " + s.age(noon.Add(-d)); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
	if got := s.ago(time.Time{}) + s.span(time.Time{}) + s.age(time.Time{}); got != "" {
		t.Errorf("never is %q", got)
	}
}

// What the process knows is added to what the host tells.
func TestStands(t *testing.T) {
	at := netip.MustParseAddrPort("192.0.2.9:7")
	s := func(state State) standing {
		return standing{State: state, Since: noon, Peer: at, Bound: noon, Authenticated: noon}
	}
	for _, c := range []struct {
		host  State
		known State
		want  State
		since bool
	}{
		{"", Waiting, Waiting, true}, {"", Up, Up, true}, {"", Lost, Lost, true},
		{State(absent), Waiting, Waiting, true}, {State(absent), Up, State(absent), false}, {State(absent), Lost, State(absent), false},
		{State(foreign), Waiting, State(foreign), false}, {State(foreign), Up, State(foreign), false},
	} {
		r := TunnelReport{State: c.host}
		r.stands(s(c.known))
		if r.State != c.want || r.Since.IsZero() == c.since {
			t.Errorf("%q on the host, %s in the process: %s since %s, want %s", c.host, c.known, r.State, r.Since, c.want)
		}
	}
}

// A client that nobody answers does not wait for what never comes; it has no state.
func TestDeaf(t *testing.T) {
	for _, c := range []struct {
		tunnel plans.Tunnel
		want   bool
	}{
		{plans.Tunnel{}, true},
		{plans.Tunnel{Auth: plans.Auth{Reply: true}}, false},
		{plans.Tunnel{Monitor: plans.MonitorPing}, false},
		{plans.Tunnel{Role: plans.Server}, false},
		{plans.Tunnel{Role: plans.Static}, false},
	} {
		if deaf(c.tunnel) != c.want {
			t.Errorf("%+v: %t", c.tunnel, !c.want)
		}
	}
	r := TunnelReport{}
	if r.stands(standing{}); r.State != "" || !r.Since.IsZero() {
		t.Errorf("%+v", r)
	}
}

// However many tunnels there are, the host is asked as often, and those who ask at once
// share what it says.
func TestFewCommands(t *testing.T) {
	file := func(n int) plans.Config {
		var text strings.Builder
		text.WriteString("static = true\nbackend = \"bpf\"\nencap = \"fou\"\nfou-dev = \"lo\"\n")
		for i := range n {
			fmt.Fprintf(&text, "[[tunnel]]\nnumber = %d\nfou-remote = \"192.0.2.3\"\ntunl-ip = \"10.9.0.1/32\"\n", i)
		}
		f, err := plans.Load("./a.toml", func(string) ([]byte, error) { return []byte(text.String()), nil })
		if err != nil {
			t.Fatal(err)
		}
		c, err := plans.Resolve([]string{"a"}, []plans.File{f}, plans.Settings{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	asked := func(n int) (commands int) {
		c := file(n)
		h := newHost()
		h.exec = func(p plans.Command) (string, string, error) {
			commands++
			switch p.Argv[0] {
			case "ip":
				var links []string
				for i, t := range c.Tunnels {
					links = append(links, fmt.Sprintf(`{"ifindex":%d,"ifname":"%s","linkinfo":{"info_kind":"tun"}}`, i+2, t.Dev))
				}
				return "[" + strings.Join(links, ",") + "]", "", nil
			case "tc":
				filter := fmt.Sprintf(`[{"kind":"bpf","options":{"handle":"%s","prog":{"id":5}}}]`, c.Tunnels[0].FilterHandle())
				return strings.Repeat(filter+"\n", strings.Count(p.Stdin, "\n")), "", nil
			}
			return "{}", "Error: no", errors.New("exit status 255")
		}
		var r Report
		r.look(h, c, nil)
		if len(r.Tunnels) != n || !strings.Contains(r.Fault, "bpftool -j prog show id 5") {
			t.Errorf("%d tunnels, %s", len(r.Tunnels), r.Fault)
		}
		return commands
	}
	if few, many := asked(2), asked(200); few != many {
		t.Errorf("%d commands for 2 tunnels, %d for 200", few, many)
	}
}

func TestSharing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s sharing
		var looked atomic.Int32
		free := make(chan struct{})
		look := func() Report {
			looked.Add(1)
			<-free
			return Report{PID: 7}
		}
		for range 10 {
			go func() {
				if r := s.report(look); r.PID != 7 {
					t.Errorf("report %v", r)
				}
			}()
		}
		synctest.Wait()
		close(free)
		synctest.Wait()
		if n := looked.Load(); n != 1 {
			t.Errorf("looked %d times", n)
		}
		s.report(look)
		if n := looked.Load(); n != 2 {
			t.Errorf("a report was kept, and is not what is so now: looked %d times", n)
		}
	})
}

// Each field of the JSON is documented, and nothing else is.
func TestReportDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/status.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		documented = append(documented, m[1])
	}
	if d := cmp.Diff(jsonPaths("", reflect.TypeFor[Report]()), documented); d != "" {
		t.Error(d)
	}
}

// jsonPaths are the fields of a struct as encoding/json has them, in their order.
func jsonPaths(above string, of reflect.Type) (paths []string) {
	for i := range of.NumField() {
		f := of.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind, path := f.Type, above+name
		if kind.Kind() == reflect.Slice {
			kind, path = kind.Elem(), path+"[]"
		}
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		switch {
		case f.Anonymous:
			paths = append(paths, jsonPaths(above, kind)...)
		case kind.Kind() == reflect.Struct && kind != reflect.TypeFor[time.Time]():
			paths = append(paths, jsonPaths(path+".", kind)...)
		default:
			paths = append(paths, above+name)
		}
	}
	return paths
}
