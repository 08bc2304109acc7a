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
	rows := map[string]bool{}
	for _, m := range regexp.MustCompile(`"((?:R\d|FIG|I\d)[^"]*)", "\w+"`).FindAllStringSubmatch(
		readAll(t, "mutants.go"), -1) {
		rows[m[1]] = true
	}
	rules := map[string]bool{}
	for _, folder := range []string{".", "../../orderstate"} {
		source := readAll(t, folder+"/*.go")
		if found := regexp.MustCompile(`without\("[A-Z][^"]*"\)`).FindString(source); found != "" {
			t.Errorf("%s: %s has a name that isn't in rules.go", folder, found)
		}
		for _, m := range regexp.MustCompile(`(?m)^\t(\w+) +rule = "([^"]+)"$`).FindAllStringSubmatch(
			readAll(t, folder+"/rules.go"), -1) {
			rules[m[2]] = true
			if !strings.Contains(source, "without("+m[1]+")") {
				t.Errorf("%s: nothing takes %q away", folder, m[2])
			}
			if !rows[m[2]] {
				t.Errorf("%s: %q has no row", folder, m[2])
			}
		}
	}
	for rule := range rows {
		if !rules[rule] {
			t.Errorf("%q is no rule", rule)
		}
	}
	if len(rows) < 30 {
		t.Errorf("only %d rows are found", len(rows))
	}
}

func readAll(t *testing.T, pattern string) string {
	t.Helper()
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
