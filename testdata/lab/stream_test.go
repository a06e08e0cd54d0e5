package lab

import (
	"bytes"
	"strings"
	"testing"
)

// However the port cuts the stream up, the output comes through to the byte and the marks do not.
func TestStream(t *testing.T) {
	for size := 1; size < 80; size++ {
		var out bytes.Buffer
		s := newStream(&out)
		// Output that starts like a mark, ends like one, and has no newline at its end.
		output := "one\n" + s.mark[:9] + "two" + s.mark[:3] + "\x00\n\x1e" + s.mark[:len(s.mark)-1]
		input := s.mark + " boot\n" + output + s.mark + " exit 42\n"
		for len(input) > 0 {
			n := min(size, len(input))
			if err := s.feed([]byte(input[:n])); err != nil {
				t.Fatal(err)
			}
			input = input[n:]
		}
		if out.String() != output {
			t.Fatalf("in pieces of %d: output %q, want %q", size, out.String(), output)
		}
		if s.bootedAt.IsZero() || !s.exited || s.exit != 42 {
			t.Fatalf("in pieces of %d: booted %v, exited %v, exit %d", size, s.bootedAt, s.exited, s.exit)
		}
	}
	s := newStream(&bytes.Buffer{})
	if err := s.feed([]byte(s.mark + " nonsense\n")); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("nonsense after the mark: error %v", err)
	}
}

func TestDiff(t *testing.T) {
	if diff := Diff("a\nb\nb\n", "b\na\nc\n"); diff != "- b\n+ c\n" {
		t.Errorf("diff %q", diff)
	}
	facts, err := parseFacts(`[{},{"ifname":"x0","ifindex":3,"mtu":9},{"dst":"d","expires":5}]`, false)
	if want := `x0 ifname="x0"|x0 mtu=9|{"dst":"d"}`; err != nil || strings.Join(facts, "|") != want {
		t.Errorf("facts %q, %v, want %s", facts, err, want)
	}
}

func TestPackets(t *testing.T) {
	// A header with its right checksum sums up to zero.
	udp := IPv4UDP("10.0.0.1:1", "10.0.0.2:2", []byte("odd"))
	if checksum(udp[:20]) != 0 || checksum(udp[12:20], []byte{0, 17, 0, 11}, udp[20:]) != 0 {
		t.Errorf("checksum of %x", udp)
	}
	echo := IPv4Echo("10.0.0.1", "10.0.0.2", 1, 2)
	if checksum(echo[:20]) != 0 || checksum(echo[20:]) != 0 {
		t.Errorf("checksum of %x", echo)
	}
}
