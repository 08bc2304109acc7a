package archtest

import (
	"go/ast"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
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
		"[z](#z-and-a) [y](#y) [w](README.md#y)\n# `Z`, and *a*\n| <a id=\"y\"></a>y |\n"
	for _, c := range []struct {
		doc      string
		reported int
	}{
		{good, 0},
		{good + "[a](replica/b.go)", 1},
		{good + "[y](#x)", 1},
		{good + "[y](README.md#x)", 1},
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
	link     = regexp.MustCompile(`\]\(([^)#:]*)(?:#([^)]*))?\)`)
	testName = regexp.MustCompile("`(Test[A-Z]\\w*|Example\\w*)`")
	ran      = regexp.MustCompile(`-run '?\^?(\w+)`)
	exported = regexp.MustCompile(`\b(replica|transport|interceptor|election|understudy|understudytest)\.([A-Z]\w*)`)
)

// notYet are names that documents have because they aren't there.
var notYet = map[string]bool{"understudy.Once": true}

var (
	anchor  = regexp.MustCompile(`<a id="([^"]+)">`)
	heading = regexp.MustCompile(`(?m)^#+ (.+)$`)
	silent  = regexp.MustCompile(`[^\w -]`)
)

// anchors are the places in a document that a link may name: those that it marks, and its headings
// as GitHub names them.
func anchors(t *testing.T, fsys fs.FS, doc string) map[string]bool {
	t.Helper()
	b, err := fs.ReadFile(fsys, doc)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, m := range anchor.FindAllStringSubmatch(string(b), -1) {
		found[m[1]] = true
	}
	for _, m := range heading.FindAllStringSubmatch(string(b), -1) {
		found[strings.ReplaceAll(silent.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")] = true
	}
	return found
}

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
			to := doc
			if m[1] != "" {
				to = path.Join(path.Dir(doc), m[1])
			}
			if _, err := fs.Stat(fsys, to); err != nil {
				found = append(found, doc+" has a link to "+m[1]+", which isn't there")
			} else if path.Ext(to) == ".md" && m[2] != "" && !anchors(t, fsys, to)[m[2]] {
				found = append(found, doc+" has a link to "+m[1]+"#"+m[2]+", and there is no such place")
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

// TestReadme checks that the README's Go is code that compiles: each block is a part of a file.
func TestReadme(t *testing.T) {
	t.Parallel()
	for _, v := range uncompiled(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestReadmeBites changes what one of two blocks says.
func TestReadmeBites(t *testing.T) {
	t.Parallel()
	const readme = "```go\nvar a int\n```\n\n```sh\nls\n```\n\n```go\nvar b = f(\n\t1)\n```\n"
	for have, reported := range map[string]int{
		"package x\n\nvar a int\nvar b = f(\n\t1)\n": 0,
		"package x\n\nvar a int\nvar b = f(\n\t2)\n": 1,
		"package x\n\nvar c = 1\n":                   2,
	} {
		tree := fstest.MapFS{"README.md": {Data: []byte(readme)}, "a.go": {Data: []byte(have)}}
		if got := uncompiled(t, tree); len(got) != reported {
			t.Errorf("%q: %d reported, want %d: %q", have, len(got), reported, got)
		}
	}
}

var goBlock = regexp.MustCompile("(?s)\n?```go\n(.*?)```")

// uncompiled returns the Go blocks of the README that no Go file of any module has.
func uncompiled(t *testing.T, fsys fs.FS) (found []string) {
	t.Helper()
	readme, err := fs.ReadFile(fsys, "README.md")
	if err != nil {
		t.Fatal(err)
	}
	files := parse(t, fsys, true)
	for _, m := range goBlock.FindAllStringSubmatch(string(readme), -1) {
		if !slices.ContainsFunc(files, func(f file) bool { return strings.Contains(f.source, m[1]) }) {
			found = append(found, "the README shows code that is in no file, so nobody compiles it:\n"+m[1])
		}
	}
	return found
}

// TestWhereThingsAre checks that what docs/protocol.md says of the code is there: `Primary.Order`
// is a method or a field of a type of that name, or a package's function; `orderstate/primary.go`
// is a file.
func TestWhereThingsAre(t *testing.T) {
	t.Parallel()
	for _, v := range misplaced(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestWhereThingsAreBites names what is there, and what isn't.
func TestWhereThingsAreBites(t *testing.T) {
	t.Parallel()
	const code = "package replica\n\ntype life struct{ gate bool }\nfunc (*life) run() {}\nfunc join() {}\n" +
		"type store interface{ Read() }\n"
	const good = "`life.run`, `life.gate`, `replica.join`, `store.Read`, `replica/a.go`, `doc.go`, `run`"
	for _, c := range []struct {
		doc      string
		reported int
	}{
		{good, 0},
		{good + " `life.walk`", 1},
		{good + " `death.run`", 1},
		{good + " `replica/b.go`", 1},
	} {
		tree := fstest.MapFS{"replica/a.go": {Data: []byte(code)}, "docs/protocol.md": {Data: []byte(c.doc)}}
		if got := misplaced(t, tree); len(got) != c.reported {
			t.Errorf("%q: %d reported, want %d: %q", c.doc, len(got), c.reported, got)
		}
	}
}

var (
	placed = regexp.MustCompile("`(\\w+\\.[A-Za-z]\\w*)`")
	filed  = regexp.MustCompile("`(\\w+/[\\w/]+\\.go)`")
)

// misplaced returns the names in docs/protocol.md that no type and no package has.
func misplaced(t *testing.T, fsys fs.FS) (found []string) {
	t.Helper()
	doc, err := fs.ReadFile(fsys, "docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, f := range parse(t, fsys, false) {
		for _, d := range f.syntax.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				of := path.Base(f.folder)
				if d.Recv != nil {
					of = receiver(d.Recv.List[0].Type)
				}
				there[of+"."+d.Name.Name] = true
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if values, ok := s.(*ast.ValueSpec); ok {
						for _, n := range values.Names {
							there[path.Base(f.folder)+"."+n.Name] = true
						}
					}
					spec, ok := s.(*ast.TypeSpec)
					if !ok {
						continue
					}
					var members *ast.FieldList
					switch t := spec.Type.(type) {
					case *ast.StructType:
						members = t.Fields
					case *ast.InterfaceType:
						members = t.Methods
					default:
						continue
					}
					for _, m := range members.List {
						for _, n := range m.Names {
							there[spec.Name.Name+"."+n.Name] = true
						}
					}
				}
			}
		}
	}
	for _, m := range placed.FindAllStringSubmatch(string(doc), -1) {
		if ext := path.Ext(m[1]); ext != ".go" && ext != ".md" && !there[m[1]] {
			found = append(found, "docs/protocol.md names "+m[1]+", which is nowhere")
		}
	}
	for _, m := range filed.FindAllStringSubmatch(string(doc), -1) {
		if _, err := fs.Stat(fsys, m[1]); err != nil {
			found = append(found, "docs/protocol.md names the file "+m[1]+", which isn't there")
		}
	}
	return found
}

// receiver is the name of the type whose method it is.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
