package authd

import "testing"

// Verifiers of two classes may pass on what they proved in the other order.
func TestWaitingIsNotOvertaken(t *testing.T) {
	w := newWaiting(2)
	w.put(accepted{0, serverAddr, nil, 2})
	w.put(accepted{0, clientAddr, nil, 1})
	if a := w.take(<-w.tunnels); a.peer != serverAddr {
		t.Errorf("while it waits, an earlier one is taken for newer: %v", a)
	}
	w.put(accepted{0, clientAddr, nil, 1})
	w.put(accepted{1, clientAddr, nil, 1})
	if a := w.take(<-w.tunnels); a.tunnel != 1 || len(w.tunnels) > 0 {
		t.Errorf("after it was bound, an earlier one is taken for newer: %v", a)
	}
	w.put(accepted{0, clientAddr, nil, 3})
	if a := w.take(<-w.tunnels); a.peer != clientAddr {
		t.Errorf("a later one: %v", a)
	}
}

func TestProofsHaveAnOrder(t *testing.T) {
	l := newChallengeLab(t, 2)
	var last uint64
	for i := range 4 {
		q, err := l.screened(l.e, clientAddr, l.prove(t, i%2, clientAddr))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := l.checker.prove(q); err != nil {
			t.Fatal(err)
		}
		if q.order <= last {
			t.Errorf("proof %d is number %d after %d", i, q.order, last)
		}
		last = q.order
	}
}

func TestSignedHaveAnOrder(t *testing.T) {
	s := newShop(t, keys(2)...)
	var last uint64
	for i := range byte(4) {
		q := &quest{at: s.e, src: clientAddr, payload: plain(peerKey(0), "s", s.clk.now(), i)}
		if _, err := s.find(q); err != errProve {
			t.Fatal(err)
		}
		for {
			_, err := s.prove(q)
			if err == nil {
				break
			}
			if err != errProve {
				t.Fatal(err)
			}
		}
		if q.order <= last {
			t.Errorf("authentication %d is number %d after %d", i, q.order, last)
		}
		last = q.order
	}
}
