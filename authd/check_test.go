package authd

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// solo is tunnels with an endpoint each.
type solo struct {
	*checker
	ends []*endpoint
}

func newSolo(t testing.TB, auths []Auth, now func() time.Time) *solo {
	t.Helper()
	s := &solo{checker: newChecker(auths, now)}
	var all []ServerTunnel
	for i, a := range auths {
		all = append(all, ServerTunnel{Local: at(uint16(1 + i)), Auth: a})
		e := newEndpoint(all[i])
		if err := e.add(i, all); err != nil {
			t.Fatal(err)
		}
		s.ends = append(s.ends, e)
	}
	return s
}

// check is what a server does with a payload to the endpoint of tunnel i.
func (s *solo) check(i int, src netip.AddrPort, payload []byte) error {
	_, err := s.decide(&quest{at: s.ends[i], src: src, payload: payload})
	return err
}

// decide is find and, for as long as that is what is left, prove.
func (c *checker) decide(q *quest) (tunnel int, err error) {
	tunnel, err = c.find(q)
	for err == errProve {
		tunnel, err = c.prove(q)
	}
	return tunnel, err
}

// empty leaves nothing of the rate of a prefix.
func (c *checker) empty(k class, src netip.AddrPort) {
	*c.rate.prefix(k, src.Addr()) = bucket{0, c.now()}
}

func TestCheckOrder(t *testing.T) {
	v := vectors(t)["client"]
	// Everything is wrong at first; one thing after the other is put right.
	a := Auth{
		RemoteKey:  ed25519.PublicKey(v.Public),
		Secret:     v.Secret,
		RemoteIP:   clientAddr.Addr(),
		RemotePort: clientAddr.Port(),
		MaxSkew:    10 * time.Second,
	}
	clk := newClock(v.Time + 11)
	c := newSolo(t, []Auth{a}, clk.now)
	id, _ := c.state(0)
	c.restore(id, ReplayState{Time: v.Time + 1})
	empty := func() { c.empty(byTime, clientAddr) }
	empty()

	bad := bytes.Clone(v.Payload)
	bad[0] ^= 1
	src := netip.MustParseAddrPort("192.0.2.1:1")
	payload := bad[:72]
	step := func(want error) {
		t.Helper()
		_, before := c.state(0)
		if err := c.check(0, src, payload); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if _, after := c.state(0); want != nil && (after.Time != before.Time || len(after.Salts) != len(before.Salts)) {
			t.Errorf("%v changed what is remembered", want)
		}
	}
	step(ErrRemoteIP)
	src = netip.AddrPortFrom(clientAddr.Addr(), 1)
	step(ErrRemotePort)
	src = clientAddr
	step(ErrLength)
	payload = bad
	step(ErrSkew)
	clk.add(-time.Second)
	step(ErrOlder)
	c.restore(id, ReplayState{Time: v.Time, Salts: [][4]byte{[4]byte(v.Salt)}})
	step(ErrReplayed)
	c.restore(id, ReplayState{})
	empty()
	step(ErrRate)
	c.rate = newLimiter()
	step(ErrSignature)
	payload = v.Payload
	step(nil)
	step(ErrReplayed)
}

func TestCheckSkew(t *testing.T) {
	for _, tt := range []struct {
		limit     time.Duration
		now, sent int64
		want      bool
	}{
		{0, 0, 1<<40 - 1, true},
		{10 * time.Second, 1000, 1010, true},
		{10 * time.Second, 1000, 1011, false},
		{10 * time.Second, 1000, 990, true},
		{10 * time.Second, 1000, 989, false},
		{time.Hour, 1700000000, 1<<40 - 1, false}, // more than a Duration holds
		{time.Hour, 1700000000, 0, false},
		{1<<63 - 1, 1700000000, 1<<40 - 1, false},
		{time.Second / 2, 1000, 1000, true},
		{time.Second / 2, 1000, 1001, false},
	} {
		err := checkSkew(tt.limit, time.Unix(tt.now, 999999999), Stamp{Time: tt.sent})
		if (err == nil) != tt.want || err != nil && !errors.Is(err, ErrSkew) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

func TestCheckToken(t *testing.T) {
	clk := newClock(1000)
	c := newSolo(t, []Auth{{Token: []byte("hunter2")}}, clk.now)
	for _, tt := range []struct {
		payload string
		want    error
	}{
		{"hunter2", nil},
		{"hunter2", nil}, // nothing tells a token's replay
		{"hunter3", ErrToken},
		{"hunter", ErrLength},
		{"hunter22", ErrLength},
		{"", ErrLength},
	} {
		err := c.check(0, clientAddr, []byte(tt.payload))
		if !errors.Is(err, tt.want) {
			t.Errorf("%q: %v, want %v", tt.payload, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter") {
			t.Errorf("%v holds the payload", err)
		}
	}
	c.empty(byToken, clientAddr)
	if err := c.check(0, clientAddr, []byte("hunter2")); !errors.Is(err, ErrRate) {
		t.Errorf("%v", err)
	}
}

func TestCheckAddressOnly(t *testing.T) {
	clk := newClock(1000)
	c := newSolo(t, []Auth{{}, {RemoteIP: clientAddr.Addr()}, {RemotePort: clientAddr.Port()}}, clk.now)
	for _, payload := range [][]byte{nil, {1}, data(84), make([]byte, 73)} {
		for i := range 3 {
			if err := c.check(i, clientAddr, payload); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	if err := c.check(1, serverAddr, nil); !errors.Is(err, ErrRemoteIP) {
		t.Error(err)
	}
	if err := c.check(2, serverAddr, nil); !errors.Is(err, ErrRemotePort) {
		t.Error(err)
	}
	if err := c.check(0, serverAddr, nil); err != nil {
		t.Error(err)
	}
	c.empty(byAddress, serverAddr)
	if err := c.check(0, serverAddr, nil); !errors.Is(err, ErrRate) {
		t.Error(err)
	}
}

func TestCheckLonger(t *testing.T) {
	v := vectors(t)["longer"]
	c := newSolo(t, []Auth{{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret}}, newClock(1).now)
	if err := c.check(0, clientAddr, v.Payload); err != nil {
		t.Error(err)
	}
	if err := c.check(0, clientAddr, v.Payload); !errors.Is(err, ErrReplayed) {
		t.Error(err)
	}
}

// A payload of one tunnel must not do for another of the same key.
func TestCheckSharedKey(t *testing.T) {
	v := vectors(t)["client"]
	a := Auth{RemoteKey: ed25519.PublicKey(v.Public), Secret: v.Secret}
	c := newSolo(t, []Auth{a, a}, newClock(1).now)
	if err := c.check(0, clientAddr, v.Payload); err != nil {
		t.Error(err)
	}
	if err := c.check(1, clientAddr, v.Payload); !errors.Is(err, ErrReplayed) {
		t.Error(err)
	}
}

func TestAuthValidate(t *testing.T) {
	for name, a := range map[string]Auth{
		"empty token":      {Token: []byte{}},
		"long token":       {Token: make([]byte, maxPayload+1)},
		"short key":        {Key: make([]byte, 32)},
		"short remote key": {RemoteKey: make([]byte, 31)},
		"IPv6":             {RemoteIP: netip.MustParseAddr("::1")},
		"negative skew":    {MaxSkew: -1},
	} {
		if a.validate() == nil {
			t.Errorf("%s: valid", name)
		}
	}
	if err := (Auth{}).validate(); err != nil {
		t.Error(err)
	}
}

// Nothing but what the key signed is ever accepted, nor anything twice.
func FuzzCheck(f *testing.F) {
	vs := vectors(f)
	for _, v := range vs {
		f.Add([]byte(v.Payload))
		f.Add([]byte(v.Reversed))
	}
	f.Add(make([]byte, SignedLen))
	f.Add([]byte("hunter2"))
	v := vs["client"]
	key := ed25519.PublicKey(v.Public)
	f.Fuzz(func(t *testing.T, p []byte) {
		c := newSolo(t, []Auth{
			{RemoteKey: key, Secret: v.Secret},
			{Token: []byte("hunter2")},
			{RemoteKey: key, Secret: v.Secret, MaxSkew: time.Minute},
			{},
		}, newClock(v.Time).now)
		signed := len(p) >= SignedLen && ed25519.Verify(key, append(bytes.Clone(p[64:]), v.Secret...), p[:64])
		if err := c.check(0, clientAddr, p); (err == nil) != signed {
			t.Fatalf("signed %v: %v", signed, err)
		}
		if err := c.check(0, clientAddr, p); err == nil {
			t.Fatal("accepted twice")
		} else if signed && !errors.Is(err, ErrReplayed) {
			t.Fatal(err)
		}
		if err := c.check(1, clientAddr, p); (err == nil) != (string(p) == "hunter2") {
			t.Fatal(err)
		}
		if err := c.check(2, clientAddr, p); err == nil {
			t.Fatal("accepted on another tunnel")
		}
		if err := c.check(3, clientAddr, p); err != nil {
			t.Fatal(err)
		}
	})
}
