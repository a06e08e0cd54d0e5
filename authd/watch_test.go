package authd

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// ruleMessage is a message of nftables about a thing in a table.
func ruleMessage(kind uint16, table string) []byte {
	attr := binary.NativeEndian.AppendUint16(nil, uint16(4+len(table)+1))
	attr = binary.NativeEndian.AppendUint16(attr, unix.NFTA_TABLE_NAME)
	attr = append(append(attr, table...), 0)
	for len(attr)%4 > 0 {
		attr = append(attr, 0)
	}
	b := binary.NativeEndian.AppendUint32(nil, uint32(16+4+len(attr)))
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|kind)
	b = append(b, make([]byte, 16+4-6)...)
	return append(b, attr...)
}

func TestDeletes(t *testing.T) {
	join := func(all ...[]byte) (b []byte) {
		for _, m := range all {
			b = append(b, m...)
		}
		return b
	}
	ours := ruleMessage(unix.NFT_MSG_DELTABLE, "ipipou0")
	for name, test := range map[string]struct {
		b    []byte
		want bool
	}{
		"a table of ours":      {ours, true},
		"a rule of ours":       {ruleMessage(unix.NFT_MSG_DELRULE, "ipipou0"), true},
		"an element of ours":   {ruleMessage(unix.NFT_MSG_DELSETELEM, "ipipou0"), false},
		"a new rule of ours":   {ruleMessage(unix.NFT_MSG_NEWRULE, "ipipou0"), false},
		"another's":            {ruleMessage(unix.NFT_MSG_DELTABLE, "ipipou"), false},
		"after another's":      {join(ruleMessage(unix.NFT_MSG_DELTABLE, "filter"), ours), true},
		"nothing":              {nil, false},
		"cut off":              {ours[:len(ours)-1], true},
		"cut off in the name":  {binary.NativeEndian.AppendUint32(nil, 22), false},
		"a length of no sense": {append(make([]byte, 4), ours[4:]...), true},
	} {
		if got := deletes(test.b, []string{"ipipou0"}); got != test.want {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}

func FuzzDeletes(f *testing.F) {
	f.Add(ruleMessage(unix.NFT_MSG_DELTABLE, "ipipou0"))
	f.Add(ruleMessage(unix.NFT_MSG_NEWRULE, "filter"))
	f.Fuzz(func(t *testing.T, b []byte) {
		// What is behind a message of ours does not hide it.
		ours := ruleMessage(unix.NFT_MSG_DELCHAIN, "ipipou0")
		if !deletes(append(ours, b...), []string{"ipipou0"}) {
			t.Error("a deletion was not seen")
		}
		if deletes(b, []string{"ipipou0"}) && !deletes(append(b[:len(b):len(b)], ours...), []string{"ipipou0"}) {
			t.Error("a deletion was hidden by another one")
		}
	})
}
