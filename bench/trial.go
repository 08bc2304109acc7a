package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A kind is what happens to a primary, and beside what.
type kind struct {
	name     string
	stop     bool // SIGSTOP, for as long as the callers wait; else SIGKILL
	vanish   bool // with the primary, a client is killed that has calls under way
	sessions int  // of the client that stays
}

// A trial is one failover.
type trial struct {
	Gap gapReport
	// Where the time went, as the server says that took over: from the event to its suspicion, to
	// its election, until it executes calls again, and from then until the first reply. All are 0
	// where no server says it.
	Detection, Election, Takeover, Reply time.Duration
	// Twice is how many calls were executed that no caller has a reply of: attempts that were
	// repeated, mostly.
	Twice int64
}

const (
	gapCallers = 16
	gapThink   = 2 * time.Millisecond
	gapBound   = 20 * time.Second
	// Every caller has had some replies before anything happens.
	gapLeast = 5 * gapCallers
)

var errDiffer = errors.New("the servers' states differ, or aren't what the callers know")

// trial kills or stops the primary, and measures how long calls are held up. Where a server can
// come back it is awaited; else the fleet is of no use afterwards.
func (f *fleet) trial(ctx context.Context, k kind) (t trial, err error) {
	warmUp := max(200*time.Millisecond, time.Duration(k.sessions)*gapThink)
	_, before, err := f.burst(ctx, gapCallers, warmUp)
	if err != nil {
		return t, err
	}
	leader := before.leader()
	var victim *child
	if k.vanish {
		if victim, err = f.startClient("victim"); err != nil {
			return t, err
		}
		answer := f.beginGap(ctx, victim)
		defer func() {
			victim.KillAndWait()
			answer()
		}()
		if err := awaitCalls(ctx, victim); err != nil {
			return t, err
		}
	}
	end := f.beginGap(ctx, f.client)
	defer end()
	if err := awaitCalls(ctx, f.client); err != nil {
		return t, err
	}

	at := time.Now()
	if victim != nil {
		victim.Kill()
	}
	if k.stop {
		err = f.servers[leader].Stop()
		defer f.resume(leader)
	} else {
		f.servers[leader].Kill()
	}
	if err != nil {
		return t, err
	}
	if _, err := f.client.ask(ctx, command{Do: doMark, At: at}, askTimeout); err != nil {
		return t, err
	}
	e := end()
	if e.err != nil {
		return t, e.err
	}
	t.Gap = *e.Gap
	if err := f.bringBack(k, leader); err != nil {
		return t, err
	}
	return t, f.judge(ctx, k, leader, at, &t)
}

// beginGap lets a client's callers call. The function that it returns waits for the answer; it may
// be called twice.
func (f *fleet) beginGap(ctx context.Context, client *child) func() gapAnswer {
	answered := make(chan gapAnswer, 1)
	go func() {
		e, err := client.ask(ctx, command{Do: doGap, Callers: gapCallers, For: gapBound}, gapBound+askTimeout)
		if err == nil && e.Gap == nil {
			err = errors.New("no gap was measured")
		}
		answered <- gapAnswer{e, err}
	}()
	var a *gapAnswer
	return func() gapAnswer {
		if a == nil {
			got := <-answered
			a = &got
		}
		return *a
	}
}

type gapAnswer struct {
	event
	err error
}

// awaitCalls returns when calls have been replied to.
func awaitCalls(ctx context.Context, client *child) error {
	ctx, cancel := context.WithTimeoutCause(ctx, quietTimeout, errors.New("the callers have no replies"))
	defer cancel()
	for {
		e, err := client.ask(ctx, command{Do: doProgress}, askTimeout)
		if err != nil || e.Calls >= gapLeast {
			return err
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// resume continues a server. That fails only when it has ended.
func (f *fleet) resume(server int) { _ = f.servers[server].Continue() }

// bringBack starts or continues the server that was killed or stopped, if it can come back: the
// state of peers is in memory, and raft forbids that a member comes back which has forgotten its
// votes.
func (f *fleet) bringBack(k kind, leader int) error {
	switch {
	case k.stop:
		f.resume(leader)
		return nil
	case f.system.joins:
		return nil
	}
	<-f.servers[leader].Done
	p, err := f.startServer(leader)
	if err == nil {
		f.servers[leader] = p
	}
	return err
}

// judge waits until all servers that are there are alike, and fills in where the time went.
func (f *fleet) judge(ctx context.Context, k kind, leader int, at time.Time, t *trial) error {
	there, accept := f, view.whole
	if f.system.joins && !k.stop {
		rest := *f
		rest.servers = append(append([]*child(nil), f.servers[:leader]...), f.servers[leader+1:]...)
		there, accept = &rest, view.led
	}
	known := f.expect.Adds + uint64(t.Gap.Calls)
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, errDiffer)
	defer cancel()
	v, err := there.await(ctx, func(v view) error { return errors.Join(accept(v), v.alike(known)) })
	if err != nil {
		return err
	}
	for _, r := range v {
		if o := r.Failover; o != nil && o.Opened.After(at) {
			t.Detection, t.Election, t.Takeover = max(0, o.Suspected.Sub(at)), o.Elected.Sub(o.Suspected),
				o.Opened.Sub(o.Elected)
			t.Reply = max(0, at.Add(t.Gap.First).Sub(o.Opened))
		}
	}
	now := v[0].State
	t.Twice = int64(now.Adds) - int64(known)
	exactly := !f.system.joins && !k.vanish && t.Gap.Failed == 0 // every call was executed once, and nothing else was
	if exactly && (t.Twice != 0 || now.Sum != f.expect.Sum+t.Gap.Sum) {
		return fmt.Errorf("%w: %+v, and the callers know of %d calls", errDiffer, now, known)
	}
	f.expect.Adds, f.expect.Sum = now.Adds, now.Sum
	return nil
}

// led returns nil when one leads.
func (v view) led() error {
	return complain(v.leader() < 0, "nobody leads")
}

// alike returns nil when all states are the same, and have so many calls at least.
func (v view) alike(calls uint64) error {
	for i, r := range v {
		if r.State != v[0].State || r.State.Adds < calls {
			return fmt.Errorf("server %d has %+v, the first %+v, and the callers know of %d calls", i, r.State,
				v[0].State, calls)
		}
	}
	return nil
}
