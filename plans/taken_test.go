package plans

import (
	"fmt"
	"testing"
)

// What may be somebody else's is noted when it is known to be ours: a script that is killed between leaves it to him.
func TestTakenInScript(t *testing.T) {
	hosts(t, func(t *testing.T, h *shellHost) {
		during := h.path("during")
		for _, c := range []struct {
			printed string
			exit    int
			want    string
		}{
			{"thing 7", 0, "exit 0, during it [], after it [undo_thing]\n"},
			{"thing 7", 1, "exit 1, during it [], after it []\n"},
			{"another 7", 0, "exit 0, during it [undo_thing], after it [undo_thing]\n"},
			{"another 7", 1, "exit 1, during it [undo_thing], after it []\n"},
		} {
			code := "mkdir -p ${JOURNAL%/*}; : >$JOURNAL\n" +
				fmt.Sprintf("makes() { cat $JOURNAL >%s; return %d; }\n", during, c.exit) +
				fmt.Sprintf("taken 'none|thing *' echo %s\ntry undo_thing makes\n", c.printed) +
				fmt.Sprintf("echo \"exit $?, during it [$(cat %s)], after it [$(cat $JOURNAL 2>/dev/null)]\"\n", during) +
				"try undo_next makes; cat " + during + " >$JOURNAL.next\n" +
				"while read -r line; do last=$line; done <$JOURNAL.next; echo \"then $last\"; rm -f $JOURNAL $JOURNAL.next"
			out, says, _ := h.run(t, code)
			if out != c.want+"then undo_next\n" {
				t.Errorf("%s, exit %d:\n%s%s", c.printed, c.exit, out, says)
			}
		}
	})
}
