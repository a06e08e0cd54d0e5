package instance

import "ipipou/plans"

// A moment is what the host says at one time of what may change: each is asked for
// once, however many tunnels want to know it.
type moment struct {
	in      *Instance
	answers map[string]answer // by the fact's name
	indexes map[string]int    // by the interface's
}

type answer struct {
	value string
	err   error
}

func (in *Instance) moment() *moment {
	return &moment{in: in, answers: map[string]answer{}, indexes: map[string]int{}}
}

// ask is the value now of a fact that the host was asked for at the start; ok is false
// if it was not.
func (m *moment) ask(name string) (value string, ok bool, err error) {
	v, ok := m.in.asked[name]
	if !ok {
		return "", false, nil
	}
	a, known := m.answers[name]
	if !known {
		a.value, a.err = m.in.run.Ask(v, nil)
		m.answers[name] = a
	}
	return a.value, true, a.err
}

// index is that of an interface, 0 if there is none of that name.
func (m *moment) index(name string) int {
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
