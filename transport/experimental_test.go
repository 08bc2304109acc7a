package transport_test

import (
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// experimental is what of gRPC's experimental API this package uses, and why: a new use is a
// decision. (internal/archtest keeps resolver and balancer to package route.)
var experimental = map[string]string{
	"google.golang.org/grpc/attributes": "resolver states carry it",
	"google.golang.org/grpc/backoff":    "connections come back within a second, not two minutes",
	"google.golang.org/grpc/balancer": "one connection to each replica, chosen by name; stock policies choose for " +
		"themselves",
	"google.golang.org/grpc/encoding": "a codec per call: the request's bytes are made once",
	"google.golang.org/grpc/mem":      "what codecs take and give",
	"google.golang.org/grpc/resolver": "replicas come from the group's election",

	"grpc.WithResolvers":   "a scheme for one ClientConn, without a global registry",
	"grpc.WithIdleTimeout": "an idle channel forgets its resolver, and our streams with it",
	"grpc.WithNoProxy": "the proxy's resolver drops attributes, and doesn't say when the policy has " +
		"the replicas",
	"grpc.ConnectParams":            "connections come back within a second",
	"grpc.ForceCodecV2":             "a codec per call",
	"grpc.ForceCodecV2CallOption":   "to refuse a codec of the caller's own",
	"grpc.ForceCodecCallOption":     "to refuse a codec of the caller's own",
	"grpc.CustomCodecCallOption":    "to refuse a codec of the caller's own",
	"grpc.ContentSubtypeCallOption": "to refuse a codec of the caller's own",
	"grpc.MaxRecvMsgSizeCallOption": "to keep our header from counting in the caller's limits",
	"grpc.MaxSendMsgSizeCallOption": "to keep our header from counting in the caller's limits",
	"grpc.HeaderCallOption":         "to keep our key from callers",
	"grpc.TrailerCallOption":        "to keep our key from callers",
	"ClientConn.Connect":            "only an RPC starts the resolver otherwise, and calls wait for what it finds",
}

// TestExperimentalUsesAreListed compares the list with what gRPC's own comments say of what is
// used.
func TestExperimentalUsesAreListed(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	marks := map[string]map[string]bool{} // by import path, what of it is marked
	for _, f := range append(parseDir(t, ".", parser.SkipObjectResolution),
		parseDir(t, "internal/route", parser.SkipObjectResolution)...) {
		for _, spec := range f.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			if path != "google.golang.org/grpc" && !strings.HasPrefix(path, "google.golang.org/grpc/") {
				continue
			}
			if marks[path] == nil {
				marks[path] = marked(t, path)
			}
			if marks[path][""] {
				used[path] = true
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && marks["google.golang.org/grpc"]["grpc."+sel.Sel.Name] &&
					x.Name == "grpc" {
					used["grpc."+sel.Sel.Name] = true
				}
				if method := "ClientConn." + sel.Sel.Name; marks["google.golang.org/grpc"][method] && isConn(sel.X) {
					used[method] = true
				}
			}
			return true
		})
	}
	for _, name := range slices.Sorted(maps.Keys(used)) {
		if experimental[name] == "" {
			t.Errorf("%s is used, and experimental: say why", name)
		}
	}
	for name := range experimental {
		if !used[name] {
			t.Errorf("%s isn't used any more, or isn't experimental", name)
		}
	}
}

// isConn: our variables and fields of type *grpc.ClientConn have one name.
func isConn(x ast.Expr) bool {
	switch x := x.(type) {
	case *ast.Ident:
		return x.Name == "conn"
	case *ast.SelectorExpr:
		return x.Sel.Name == "conn"
	}
	return false
}

// marked returns the names in a package of gRPC's whose comments say that they are experimental; ""
// is the package itself.
func marked(t *testing.T, path string) map[string]bool {
	t.Helper()
	pkg, err := build.Import(path, ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	mark := func(doc *ast.CommentGroup, name string) {
		if strings.Contains(doc.Text(), "EXPERIMENTAL") {
			names[name] = true
		}
	}
	for _, f := range parseDir(t, pkg.Dir, parser.ParseComments|parser.SkipObjectResolution) {
		if strings.Contains(strings.ToLower(f.Doc.Text()), "experimental") {
			names[""] = true
		}
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					mark(d.Doc, f.Name.Name+"."+d.Name.Name)
				} else if star, ok := d.Recv.List[0].Type.(*ast.StarExpr); ok {
					if id, ok := star.X.(*ast.Ident); ok {
						mark(d.Doc, id.Name+"."+d.Name.Name)
					}
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok {
						mark(d.Doc, f.Name.Name+"."+ts.Name.Name)
						mark(ts.Doc, f.Name.Name+"."+ts.Name.Name)
					}
				}
			}
		}
	}
	return names
}

func parseDir(t *testing.T, dir string, mode parser.Mode) []*ast.File {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil, mode)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}
