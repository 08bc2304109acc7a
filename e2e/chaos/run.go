//go:build linux

// Package chaos runs replicas of the journal service at each level, clients of it, and an etcd of
// three nodes, each a process on a host of its own, makes faults drawn from a seed, and says after
// every few of them whether the group came back, whether the replicas are in one state, and whether
// every caller was told the truth.
//
// The hosts are network namespaces on a bridge, or else there is a TCP relay before each. A fault
// is what a machine room does: processes killed and stopped, cables cut in one direction or both,
// connections reset or half-open, etcd without a quorum; and what people do: etcd's data deleted or
// restored, a process started twice, or where another one was, and replicas asked to end. The seed
// decides what is drawn; when it strikes, the machine decides, so that a seed repeats the kind of a
// run and not its course.
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

// A network is what the hosts are on. Its methods are called from one goroutine.
type network interface {
	fmt.Stringer
	addr(host string) string      // that its processes listen on
	on(host string) []string      // the command that runs another one there
	via(host string) string       // the relay that its processes dial through, or ""
	drop(directions []pair) error // loses what is sent in these directions, until heal
	heal() error
	reset(a, b string) error // resets every connection between two hosts, at both ends
	close() error
}

// Config is what a run is told.
type Config struct {
	Seed     uint64
	Duration time.Duration      // of the faults at all levels together
	Levels   []understudy.Level // one after the other, each with a group of its own
	Faults   []string           // by their names; those that are drawn by themselves without it
	Bin      string             // where Build has put the processes
	Dir      string             // for logs and etcd's data
	Relays   bool               // instead of namespaces
	Clocks   bool               // Build was told to give replicas and clients clocks that can be stepped
	Out      io.Writer          // a line for each fault
}

// A Report is what a run has seen.
type Report struct {
	faults                                      []fault
	calls, lost, duplicated, contradicted, told int
	gone                                        int // replicas that were healthy
}

// Run makes faults until the duration is over, a promise is broken, or ctx ends; the last two are
// errors. Without relays it must run in the process that Enter has started.
func Run(ctx context.Context, c Config) (r Report, err error) {
	drawn, err := named(c.Faults)
	if err != nil {
		return r, err
	}
	drawn = slices.DeleteFunc(drawn, func(k kind) bool {
		return k.name == stepped && !c.Clocks || k.name == etcdPartitioned && c.Relays // relays can't
	})
	var n network
	if c.Relays {
		n, err = newRelays(allHosts()...)
	} else {
		n, err = newLab(allHosts()...)
	}
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	begun := now()
	log := func(format string, args ...any) {
		fmt.Fprintf(c.Out, "%7.1f s  %s\n", (now() - begun).Seconds(), fmt.Sprintf(format, args...))
	}
	log("seed %d, %v", c.Seed, n)
	rng := rand.New(rand.NewPCG(c.Seed, 0))
	for _, level := range c.Levels {
		if err := r.at(ctx, c, level, drawn, n, rng, log); err != nil {
			return r, fmt.Errorf("at %v: %w", level, err)
		}
	}
	return r, nil
}

// at makes faults at one level for its share of the time.
func (r *Report) at(
	ctx context.Context, c Config, level understudy.Level, drawn []kind, n network, rng *rand.Rand,
	log func(string, ...any),
) (err error) {
	w, err := newWorld(ctx, n, rng, level, c.Bin, filepath.Join(c.Dir, level.String()))
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
		p := &phase{w: w, kinds: drawn, rng: rng, log: log}
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
	r.lost += v.Lost + w.unmasked + w.undone
	r.told += v.Told
	r.gone += w.gone
	r.duplicated += v.Duplicated
	r.contradicted += v.Contradicted + v.Reordered + v.Refused + v.Stray + w.differ
}

// Write writes the table, and the line that sums up.
func (r Report) Write(out io.Writer) {
	held := map[string][]time.Duration{}
	for _, f := range r.faults {
		held[f.kind] = append(held[f.kind], f.held)
	}
	fmt.Fprintf(out, "\n%-32s %6s  %s\n%-32s %6s %8s %8s\n", "", "", "longest call held up", "fault", "made", "p50",
		"max")
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
	fmt.Fprintf(out, "faults=%d calls=%d lost=%d duplicated=%d contradicted=%d gone=%d\n",
		len(r.faults), r.calls, r.lost, r.duplicated, r.contradicted, r.gone)
}
