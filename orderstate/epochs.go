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

// Epochs is the table of known epoch starts, by which entries of older epochs are void (R12.3). The
// zero value is an empty table.
type Epochs struct {
	starts []Start // by Epoch, growing
}

// Learn adds a start. It is an error to learn two starts of one epoch.
func (t *Epochs) Learn(s Start) error {
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

// First returns where an epoch starts.
func (t *Epochs) First(e Epoch) (OrderNum, bool) {
	i, found := slices.BinarySearchFunc(t.starts, e, func(a Start, e Epoch) int { return cmp.Compare(a.Epoch, e) })
	if !found {
		return 0, false
	}
	return t.starts[i].First, true
}

// Void says whether an entry that epoch a announced for k is void: a later epoch starts at or
// before k (R12.3).
func (t *Epochs) Void(a Epoch, k OrderNum) bool {
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

// Starts returns the table, by growing epoch. The caller must not change it.
func (t *Epochs) Starts() []Start { return t.starts }

// Prune forgets starts that decide nothing about entries above k: a later epoch starts where they
// do, or below, or both start at or below k+1.
func (t *Epochs) Prune(k OrderNum) {
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
func (t *Epochs) newest() Epoch {
	if len(t.starts) == 0 {
		return 0
	}
	return t.starts[len(t.starts)-1].Epoch
}

// isNews says whether the table doesn't have a start.
func (t *Epochs) isNews(s Start) bool {
	first, ok := t.First(s.Epoch)
	return !ok || first != s.First
}

// with returns the table with more starts in it.
func (t *Epochs) with(more ...Start) (Epochs, error) {
	c := t.Clone()
	for _, s := range more {
		if err := c.Learn(s); err != nil {
			return Epochs{}, err
		}
	}
	return c, nil
}

// Clone returns an independent copy.
func (t Epochs) Clone() Epochs { return Epochs{slices.Clone(t.starts)} }
