package archtest

import (
	"fmt"
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
	"time"
)

// concepts is where readers find what a rule, an invariant or a word means.
const concepts = "docs/concepts.md"

// terms are the words that the code uses in a sense of its own. Who needs another one adds it here,
// and says there what it means.
var terms = []string{
	"A", "acknowledge", "announcement", "attached", "authority", "backup", "DataLoss", "deposed", "detached",
	"diverged", "donor", "entry", "epoch", "evicted", "fence", "fetch", "follower", "frame", "front door", "gate",
	"given up", "group", "held", "heldUpTo", "in-sync", "incarnation", "joiner", "lazily", "level", "low-water mark",
	"margin", "messageOrder", "nonce", "note", "null message", "orderInfo", "orderNum", "pendingDestOrder",
	"pendingRemoteOrder", "pendingSourceOrder", "primary", "replica", "reply log", "required set", "run", "seal",
	"seqNum", "sequencer", "session", "share", "source", "stable", "stable point", "start", "store", "suspect",
	"takeover", "token", "turn", "void",
}

// TestConcepts checks that a reader who has the repository, and nothing else, can look up whatever
// rule, invariant or word the code and the documents cite.
func TestConcepts(t *testing.T) {
	t.Parallel()
	for _, v := range unexplainedRules(t, os.DirFS("../.."), terms) {
		t.Error(v)
	}
}

// TestConceptsBite plants one citation that isn't explained at a time.
func TestConceptsBite(t *testing.T) {
	t.Parallel()
	const code = "package replica\n// f is R1b, R12.3 and I5: the gate.\nfunc f() { panic(\"R4\") }\nvar R99 int\n"
	const page = "<a id=\"r1b\"></a> <a id=\"r12-3\"></a> <a id=\"i5\"></a> <a id=\"r4\"></a> <a id=\"gate\"></a>gate"
	for _, c := range []struct {
		name, code, page string
		terms            []string
		reported         int
	}{
		{"all is explained", code, page, []string{"gate"}, 0},
		{"a rule of a comment", code, strings.ReplaceAll(page, "r12-3", "r12"), []string{"gate"}, 1},
		{"a rule of a text", code, strings.ReplaceAll(page, `"r4"`, `"r5"`), []string{"gate"}, 1},
		{"an invariant", code, strings.ReplaceAll(page, "i5", "i6"), []string{"gate"}, 1},
		{"a word", code, strings.ReplaceAll(page, "gate", "door"), []string{"gate"}, 1},
		{"a word that nobody uses", code, page + " <a id=\"door\"></a>", []string{"gate", "door"}, 1},
		{"what isn't in the repository", code + "// See section 9 of the design.\n", page, []string{"gate"}, 1},
		{"a rule of a document", code, page + " R13", []string{"gate"}, 1},
	} {
		tree := fstest.MapFS{"replica/a.go": {Data: []byte(c.code)}, concepts: {Data: []byte(c.page)}}
		if got := unexplainedRules(t, tree, c.terms); len(got) != c.reported {
			t.Errorf("%s: %d reported, want %d: %q", c.name, len(got), c.reported, got)
		}
	}
}

var (
	rule   = regexp.MustCompile(`\b(?:R\d{1,2}(?:\.\d)?b?|I\d)\b`)
	nobody = regexp.MustCompile(`section \d+ of the design`)
)

// unexplainedRules returns what Go files and documents cite, and concepts doesn't explain.
func unexplainedRules(t *testing.T, fsys fs.FS, terms []string) (found []string) {
	t.Helper()
	explained := anchors(t, fsys, concepts)
	at := func(cited string) string {
		return strings.NewReplacer(".", "-", " ", "-").Replace(strings.ToLower(cited))
	}
	look := func(name, text string) {
		for _, r := range rule.FindAllString(text, -1) {
			if report := concepts + " doesn't explain " + r + ", which " + name + " cites"; !explained[at(r)] &&
				!slices.Contains(found, report) {
				found = append(found, report)
			}
		}
		for _, s := range nobody.FindAllString(text, -1) {
			found = append(found, name+" cites "+s+", which nobody can read")
		}
	}
	var all strings.Builder
	for _, f := range parse(t, fsys, true) {
		if f.folder != "internal/archtest" {
			said := said(f)
			look(f.name, said)
			all.WriteString(said)
		}
	}
	for _, pattern := range []string{"*.md", "docs/*.md", "*/README.md"} {
		docs, err := fs.Glob(fsys, pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range docs {
			b, err := fs.ReadFile(fsys, doc)
			if err != nil {
				t.Fatal(err)
			}
			look(doc, string(b))
		}
	}
	for _, term := range terms {
		if !explained[at(term)] {
			found = append(found, concepts+" doesn't explain "+term)
		}
		if !strings.Contains(all.String(), term) {
			found = append(found, "no code uses the word "+term+" any more: take it from the list")
		}
	}
	return found
}

// TestTimes checks that the times that concepts lists are those of the code.
func TestTimes(t *testing.T) {
	t.Parallel()
	for _, v := range mistimed(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestTimesBite changes a time, and takes a constant away.
func TestTimesBite(t *testing.T) {
	t.Parallel()
	const page = "## Times\n\n| `a` | x | 1 s |\n| `b` | y | 250 ms |\n"
	for code, reported := range map[string]int{
		"const (\n\ta = time.Second\n\tb = a / 4\n)\n":             0,
		"const (\n\ta = 2 * time.Second\n\tb = time.Second/4\n)\n": 1,
		"const a = 10 * 100 * time.Millisecond\n":                  1,
	} {
		tree := fstest.MapFS{concepts: {Data: []byte(page)}, "replica/a.go": {Data: []byte("package replica\n" + code)}}
		if got := mistimed(t, tree); len(got) != reported {
			t.Errorf("%q: %d reported, want %d: %q", code, len(got), reported, got)
		}
	}
}

var timed = regexp.MustCompile("(?m)^\\| `(\\w+)` \\|.*\\| (\\d+) (ms|s) \\|$")

// mistimed returns the rows of concepts whose constant isn't there, or has another value.
func mistimed(t *testing.T, fsys fs.FS) (found []string) {
	t.Helper()
	b, err := fs.ReadFile(fsys, concepts)
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]map[string]ast.Expr{} // by folder and name
	for _, f := range parse(t, fsys, false) {
		if f.test {
			continue
		}
		for _, d := range f.syntax.Decls {
			decl, ok := d.(*ast.GenDecl)
			if !ok || decl.Tok != token.CONST {
				continue
			}
			if constants[f.folder] == nil {
				constants[f.folder] = map[string]ast.Expr{}
			}
			for _, s := range decl.Specs {
				for i, value := range s.(*ast.ValueSpec).Values {
					constants[f.folder][s.(*ast.ValueSpec).Names[i].Name] = value
				}
			}
		}
	}
	_, times, _ := strings.Cut(string(b), "## Times\n")
	for _, m := range timed.FindAllStringSubmatch(times, -1) {
		listed, err := time.ParseDuration(m[2] + m[3])
		if err != nil {
			t.Fatal(err)
		}
		is := false
		for _, named := range constants {
			is = is || elapsed(named[m[1]], named) == listed
		}
		if !is {
			found = append(found, fmt.Sprintf("%s has %s = %v, and no package does", concepts, m[1], listed))
		}
	}
	return found
}

// elapsed is the value of a constant that is made of units of time, numbers and other constants; 0
// if it is made of anything else.
func elapsed(value ast.Expr, constants map[string]ast.Expr) time.Duration {
	switch e := value.(type) {
	case *ast.BasicLit:
		n, _ := strconv.ParseInt(e.Value, 0, 64)
		return time.Duration(n)
	case *ast.Ident:
		return elapsed(constants[e.Name], constants)
	case *ast.SelectorExpr:
		return map[string]time.Duration{"Second": time.Second, "Millisecond": time.Millisecond}[e.Sel.Name]
	case *ast.BinaryExpr:
		x, y := elapsed(e.X, constants), elapsed(e.Y, constants)
		switch {
		case e.Op == token.MUL:
			return x * y
		case e.Op == token.QUO && y != 0:
			return x / y
		}
	}
	return 0
}

// said is what a file says to people: its comments, and its texts unless they are generated.
func said(f file) string {
	var b strings.Builder
	for _, group := range f.syntax.Comments {
		b.WriteString(group.Text() + "\n")
	}
	if !ast.IsGenerated(f.syntax) {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				b.WriteString(lit.Value + "\n")
			}
			return true
		})
	}
	return b.String()
}
