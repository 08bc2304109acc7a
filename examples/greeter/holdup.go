package main

import (
	"slices"
	"sync"
	"time"
)

// holdups remembers the slowest call that ended in each slot of time, so that it can be asked later
// how long calls were held up by what happened at some moment. Its methods may run concurrently.
type holdups struct {
	mu    sync.Mutex // guards slots
	slots []heldCall // the slowest of its slot, in the order of their slots
}

// heldCall is one call. Its zero value is none.
type heldCall struct {
	Start time.Time     `json:"start"`
	Took  time.Duration `json:"took"`
}

func (c heldCall) end() time.Time { return c.Start.Add(c.Took) }

// slotLength is short against any failover, and makes 1.2 MB an hour.
const slotLength = 20 * time.Millisecond

// add records a call that has just ended.
func (h *holdups) add(start, end time.Time) {
	c := heldCall{start, end.Sub(start)}
	slot := func(t time.Time) int64 { return t.UnixNano() / int64(slotLength) }
	h.mu.Lock()
	defer h.mu.Unlock()
	// Calls are added nearly in the order of their ends: one that comes late, and isn't slower,
	// changes nothing.
	i := len(h.slots)
	for i > 0 && slot(h.slots[i-1].end()) > slot(end) {
		i--
	}
	if i == 0 || slot(h.slots[i-1].end()) < slot(end) {
		h.slots = slices.Insert(h.slots, i, c)
	} else if c.Took > h.slots[i-1].Took {
		h.slots[i-1] = c
	}
}

// gaps returns, for each of the ascending marks, the longest call of those in flight then, or begun
// later. A call counts for every mark that it was in flight at; one begun later counts for the last
// mark before it, unless it was in flight at the next. (A call that ended within the slot of a mark
// may be hidden by a slower one of that slot: an error of less than one slotLength, where the
// longest is looked for.)
func (h *holdups) gaps(marks []time.Time) []heldCall {
	h.mu.Lock()
	defer h.mu.Unlock()
	gaps := make([]heldCall, len(marks))
	for _, c := range h.slots {
		after := -1 // the last mark before the call began, if no mark hit it
		for i, m := range marks {
			if m.After(c.end()) {
				break
			}
			if after = i; !m.Before(c.Start) {
				gaps[i] = longer(gaps[i], c)
				after = -1
			}
		}
		if after >= 0 {
			gaps[after] = longer(gaps[after], c)
		}
	}
	return gaps
}

func longer(a, b heldCall) heldCall {
	if b.Took > a.Took {
		return b
	}
	return a
}

// since returns the longest of the calls that ended after t.
func (h *holdups) since(t time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	longest := time.Duration(0)
	for i := len(h.slots) - 1; i >= 0 && h.slots[i].end().After(t); i-- {
		longest = max(longest, h.slots[i].Took)
	}
	return longest
}
