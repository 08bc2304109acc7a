package archtest

import (
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// manual is where users read what a line or an error means, and what to do.
const manual = "docs/production.md"

// speaks names the folders whose log lines and errors users see.
var speaks = []string{"election", "internal/trust", "internal/source", "transport", "transport/internal/route",
	"replica", "replica/internal/machine",
	"interceptor"}

// TestManual checks that the manual has every log line at Warn and above, and every error's text,
// and no other.
func TestManual(t *testing.T) {
	t.Parallel()
	for _, v := range unexplained(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestManualBites plants a tree whose manual lacks what its code says, and has what it doesn't.
func TestManualBites(t *testing.T) {
	t.Parallel()
	const code = `package replica
var errLate = errors.New("replica: it is late")
func f(in *incarnation, level slog.Level, why error) error {
	in.log.Warn("a line", "error", why)
	in.log.Log(ctx, level, "another line")
	in.log.Error(errLate.Error())
	in.log.Info("chat")
	in.rarely(slog.LevelInfo, "a rare chat")
	in.rarely(slog.LevelWarn, "a rare line")
	status.Errorf(codes.Internal, "understudy: %s was late %v: do this", why, why)
	return fmt.Errorf("replica: %s: %w", x, why)
}
`
	const good = "## Log lines\n\n| `a line`, `another line`, `a rare line` | x |\n| `it is late` | y |\n\n" +
		"## Errors\n\n| `was late` | z |\n| `it is late` | y |\n"
	for _, c := range []struct {
		code, manual string
		reported     int
	}{
		{code, good, 0},
		{code, strings.ReplaceAll(good, "`another line`", ""), 1},
		{code, strings.ReplaceAll(good, "`a rare line`", ""), 1},
		{code, strings.Replace(good, "| `it is late` | y |\n\n", "\n", 1), 1},
		{code, strings.ReplaceAll(good, "`was late`", "was late"), 1},
		{code, strings.ReplaceAll(good, "`was late`", "`was late`, `is late`"), 1},
		{code, strings.ReplaceAll(good, "`a line`", "`a line`, `line`"), 1},
		{strings.Replace(code, `Warn("a line"`, `Warn(line`, 1), strings.ReplaceAll(good, "`a line`,", ""), 1},
		{strings.ReplaceAll(code, `"replica: %s: %w"`, `"replica: brand new: %w"`), good, 1},
		{strings.ReplaceAll(code, "chat", "replica: chat"), good, 1},
	} {
		tree := fstest.MapFS{"replica/a.go": {Data: []byte(c.code)}, manual: {Data: []byte(c.manual)}}
		if got := unexplained(t, tree); len(got) != c.reported {
			t.Errorf("%s\n%s\n%d reported, want %d: %q", c.code, c.manual, len(got), c.reported, got)
		}
	}
}

// unexplained compares what the code says with what the manual has.
func unexplained(t *testing.T, fsys fs.FS) (found []string) {
	t.Helper()
	doc, err := fs.ReadFile(fsys, manual)
	if err != nil {
		t.Fatal(err)
	}
	lines, texts := map[string]string{}, map[string]string{} // what is said, and in which file
	errs := map[string]string{}                              // of package-level variables, by folder and name
	var files []file
	for _, f := range parse(t, fsys, false) {
		if f.test || !slices.Contains(speaks, f.folder) {
			continue
		}
		files = append(files, f)
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit, *ast.BinaryExpr:
				if s, ok := text(n); ok {
					texts[s] = f.name
					return false
				}
			case *ast.ValueSpec:
				for i, v := range n.Values {
					if call, ok := v.(*ast.CallExpr); ok && len(call.Args) > 0 {
						if s, ok := text(call.Args[0]); ok {
							errs[f.folder+" "+n.Names[i].Name] = s
						}
					}
				}
			}
			return true
		})
	}
	for _, f := range files {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			arg, ok := logged(call)
			if !ok {
				return true
			}
			switch arg := arg.(type) {
			case *ast.BasicLit, *ast.BinaryExpr:
				s, _ := joined(arg)
				lines[s] = f.name
			case *ast.CallExpr: // errX.Error()
				if s, ok := errs[f.folder+" "+strings.TrimSuffix(selected(arg.Fun), ".Error")]; ok {
					lines[stem(s)] = f.name
					return true
				}
				found = append(found, f.name+" logs what isn't a constant: nobody finds that in the manual")
			case *ast.Ident:
				if arg.Name != "msg" { // a helper's, whose calls are looked at
					found = append(found, f.name+" logs what isn't a constant: nobody finds that in the manual")
				}
			default:
				found = append(found, f.name+" logs what isn't a constant: nobody finds that in the manual")
			}
			return true
		})
	}
	told := rows(string(doc), "## Log lines")
	for s, where := range lines {
		if !slices.Contains(told, s) {
			found = append(found, manual+" has no row for the log line `"+s+"` of "+where)
		}
	}
	for _, s := range told {
		if lines[s] == "" {
			found = append(found, manual+" has the log line `"+s+"`, which nobody logs")
		}
	}
	told = rows(string(doc), "## Errors")
	said := map[string]bool{}
	for s, where := range texts {
		if s = stem(s); s == "" {
			continue
		}
		if said[s] {
			continue
		}
		said[s] = true
		if !slices.Contains(told, s) {
			found = append(found, manual+" has no row for the error `"+s+"` of "+where)
		}
	}
	for _, s := range told {
		if !said[s] {
			found = append(found, manual+" has the error `"+s+"`, which nobody returns")
		}
	}
	slices.Sort(found)
	return found
}

// logged returns the message of a call that logs at Warn, at Error, or at a level that is computed.
func logged(call *ast.CallExpr) (ast.Expr, bool) {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil, false
	}
	if sel.Sel.Name == "rarely" && len(call.Args) > 1 && selected(call.Args[0]) != "slog.LevelInfo" {
		return call.Args[1], true
	}
	on := ""
	switch x := sel.X.(type) {
	case *ast.Ident:
		on = x.Name
	case *ast.SelectorExpr:
		on = x.Sel.Name
	}
	switch {
	case on != "log":
		return nil, false
	case (sel.Sel.Name == "Warn" || sel.Sel.Name == "Error") && len(call.Args) > 0:
		return call.Args[0], true
	case sel.Sel.Name == "Log" && len(call.Args) > 2:
		return call.Args[2], true
	}
	return nil, false
}

var prefix = regexp.MustCompile(`^(understudy|replica|transport|election|interceptor): `)

// text is a string constant that begins as our errors do, without the package's name.
func text(n ast.Node) (string, bool) {
	s, ok := joined(n)
	return prefix.ReplaceAllString(s, ""), ok && prefix.MatchString(s)
}

// joined is a string literal, or several that + joins; a long one ends where something else begins.
func joined(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(n.Value)
		return s, err == nil && n.Kind == token.STRING
	case *ast.BinaryExpr:
		left, ok := joined(n.X)
		right, constant := joined(n.Y)
		if !constant {
			right = "%v"
		}
		return left + right, ok && n.Op == token.ADD
	}
	return "", false
}

var (
	verb   = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z]('s)?`)
	clause = regexp.MustCompile(`[:;(]`)
)

// stem is by which an error is found: the first words, two at least if there are, between what
// changes and what explains.
func stem(s string) (first string) {
	for _, part := range verb.Split(s, -1) {
		for _, words := range clause.Split(part, -1) {
			words = strings.Trim(words, " ,)\"'=")
			if strings.Contains(words, " ") {
				return words
			}
			if first == "" && len(words) > 2 {
				first = words
			}
		}
	}
	return first
}

var quoted = regexp.MustCompile("`([^`]+)`")

// rows returns what is quoted in the first cells of the tables below a heading.
func rows(doc, heading string) (all []string) {
	_, section, _ := strings.Cut(doc, heading+"\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
				all = append(all, m[1])
			}
		}
	}
	return all
}
