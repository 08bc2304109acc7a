package simulation

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy"
)

// prompt is what a call may take while one backup is in trouble (R6), an idle interval included.
const prompt = 100 * time.Millisecond

// patient is what a call may take beside a hostile client: messages that it withholds are fetched.
const patient = 500 * time.Millisecond

// verdict collects violations; each begins with the rule or the invariant that it violates.
type verdict struct {
	rec   *Record
	found []string
	order []Entry // what the replicas agree on
	state []Cells // before the first one, and after each
	place map[string]int
}

// Check holds a run against what is promised, and returns the violations. patience bounds
// porcupine.
func Check(rec *Record, patience time.Duration) []string {
	v := &verdict{rec: rec, found: slices.Clone(rec.Problems), place: map[string]int{}}
	if n := rec.Coverage.Counts()[tooLarge]; n > 0 {
		v.find("R5: %d headers were too large", n)
	}
	if len(rec.Replicas) == 0 {
		v.find("the group didn't come back")
		return v.found
	}
	v.agreement()
	v.ledger()
	kept := v.calls()
	v.realTime(kept)
	v.epochs()
	v.suspicion()
	v.recovery()
	v.promptness()
	v.undisturbed()
	v.linearizable(kept, patience)
	return v.found
}

const most = 20 // findings that are worth printing

func (v *verdict) find(format string, args ...any) {
	if len(v.found) < most {
		v.found = append(v.found, fmt.Sprintf(format, args...))
	}
}

// agreement is I1: all replicas have executed the same turns, with the same time, randomness and
// result, and have the same state.
func (v *verdict) agreement() {
	v.order = v.rec.Replicas[0].Ledger
	for i, s := range v.rec.Replicas[1:] {
		for k := range max(len(s.Ledger), len(v.order)) {
			if k >= len(s.Ledger) || k >= len(v.order) || s.Ledger[k] != v.order[k] {
				v.find("I1: replica 0 has %d turns, replica %d has %d; they differ from the %d. on: %v, %v",
					len(v.order), i+1, len(s.Ledger), k+1, tail(v.order, k), tail(s.Ledger, k))
				break
			}
		}
		if s.Cells != v.rec.Replicas[0].Cells {
			v.find("I1: replica 0 has the cells %v, replica %d %v", v.rec.Replicas[0].Cells, i+1, s.Cells)
		}
	}
}

func tail(es []Entry, from int) []Entry { return es[min(from, len(es)):min(from+1, len(es))] }

// ledger holds what was executed against itself, and against what was asked for.
func (v *verdict) ledger() {
	asked := map[string]Request{}
	for _, c := range v.rec.Calls {
		asked[c.Request.ID] = c.Request
	}
	cells, last, draws := v.rec.Plan.opening(), Entry{}, map[int64]bool{}
	v.state = []Cells{cells}
	for k, e := range v.order {
		var result Result
		cells, result = cells.Apply(e.Request)
		switch r, known := asked[e.Request.ID]; {
		case v.place[e.Request.ID] != 0:
			v.find("I4: %s was executed twice, %d. and %d.", e.Request.ID, v.place[e.Request.ID], k+1)
		case strings.HasPrefix(e.Request.ID, hostileID) && v.rec.Plan.Hostile:
		case !known || r != e.Request || r.Read:
			v.find("nobody has asked for %+v", e)
		case e.OrderNum <= last.OrderNum:
			v.find("I2: %+v was executed after %+v", e, last)
		case e.Now < last.Now:
			v.find("R7: Now goes back from %+v to %+v", last, e)
		case draws[e.Rand]:
			v.find("R7: %+v has the randomness of an earlier turn", e)
		case result != e.Result:
			v.find("I2: %+v should have had the result %+v", e, result)
		}
		v.place[e.Request.ID], draws[e.Rand], last = k+1, true, e
		v.state = append(v.state, cells)
	}
}

// calls holds what each caller saw against what was executed. It returns the calls that porcupine
// is to know of: a reply that was undone, as its client was told, is none.
func (v *verdict) calls() (kept []Call) {
	rec := v.rec
	told := map[string]time.Duration{} // when a client was told DataLoss for the last time
	for _, c := range rec.Calls {
		if c.Code == codes.DataLoss {
			told[c.Host] = max(told[c.Host], c.Ended)
		}
	}
	for _, c := range rec.Calls {
		at := v.place[c.Request.ID]
		switch c.Outcome {
		case Accepted:
			if v.inOrder(c) {
				v.bounded(c)
				break
			}
			v.inTime(c)
			switch {
			case c.Stable:
				v.find("I5: at Stable, %v isn't in the order (%d: %v)", c, at,
					tail(v.order, at-1+len(v.order)*b(at == 0)))
			case told[c.Host] >= c.Ended:
				rec.Coverage.add("an undone reply was told (I5)", 1)
			case !rec.Gone[c.Host]: // who has gone can't be told
				v.find("I5: %v isn't in the order (%d), and its client wasn't told", c, at)
			}
			continue
		case Refused:
			rec.Coverage.add("a call was refused", 1)
			if at != 0 {
				v.find("%v was executed, %d.", c, at)
			}
		case Unknown:
			if c.Code == codes.DataLoss && !v.excused() {
				v.find("I5: nothing but replicas failed, and a client was told DataLoss: %v", c)
			}
			if c.Request.Read {
				break
			}
			rec.Coverage.add("a call's outcome was unknown", 1)
			if at != 0 {
				rec.Coverage.add("a call of unknown outcome was executed", 1)
			}
		case Foreign:
			v.find("%v", c)
		}
		kept = append(kept, c)
	}
	return kept
}

// inOrder says whether what a caller accepted is in the order: its turn, as it was replied; or, of
// a read-only method, the last turn that it has seen, as it was then, and none that comes after its
// orderNum. The turn that a read has seen stands for all before it: which have been undone if it
// has, and not otherwise.
func (v *verdict) inOrder(c Call) bool {
	at, said := v.position(c)/2, *c.Reply
	if at > len(v.order) {
		return false
	}
	e := Entry{}
	if at > 0 {
		e = v.order[at-1]
	}
	if !c.Request.Read {
		return at > 0 && said == Reply{Place: at, OrderNum: e.OrderNum, Result: e.Result, Now: e.Now, Rand: e.Rand}
	}
	if said.Saw != e.seen() || said.OrderNum < e.OrderNum || at < len(v.order) &&
		said.OrderNum >= v.order[at].OrderNum {
		return false
	}
	v.rec.Coverage.add("a read was accepted", 1)
	if _, result := v.state[at].Apply(c.Request); result != said.Result || said.Now < e.Now {
		v.find("R10: %v has seen %+v, and not the state after it, %v", c, e, v.state[at])
	}
	if v.leapt() {
		return true
	}
	for _, f := range v.rec.Failovers {
		opened := f.Opened.Sub(v.rec.Began)
		if time.UnixMicro(said.Now).Sub(v.rec.Began) >= opened && said.OrderNum+1 < f.FirstOrderNum {
			v.find("R10: %v was read when epoch %d, whose first orderNum is %d, had begun at %v", c, f.Epoch,
				f.FirstOrderNum, opened)
		}
	}
	return true
}

// position is where a call that was accepted is in the order: an ordered one at an even number, and
// one that has only read between two of these. 0 if it isn't there.
func (v *verdict) position(c Call) int {
	if c.Request.Read {
		return 2*c.Reply.Place + 1
	}
	return 2 * v.place[c.Request.ID]
}

// inTime is R10 with R12.2: no reply of a primary is accepted once its successor's gate is open,
// unless that has what was replied. The first takeover since the turn that begins at or before it
// has voided it; of a read, since the last turn that it has seen: a deposed primary may read at any
// time.
func (v *verdict) inTime(c Call) {
	if v.leapt() {
		return
	}
	replied := Seen{c.Reply.OrderNum, c.Reply.Now, 0}
	if c.Request.Read {
		replied = c.Reply.Saw
	}
	turn := time.UnixMicro(replied.Now).Sub(v.rec.Began) + time.Microsecond // it was rounded down
	// in the order of their reports, which is that of their gates
	for _, f := range v.rec.Failovers {
		opened := f.Opened.Sub(v.rec.Began)
		if opened <= turn || f.FirstOrderNum > replied.OrderNum {
			continue
		}
		if c.Ended > opened {
			v.find("R10: %v was accepted when epoch %d, which doesn't have it, had begun at %v", c, f.Epoch, opened)
		}
		return
	}
}

// leapt says whether some wall clock did: then Now doesn't say when a turn was taken.
func (v *verdict) leapt() bool {
	behind, ahead := v.rec.Plan.leaps()
	return behind != 0 || ahead != 0
}

// bounded is R7: Now is no further from the time than some replica's wall clock was.
func (v *verdict) bounded(c Call) {
	behind, ahead := v.rec.Plan.leaps()
	now := time.UnixMicro(c.Reply.Now).Sub(v.rec.Began)
	if at := c.Ended + ahead; now > at {
		v.find("R7: %v has the time %v, and no clock was further than %v", c, now, at)
	}
	if at := c.Began + behind - time.Microsecond; now < at {
		v.find("R7: %v has the time %v, and no clock was before %v", c, now, at)
	}
}

// suspicion: while the store isn't the group's nobody is elected, and nothing is given up; calls
// wait, and go on.
func (v *verdict) suspicion() {
	for _, s := range v.rec.Suspect {
		for _, f := range v.rec.Failovers {
			if at := f.Elected.Sub(v.rec.Began); at > s.from && at < s.to {
				v.find("suspect: epoch %d was begun at %v, and the store wasn't the group's from %v to %v", f.Epoch, at,
					s.from, s.to)
			}
		}
		for _, c := range v.rec.Calls {
			if c.Outcome == Accepted && c.Began > s.from && c.Began < s.to && c.Ended > s.to {
				v.rec.Coverage.add("a call waited until a suspect store made sense again", 1)
			}
		}
	}
}

func b(cond bool) int {
	if cond {
		return 1
	}
	return 0
}

// excused says whether two faults at once can have cost what a caller had seen: below Stable, if
// clients, or their links, failed too. A hostile client is one: the first few messages that it
// withholds from a backup are lost with the primary, and with them what others have accepted since,
// until that backup has it detached.
func (v *verdict) excused() bool {
	p := v.rec.Plan
	return p.Level != understudy.Stable && (p.Hostile || slices.ContainsFunc(p.Faults, Fault.clients))
}

// realTime: what was accepted before another call began was executed before it. So a read has seen
// what ended before it began, and nothing that began when it had ended.
func (v *verdict) realTime(kept []Call) {
	var done []Call
	for _, c := range kept {
		if c.Outcome == Accepted {
			done = append(done, c)
		}
	}
	byEnd := slices.Clone(done)
	slices.SortFunc(done, func(a, b Call) int { return cmp.Compare(a.Began, b.Began) })
	slices.SortFunc(byEnd, func(a, b Call) int { return cmp.Compare(a.Ended, b.Ended) })
	var latest *Call
	for _, c := range done {
		for byEnd[0].Ended < c.Began {
			if e := byEnd[0]; latest == nil || v.position(e) > v.position(*latest) {
				latest = &e
			}
			byEnd = byEnd[1:]
		}
		if latest != nil && v.position(c) < v.position(*latest) {
			v.find("R10: %v was executed before %v, which had ended", c, *latest)
		}
	}
}

// epochs is I7, as far as takeovers were reported.
func (v *verdict) epochs() {
	seen := map[uint64]string{}
	for _, f := range v.rec.Failovers {
		if other, twice := seen[f.Epoch]; twice {
			v.find("I7: %s and %s both lead in epoch %d", other, f.To, f.Epoch)
		}
		seen[f.Epoch] = f.To
	}
}

// recovery: when all faults have ended, every call ends well; all calls do in a liveness run. A
// session whose loss nobody could be told before may be told now.
func (v *verdict) recovery() {
	p := v.rec.Plan
	for _, c := range v.rec.Calls {
		must := c.Last || p.Live && c.Ended > p.Heal && !v.rec.Gone[c.Host]
		if p.MinInSync > 1 && c.Outcome == Refused && !c.Last {
			continue // too few are in-sync yet
		}
		if must && c.Outcome != Accepted && c.Code != codes.DataLoss && c.Code != codes.Canceled {
			v.find("liveness: all faults ended at %v: %v", p.Heal, c)
		}
		if took := c.Ended - max(c.Began, p.Heal); took > recovery {
			v.find("liveness: all faults ended at %v: %v took %v", p.Heal, c, took)
		}
	}
}

// undisturbed: nothing happens but what a hostile client does, and what that costs others is
// bounded.
func (v *verdict) undisturbed() {
	p := v.rec.Plan
	if !p.Hostile || len(p.Faults) > 0 {
		return
	}
	for _, c := range v.rec.Calls {
		if took := c.Ended - c.Began; took > patient && !c.Opens {
			v.find("a hostile client holds up others: a call took %v: %v", took, c)
		}
		if c.Outcome != Accepted && c.Code != codes.DeadlineExceeded {
			v.find("a hostile client makes others fail: %v", c)
		}
	}
}

// promptness is R6: below Stable no call is slow because one backup is.
func (v *verdict) promptness() {
	p := v.rec.Plan
	if p.Style != Backup || p.Level == understudy.Stable {
		return
	}
	limit := prompt
	if slices.ContainsFunc(p.Faults, func(f Fault) bool { return f.Kind == "crash" }) {
		// Started again, it can't hear a client that is still waiting to connect: replies to that
		// one wait for its acknowledgement (R11), on a link that may be slow.
		for _, f := range p.Faults {
			limit = max(limit, prompt+2*f.Extra)
		}
	}
	for _, c := range v.rec.Calls {
		if took := c.Ended - c.Began; took > limit && !c.Stable && !c.Opens {
			v.find("R6: one backup is in trouble, and a call took %v: %v", took, c)
		}
	}
}

// linearizable asks porcupine.
func (v *verdict) linearizable(calls []Call, patience time.Duration) {
	switch Linearizable(v.rec.Plan, calls, patience) {
	case porcupine.Ok:
		v.rec.Coverage.add("porcupine decided", 1)
	case porcupine.Illegal:
		v.rec.Coverage.add("porcupine decided", 1)
		v.find("linearizability: the callers' history has no order")
	default:
		v.rec.Coverage.add("porcupine gave up", 1)
	}
}
