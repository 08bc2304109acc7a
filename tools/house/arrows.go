package main

import (
	"cmp"
	"go/ast"
	"go/token"
	"go/types"
	"math/rand/v2"
	"path/filepath"
	"slices"
)

// arrows are who uses whom among the files of a package.
type arrows struct {
	files []string               // those with arrows or names, in the order that leaves the fewest back up
	uses  map[[2]string][]string // the names that the first file uses of the second
}

// arrowsOf reads them off.
func arrowsOf(fset *token.FileSet, checked *types.Package, info *types.Info, sources []source) arrows {
	a := arrows{uses: map[[2]string][]string{}}
	mine := map[string]bool{}
	for _, s := range sources {
		if declares(s.syntax) {
			mine[s.name] = true
			a.files = append(a.files, s.name)
		}
	}
	for id, o := range info.Uses {
		if o.Pkg() != checked {
			continue
		}
		from, to := filepath.Base(fset.Position(id.Pos()).Filename), filepath.Base(fset.Position(o.Pos()).Filename)
		if between := [2]string{from, to}; from != to && mine[from] && mine[to] &&
			!slices.Contains(a.uses[between], o.Name()) {
			a.uses[between] = append(a.uses[between], o.Name())
		}
	}
	slices.Sort(a.files)
	for _, names := range a.uses {
		slices.Sort(names)
	}
	a.order()
	return a
}

// declares says whether a file has more than a package comment.
func declares(f *ast.File) bool {
	return slices.ContainsFunc(f.Decls, func(d ast.Decl) bool {
		g, ok := d.(*ast.GenDecl)
		return !ok || g.Tok != token.IMPORT
	})
}

// up are the arrows that run back up, sorted.
func (a arrows) up() (up [][2]string) {
	for between := range a.uses {
		if slices.Index(a.files, between[0]) > slices.Index(a.files, between[1]) {
			up = append(up, between)
		}
	}
	slices.SortFunc(up, func(x, y [2]string) int {
		return cmp.Or(cmp.Compare(x[0], y[0]), cmp.Compare(x[1], y[1]))
	})
	return up
}

// floors lays the files in floors, the top first: each lies below all that use it but by an arrow
// that runs back up.
func (a arrows) floors() (floors [][]string) {
	floor := map[string]int{}
	for i, f := range a.files {
		for _, above := range a.files[:i] {
			if len(a.uses[[2]string{above, f}]) > 0 {
				floor[f] = max(floor[f], floor[above]+1)
			}
		}
		for len(floors) <= floor[f] {
			floors = append(floors, nil)
		}
		floors[floor[f]] = append(floors[floor[f]], f)
	}
	return floors
}

// order puts the files in the order that leaves the fewest arrows back up.
func (a *arrows) order() {
	n := len(a.files)
	out := make([][]bool, n)
	for i := range out {
		out[i] = make([]bool, n)
		for j := range out[i] {
			out[i][j] = len(a.uses[[2]string{a.files[i], a.files[j]}]) > 0
		}
	}
	files := make([]string, n)
	for place, i := range fewestUp(out) {
		files[place] = a.files[i]
	}
	a.files = files
}

// tries is from how many orders fewestUp starts. A tenth of it has found the smallest number for
// every package so far.
const tries = 1000

// fewestUp returns an order of a graph's nodes with the fewest arrows from a later one to an
// earlier one. It searches: it takes each node in turn to where it is best, until none can be
// bettered, from many beginnings that are always the same ones.
func fewestUp(out [][]bool) []int {
	n := len(out)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	random := rand.New(rand.NewPCG(1, 2))
	best, fewest := slices.Clone(order), n*n
	for range tries {
		settle(out, order)
		if up := countUp(out, order); up < fewest {
			best, fewest = slices.Clone(order), up
		}
		if fewest == 0 {
			break
		}
		random.Shuffle(n, func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	return best
}

// settle moves nodes, one at a time, while that leaves fewer arrows back up.
func settle(out [][]bool, order []int) {
	for moved := true; moved; {
		moved = false
		for node := range out {
			from := slices.Index(order, node)
			// What it costs to stand at another place is summed from here outwards, in both ways.
			to, gain := from, 0
			for cost, i := 0, from-1; i >= 0; i-- {
				cost += weigh(out[order[i]][node]) - weigh(out[node][order[i]]) // it would stand above that one
				if cost < gain {
					to, gain = i, cost
				}
			}
			for cost, i := 0, from+1; i < len(order); i++ {
				cost += weigh(out[node][order[i]]) - weigh(out[order[i]][node])
				if cost < gain {
					to, gain = i, cost
				}
			}
			if to != from {
				order = slices.Insert(slices.Delete(order, from, from+1), to, node)
				moved = true
			}
		}
	}
}

func countUp(out [][]bool, order []int) (up int) {
	for i, later := range order {
		for _, earlier := range order[:i] {
			up += weigh(out[later][earlier])
		}
	}
	return up
}

func weigh(arrow bool) int {
	if arrow {
		return 1
	}
	return 0
}
