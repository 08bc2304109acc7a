package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// A kill is a replica that the parent has killed.
type kill struct {
	name string
	at   time.Time
}

// A row is one line of the table: a failover, or a kill that none followed.
type row struct {
	at       time.Time // of the kill; of the suspicion, when nobody was killed
	died     string    // "-" when nobody was killed
	tookOver string    // empty when nobody did
	epoch    uint64
	// Negative when not known.
	detection, election, takeover time.Duration
	longest                       heldCall // in flight at that time, or begun later
}

const unknownDuration = time.Duration(-1)

// rows matches the failovers with the kills that they follow, in the order of time. The longest
// calls are filled in later.
func rows(kills []kill, failovers []failover) []row {
	failovers = slices.SortedFunc(slices.Values(failovers), func(a, b failover) int {
		return cmp.Compare(a.Epoch, b.Epoch)
	})
	failovers = slices.CompactFunc(failovers, func(a, b failover) bool { return a.Epoch == b.Epoch })
	table := make([]row, len(failovers))
	matched := make([]bool, len(kills))
	match := func(i int, explains func(kill) bool) {
		f, r := failovers[i], &table[i]
		for j, k := range slices.Backward(kills) {
			if !matched[j] && !k.at.After(f.Opened) && explains(k) {
				matched[j] = true
				r.at, r.died, r.detection = k.at, k.name, between(k.at, f.Suspected)
				return
			}
		}
	}
	for i, f := range failovers {
		table[i] = row{at: f.Suspected, died: "-", tookOver: f.To, epoch: f.Epoch, detection: unknownDuration,
			election: between(f.Suspected, f.Elected), takeover: between(f.Elected, f.Opened)}
		match(i, func(k kill) bool { return k.name == f.From })
	}
	// Somebody may have been elected in between, who was replaced before it had taken over.
	for i, f := range failovers {
		if table[i].died == "-" {
			match(i, func(k kill) bool {
				return !slices.ContainsFunc(failovers, func(other failover) bool {
					return other.Epoch < f.Epoch && other.Opened.After(k.at)
				})
			})
		}
	}
	for i, k := range kills {
		if !matched[i] {
			table = append(table, row{at: k.at, died: k.name,
				detection: unknownDuration, election: unknownDuration, takeover: unknownDuration})
		}
	}
	slices.SortStableFunc(table, func(a, b row) int { return a.at.Compare(b.at) })
	return table
}

// between is not known when either time isn't. (A primary can be suspected just before it is
// killed: that took 0.)
func between(from, to time.Time) time.Duration {
	if from.IsZero() || to.IsZero() {
		return unknownDuration
	}
	return max(to.Sub(from), 0)
}

// printTable writes a line a row. began is when the callers began.
func printTable(out io.Writer, began time.Time, table []row) {
	fmt.Fprintf(out, "%8s  %-5s %-9s %6s  %10s %10s %10s %10s  %s\n", "at", "died", "took over", "epoch", "detection",
		"election", "takeover", "held up", "begun")
	for _, r := range table {
		epoch := "-"
		if r.tookOver != "" {
			epoch = fmt.Sprint(r.epoch)
		}
		fmt.Fprintf(out, "%6.1f s  %-5s %-9s %6s  %10s %10s %10s %10s  %s\n", r.at.Sub(began).Seconds(), r.died,
			cmp.Or(r.tookOver, "nobody"), epoch,
			inMilliseconds(r.detection), inMilliseconds(r.election), inMilliseconds(r.takeover),
			inMilliseconds(r.longest.Took), r.begun())
	}
}

// begun tells a call that the death held up from one that something else did, such as the restart.
func (r row) begun() string {
	switch after := r.longest.Start.Sub(r.at); {
	case r.longest.Took == 0:
		return "-"
	case after <= 0:
		return "before"
	default:
		return fmt.Sprintf("%.1f s after", after.Seconds())
	}
}

func inMilliseconds(d time.Duration) string {
	if d < 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// milliseconds rounds.
func milliseconds(d time.Duration) int64 { return d.Round(time.Millisecond).Milliseconds() }

// An outcome is what the last line says.
type outcome struct {
	calls, failed, lost, duplicated int
	gaps                            []time.Duration // one for each failover
}

// newOutcome takes the rows that are failovers.
func newOutcome(t tally, v verdict, table []row) outcome {
	o := outcome{calls: t.Calls, failed: t.Failed, lost: v.Lost, duplicated: v.Duplicated}
	for _, r := range table {
		if r.tookOver != "" {
			o.gaps = append(o.gaps, r.longest.Took)
		}
	}
	return o
}

// ok says whether nothing failed, was lost or duplicated.
func (o outcome) ok() bool { return o.failed+o.lost+o.duplicated == 0 }

// String is the last line, which programs read.
func (o outcome) String() string {
	var p50, longest time.Duration
	if gaps := slices.Sorted(slices.Values(o.gaps)); len(gaps) > 0 {
		p50, longest = gaps[(len(gaps)-1)/2], gaps[len(gaps)-1]
	}
	return fmt.Sprintf("calls=%d failed=%d lost=%d duplicated=%d failovers=%d gap_p50_ms=%d gap_max_ms=%d",
		o.calls, o.failed, o.lost, o.duplicated, len(o.gaps), milliseconds(p50), milliseconds(longest))
}

// print writes what calls failed with.
func (t tally) print(out io.Writer) {
	for _, code := range slices.Sorted(maps.Keys(t.Failures)) {
		fmt.Fprintf(out, "failed: %d with %s, the first: %s\n", t.Failures[code].Count, code, t.Failures[code].First)
	}
}

// print writes what was found.
func (v verdict) print(out io.Writer) {
	for _, f := range v.Findings {
		fmt.Fprintln(out, f)
	}
	if v.More > 0 {
		fmt.Fprintf(out, "and %d findings more\n", v.More)
	}
}

// statsLine begins the line of a second.
func statsLine(began time.Time, last, now stats) string {
	perSecond := 0.0
	if took := now.At.Sub(last.At).Seconds(); took > 0 {
		perSecond = float64(now.Calls-last.Calls) / took
	}
	line := fmt.Sprintf("%3.0fs %7.0f calls/s", now.At.Sub(began).Seconds(), perSecond)
	if failed := now.Failed - last.Failed; failed > 0 {
		line += fmt.Sprintf(", %d failed", failed)
	}
	return line
}

// failoverLine is said when somebody has taken over.
func failoverLine(f failover) string {
	return fmt.Sprintf("%s took over from %s in epoch %d", f.To, f.From, f.Epoch)
}

// String is a replica's own line.
func (s replicaStatus) String() string {
	if s.Epoch == 0 {
		return string(s.Role)
	}
	return fmt.Sprintf("%-12s primary %s   epoch %-4d in-sync %s   executed %d", s.Role, s.Primary, s.Epoch,
		strings.Join(s.InSync, " "), s.Executed)
}
