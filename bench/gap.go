package main

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// gaps is what a client measures of a failover: its callers go on calling while something happens
// to a server. The parent says when it happened (doMark); the callers end when they have called for
// some time after it.
type gaps struct {
	mark  atomic.Pointer[time.Time] // nil: it hasn't happened
	calls atomic.Int64              // that have ended
}

// How long the callers go on after the mark: each has settleCalls replies to what it asked later,
// and settleFor has passed. A server that is stopped holds up all of them until another one serves.
const (
	settleCalls = 3
	settleFor   = 300 * time.Millisecond
	failedPause = 5 * time.Millisecond // after a call that failed
	underWay    = 5 * time.Millisecond // replies that were under way at the mark have come
)

// gapReport is what the callers have seen.
type gapReport struct {
	Calls int   `json:"calls"` // with a reply
	Sum   int64 `json:"sum"`   // of the deltas of these
	// Failed calls, one of their errors, and the sum of their deltas: nobody knows whether they
	// were executed.
	Failed int    `json:"failed"`
	Error  string `json:"error,omitempty"`
	// Held is how long the slowest call took, of those that ended after the mark.
	Held time.Duration `json:"held"`
	// First is the time from the mark until, after the longest silence that began then, there was a
	// reply again.
	First time.Duration `json:"first"`
	// Ended is false when the time was over first: a caller still had no reply.
	Ended bool `json:"ended"`
}

// called is one call with a reply.
type called struct{ begun, ended time.Time }

// gap lets the callers call until some time after the mark, for bound at most.
func (l *load) gap(ctx context.Context, callers int, bound time.Duration) gapReport {
	l.grow(callers)
	defer func() { // for the next time, as that may be asked about before it has begun
		l.gaps.mark.Store(nil)
		l.gaps.calls.Store(0)
	}()
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var (
		mu    sync.Mutex // guards what follows
		total = gapReport{Ended: true}
		all   []called
	)
	var calling sync.WaitGroup
	for _, c := range l.callers[:callers] {
		calling.Go(func() {
			r, calls := l.callThrough(ctx, c, callers)
			mu.Lock()
			defer mu.Unlock()
			total.Calls += r.Calls
			total.Sum += r.Sum
			total.Failed += r.Failed
			total.Ended = total.Ended && r.Ended
			if r.Error != "" {
				total.Error = r.Error
			}
			all = append(all, calls...)
		})
	}
	calling.Wait()
	if mark := l.gaps.mark.Load(); mark != nil {
		total.Held, total.First = gapOf(all, *mark)
	}
	return total
}

// callThrough is one caller's loop.
func (l *load) callThrough(ctx context.Context, c *caller, callers int) (gapReport, []called) {
	var r gapReport
	var all []called
	for later := 0; ctx.Err() == nil; {
		client, request := l.next(c, callers)
		begun := time.Now()
		err := l.add(ctx, client, request)
		ended := time.Now()
		wait := l.think
		if err == nil {
			r.Calls++
			r.Sum += request.GetDelta()
			all = append(all, called{begun, ended})
			l.gaps.calls.Add(1)
			if mark := l.gaps.mark.Load(); mark != nil && begun.After(*mark) {
				later++
				if r.Ended = later >= settleCalls && ended.Sub(*mark) > settleFor; r.Ended {
					break
				}
			}
		} else {
			r.Failed++
			r.Error = err.Error()
			wait = failedPause
		}
		if wait > 0 {
			_ = pause(ctx, wait) // the loop ends with ctx
		}
	}
	return r, all
}

// gapOf looks at the calls around mark: how long the slowest was held up, and when after the
// longest silence that began then somebody had a reply.
func gapOf(all []called, mark time.Time) (held, first time.Duration) {
	slices.SortFunc(all, func(a, b called) int { return a.ended.Compare(b.ended) })
	last, silence := mark, time.Duration(-1)
	for _, c := range all {
		if c.ended.Before(mark) {
			continue
		}
		held = max(held, c.ended.Sub(c.begun))
		if s := c.ended.Sub(last); s > silence && last.Sub(mark) < underWay {
			silence, first = s, c.ended.Sub(mark)
		}
		last = c.ended
	}
	return held, first
}
