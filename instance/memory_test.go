package instance

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Only what is in the file is given back, and of no other file.
func TestUnwritten(t *testing.T) {
	const smaps = `00400000-00a5f000 r-xp 00000000 08:01 1234                       /usr/bin/ipipou
Size:               6524 kB
Anonymous:             0 kB
00a5f000-01000000 r--p 0065f000 08:01 1234                       /usr/bin/ipipou
Anonymous:             4 kB
01000000-01100000 r--p 00c00000 08:01 1234                       /usr/bin/ipipou
Anonymous:             0 kB
AnonHugePages:         0 kB
01100000-01200000 rw-p 00d00000 08:01 1234                       /usr/bin/ipipou
Anonymous:             0 kB
01200000-01300000 r--s 00d00000 08:01 1234                       /usr/bin/ipipou
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000100000 r-xp 00000000 08:01 99                 /usr/bin/ipipou other
Anonymous:             0 kB
zz-01 r-xp 00000000 08:01 1234                       /usr/bin/ipipou
Anonymous:             0 kB
`
	want := []mapping{{0x400000, 0xa5f000}, {0x1000000, 0x1100000}}
	if d := cmp.Diff(want, unwritten(smaps, "/usr/bin/ipipou"), cmp.AllowUnexported(mapping{})); d != "" {
		t.Error(d)
	}
}

func TestRelease(t *testing.T) {
	resident := func() (kb int) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(status), "RssFile:")
		if _, err := fmt.Sscan(rest, &kb); err != nil {
			t.Fatal(err)
		}
		return kb
	}
	before := resident()
	release()
	if after := resident(); after >= before {
		t.Errorf("%d kB of files before, %d after", before, after)
	}
}
