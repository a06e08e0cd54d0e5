package instance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// A series is a line of Prometheus' text format.
type series struct {
	name   string
	labels map[string]string
	value  float64
}

var (
	metricName = regexp.MustCompile(`^[a-zA-Z_:][a-zA-Z0-9_:]*$`)
	labelPair  = regexp.MustCompile(`^([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\n"])*)"(,|$)`)
)

// exposition reads Prometheus' text format 0.0.4 as strictly as our own output can be read:
// each family with its help and its type, in front of its series, and none twice.
func exposition(text string) (types map[string]string, all []series, err error) {
	types, seen := map[string]string{}, map[string]bool{}
	if !strings.HasSuffix(text, "\n") {
		return nil, nil, fmt.Errorf("the last line has no end")
	}
	helped, family := "", ""
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		bad := func(why string) (map[string]string, []series, error) {
			return nil, nil, fmt.Errorf("line %d, %q: %s", i+1, line, why)
		}
		words := strings.SplitN(line, " ", 4)
		switch {
		case words[0] == "#" && len(words) == 4 && words[1] == "HELP":
			helped = words[2]
			continue
		case words[0] == "#" && len(words) == 4 && words[1] == "TYPE":
			family = words[2]
			if family != helped || !metricName.MatchString(family) || types[family] != "" || words[3] != "gauge" && words[3] != "counter" {
				return bad("no type that belongs here")
			}
			types[family] = words[3]
			continue
		}
		s := series{labels: map[string]string{}}
		end := strings.LastIndexByte(line, ' ')
		if end < 0 {
			return bad("no value")
		}
		if s.value, err = strconv.ParseFloat(line[end+1:], 64); err != nil {
			return bad("no number")
		}
		name, labels, labelled := strings.Cut(line[:end], "{")
		s.name = name
		if labelled {
			if !strings.HasSuffix(labels, "}") {
				return bad("no end of the labels")
			}
			for labels = labels[:len(labels)-1]; labels != ""; {
				m := labelPair.FindStringSubmatch(labels)
				if m == nil || s.labels[m[1]] != "" {
					return bad("not a label: " + labels)
				}
				s.labels[m[1]] = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\"`, `"`).Replace(m[2])
				labels = labels[len(m[0]):]
			}
		}
		if s.name != family || seen[line[:end]] {
			return bad("another family's, or the second one of its labels")
		}
		seen[line[:end]] = true
		all = append(all, s)
	}
	return types, all, nil
}

func TestExposition(t *testing.T) {
	r := fullReport()
	r.Name = "a \"name\" with \\ and\na second line"
	var b bytes.Buffer
	expose(&b, r)
	types, all, err := exposition(b.String())
	if err != nil {
		t.Fatalf("%v in\n%s", err, &b)
	}
	used := map[string]bool{}
	find := func(name string, labels map[string]string) (found []float64) {
		for _, s := range all {
			used[s.name] = true
			if s.name == name && maps.Equal(s.labels, labels) {
				found = append(found, s.value)
			}
		}
		return found
	}
	for _, c := range []struct {
		name   string
		labels map[string]string
		want   []float64
	}{
		{"ipipou_build_info", map[string]string{"name": r.Name, "version": "v1.2.3"}, []float64{1}},
		{"ipipou_tunnel_up", map[string]string{"tunnel": "ipipou0/0", "device": "ipipou0"}, []float64{1}},
		{"ipipou_tunnel_up", map[string]string{"tunnel": "ipipou0/1", "device": "ipipou0"}, []float64{0}},
		{"ipipou_tunnel_up", map[string]string{"tunnel": "ipipou2", "device": "ipipou2"}, []float64{1}},
		{"ipipou_tunnel_receive_bytes_total", map[string]string{"tunnel": "ipipou0/0", "device": "ipipou0"}, []float64{1234567890}},
		{"ipipou_tunnel_transmit_packets_total", map[string]string{"tunnel": "ipipou2", "device": "ipipou2", "peer": "198.51.100.8"}, []float64{8}},
		{"ipipou_tunnel_transmit_packets_total", map[string]string{"tunnel": "ipipou2", "device": "ipipou2"}, nil},
		{"ipipou_auth_refused_total", map[string]string{"tunnel": "ipipou0/0", "device": "ipipou0", "reason": "signature"}, []float64{3}},
		{"ipipou_auth_refused_total", map[string]string{"tunnel": "nobody", "reason": "length"}, []float64{9}},
		{"ipipou_tunnel_dropped_packets_total", map[string]string{"tunnel": "nobody", "reason": "stranger"}, []float64{7}},
		{"ipipou_tunnel_last_authentication_timestamp_seconds", map[string]string{"tunnel": "ipipou0/1", "device": "ipipou0"}, nil},
	} {
		if got := find(c.name, c.labels); !slices.Equal(got, c.want) {
			t.Errorf("%s%v is %v, want %v", c.name, c.labels, got, c.want)
		}
	}
	for name, kind := range types {
		if !used[name] {
			t.Errorf("the full report has nothing for %s", name)
		}
		if (kind == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s", name, kind)
		}
	}
}

// documented are the metrics of docs/metrics.md, and their types.
func documented(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(text), -1) {
		types[m[1]] = m[2]
	}
	return types
}

func TestMetricsDocumented(t *testing.T) {
	var b bytes.Buffer
	expose(&b, fullReport())
	types, _, err := exposition(b.String())
	if err != nil {
		t.Fatal(err)
	}
	if want := documented(t); !maps.Equal(types, want) {
		t.Errorf("served are %v, documented %v", types, want)
	}
}

// The dashboard asks for what there is.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../docs/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct {
				Query any
			}
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	known := documented(t)
	asked := map[string]bool{}
	for _, p := range board.Panels {
		if len(p.Targets) == 0 {
			t.Errorf("%s asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			names := regexp.MustCompile(`ipipou_\w+`).FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%s: %s", p.Title, target.Expr)
			}
			for _, name := range names {
				asked[name] = true
			}
		}
	}
	for _, v := range board.Templating.List {
		for _, name := range regexp.MustCompile(`ipipou_\w+`).FindAllString(fmt.Sprint(v.Query), -1) {
			asked[name] = true
		}
	}
	for name := range asked {
		if known[name] == "" {
			t.Errorf("%s is no metric", name)
		}
	}
	for name := range known {
		if !asked[name] {
			t.Errorf("%s is not shown", name)
		}
	}
}

// Over TCP, kept alive; what is not asked for is not there.
func TestMetricsServed(t *testing.T) {
	m, err := listenAt("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- m.serve(slog.New(slog.DiscardHandler), fullReport) }()
	at := "http://" + m.listener.Addr().String()
	for path, want := range map[string]int{"/metrics": 200, "/": 404, "/metrics/x": 404, "/debug/pprof/": 404} {
		request, err := http.NewRequestWithContext(context.Background(), "GET", at+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != want || err != nil {
			t.Errorf("%s: %s, %v", path, response.Status, err)
		}
		if _, _, err := exposition(string(body)); want == 200 && err != nil {
			t.Error(err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if _, err := listenAt(m.listener.Addr().String()); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("twice at one address: %v", err)
	}
	if err := m.close(); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", strings.TrimPrefix(at, "http://")); err == nil {
		conn.Close()
		t.Error("it is served on")
	}
}

// A socket that somebody has, and who does not answer like us, is left alone.
func TestMetricsLeaveSocketsAlone(t *testing.T) {
	name := t.TempDir() + "/log"
	listenNotify(t, name)
	if _, err := listenAt(name); err == nil || !strings.Contains(err.Error(), "somebody may listen there already") {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(name); err != nil {
		t.Error(err)
	}
}
