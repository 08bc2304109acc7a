package orderstate

import (
	"cmp"
	"fmt"
	"slices"
)

// Start says that Epoch orders from First on.
type Start struct {
	Epoch Epoch
	First OrderNum
}

// epochTable is the table of known epoch starts, by which entries of older epochs are void (R12.3).
// The zero value is an empty table.
type epochTable struct {
	starts []Start // by Epoch, growing
}

// learn adds a start. It is an error to learn two starts of one epoch.
func (t *epochTable) learn(s Start) error {
	if s.Epoch == 0 || s.First == 0 {
		return fmt.Errorf("orderstate: epoch %d can't start at %d", s.Epoch, s.First)
	}
	i, found := slices.BinarySearchFunc(t.starts, s.Epoch, func(a Start, e Epoch) int {
		return cmp.Compare(a.Epoch, e)
	})
	if !found {
		t.starts = slices.Insert(t.starts, i, s)
		return nil
	}
	if t.starts[i].First != s.First {
		return fmt.Errorf("orderstate: epoch %d starts at %d and at %d", s.Epoch, t.starts[i].First, s.First)
	}
	return nil
}

// first returns where an epoch starts.
func (t *epochTable) first(e Epoch) (OrderNum, bool) {
	i, found := slices.BinarySearchFunc(t.starts, e, func(a Start, e Epoch) int { return cmp.Compare(a.Epoch, e) })
	if !found {
		return 0, false
	}
	return t.starts[i].First, true
}

// void says whether an entry that epoch a announced for k is void: a later epoch starts at or
// before k (R12.3).
func (t *epochTable) void(a Epoch, k OrderNum) bool {
	if without(r123Table) {
		return false
	}
	for i := len(t.starts) - 1; i >= 0 && t.starts[i].Epoch > a; i-- {
		if t.starts[i].First <= k {
			return true
		}
	}
	return false
}

// prune forgets starts that decide nothing about entries above k: a later epoch starts where they
// do, or below, or both start at or below k+1.
func (t *epochTable) prune(k OrderNum) {
	kept := len(t.starts)
	var least OrderNum // where some later epoch starts
	for i := len(t.starts) - 1; i >= 0; i-- {
		s := t.starts[i]
		if kept < len(t.starts) && least <= max(s.First, min(k, lastOrderNum)+1) {
			continue
		}
		least = s.First
		kept--
		t.starts[kept] = s
	}
	t.starts = append(t.starts[:0], t.starts[kept:]...)
}

// newest returns the highest epoch whose start is known; 0 if none is.
func (t *epochTable) newest() Epoch {
	if len(t.starts) == 0 {
		return 0
	}
	return t.starts[len(t.starts)-1].Epoch
}

// isNews says whether the table doesn't have a start.
func (t *epochTable) isNews(s Start) bool {
	first, ok := t.first(s.Epoch)
	return !ok || first != s.First
}

// with returns the table with more starts in it.
func (t *epochTable) with(more ...Start) (epochTable, error) {
	c := t.clone()
	for _, s := range more {
		if err := c.learn(s); err != nil {
			return epochTable{}, err
		}
	}
	return c, nil
}

// clone returns an independent copy.
func (t epochTable) clone() epochTable { return epochTable{slices.Clone(t.starts)} }
