// Package archtest holds the architecture's rules as tests, each with its
// reason. Who breaks a rule on purpose edits the table, and gives a reason too.
//
// The rules are checked on the source as it lies in the tree, read by the test
// itself: an import behind a build tag counts, nothing need compile, and a
// cached result of go test is never stale.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "github.com/understudy-rpc/understudy"

// layer says what the packages of a folder may import of this module. A
// package belongs to the layer with the longest folder that contains it, and
// may always import its own layer. Tests may import what they like.
type layer struct {
	folder string
	may    []string // folders, each with all below it; "." is the root package alone
	why    string
}

// layers is the table: data flows from interceptor over transport and wire to
// replica and orderstate, and back, so imports go one way too.
var layers = []layer{
	{".", []string{"internal/turn"},
		"handlers import it: it pulls in nothing but what a turn's context holds"},
	{"proto", nil,
		"other languages generate the same: it knows nothing of this library"},
	{"orderstate", nil,
		"pure protocol state, so that it can be explored exhaustively"},
	{"internal/wire", []string{"proto", "orderstate"},
		"translates between these two, and decides nothing"},
	{"election", nil,
		"usable, and tested, without the rest"},
	{"internal/trust", []string{"election"},
		"remembers what an election has said; users bring elections, and have no need of its memory"},
	{"internal/source", []string{"proto", "orderstate", "internal/wire", "internal/trust", "election"},
		"a source is driven by a client process, and will be by a group that calls another: it knows neither"},
	{"transport", []string{".", "proto", "internal/source", "internal/trust", "internal/wire", "internal/turn",
		"election", "transport/internal/route"},
		"a client links no replica; levels are the root package's, streams speak proto"},
	{"transport/internal/route", []string{"proto"},
		"the experimental gRPC alone: it knows replicas' names and addresses, and nothing of their protocol"},
	{"replica", []string{".", "proto", "orderstate", "internal/trust", "internal/wire", "internal/turn", "election",
		"transport", "replica/internal"},
		"a replica is a source too, of forwarded and nested calls; interceptors stay on top of it"},
	{"replica/internal/machine", []string{"proto", "orderstate", "internal/wire", "internal/turn"},
		"executes what it is told to: it knows nothing of roles, elections or other replicas"},
	{"interceptor", []string{"transport", "replica"},
		"thin: what a user meets first, and nothing of its own"},
	{"understudytest", []string{".", "proto", "orderstate", "internal", "election", "transport", "replica",
		"interceptor"},
		"a whole cluster in one process"},
	{"internal/explore", []string{"orderstate"},
		"drives the protocol's state as a runtime would, and nothing else"},
	{"internal/turn", []string{"orderstate"},
		"what a turn's context holds, an orderNum among it: handlers and replicas meet here"},
	{"tools", nil,
		"it reads the library, and is none of it"},
	{"internal", nil,
		"a helper is a leaf: what needs a layer of ours belongs in a layer, with a row here"},
}

// ban keeps an import out.
type ban struct {
	imports []string // import paths, each with all below it
	in      string   // the folder that may not import them; "" is the whole module
	except  []string // files and folders in it that may
	tests   bool     // tests may not either
	why     string
}

var bans = []ban{
	{imports: []string{"time", "sync", "context", "net"}, in: "orderstate",
		why: "no clock, lock, cancellation or connection: values in, values out"},
	{imports: []string{"os", "math/rand", "crypto/rand", "runtime", "log"}, in: "orderstate",
		why: "what it returns depends on its arguments alone; randomness is an input"},
	{imports: []string{"google.golang.org/grpc"}, in: "internal/source",
		why: "attempts and streams are its driver's: it is tested, and can be used, without a connection"},
	{imports: []string{"google.golang.org/grpc/resolver", "google.golang.org/grpc/balancer"},
		except: []string{"transport/internal/route"},
		why:    "these APIs are experimental and do change: one package to mend"},
	{imports: []string{"go.etcd.io/etcd/client/v3/concurrency"}, tests: true,
		why: "its Election can lead without a lease (etcd#19597) and forget its key (etcd#22123)"},
	{imports: []string{"go.etcd.io/etcd/server", "go.etcd.io/etcd/tests"}, tests: true,
		why: "an embedded etcd costs users 40 modules: examples, bench and e2e have modules of their own"},
}

// standardOnly names the folders that import the standard library only.
var standardOnly = []string{"orderstate"}

// sequential names the folders that start no goroutine and use no channel.
var sequential = []string{"orderstate"}

// hands names the folders that have their users' loggers from options, and hand them to
// internal/logs, where no lock is held while a user's handler runs; they never log to them, nor
// keep them.
var hands = []string{"election", "transport", "replica", "interceptor", "orderstate", "internal", "."}

const logs = "internal/logs"

// TestArchitecture checks the tree.
func TestArchitecture(t *testing.T) {
	t.Parallel()
	for _, v := range violations(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestPackageComments checks that every package of every module says what it
// promises. The tools have no code.
func TestPackageComments(t *testing.T) {
	t.Parallel()
	for _, v := range uncommented(t, os.DirFS("../..")) {
		t.Error(v)
	}
}

// TestRulesBite plants one violation at a time, in a tree that has no other.
func TestRulesBite(t *testing.T) {
	t.Parallel()
	imports := func(pkg string, paths ...string) string {
		src := "// Package " + pkg + " is planted.\npackage " + pkg + "\n"
		for _, p := range paths {
			src += fmt.Sprintf("import _ %q\n", p)
		}
		return src
	}
	logging := func(pkg, src string) string {
		return imports(pkg, module+"/internal/logs") + "import \"log/slog\"\n" + src
	}
	clean := map[string]string{
		"doc.go":                   imports("understudy", "context", module+"/internal/turn"),
		"orderstate/a.go":          imports("orderstate", "slices", "encoding/binary"),
		"orderstate/a_test.go":     imports("orderstate", "testing", "time", "github.com/google/go-cmp/cmp"),
		"internal/turn/a.go":       imports("turn", "sync"),
		"internal/wire/a.go":       imports("wire", module+"/orderstate", module+"/proto/understudy/v1"),
		"internal/clock/a.go":      imports("clock", "time"),
		"election/a.go":            imports("election", "go.etcd.io/etcd/client/v3"),
		"election/test/a.go":       imports("test", module+"/election", module+"/internal/clock"),
		"transport/a_test.go":      imports("transport", "google.golang.org/grpc/resolver/manual", module+"/replica"),
		"replica/a.go":             imports("replica", module, module+"/transport"),
		"e2e/go.mod":               "module " + module + "/e2e\n",
		"e2e/a.go":                 imports("main", "go.etcd.io/etcd/server/v3/embed"),
		"replica/testdata/a.go":    "not Go",
		"replica/.hidden/a.go":     "not Go",
		"internal/alone/a_test.go": imports("alone", "testing"),
		"internal/logs/a.go":       imports("logs") + "import \"log/slog\"\nvar user *slog.Logger",
		"understudytest/a.go":      logging("understudytest", "func f(l *slog.Logger) { l.Info(`it is the test's`) }"),
		"transport/options.go": logging("transport",
			"func f(user *slog.Logger) { if user != nil { x.user = logs.New(user) } }\nvar level = slog.LevelWarn"),
		"transport/internal/route/a.go": imports("route", "google.golang.org/grpc/balancer/base"),
	}
	tree := func(file, source string) fstest.MapFS {
		fsys := fstest.MapFS{}
		for name, src := range clean {
			fsys[name] = &fstest.MapFile{Data: []byte(src)}
		}
		if file != "" {
			fsys[file] = &fstest.MapFile{Data: []byte(source)}
		}
		return fsys
	}
	if got := violations(t, tree("", "")); len(got) != 0 {
		t.Fatalf("the clean tree has violations: %q", got)
	}
	if got := uncommented(t, tree("", "")); len(got) != 0 {
		t.Fatalf("the clean tree has packages without a comment: %q", got)
	}

	for _, c := range []struct{ file, source string }{
		{"b.go", imports("understudy", module+"/replica")},
		{"proto/understudy/v1/b.go", imports("understudyv1", module+"/orderstate")},
		{"orderstate/b.go", imports("orderstate", "time")},
		{"orderstate/b.go", imports("orderstate", "sync/atomic")},
		{"orderstate/b.go", imports("orderstate", "math/rand/v2")},
		{"orderstate/b.go", imports("orderstate", "google.golang.org/protobuf/proto")},
		{"orderstate/b.go", imports("orderstate", module+"/internal/clock")},
		{"orderstate/b.go", imports("orderstate") + "func f() { go f() }"},
		{"orderstate/b.go", imports("orderstate") + "var c chan int"},
		{"orderstate/b.go", imports("orderstate") + "func f() { select {} }"},
		{"orderstate/deep/b.go", imports("deep", "context")},
		{"internal/wire/b.go", imports("wire", module+"/transport")},
		{"internal/clock/b.go", imports("clock", module+"/orderstate")},
		{"election/b.go", imports("election", module+"/orderstate")},
		{"election/b.go", imports("election", module+"/internal/turn")},
		{"election/b.go", imports("election", "go.etcd.io/etcd/client/v3/concurrency")},
		{"election/b_test.go", imports("election", "go.etcd.io/etcd/server/v3/embed")},
		{"transport/b.go", imports("transport", module+"/replica")},
		{"transport/b.go", imports("transport", "google.golang.org/grpc/resolver")},
		{"internal/source/b.go", imports("source", "google.golang.org/grpc/codes")},
		{"internal/source/b.go", imports("source", module+"/transport")},
		{"transport/sub/balancer.go", imports("sub", "google.golang.org/grpc/balancer")},
		{"replica/b.go", imports("replica", module+"/interceptor")},
		{"replica/internal/machine/b.go", imports("machine", module+"/election")},
		{"replica/internal/machine/b.go", imports("machine", module+"/replica")},
		{"replica/b.go", imports("replica", "google.golang.org/grpc/balancer/roundrobin")},
		{"replica/b.go", "//go:build never\n\n" + imports("replica", module+"/understudytest")},
		{"interceptor/b.go", imports("interceptor", module+"/orderstate")},
		{"elsewhere/b.go", imports("elsewhere")},
		{"replica/b.go", logging("replica", "type b struct { log *slog.Logger }")},
		{"replica/b.go", logging("replica", "func f(l *slog.Logger) { x.log = logs.New(nil); l.Handler() }")},
		{"transport/b.go", logging("transport", "func f(user *slog.Logger) { x.log = user }")},
		{"transport/b.go", logging("transport", "func f(user *slog.Logger) { y(logs.New(user), user) }")},
		{"election/b.go", logging("election", "func f(user *slog.Logger) { user.Info(`b`) }")},
		{"election/b.go", logging("election", "var l = logs.New(slog.Default())")},
	} {
		if got := violations(t, tree(c.file, c.source)); len(got) != 1 {
			t.Errorf("%s:\n%s\n%d violations reported, want 1: %q", c.file, c.source, len(got), got)
		}
	}
	for _, file := range []string{"replica/sub/b.go", "e2e/sub/b.go", "internal/sub/b_test.go"} {
		if got := uncommented(t, tree(file, "// sub.\n\npackage sub\n")); len(got) != 1 {
			t.Errorf("%s has no package comment; reported: %q", file, got)
		}
	}
}

// violations returns what the root module of fsys does against the tables.
func violations(t *testing.T, fsys fs.FS) []string {
	var found []string
	report := func(file, what, why string) {
		found = append(found, fmt.Sprintf("%s %s: %s", file, what, why))
	}
	for _, f := range parse(t, fsys, false) {
		l, ok := layerOf(f.folder)
		if !ok {
			report(f.name, "is in no layer", "give its folder a row in the table of layers")
			continue
		}
		for _, imported := range f.imports() {
			for _, b := range bans {
				if b.forbids(f, imported) {
					report(f.name, "imports "+imported, b.why)
				}
			}
			if f.test {
				continue
			}
			ours, isOurs := strings.CutPrefix(imported+"/", module+"/")
			ours = path.Clean(ours)
			switch {
			case isOurs && !l.allows(ours):
				report(f.name, "imports "+imported, l.folder+" may import "+list(l.may)+" of ours: "+l.why)
			case !isOurs && !standard(imported) && slices.Contains(standardOnly, l.folder):
				report(f.name, "imports "+imported, l.folder+" imports the standard library only: "+l.why)
			}
		}
		if !f.test && f.folder != logs && slices.ContainsFunc(hands, func(h string) bool {
			return under(f.folder, h)
		}) {
			for _, what := range loggers(f) {
				report(f.name, what,
					"a user's log handler may block, or ask who logs: give the logger to logs.New at once, and use "+
						"what that returns")
			}
		}
		if !f.test && slices.Contains(sequential, l.folder) {
			if at := concurrency(f.syntax); at != "" {
				report(f.name, "has a "+at, l.folder+" is sequential: "+l.why)
			}
		}
	}
	return found
}

// uncommented returns the folders of fsys whose package, in any module, has no
// package comment. A package made of tests alone needs one too.
func uncommented(t *testing.T, fsys fs.FS) []string {
	commented, packages := map[string]bool{}, []string{}
	for _, f := range parse(t, fsys, true) {
		if strings.HasSuffix(f.syntax.Name.Name, "_test") {
			continue
		}
		if !slices.Contains(packages, f.folder) {
			packages = append(packages, f.folder)
		}
		if f.syntax.Doc != nil {
			commented[f.folder] = true
		}
	}
	var found []string
	for _, folder := range packages {
		if !commented[folder] {
			found = append(found, "the package in "+folder+
				" has no package comment: say what it promises, and what its user must write")
		}
	}
	return found
}

// layerOf returns the layer that a folder belongs to, if there is one.
func layerOf(folder string) (layer, bool) {
	var best layer
	for _, l := range layers {
		if under(folder, l.folder) && len(l.folder) >= len(best.folder) {
			best = l
		}
	}
	return best, best.folder != ""
}

// allows says whether packages of the layer may import a folder of ours.
func (l layer) allows(folder string) bool {
	own, ok := layerOf(folder)
	switch {
	case !ok:
		return false
	case own.folder == l.folder:
		return l.folder != "internal" // each helper is a leaf of its own
	case own.folder == "internal": // leaves are for all
		return !slices.Contains(standardOnly, l.folder)
	}
	return slices.ContainsFunc(l.may, func(m string) bool { return under(folder, m) })
}

func (b ban) forbids(f file, imported string) bool {
	if f.test && !b.tests || b.in != "" && !under(f.folder, b.in) || slices.ContainsFunc(b.except, func(e string) bool {
		return under(f.name, e)
	}) {
		return false
	}
	return slices.ContainsFunc(b.imports, func(p string) bool { return under(imported, p) })
}

// under says whether a slash-separated path is parent, or below it. The root
// package has nothing below it.
func under(name, parent string) bool {
	return name == parent || strings.HasPrefix(name, parent+"/")
}

// standard says whether an import path is of the standard library: no module's
// path starts with an element that has no dot.
func standard(imported string) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".")
}

// concurrency names the first goroutine, channel or select of a file.
func concurrency(f *ast.File) string {
	found := ""
	ast.Inspect(f, func(n ast.Node) bool {
		if found != "" {
			return false
		}
		switch n.(type) {
		case *ast.GoStmt:
			found = "go statement"
		case *ast.ChanType:
			found = "channel"
		case *ast.SelectStmt:
			found = "select"
		}
		return true
	})
	return found
}

// loggers returns what a file does with log/slog, but for levels, and functions with a parameter of
// type *slog.Logger that give it to logs.New and do nothing else with it.
func loggers(f file) (found []string) {
	if !slices.Contains(f.imports(), "log/slog") {
		return nil
	}
	types := map[ast.Node]bool{} // of such parameters
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		users := map[string]bool{}
		for _, p := range fn.Type.Params.List {
			if star, ok := p.Type.(*ast.StarExpr); ok && selected(star.X) == "slog.Logger" {
				types[star.X] = true
				for _, name := range p.Names {
					users[name.Name] = true
				}
			}
		}
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BinaryExpr:
				if y, ok := n.Y.(*ast.Ident); ok && y.Name == "nil" {
					return false
				}
			case *ast.CallExpr:
				if selected(n.Fun) == "logs.New" {
					_, plain := n.Args[0].(*ast.Ident)
					return !plain
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok {
					if users[x.Name] {
						found = append(found, "uses a user's logger")
					}
					return false // a field may have a user's logger's name
				}
			case *ast.Ident:
				if users[n.Name] {
					found = append(found, "keeps a user's logger, or hands it on")
				}
			}
			return true
		})
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && !types[s] && strings.HasPrefix(selected(s), "slog.") &&
			!strings.HasPrefix(selected(s), "slog.Level") {
			found = append(found, "uses "+selected(s))
		}
		return true
	})
	return found
}

// selected is x.y as text, empty for anything else.
func selected(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + s.Sel.Name
}

// file is a parsed Go file.
type file struct {
	name   string // slash-separated, from the root of the tree
	folder string
	test   bool
	source string
	set    *token.FileSet
	syntax *ast.File
}

func (f file) imports() []string {
	var paths []string
	for _, spec := range f.syntax.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// parse reads every Go file of the tree as the go command does, leaving out
// testdata and hidden folders, and, unless nested, the modules below the root.
func parse(t *testing.T, fsys fs.FS, nested bool) []file {
	t.Helper()
	var files []file
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := path.Base(name)
		if d.IsDir() {
			if name == "." {
				return nil
			}
			if base == "testdata" || base == "vendor" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, name+"/go.mod"); err == nil && !nested {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") {
			return nil
		}
		source, err := fs.ReadFile(fsys, name)
		if err != nil {
			return err
		}
		set := token.NewFileSet()
		syntax, err := parser.ParseFile(set, name, source, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files,
			file{name, path.Dir(name), strings.HasSuffix(base, "_test.go"), string(source), set, syntax})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func list(folders []string) string {
	if len(folders) == 0 {
		return "nothing"
	}
	return strings.Join(folders, ", ")
}
