package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"
)

// columns are the table's, each with what it says of a package.
var columns = []struct {
	title string
	cell  func(pkg) string
}{
	{"most fields", func(p pkg) string {
		return most(p.bound, func(s structure) int { return s.fields }, func(s structure) string {
			return fmt.Sprintf("%s %d", s.name, s.fields)
		})
	}},
	{"most methods", func(p pkg) string {
		return most(p.structs, func(s structure) int { return s.methods }, structure.methodsOf)
	}},
	{"up / arrows", func(p pkg) string { return fmt.Sprintf("%d / %d", len(p.arrows.up()), len(p.arrows.uses)) }},
	{"longest file", func(p pkg) string { return most(p.files, sized.size, sized.String) }},
	{"longest function", func(p pkg) string { return most(p.funcs, sized.size, sized.String) }},
	{"> 120", func(p pkg) string { return fmt.Sprint(len(p.long)) }},
	{"lock told", func(p pkg) string { return fmt.Sprint(len(p.held)) }},
	{"exported", func(p pkg) string { return fmt.Sprint(len(p.exported)) }},
}

func (s sized) size() int      { return s.lines }
func (s sized) String() string { return fmt.Sprintf("%s %d", s.name, s.lines) }

// methodsOf tells methods that are promoted from those that are declared.
func (s structure) methodsOf() string {
	if s.promoted == 0 {
		return fmt.Sprintf("%s %d", s.name, s.methods)
	}
	return fmt.Sprintf("%s %d+%d", s.name, s.methods, s.promoted)
}

// most is the largest one as text.
func most[T any](all []T, size func(T) int, text func(T) string) string {
	if len(all) == 0 {
		return "-"
	}
	return text(slices.MaxFunc(all, func(a, b T) int { return cmp.Compare(size(a), size(b)) }))
}

// table writes a row for each package, in Markdown. With before each cell has both, if they differ.
// Free are the structs that may have any number of fields.
func table(out io.Writer, free []string, before, now house) error {
	for _, h := range []house{before, now} {
		for i, p := range h {
			h[i].bound = slices.DeleteFunc(slices.Clone(p.structs), func(s structure) bool {
				return slices.Contains(free, p.name+"."+s.name)
			})
		}
	}
	rows := [][]string{{"package"}}
	for _, c := range columns {
		rows[0] = append(rows[0], c.title)
	}
	names := map[string]bool{}
	for _, p := range slices.Concat(before, now) {
		names[p.name] = true
	}
	for _, name := range sortedKeys(names) {
		row := []string{name}
		for _, c := range columns {
			row = append(row, beside(before, now, name, c.cell))
		}
		rows = append(rows, row)
	}
	rows = append(rows, total(before, now))
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for i, row := range rows {
		for j, cell := range row {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if i == 0 {
			for _, w := range widths {
				fmt.Fprintf(&b, "|%s", strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// beside is a cell of one package, before and now.
func beside(before, now house, name string, cell func(pkg) string) string {
	of := func(h house) string {
		if i := slices.IndexFunc(h, func(p pkg) bool { return p.name == name }); i >= 0 {
			return cell(h[i])
		}
		return "-"
	}
	return change(before != nil, of(before), of(now))
}

func change(both bool, before, now string) string {
	if !both || before == now {
		return now
	}
	return before + " → " + now
}

// total is the last row: what counts over all packages.
func total(before, now house) []string {
	row := []string{"together"}
	for _, number := range []func(pkg) int{
		nil, nil,
		func(p pkg) int { return len(p.arrows.up()) },
		nil, nil,
		func(p pkg) int { return len(p.long) },
		func(p pkg) int { return len(p.held) },
		nil,
	} {
		if number == nil {
			row = append(row, "")
			continue
		}
		sum := func(h house) string {
			n := 0
			for _, p := range h {
				n += number(p)
			}
			return fmt.Sprint(n)
		}
		row = append(row, change(before != nil, sum(before), sum(now)))
	}
	row[len(row)-1] = change(before != nil, fmt.Sprintf("%d public", publicNames(before)),
		fmt.Sprintf("%d public", publicNames(now)))
	return row
}

func sortedKeys(m map[string]bool) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// takeApart writes what the numbers of one package are made of.
func takeApart(out io.Writer, h house, name string) error {
	i := slices.IndexFunc(h, func(p pkg) bool { return p.name == name })
	if i < 0 {
		return fmt.Errorf("there is no package %s in the library", name)
	}
	p := h[i]
	fmt.Fprintln(out, "Floors, the top first:")
	for i, floor := range p.arrows.floors() {
		fmt.Fprintf(out, "%3d  %s\n", i+1, strings.Join(floor, " "))
	}
	fmt.Fprintln(out, "\nArrows back up, with the names that make them:")
	for _, a := range p.arrows.up() {
		fmt.Fprintf(out, "  %s → %s: %s\n", a[0], a[1], strings.Join(p.arrows.uses[a], " "))
	}
	fmt.Fprintln(out, "\nStructs, by fields and methods:")
	structs := slices.SortedStableFunc(slices.Values(p.structs), func(a, b structure) int {
		return b.fields + b.methods - a.fields - a.methods
	})
	for _, s := range structs[:min(10, len(structs))] {
		fmt.Fprintf(out, "  %d fields, methods of %s\n", s.fields, s.methodsOf())
	}
	fmt.Fprintln(out, "\nFunctions, by lines:")
	for _, f := range p.funcs[:min(10, len(p.funcs))] {
		fmt.Fprintf(out, "  %v\n", f)
	}
	for _, list := range []struct {
		title  string
		places []string
	}{{"Comments that tell a lock", p.held}, {"Lines over 120 columns", p.long}} {
		if len(list.places) > 0 {
			fmt.Fprintf(out, "\n%s:\n  %s\n", list.title, strings.Join(list.places, "\n  "))
		}
	}
	fmt.Fprintf(out, "\nExported: %s\n", strings.Join(p.exported, " "))
	return nil
}
