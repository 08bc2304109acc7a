package cluster

import (
	"fmt"
	"math"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/e2e/journal"
)

// A Ledger is what is known of one client's calls.
type Ledger struct {
	Client string
	// Killed clients may have begun calls that nobody has heard of.
	Killed bool
	// Forgiven: what this client was told may be lost with it.
	Forgiven bool
	Begun    uint64
	Calls    []journal.Call
}

// A Verdict is what comparing ledgers with what was executed says.
type Verdict struct {
	Calls, Failed int
	// Lost calls were accepted, and aren't in the history.
	Lost int
	// Contradicted calls were accepted, and stand at another place than their replies said.
	Contradicted int
	// Told calls are lost too, but their client was told so (DataLoss), or died with what it knew
	// (Forgiven).
	Told int
	// Duplicated counts every execution of a call but its first.
	Duplicated int
	// Refused calls were executed, although their error said that they never would be.
	Refused int
	// Reordered calls were executed before one that was accepted before they began.
	Reordered int
	// Stray entries are of calls that nobody made.
	Stray int
	// Findings says it in words; the first maxFindings of them.
	Findings []string
}

const maxFindings = 20

func (v *Verdict) find(format string, args ...any) {
	if len(v.Findings) < maxFindings {
		v.Findings = append(v.Findings, fmt.Sprintf(format, args...))
	}
}

// Sound reports whether the service kept its promises; calls may have failed nevertheless.
func (v Verdict) Sound() bool {
	return v.Lost == 0 && v.Contradicted == 0 && v.Duplicated == 0 && v.Refused == 0 && v.Reordered == 0 && v.Stray == 0
}

func (v Verdict) String() string {
	s := fmt.Sprintf("calls=%d failed=%d lost=%d contradicted=%d duplicated=%d refused=%d reordered=%d stray=%d",
		v.Calls, v.Failed, v.Lost, v.Contradicted, v.Duplicated, v.Refused, v.Reordered, v.Stray)
	if v.Told > 0 {
		s += fmt.Sprintf(" told=%d", v.Told)
	}
	return s
}

// never is the end of a call whose end nobody has seen.
const never = time.Duration(math.MaxInt64)

// Judge compares the clients' ledgers with a history: what one replica has executed, in order.
func Judge(history []journal.Entry, ledgers []Ledger) Verdict {
	var v Verdict
	place := make(map[journal.Entry]int, len(history)) // from 1
	for i, e := range history {
		if first, ok := place[e]; ok {
			v.Duplicated++
			v.find("%v stands at %d and at %d", e, first, i+1)
			continue
		}
		place[e] = i + 1
	}
	// When the call at each place began and ended, as far as it is known.
	began, ended := make([]time.Duration, len(history)+1), make([]time.Duration, len(history)+1)
	for i := range ended {
		ended[i] = never
	}
	seen := map[journal.Entry]bool{}
	known := map[string]Ledger{}
	for _, l := range ledgers {
		known[l.Client] = l
		told := time.Duration(-1) // up to when it was told of a loss
		for _, c := range l.Calls {
			if c.Code == codes.DataLoss {
				told = max(told, c.End)
			}
		}
		for _, c := range l.Calls {
			e := journal.Entry{Client: l.Client, Call: c.Call}
			at := place[e]
			v.Calls++
			seen[e] = true
			switch {
			case c.Code == codes.OK && (at == 0 || uint64(at) != c.Place):
				if l.Forgiven || c.Start <= told {
					v.Told++
					continue
				}
				if at == 0 {
					v.Lost++
					v.find("%v was accepted at %d, and is lost: %d calls were executed", e, c.Place, len(history))
				} else {
					v.Contradicted++
					v.find("%v was accepted at %d, and stands at %d of %d", e, c.Place, at, len(history))
				}
				continue
			case c.Code != codes.OK:
				v.Failed++
				if at != 0 && isRefusal(c.Code) {
					v.Refused++
					v.find("%v was refused (%v: %s), and stands at %d", e, c.Code, c.Text, at)
				}
			}
			if at != 0 {
				began[at] = c.Start
				if c.Code == codes.OK {
					ended[at] = c.End
				}
			}
		}
	}
	for i, e := range history {
		l, ok := known[e.Client]
		if !ok || !seen[e] && !l.Killed || !l.Killed && e.Call > l.Begun {
			v.Stray++
			v.find("%v stands at %d, and nobody has called it", e, i+1)
		}
	}
	earliest := never
	for at := len(history); at > 0; at-- {
		if earliest < began[at] {
			v.Reordered++
			v.find("%v at %d began after the end of a call that stands behind it", history[at-1], at)
		}
		earliest = min(earliest, ended[at])
	}
	return v
}

// isRefusal says whether an error promises that the call wasn't executed and never will be.
func isRefusal(c codes.Code) bool {
	return c == codes.Unavailable || c == codes.ResourceExhausted || c == codes.FailedPrecondition
}

// Longest is the longest of the calls that were in flight at any time in [from, to].
func Longest(ledgers []Ledger, from, to time.Duration) time.Duration {
	var longest time.Duration
	for _, l := range ledgers {
		for _, c := range l.Calls {
			if c.End >= from && c.Start <= to {
				longest = max(longest, c.End-c.Start)
			}
		}
	}
	return longest
}
