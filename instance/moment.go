package instance

import (
	"sync"

	"ipipou/plans"
)

// A moment is what the host says of what may change, until it does: each is asked for
// once, however many tunnels want to know it, and how often.
type moment struct {
	in      *Instance
	mu      sync.Mutex
	answers map[string]answer // by the fact's name
	indexes map[string]int    // by the interface's
}

type answer struct {
	value string
	err   error
}

// moment is the present one.
func (in *Instance) moment() *moment {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.now
}

// anew begins another moment: something on the host has changed.
func (in *Instance) anew() *moment {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.now = &moment{in: in, answers: map[string]answer{}, indexes: map[string]int{}}
	return in.now
}

// ask is the value of a fact that the host was asked for at the start; ok is false if it
// was not.
func (m *moment) ask(name string) (value string, ok bool, err error) {
	v, ok := m.in.asked[name]
	if !ok {
		return "", false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	a, known := m.answers[name]
	if !known {
		a.value, a.err = m.in.run.Ask(v, nil)
		m.answers[name] = a
	}
	return a.value, true, a.err
}

// index is that of an interface, 0 if there is none of that name.
func (m *moment) index(name string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, known := m.indexes[name]
	if !known {
		i = index(name)
		m.indexes[name] = i
	}
	return i
}

// changing are the facts that one of the tunnels is moved by, by their names.
func changing(c plans.Config) map[string]plans.Var {
	own := map[string]bool{}
	for _, t := range c.Tunnels {
		for _, name := range t.OwnVars() {
			own[name] = true
		}
	}
	vars := map[string]plans.Var{}
	for _, v := range c.Facts() {
		if v.Name != "" && own[v.Name] {
			vars[v.Name] = v
		}
	}
	return vars
}
