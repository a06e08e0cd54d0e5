package check

// A State is how a look turned out.
type State string

// The states: as it should be; may be in the way of something; in the way.
const (
	OK      State = "ok"
	Warning State = "warning"
	Missing State = "missing"
)

// A Line is one look at the host.
type Line struct {
	Name   string `json:"name"` // "nft", "fou", "privileges"
	State  State  `json:"state"`
	Found  string `json:"found"`            // what there is, or is not
	Advice string `json:"advice,omitempty"` // what to do about it
}

// A Report is all that was looked at. As JSON, for an instance on a host without FOU:
//
//	{
//	  "instance": "office",          // absent without a configuration
//	  "checks": [
//	    {"name": "fou", "state": "missing", "found": "…", "advice": "…"},
//	    …
//	  ],
//	  "backends": [                  // those that come into question, in the order of choice
//	    {"name": "kernel", "lacks": ["fou"]},
//	    {"name": "bpf", "lacks": []}
//	  ],
//	  "works": true,                 // the exit code is 0
//	  "summary": "kernel drivers: no (lacks fou); BPF: yes"
//	}
type Report struct {
	Instance string    `json:"instance,omitempty"`
	Lines    []Line    `json:"checks"`
	Backends []Backend `json:"backends"`
	// Works: nothing is missing that is needed. Warnings are allowed; and without a
	// configuration one of the backends will do.
	Works   bool   `json:"works"`
	Summary string `json:"summary"`
}

// A Backend is one way to carry packets, and the names of those lines that are in its
// way.
type Backend struct {
	Name  string   `json:"name"` // as in a configuration: "kernel", "bpf"
	Lacks []string `json:"lacks"`
}

func ok(name, found string) Line              { return Line{name, OK, found, ""} }
func warning(name, found, advice string) Line { return Line{name, Warning, found, advice} }
func missing(name, found, advice string) Line { return Line{name, Missing, found, advice} }
func (r *Report) add(lines ...Line)           { r.Lines = append(r.Lines, lines...) }

// missing are the names of lines that are.
func (r *Report) missing() (names []string) {
	for _, l := range r.Lines {
		if l.State == Missing {
			names = append(names, l.Name)
		}
	}
	return names
}
