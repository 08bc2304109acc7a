package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

// maxRepeats is how many windows, or profiles, of one system at one number of callers may be repeated because the group
// has changed in them.
const maxRepeats = 3

// bench measures, into report.
type bench struct {
	cfg      config
	progress io.Writer
	report   report
	etcd     *embedded
	plain    *fleet
}

// run compares one system after the other with plain gRPC: so that at most one stands idle while plain is measured.
func (b *bench) run(ctx context.Context) (err error) {
	if b.cfg.Profile != "" {
		if b.cfg.Profile, err = filepath.Abs(b.cfg.Profile); err != nil {
			return err
		}
	}
	b.report.Begun, b.report.LoadBefore = time.Now(), loadAverage()
	if b.etcd, err = startEtcd(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.etcd.stop()) }()
	b.plain, err = startFleet(ctx, systems[0], b.cfg, b.etcd.addr)
	defer b.plain.stop()
	if err != nil {
		return err
	}
	for i, name := range b.cfg.Systems {
		if err := b.system(ctx, name, i == 0); err != nil {
			return err
		}
	}
	b.report.LoadAfter, b.report.Took = loadAverage(), time.Since(b.report.Begun)
	return b.plain.check(ctx)
}

// system measures one, at every number of callers.
func (b *bench) system(ctx context.Context, name string, first bool) error {
	s, _ := findSystem(name)
	f, err := startFleet(ctx, s, b.cfg, b.etcd.addr)
	defer f.stop()
	if err != nil {
		return err
	}
	for _, callers := range b.cfg.Callers {
		if err := b.rounds(ctx, f, callers); err != nil {
			return err
		}
		if b.cfg.Profile == "" {
			continue
		}
		if first {
			if err := b.profile(ctx, b.plain, callers); err != nil {
				return err
			}
		}
		if err := b.profile(ctx, f, callers); err != nil {
			return err
		}
	}
	return f.check(ctx)
}

// rounds alternates windows of plain gRPC and of the system: plain, system, plain, …, plain.
func (b *bench) rounds(ctx context.Context, f *fleet, callers int) error {
	before, err := b.plain.window(ctx, callers, b.cfg.WarmUp, b.cfg.Window)
	if err != nil {
		return err
	}
	repeats := 0
	var last round
	for done := 0; done < b.cfg.Rounds; {
		w, err := f.window(ctx, callers, b.cfg.WarmUp, b.cfg.Window)
		if err != nil && !errors.Is(err, errDisturbed) {
			return err
		}
		after, plainErr := b.plain.window(ctx, callers, b.cfg.WarmUp, b.cfg.Window)
		if plainErr != nil {
			return plainErr
		}
		if err == nil {
			last = round{Before: before, Window: w, After: after}
			b.report.Rounds = append(b.report.Rounds, last)
			done++
		} else {
			b.report.Disturbed++
			if repeats++; repeats > maxRepeats {
				return fmt.Errorf("%s, %d callers: %w in %d windows: the machine is too busy", f.system.name, callers, err, repeats)
			}
		}
		before = after
	}
	fmt.Fprintf(b.progress, "%s, %d callers: %.0f calls/s; plain gRPC %.0f\n", f.system.name, callers, callRate.of(last.Window), callRate.of(last.After))
	return nil
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
	Before window `json:"before"`
	Window window `json:"window"`
	After  window `json:"after"`
}
