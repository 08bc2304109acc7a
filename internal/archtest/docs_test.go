package archtest

import (
	"go/ast"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// TestDocs checks that what the documents name is there: files, tests, and what packages export.
func TestDocs(t *testing.T) {
	t.Parallel()
	for _, v := range misnamed(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestDocsBite plants one wrong name at a time.
func TestDocsBite(t *testing.T) {
	t.Parallel()
	code := "package replica\nfunc Name() {}\ntype Status struct{}\nfunc (Status) String() {}\nvar V, W int\n"
	good := "[a](replica/a.go#x) [b](https://b.example/c) `TestOne` `-run ClientDies` replica.Name(x) replica.W " +
		"[z](#z)\n"
	for _, c := range []struct {
		doc      string
		reported int
	}{
		{good, 0},
		{good + "[a](replica/b.go)", 1},
		{good + "`TestTwo`", 1},
		{good + "replica.String", 1},
		{good + "replica.Nam", 1},
		{good + "`go test -run Clients .`", 1},
	} {
		tree := fstest.MapFS{
			"replica/a.go":      {Data: []byte(code)},
			"replica/a_test.go": {Data: []byte("package replica\nfunc TestOne() {}\nfunc TestClientDiesOften() {}\n")},
			"README.md":         {Data: []byte(c.doc)},
		}
		if got := misnamed(t, tree); len(got) != c.reported {
			t.Errorf("%q: %d reported, want %d: %q", c.doc, len(got), c.reported, got)
		}
	}
}

var (
	link     = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)
	testName = regexp.MustCompile("`(Test[A-Z]\\w*|Example\\w*)`")
	ran      = regexp.MustCompile(`-run '?\^?(\w+)`)
	exported = regexp.MustCompile(`\b(replica|transport|interceptor|election|understudy|understudytest)\.([A-Z]\w*)`)
)

// notYet are names that documents have because they aren't there.
var notYet = map[string]bool{"understudy.Once": true}

// misnamed returns what the documents of the root and of docs name that isn't there.
func misnamed(t *testing.T, fsys fs.FS) (found []string) {
	t.Helper()
	tests, exports := map[string]bool{}, map[string]bool{}
	for _, f := range parse(t, fsys, true) {
		folder := path.Base(f.folder)
		if f.folder == "." {
			folder = "understudy"
		}
		for _, d := range f.syntax.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				switch {
				case d.Recv != nil:
				case f.test:
					tests[d.Name.Name] = true
				default:
					exports[folder+"."+d.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						exports[folder+"."+s.Name.Name] = true
					case *ast.ValueSpec:
						for _, n := range s.Names {
							exports[folder+"."+n.Name] = true
						}
					}
				}
			}
		}
	}
	var docs []string
	for _, pattern := range []string{"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md"} {
		matched, err := fs.Glob(fsys, pattern)
		if err != nil {
			t.Fatal(err)
		}
		docs = append(docs, matched...)
	}
	for _, doc := range docs {
		b, err := fs.ReadFile(fsys, doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(b), -1) {
			if _, err := fs.Stat(fsys, path.Join(path.Dir(doc), m[1])); err != nil {
				found = append(found, doc+" has a link to "+m[1]+", which isn't there")
			}
		}
		for _, m := range testName.FindAllStringSubmatch(string(b), -1) {
			if !tests[m[1]] {
				found = append(found, doc+" names "+m[1]+", and there is no such test")
			}
		}
		for _, m := range ran.FindAllStringSubmatch(string(b), -1) {
			some := false
			for name := range tests {
				some = some || strings.Contains(name, m[1])
			}
			if !some {
				found = append(found, doc+" has -run "+m[1]+", which runs no test")
			}
		}
		for _, m := range exported.FindAllStringSubmatch(string(b), -1) {
			if !exports[m[0]] && !notYet[m[0]] {
				found = append(found, doc+" names "+m[0]+", which isn't exported")
			}
		}
	}
	return found
}
