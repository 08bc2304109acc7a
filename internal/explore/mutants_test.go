package explore

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryRuleHasItsSwitch: a rule that no switch takes away would never be missed, and a switch
// without a row never asked about.
func TestEveryRuleHasItsSwitch(t *testing.T) {
	t.Parallel()
	read := func(pattern string) string {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatal(pattern, err)
		}
		var all strings.Builder
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all.Write(b)
		}
		return all.String()
	}
	switches := map[string]bool{}
	source := read("*.go") + read("../../orderstate/*.go")
	for _, m := range regexp.MustCompile(`without\("([^"]+)"\)`).FindAllStringSubmatch(source, -1) {
		switches[m[1]] = true
	}
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile(`"((?:R\d|FIG|I\d)[^"]*)", "\w+"`).FindAllStringSubmatch(read("mutants.go"),
		-1) {
		rows[m[1]] = true
		if !switches[m[1]] {
			t.Errorf("nothing takes %q away", m[1])
		}
	}
	for rule := range switches {
		if !rows[rule] {
			t.Errorf("%q has no row", rule)
		}
	}
	if len(rows) < 30 {
		t.Errorf("only %d rows are found", len(rows))
	}
}
