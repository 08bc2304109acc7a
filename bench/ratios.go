package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// neighbours are neighbouring windows of two revisions.
type neighbours struct {
	number  int
	windows [2]window
}

// ratio is the working tree's value to the base's.
func (p neighbours) ratio(m metric) float64 { return m.of(p.windows[atTree]) / m.of(p.windows[atBase]) }

// ratios is all that a run of the subcommand revisions has found.
type ratios struct {
	cfg   config
	pairs []neighbours
}

// What revisions are compared by.
var (
	revisionCPU    = findMetric("cpu")
	revisionAllocs = []metric{
		findMetric("allocs_client"), findMetric("allocs_primary"),
		findMetric("alloc_bytes_client"), findMetric("alloc_bytes_primary"),
	}
)

// confidence is how sure an interval of a median is to hold it.
const confidence = 0.95

// leastRounds is how many values have an interval of their median: between the least and the most
// of fewer it is too often not.
const leastRounds = 6

// errCostsMore says that the working tree needs more than the base.
var errCostsMore = errors.New("a call costs more than at the base")

// judge prints every ratio, and each median with its interval. It returns an error if an interval
// lies wholly above the limit: limit for CPU, limitAllocs for allocations.
func (r ratios) judge(out io.Writer, limit, limitAllocs float64) (err error) {
	for _, s := range r.cfg.Systems {
		for _, callers := range r.cfg.Callers {
			pairs := r.of(s, callers)
			if len(pairs) < leastRounds {
				err = errors.Join(err, fmt.Errorf("%s has %d rounds at %s, of %d: the machine is too busy",
					s, len(pairs), countOf(callers), r.cfg.Rounds))
				continue
			}
			fmt.Fprintf(out, "\n%s, %s, %d rounds\n", s, countOf(callers), len(pairs))
			err = errors.Join(err, judge(out, revisionCPU, pairs, limit))
			for _, m := range revisionAllocs {
				err = errors.Join(err, judge(out, m, pairs, limitAllocs))
			}
		}
	}
	return err
}

// judge does it for one metric of one system at one number of callers.
func judge(out io.Writer, m metric, pairs []neighbours, limit float64) error {
	var values [2][]float64
	var all []float64
	var text strings.Builder
	for _, p := range pairs {
		for i := range values {
			values[i] = append(values[i], m.of(p.windows[i]))
		}
		all = append(all, p.ratio(m))
		fmt.Fprintf(&text, " %.3f", p.ratio(m))
	}
	low, high := medianInterval(all)
	verdict := ""
	var err error
	if low > limit {
		verdict = fmt.Sprintf("  more than × %.3g", limit)
		w := pairs[0].windows[atTree]
		err = fmt.Errorf("%w: %s, %s: %s × %.3f (%.3f-%.3f)",
			errCostsMore, w.System, countOf(w.Callers), m.name, median(all), low, high)
	}
	fmt.Fprintf(out, "  %-20s %8s → %-8s × %.3f (%.3f-%.3f)%s\n    rounds:%s\n", m.name,
		number(median(values[atBase])), number(median(values[atTree])), median(all), low, high, verdict, text.String())
	return err
}

// of are the pairs of one system at one number of callers.
func (r ratios) of(system string, callers int) (pairs []neighbours) {
	for _, p := range r.pairs {
		if w := p.windows[atTree]; w.System == system && w.Callers == callers {
			pairs = append(pairs, p)
		}
	}
	return pairs
}

// medianInterval is the confidence interval of the median that values are drawn around, whatever
// their distribution: how many of n values are below their median is binomial, so the k-th least
// and the k-th most enclose it but for twice the chance that less than k are below. There must be
// leastRounds values at least. It sorts them.
func medianInterval(values []float64) (low, high float64) {
	slices.Sort(values)
	n, k := len(values), 0
	below := 0.0 // the chance that k or fewer are below
	for ; ; k++ {
		below += math.Exp(logChoose(n, k) - float64(n)*math.Ln2)
		if 2*below > 1-confidence {
			break
		}
	}
	// The k-th least of n, counted from 1: that k-1 or fewer are below has been found rare enough.
	return values[k-1], values[n-k]
}

// logChoose is the logarithm of how many ways there are to choose k of n.
func logChoose(n, k int) float64 {
	g := func(v int) float64 { r, _ := math.Lgamma(float64(v + 1)); return r }
	return g(n) - g(k) - g(n-k)
}
