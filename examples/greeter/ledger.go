package main

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"sort"
	"sync"
)

// A ledger is what the callers of this process know: which numbers each name was given. Its methods
// may run concurrently.
type ledger struct {
	mu       sync.Mutex // guards accounts
	accounts map[string]*account
}

// An account is one name's part of a ledger.
type account struct {
	Given numbers `json:"given"`
	// Repeated counts the numbers given once more than once.
	Repeated int `json:"repeated,omitempty"`
	// Unknown has an entry for each call of unknown outcome: the highest number that was known to
	// be given when the call began. If the call took a number, it is a higher one.
	Unknown []uint64 `json:"unknown,omitempty"`
}

func newLedger() *ledger { return &ledger{accounts: map[string]*account{}} }

// begin is called before each call. It returns the highest number given to name up to now.
func (l *ledger) begin(name string) (floor uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.account(name).Given.max()
}

// given is called when a caller got n.
func (l *ledger) given(name string, n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if a := l.account(name); !a.Given.add(n) {
		a.Repeated++
	}
}

// unknown is called when a call failed that may or may not have taken a number. floor is what begin
// returned.
func (l *ledger) unknown(name string, floor uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	a := l.account(name)
	a.Unknown = append(a.Unknown, floor)
}

func (l *ledger) account(name string) *account {
	a := l.accounts[name]
	if a == nil {
		a = &account{}
		l.accounts[name] = a
	}
	return a
}

// copy returns the accounts as they are now.
func (l *ledger) copy() map[string]account {
	l.mu.Lock()
	defer l.mu.Unlock()
	accounts := make(map[string]account, len(l.accounts))
	for name, a := range l.accounts {
		accounts[name] = account{slices.Clone(a.Given), a.Repeated, slices.Clone(a.Unknown)}
	}
	return accounts
}

// A verdict is what comparing the ledger with the replicas' states says.
type verdict struct {
	Lost, Duplicated int
	Findings         []string // in words, sorted; the first maxFindings
	More             int      // findings left out
}

const maxFindings = 20

func (v *verdict) find(format string, args ...any) {
	if len(v.Findings) == maxFindings {
		v.More++
		return
	}
	v.Findings = append(v.Findings, fmt.Sprintf(format, args...))
}

// judge compares what the callers were given with the replicas' final states, by replica. The state
// of reference counts where replicas differ; without any state, the highest number given counts as
// the final one.
//
// Duplicated: a number that was given n times counts n-1.
//
// Lost, one for each:
//   - a number given that is above the final count: what a caller saw was undone;
//   - a number up to the final count that nobody was given, and that no call of unknown outcome can account for: either
//     a reply was lost, or a call was executed twice;
//   - a name and replica whose final count isn't the reference's.
//
// A call of unknown outcome (its deadline passed, say) may have taken a number or not, so it
// accounts for one missing number at most, and only for one above all that were given for its name
// before it began: it can't have been executed before it was made. It may have been executed at any
// time later, so there is no upper bound. Missing numbers are matched with such calls so that as
// few as possible are lost. A call that failed for certain without being executed accounts for
// nothing.
func judge(accounts map[string]account, states map[string]map[string]uint64, reference string) verdict {
	var v verdict
	names := map[string]bool{}
	for name := range accounts {
		names[name] = true
	}
	for _, state := range states {
		for name := range state {
			names[name] = true
		}
	}
	final, known := states[reference]
	replicas := slices.Sorted(maps.Keys(states))
	for _, name := range slices.Sorted(maps.Keys(names)) {
		a, count := accounts[name], final[name]
		if !known {
			count = a.Given.max()
		}
		if a.Repeated > 0 {
			v.Duplicated += a.Repeated
			v.find("%s: %d numbers were given more than once", name, a.Repeated)
		}
		if n := a.Given.above(count); n > 0 {
			v.Lost += n
			v.find("%s: %d numbers up to %d were given, but %s has counted to %d only", name, n, a.Given.max(),
				reference, count)
		}
		if n := a.Given.unaccounted(count, a.Unknown); n > 0 {
			v.Lost += n
			v.find("%s: %d of the numbers up to %d were given to nobody", name, n, count)
		}
		for _, replica := range replicas {
			if got := states[replica][name]; known && got != count {
				v.Lost++
				v.find("%s: %s has counted to %d, %s to %d", name, replica, got, reference, count)
			}
		}
	}
	return v
}

// numbers is a set of numbers, as the fewest spans that cover it: ascending, with gaps between
// them.
type numbers []span

// span is the numbers from its first to its second element, both in it.
type span [2]uint64

// add adds n, which isn't 0, and says whether it is new.
func (s *numbers) add(n uint64) bool {
	// The first span that doesn't end before n-1; mostly the last, since numbers come nearly in
	// order.
	i := sort.Search(len(*s), func(i int) bool { return (*s)[i][1] >= n-1 })
	if i == len(*s) {
		*s = append(*s, span{n, n})
		return true
	}
	at := &(*s)[i]
	switch {
	case at[0] <= n && n <= at[1]:
		return false
	case at[1]+1 == n:
		at[1] = n
		if i+1 < len(*s) && (*s)[i+1][0] == n+1 {
			at[1] = (*s)[i+1][1]
			*s = slices.Delete(*s, i+1, i+2)
		}
	case n+1 == at[0]:
		at[0] = n
	default:
		*s = slices.Insert(*s, i, span{n, n})
	}
	return true
}

// max is the highest number, 0 if there is none.
func (s numbers) max() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1][1]
}

// above counts the numbers above n.
func (s numbers) above(n uint64) int {
	count := 0
	for _, sp := range s {
		if sp[1] > n {
			count += int(sp[1] - max(sp[0]-1, n))
		}
	}
	return count
}

// missing is what 1..last has and s doesn't.
func (s numbers) missing(last uint64) numbers {
	var m numbers
	next := uint64(1)
	for _, sp := range s {
		if sp[0] > last {
			break
		}
		if sp[0] > next {
			m = append(m, span{next, sp[0] - 1})
		}
		if sp[1] >= last {
			return m
		}
		next = sp[1] + 1
	}
	if next <= last {
		m = append(m, span{next, last})
	}
	return m
}

// unaccounted counts the numbers missing from 1..last for which there is no call of unknown
// outcome: each of floors may account for one number above it.
//
// Going upwards, a floor that was passed is good for every number to come, so it doesn't matter
// which is taken.
func (s numbers) unaccounted(last uint64, floors []uint64) int {
	floors = slices.SortedFunc(slices.Values(floors), cmp.Compare[uint64])
	calls, lost := uint64(0), uint64(0) // calls: passed, and not taken yet
	for _, gap := range s.missing(last) {
		for from, to := gap[0], uint64(0); to < gap[1]; from = to + 1 {
			for len(floors) > 0 && floors[0] < from {
				calls, floors = calls+1, floors[1:]
			}
			to = gap[1] // calls is the same for from..to
			if len(floors) > 0 {
				to = min(to, floors[0])
			}
			taken := min(calls, to-from+1)
			calls -= taken
			lost += to - from + 1 - taken
		}
	}
	return int(min(lost, math.MaxInt))
}
