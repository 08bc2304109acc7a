package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

// maxRepeats is how many windows, or profiles, of one system at one number of callers may be
// repeated because the group has changed in them.
const maxRepeats = 3

// bench measures, into report.
type bench struct {
	cfg      config
	progress io.Writer
	report   report
	etcd     *etcdnode.Node
	fleets   []*fleet // plain gRPC's first
	plain    *fleet
}

// run has all systems up at once, and compares them in rounds: each round has a window of each,
// between windows of plain gRPC, so that what a ratio compares is neighbours.
func (b *bench) run(ctx context.Context) (err error) {
	if b.cfg.Profile != "" {
		if b.cfg.Profile, err = filepath.Abs(b.cfg.Profile); err != nil {
			return err
		}
	}
	b.report.Begun, b.report.LoadBefore = time.Now(), loadAverage()
	if b.etcd, err = etcdnode.Start(ctx, etcdnode.Config{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.etcd.Stop()) }()
	b.fleets, err = startFleets(ctx, append([]string{systems[0].name}, b.cfg.Systems...), b.cfg, b.etcd.Addr)
	defer stopFleets(b.fleets)
	if err != nil {
		return err
	}
	b.plain = b.fleets[0]
	if err := b.rounds(ctx); err != nil {
		return err
	}
	if b.cfg.Profile != "" {
		for _, callers := range b.cfg.Callers {
			for _, f := range b.fleets {
				if err := b.profile(ctx, f, callers); err != nil {
					return err
				}
			}
		}
	}
	b.report.LoadAfter, b.report.Took = loadAverage(), time.Since(b.report.Begun)
	for _, f := range b.fleets {
		err = errors.Join(err, f.check(ctx))
	}
	return errors.Join(err, b.report.complete())
}

// rounds goes on until there are as many as wanted, or another would end after the time bound.
func (b *bench) rounds(ctx context.Context) error {
	begun := time.Now()
	for number := range b.cfg.Rounds {
		for _, callers := range b.cfg.Callers {
			if err := b.round(ctx, number, callers); err != nil {
				return err
			}
		}
		done := number + 1
		if spent := time.Since(begun); b.cfg.Bound > 0 && spent+spent/time.Duration(done) > b.cfg.Bound {
			break
		}
	}
	return nil
}

// round takes one window of each system: plain, system, plain, system, …, plain.
func (b *bench) round(ctx context.Context, number, callers int) error {
	before, err := b.plain.window(ctx, callers, b.cfg.WarmUp, b.cfg.Window)
	if err != nil {
		return err
	}
	repeats := 0
	for i := 1; i < len(b.fleets); {
		f := b.fleets[i]
		w, err := f.window(ctx, callers, b.cfg.WarmUp, b.cfg.Window)
		if err != nil && !errors.Is(err, errDisturbed) {
			b.note("%s was started again at %d callers: %.200v", f.system.name, callers, err)
			if err := b.restart(ctx, i); err != nil {
				return err
			}
		}
		after, plainErr := b.plain.window(ctx, callers, b.cfg.WarmUp, b.cfg.Window)
		if plainErr != nil {
			return plainErr
		}
		if err == nil {
			b.report.Rounds = append(b.report.Rounds, round{Number: number, Before: before, Window: w, After: after})
			fmt.Fprintf(b.progress, "round %d: %s, %d callers: %.0f calls/s; plain gRPC %.0f\n", number+1,
				f.system.name, callers, callRate.of(w), callRate.of(after))
		} else {
			b.report.Disturbed++
			if repeats++; repeats <= maxRepeats {
				before = after
				continue
			}
			b.note("%s has no window in round %d at %d callers: the machine is too busy", f.system.name, number+1,
				callers)
		}
		before, i, repeats = after, i+1, 0
	}
	return nil
}

// note tells what a reader of the figures must know.
func (b *bench) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	b.report.Notes = append(b.report.Notes, text)
	fmt.Fprintln(b.progress, text)
}

// restart starts a fleet again that can't go on, because its callers know another leader, say.
func (b *bench) restart(ctx context.Context, i int) (err error) {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.fleets[i].stop()
	b.fleets[i], err = startFleet(ctx, b.fleets[i].system, b.cfg, b.etcd.Addr)
	return err
}

// complete returns nil when there is a window of each system at each number of callers.
func (r *report) complete() (err error) {
	for _, callers := range r.Config.Callers {
		for _, s := range r.Config.Systems {
			err = errors.Join(err,
				complain(len(r.of(s, callers)) == 0, "%s has no window at %d callers: the machine is too busy", s,
					callers))
		}
	}
	return err
}

// profile takes profiles until nothing disturbs them.
func (b *bench) profile(ctx context.Context, f *fleet, callers int) (err error) {
	for range 1 + maxRepeats {
		if err = f.profile(ctx, b.cfg.Profile, callers, b.cfg.WarmUp, b.cfg.ProfileFor); !errors.Is(err, errDisturbed) {
			return err
		}
	}
	return fmt.Errorf("%s, %d callers: %w in each profile: the machine is too busy", f.system.name, callers, err)
}

// A round is a window between two of plain gRPC.
type round struct {
	Number int    `json:"number"` // what has the same number was measured at about the same time
	Before window `json:"before"`
	Window window `json:"window"`
	After  window `json:"after"`
}
