package archtest

import (
	"fmt"
	"go/ast"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

// forUsers names the folders of packages whose documentation is for engineers who have never seen
// the patent or the rules' numbers. (Package orderstate is the patent's protocol, figure by figure;
// electiontest is for who writes an election.)
var forUsers = []string{".", "interceptor", "replica", "transport", "understudytest", "understudytest/simnet",
	"election", "election/memory"}

// cites is how a figure, a paragraph or a rule is cited.
var cites = regexp.MustCompile(`\bFIG\. ?\d|¶ ?\d|\b[RI]\d{1,2}[a-z]?\b`)

// TestPublic checks what users see of the library: they can name every type that an exported
// signature has, and need no patent to read a package's documentation.
func TestPublic(t *testing.T) {
	t.Parallel()
	for _, v := range unusable(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestPublicBites plants one violation at a time.
func TestPublicBites(t *testing.T) {
	t.Parallel()
	head := "package replica\n\nimport \"" + module + "/internal/wire\"\n\n"
	for _, c := range []struct {
		source string
		found  int
	}{
		{"func New() error { return wire.Err }", 0},
		{"func New(h wire.Header) {}", 1},
		{"func New() (*wire.Header, error) { return nil, nil }", 1},
		{"func New(f func([]wire.Header)) {}", 1},
		{"func own(h wire.Header) {}", 0},
		{"type T struct{ h wire.Header }\n\nfunc (t T) hidden() wire.Header { return t.h }", 0},
		{"type T struct{ H map[string]wire.Header }", 1},
		{"type T struct{ wire.Header }", 1},
		{"type t struct{ H wire.Header }\n\nfunc (t) H() wire.Header { return wire.H }", 0},
		{"type T int\n\nfunc (*T) H() wire.Header { return wire.H }", 1},
		{"type T interface{ H() wire.Header }", 1},
		{"type T interface{ h() wire.Header }", 0},
		{"type T = wire.Header", 1},
		{"type T func(wire.Header)", 1},
		{"type T func(*t)", 0},
		{"var V wire.Header", 1},
		{"var V = int(wire.H)", 0},
		{"// New does FIG. 9.\nfunc New() {}", 1},
		{"// new does FIG. 9.\nfunc new() {}", 0},
		{"// T keeps R7.\ntype T int", 1},
		{"// T keeps a rule.\ntype T struct {\n\t// F is of R12.\n\tF int\n\t// g is of R12.\n\tg int\n}", 1},
		{"// C is of ¶78.\nconst C = 1", 1},
		{"const (\n\t// C is of I4.\n\tC = 1\n)", 1},
	} {
		got := unusable(t, fstest.MapFS{"replica/a.go": {Data: []byte(head + c.source + "\n")}})
		if len(got) != c.found {
			t.Errorf("%s\n%q, want %d", c.source, got, c.found)
		}
	}
	if got := unusable(t, fstest.MapFS{"replica/a.go": {Data: []byte("// Package replica does R7.\n" + head)}}); len(
		got) != 1 {
		t.Errorf("a package comment that cites a rule: %q", got)
	}
}

// unusable returns what the root module's packages show to users that these can't name, or read.
func unusable(t *testing.T, fsys fs.FS) (found []string) {
	t.Helper()
	for _, f := range parse(t, fsys, false) {
		if f.test || slices.Contains(strings.Split(f.folder, "/"), "internal") ||
			strings.HasSuffix(f.name, ".pb.go") {
			continue
		}
		p := public{file: f, internal: map[string]bool{}}
		for _, spec := range f.syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil || !slices.Contains(strings.Split(imported, "/"), "internal") {
				continue
			}
			name := path.Base(imported)
			if spec.Name != nil {
				name = spec.Name.Name
			}
			p.internal[name] = true
		}
		p.says("package "+f.syntax.Name.Name, f.syntax.Doc)
		for _, d := range f.syntax.Decls {
			p.declares(d)
		}
		found = append(found, p.found...)
	}
	return found
}

// public is a file as users see it.
type public struct {
	file
	internal map[string]bool // names of imported packages
	found    []string
}

// declares looks at a declaration.
func (p *public) declares(d ast.Decl) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && (d.Recv == nil || exportedType(d.Recv.List[0].Type)) {
			p.says(d.Name.Name, d.Doc)
			p.shows(d.Name.Name, d.Type)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() {
					p.says(s.Name.Name, d.Doc, s.Doc, s.Comment)
					p.shows(s.Name.Name, s.Type)
				}
			case *ast.ValueSpec:
				for _, n := range s.Names {
					if n.IsExported() {
						p.says(n.Name, d.Doc, s.Doc, s.Comment)
						p.shows(n.Name, s.Type)
					}
				}
			}
		}
	}
}

// exportedType says whether a receiver's type is exported.
func exportedType(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.StarExpr:
		return exportedType(e.X)
	case *ast.IndexExpr:
		return exportedType(e.X)
	case *ast.Ident:
		return e.IsExported()
	}
	return false
}

// shows looks for types of internal packages in what a name's type shows.
func (p *public) shows(name string, of ast.Expr) {
	if of == nil {
		return
	}
	ast.Inspect(of, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Field:
			hidden := len(n.Names) > 0
			for _, f := range n.Names {
				hidden = hidden && !f.IsExported()
			}
			return !hidden || p.isParameter(of, n)
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok && p.internal[x.Name] {
				p.found = append(p.found, fmt.Sprintf("%s: %s shows %s, which a user can't name: "+
					"give it a type of its own", p.name, name, selected(n)))
			}
			return false
		}
		return true
	})
	if s, ok := of.(*ast.StructType); ok && slices.Contains(forUsers, p.folder) {
		for _, f := range s.Fields.List {
			if slices.ContainsFunc(f.Names, (*ast.Ident).IsExported) {
				p.says(name+"."+f.Names[0].Name, f.Doc, f.Comment)
			}
		}
	}
}

// isParameter says whether a field is a function's parameter or result, whose name hides nothing.
func (p *public) isParameter(in ast.Expr, field *ast.Field) bool {
	found := false
	ast.Inspect(in, func(n ast.Node) bool {
		if fn, ok := n.(*ast.FuncType); ok {
			found = found || slices.Contains(fn.Params.List, field) ||
				fn.Results != nil && slices.Contains(fn.Results.List, field)
		}
		return true
	})
	return found
}

// says looks for citations in a name's documentation.
func (p *public) says(name string, docs ...*ast.CommentGroup) {
	if !slices.Contains(forUsers, p.folder) {
		return
	}
	for _, d := range docs {
		if c := cites.FindString(d.Text()); c != "" {
			p.found = append(p.found, fmt.Sprintf("%s: the documentation of %s cites %s: say it in words",
				p.name, name, c))
		}
	}
}
