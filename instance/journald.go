package instance

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"syscall"
)

// isJournal reports whether w leads to journald: a service's $JOURNAL_STREAM is the
// device and inode of its standard error then (systemd.exec(5)). A program that it
// starts may have the variable and another standard error.
func isJournal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// priority is what journald takes off the beginning of a line (sd-daemon(3)).
func priority(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "<3>"
	case level >= slog.LevelWarn:
		return "<4>"
	case level >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// Say writes lines that are not the log's, with their priority where w is the journal.
func Say(w io.Writer, level slog.Level, text string) {
	if isJournal(w) {
		p := priority(level)
		text = p + strings.ReplaceAll(text, "\n", "\n"+p)
	}
	fmt.Fprintln(w, text)
}
