package runner

import (
	"container/list"

	"ipipou/plans"
)

// An Entry is a pending undo.
type Entry struct {
	ID      int             `json:"id"`
	Undo    plans.Command   `json:"undo"`
	Key     string          `json:"key,omitempty"`
	Passing bool            `json:"passing,omitempty"`
	Once    bool            `json:"once,omitempty"`   // forgotten even if it fails
	Unless  []plans.Command `json:"unless,omitempty"` // forgotten if one of these prints something
	If      plans.Command   `json:"if,omitzero"`      // forgotten if this fails
}

// pending are the undos that count, in the order of their steps. Each operation costs
// the same however many there are.
type pending struct {
	order *list.List // of *Entry, ids ascending
	byID  map[int]*list.Element
	byKey map[string]*list.Element // the newest of the key
	last  int                      // the greatest id there has been
}

func newPending() *pending {
	return &pending{order: list.New(), byID: map[int]*list.Element{}, byKey: map[string]*list.Element{}}
}

// add wants an id greater than all before.
func (p *pending) add(e Entry) {
	at := p.order.PushBack(&e)
	p.last = e.ID
	p.byID[e.ID] = at
	if e.Key != "" {
		p.byKey[e.Key] = at
	}
}

func (p *pending) drop(ids []int) {
	for _, id := range ids {
		at := p.byID[id]
		if at == nil {
			continue
		}
		delete(p.byID, id)
		if e := p.order.Remove(at).(*Entry); p.byKey[e.Key] == at {
			delete(p.byKey, e.Key)
		}
	}
}

// since are those with greater ids.
func (p *pending) since(id int) []Entry {
	first := p.order.Back()
	n := 0
	for ; first != nil && first.Value.(*Entry).ID > id; first = first.Prev() {
		n++
	}
	out := make([]Entry, n)
	for at := p.order.Back(); n > 0; at = at.Prev() {
		n--
		out[n] = *at.Value.(*Entry)
	}
	return out
}
