//go:build linux

// Package chaos runs replicas of the journal service at each level, clients of it, and an etcd of three nodes, each a
// process on a host of its own, makes faults drawn from a seed, and says after every few of them whether the group came
// back, whether the replicas are in one state, and whether every caller was told the truth.
//
// The hosts are network namespaces on a bridge. A fault is what a machine room does: processes killed and stopped, cables
// cut in one direction or both, connections reset, etcd without a quorum. The seed decides what is drawn; when it strikes,
// the machine decides, so that a seed repeats the kind of a run and not its course.
package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"github.com/understudy-rpc/understudy"
)

// Config is what a run is told.
type Config struct {
	Seed     uint64
	Duration time.Duration      // of the faults at all levels together
	Levels   []understudy.Level // one after the other, each with a group of its own
	Bin      string             // where Build has put the processes
	Dir      string             // for logs and etcd's data
	Out      io.Writer          // a line for each fault
}

// A Report is what a run has seen.
type Report struct {
	faults                                      []fault
	calls, lost, duplicated, contradicted, told int
}

// Run makes faults until the duration is over, a promise is broken, or ctx ends; the last two are errors. It must run in
// the process that Enter has started.
func Run(ctx context.Context, c Config) (Report, error) {
	var r Report
	l, err := newLab(allHosts()...)
	if err != nil {
		return r, err
	}
	begun := now()
	log := func(format string, args ...any) {
		fmt.Fprintf(c.Out, "%7.1f s  %s\n", (now() - begun).Seconds(), fmt.Sprintf(format, args...))
	}
	log("seed %d, %v", c.Seed, l)
	rng := rand.New(rand.NewPCG(c.Seed, 0))
	for _, level := range c.Levels {
		if err := r.at(ctx, c, level, l, rng, log); err != nil {
			return r, fmt.Errorf("at %v: %w", level, err)
		}
	}
	return r, nil
}

// at makes faults at one level for its share of the time.
func (r *Report) at(ctx context.Context, c Config, level understudy.Level, l *lab, rng *rand.Rand, log func(string, ...any)) (err error) {
	w, err := newWorld(ctx, l, level, c.Bin, filepath.Join(c.Dir, level.String()))
	defer func() {
		r.add(w)
		err = errors.Join(err, w.close())
	}()
	if err != nil {
		return err
	}
	log("a group at %v", level)
	until := now() + c.Duration/time.Duration(len(c.Levels))
	for now() < until {
		p := &phase{w: w, rng: rng, log: log}
		err := p.run(ctx)
		r.faults = append(r.faults, p.faults...)
		if err != nil {
			if ctx.Err() == nil {
				w.quit()
			}
			return err
		}
	}
	log("%v", w.verdict)
	return nil
}

// add counts what the world's last verdict says.
func (r *Report) add(w *world) {
	v := w.verdict
	r.calls += v.Calls
	r.lost += v.Lost + w.unmasked
	r.told += v.Told
	r.duplicated += v.Duplicated
	r.contradicted += v.Contradicted + v.Reordered + v.Refused + v.Stray + w.differ
}

// Write writes the table, and the line that sums up.
func (r Report) Write(out io.Writer) {
	held := map[string][]time.Duration{}
	for _, f := range r.faults {
		held[f.kind] = append(held[f.kind], f.held)
	}
	fmt.Fprintf(out, "\n%-32s %6s  %s\n%-32s %6s %8s %8s\n", "", "", "longest call held up", "fault", "made", "p50", "max")
	for _, k := range kinds {
		h := held[k.name]
		if len(h) == 0 {
			continue
		}
		slices.Sort(h)
		fmt.Fprintf(out, "%-32s %6d %6.2f s %6.2f s\n", k.name, len(h), h[len(h)/2].Seconds(), h[len(h)-1].Seconds())
	}
	if r.told > 0 {
		fmt.Fprintf(out, "%d calls were lost in two faults at once, and their callers told or killed\n", r.told)
	}
	fmt.Fprintf(out, "faults=%d calls=%d lost=%d duplicated=%d contradicted=%d\n", len(r.faults), r.calls, r.lost, r.duplicated, r.contradicted)
}
