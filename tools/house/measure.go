package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// A house is the library's packages, sorted by name.
type house []pkg

// pkg is one package.
type pkg struct {
	name     string // its folder from the root; "." is the root
	public   bool
	files    []sized
	funcs    []sized // the longest first
	structs  []structure
	bound    []structure // those whose fields the table counts
	arrows   arrows
	long     []string // places of lines that are too long
	held     []string // places of comments that tell a lock, with what they say
	exported []string
}

// sized is something of so many lines.
type sized struct {
	name  string
	lines int
}

// structure is a struct type.
type structure struct {
	name                      string
	fields, methods, promoted int
}

// maxColumns of a line; a tab counts as four.
const maxColumns = 120

// listed is what the go command says of a package.
type listed struct {
	Dir, ImportPath, Name, Export string
	GoFiles, Deps                 []string
	Module                        *struct{ Path string }
	DepOnly                       bool
}

// measure measures the module whose root is a folder.
func measure(ctx context.Context, root string) (house, error) {
	module, err := output(ctx, root, "go", "list", "-m")
	if err != nil {
		return nil, err
	}
	text, err := output(ctx, root, "go", "list", "-export", "-deps",
		"-json=Dir,ImportPath,Name,Export,GoFiles,Deps,Module,DepOnly", "./...")
	if err != nil {
		return nil, err
	}
	var all []listed
	for d := json.NewDecoder(strings.NewReader(text)); ; {
		var l listed
		if err := d.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	exports := map[string]string{}
	for _, l := range all {
		exports[l.ImportPath] = l.Export
	}
	fset := token.NewFileSet()
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(exports[path])
	})
	library := libraryOf(module, all)
	var h house
	for _, l := range all {
		if !library[l.ImportPath] {
			continue
		}
		name := cmp.Or(strings.TrimPrefix(strings.TrimPrefix(l.ImportPath, module), "/"), ".")
		p, err := measurePackage(fset, imports, name, l)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.ImportPath, err)
		}
		if len(p.files) > 0 {
			h = append(h, p)
		}
	}
	slices.SortFunc(h, func(a, b pkg) int { return cmp.Compare(a.name, b.name) })
	return h, nil
}

// libraryOf says which packages are the library.
func libraryOf(module string, all []listed) map[string]bool {
	ours := map[string]bool{}
	for _, l := range all {
		ours[l.ImportPath] = l.Module != nil && l.Module.Path == module
	}
	library := map[string]bool{}
	for _, l := range all {
		if !ours[l.ImportPath] || l.Name == "main" || !isPublic(l.ImportPath) {
			continue
		}
		library[l.ImportPath] = true
		for _, d := range l.Deps {
			if ours[d] {
				library[d] = true
			}
		}
	}
	return library
}

func isPublic(importPath string) bool {
	return !slices.Contains(strings.Split(importPath, "/"), "internal")
}

// source is a parsed file.
type source struct {
	name   string
	text   string
	syntax *ast.File
}

func measurePackage(fset *token.FileSet, imports types.Importer, name string, l listed) (pkg, error) {
	p := pkg{name: name, public: isPublic(l.ImportPath)}
	var files []*ast.File
	var sources []source // without what is generated
	for _, file := range l.GoFiles {
		path := filepath.Join(l.Dir, file)
		text, err := os.ReadFile(path)
		if err != nil {
			return p, err
		}
		syntax, err := parser.ParseFile(fset, path, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return p, err
		}
		files = append(files, syntax)
		if !ast.IsGenerated(syntax) {
			sources = append(sources, source{file, string(text), syntax})
		}
	}
	info := &types.Info{Uses: map[*ast.Ident]types.Object{}}
	checked, err := (&types.Config{Importer: imports}).Check(l.ImportPath, fset, files, info)
	if err != nil {
		return p, err
	}
	for _, s := range sources {
		p.readFile(fset, s)
	}
	slices.SortStableFunc(p.funcs, func(a, b sized) int { return b.lines - a.lines })
	p.readTypes(fset, checked, sources)
	p.arrows = arrowsOf(fset, checked, info, sources)
	return p, nil
}

// readFile takes what one file has by itself.
func (p *pkg) readFile(fset *token.FileSet, s source) {
	line := func(at token.Pos) int { return fset.Position(at).Line }
	p.files = append(p.files, sized{s.name, strings.Count(s.text, "\n")})
	for i, l := range strings.Split(s.text, "\n") {
		if utf8.RuneCountInString(l)+3*strings.Count(l, "\t") > maxColumns {
			p.long = append(p.long, fmt.Sprintf("%s:%d", s.name, i+1))
		}
	}
	for _, d := range s.syntax.Decls {
		if f, ok := d.(*ast.FuncDecl); ok {
			name := f.Name.Name
			if f.Recv != nil {
				name = receiver(f.Recv.List[0].Type) + "." + name
			}
			p.funcs = append(p.funcs, sized{name, line(f.End()) - line(f.Pos()) + 1})
		}
	}
	for _, c := range s.syntax.Comments {
		for _, told := range tellsLock(c.Text()) {
			p.held = append(p.held, fmt.Sprintf("%s:%d %s", s.name, line(c.Pos()), told))
		}
	}
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	for {
		switch t := e.(type) {
		case *ast.StarExpr:
			e = t.X
		case *ast.IndexExpr:
			e = t.X
		case *ast.IndexListExpr:
			e = t.X
		case *ast.Ident:
			return t.Name
		default:
			return "?"
		}
	}
}

// What tells a lock, and what in the same clause before it denies that.
var (
	holds = func() *regexp.Regexp {
		const lock, its = `\b(?:\w+\.)?(?:mu|mutex|lock)`, `(?:the |its |their )?`
		return regexp.MustCompile(`(?i)` + lock + ` (?:is |are |being |already )?(?:held|locked)\b|` +
			`\b(?:holds?|holding|under) ` + its + lock + `\b`)
	}()
	denies = regexp.MustCompile(`(?i)\b(?:no|not|never|without|\w+n't)\b[^.,;:()]*$`)
)

// tellsLock returns where a comment says that a lock is held.
func tellsLock(comment string) (told []string) {
	text := strings.Join(strings.Fields(comment), " ")
	for _, m := range holds.FindAllStringIndex(text, -1) {
		if !denies.MatchString(text[:m[0]]) {
			told = append(told, text[m[0]:m[1]])
		}
	}
	return told
}

// readTypes takes the package's structs, and its exported names.
func (p *pkg) readTypes(fset *token.FileSet, checked *types.Package, sources []source) {
	scope := checked.Scope()
	for _, s := range sources {
		ast.Inspect(s.syntax, func(n ast.Node) bool {
			t, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			fields, ok := t.Type.(*ast.StructType)
			if !ok {
				return true
			}
			found := structure{name: t.Name.Name, fields: countFields(fields)}
			if o := scope.Lookup(t.Name.Name); o != nil && o.Pos() == t.Name.Pos() {
				if named, ok := o.Type().(*types.Named); ok {
					found.methods = named.NumMethods()
					found.promoted = types.NewMethodSet(types.NewPointer(named)).Len() - found.methods
				}
			}
			p.structs = append(p.structs, found)
			return true
		})
	}
	for _, name := range scope.Names() {
		o := scope.Lookup(name)
		if !o.Exported() || !p.hasFile(fset, o.Pos()) {
			continue
		}
		p.exported = append(p.exported, name)
		if _, ok := o.(*types.TypeName); !ok {
			continue
		}
		methods := types.NewMethodSet(o.Type())
		if !types.IsInterface(o.Type()) {
			methods = types.NewMethodSet(types.NewPointer(o.Type()))
		}
		for m := range methods.Methods() {
			if m.Obj().Exported() {
				p.exported = append(p.exported, name+"."+m.Obj().Name())
			}
		}
	}
}

// hasFile says whether something is in a file that is measured.
func (p *pkg) hasFile(fset *token.FileSet, at token.Pos) bool {
	return slices.ContainsFunc(p.files, func(f sized) bool {
		return f.name == filepath.Base(fset.Position(at).Filename)
	})
}

// countFields counts those of structs without a name as the struct's own.
func countFields(s *ast.StructType) (n int) {
	for _, f := range s.Fields.List {
		own := 1
		if inner, ok := f.Type.(*ast.StructType); ok {
			own = countFields(inner)
		}
		n += own * max(1, len(f.Names))
	}
	return n
}
