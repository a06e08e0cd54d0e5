package instance

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// release gives back memory that something took which may be the last for days: garbage, and
// the program's own pages, most of which only a start needs. Those that are needed again
// come back from the page cache.
func release() {
	debug.FreeOSMemory()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for _, m := range unwritten(string(smaps), self) {
		// It is only advice (madvise(2), MADV_DONTNEED).
		unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED)
	}
}

// A mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// unwritten are the mappings of a file that nobody can write to and nobody has, so that all
// of them is in the file; smaps is that of proc(5). A linker's relocations, or a debugger's
// breakpoints, are in pages of the process's own, and would be lost.
func unwritten(smaps, file string) (all []mapping) {
	var last mapping
	for line := range strings.Lines(smaps) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case strings.Contains(f[0], "-"): // ADDRESS-ADDRESS r-xp OFFSET DEVICE INODE [PATH]
			last = mapping{}
			if len(f) > 5 && strings.Join(f[5:], " ") == file && strings.HasPrefix(f[1], "r-") && strings.HasSuffix(f[1], "p") {
				last = addresses(f[0])
			}
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && last != (mapping{}):
			all = append(all, last)
		}
	}
	return all
}

// addresses reads START-END, both hexadecimal; else it is nothing.
func addresses(text string) mapping {
	first, second, _ := strings.Cut(text, "-")
	start, err := strconv.ParseUint(first, 16, strconv.IntSize)
	if err != nil {
		return mapping{}
	}
	end, err := strconv.ParseUint(second, 16, strconv.IntSize)
	if err != nil || end <= start {
		return mapping{}
	}
	return mapping{uintptr(start), uintptr(end)}
}
