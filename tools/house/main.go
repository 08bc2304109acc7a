// Command house measures how the library is built, and keeps what it has reached.
//
//	make house                       a table, a package a row
//	make house BASE=<commit>         the same, with what that commit had beside it
//	make house OF=replica            what the numbers of one package are made of
//	go run ./tools/house -check      fails when a goal is missed (make check)
//	go run ./tools/house -tighten    takes goals.txt to what was reached
//
// It measures the library: the public packages of the root module, and what these import of it. It
// reads the files that this platform builds, without tests and without what is generated.
//
//   - Fields are those that a struct names itself, those of structs in it that have no name among
//     them. Methods are those that are declared for it; behind a + stand those that embedding
//     promotes.
//   - A file has an arrow to another one of its package when it uses a name that is declared there:
//     of a type, function, variable or constant, of a method or of a field.
//   - Arrows that run back up are those that are left against the order, however the files are laid
//     in floors. Files that use each other in a circle have no order of their own; so the number is
//     the smallest that any order has (the smallest feedback arc set), found by a search that always
//     does the same. The floors are those of this order: a file lies below all that use it.
//   - A function's lines are counted from func to its last brace, those of the literals in it
//     included.
//   - A comment tells a lock when it says that a caller holds one ("called with mu held"): what the
//     compiler can't check, and readers must remember.
//   - Exported names are the package's, with the methods of its exported types, promoted ones among
//     them.
//
// goals.txt has the goals and, where one isn't met yet, what there is: neither may get worse, and
// what has got better must be written there, so that it stays. The table leaves out the fields of
// structs that goals.txt calls free.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
)

// goalsFile is relative to the repository's root.
const goalsFile = "tools/house/goals.txt"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("house", flag.ContinueOnError)
	base := flags.String("base", "", "a `commit` whose numbers stand before those of the working tree")
	of := flags.String("of", "", "a `package`, as it is named in the table, whose numbers are taken apart")
	check := flags.Bool("check", false, "fail when a goal is missed, and print nothing else")
	tighten := flags.Bool("tighten", false, "write what was reached to "+goalsFile)
	if err := flags.Parse(args); err != nil {
		return err
	}
	top, err := output(ctx, ".", "git", "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	path := filepath.Join(top, goalsFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	goals, err := parseGoals(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	now, err := measure(ctx, top)
	if err != nil {
		return err
	}
	switch {
	case *check:
		return goals.keep(now)
	case *tighten:
		missed, _ := goals.judge(now)
		tight := goals.tighten(string(text), now)
		return errors.Join(append(missed, os.WriteFile(path, []byte(tight), 0o644))...)
	case *of != "":
		return takeApart(out, now, *of)
	case *base == "":
		return table(out, goals.free, nil, now)
	}
	before, err := measureCommit(ctx, top, *base)
	if err != nil {
		return err
	}
	return table(out, goals.free, before, now)
}

// measureCommit measures another commit, in a work tree of its own that doesn't stay.
func measureCommit(ctx context.Context, top, commit string) (h house, err error) {
	folder, err := os.MkdirTemp("", "house-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	tree := filepath.Join(folder, "tree")
	if _, err := output(ctx, top, "git", "worktree", "add", "--quiet", "--detach", tree, commit); err != nil {
		return nil, err
	}
	defer func() {
		_, removing := output(context.WithoutCancel(ctx), top, "git", "worktree", "remove", "--force", tree)
		err = errors.Join(err, removing)
	}()
	return measure(ctx, tree)
}

// output runs a command in a folder, and returns what it printed. An error has what it complained
// of.
func output(ctx context.Context, folder, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = folder
	out, err := cmd.Output()
	if err != nil {
		var ended *exec.ExitError
		if errors.As(err, &ended) {
			err = fmt.Errorf("%w\n%s", err, ended.Stderr)
		}
		return "", fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
