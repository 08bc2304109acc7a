//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"

	"github.com/understudy-rpc/understudy/e2e/cluster"
	"github.com/understudy-rpc/understudy/e2e/journal"
)

// rest lets every client's calls end, and makes no more. Their ledgers are complete then.
func (w *world) rest(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deadline+recovery, fmt.Errorf("calls don't end by their deadlines"))
	defer cancel()
	ended := make(chan error, len(w.clients))
	for _, x := range w.clients {
		go func() {
			e, err := x.partner.Ask(ctx, journal.Command{Do: journal.DoRest})
			w.mu.Lock()
			x.ledger.Begun = e.Calls
			w.mu.Unlock()
			ended <- err
		}()
	}
	var first error
	for range w.clients {
		if err := <-ended; err != nil && first == nil {
			first = err
		}
	}
	return first
}

var errDiffers = errors.New("differs from the primary")

// settled waits until all replicas have executed the same turns, compares their states, and returns
// what they are.
func (w *world) settled(ctx context.Context) (*journal.Dump, error) {
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	leader, err := w.leader()
	if err != nil {
		return nil, err
	}
	e, err := leader.partner.Ask(ctx, journal.Command{Do: journal.DoExecuted})
	if err != nil {
		return nil, err
	}
	executed := e.Status.Executed
	if e, err = leader.partner.Ask(ctx, journal.Command{Do: journal.DoDump}); err != nil {
		return nil, err
	}
	reference := e.Dump
	for _, r := range w.replicas {
		// Sessions may expire meanwhile, which are turns that leave the journal as it is.
		if _, err := r.partner.Ask(ctx, journal.Command{Do: journal.DoExecuted, Count: executed}); err != nil {
			return nil, err
		}
		e, err := r.partner.Ask(ctx, journal.Command{Do: journal.DoDigest})
		if err != nil {
			return nil, err
		}
		if e.Dump.Digest != reference.Digest || e.Dump.Backward != reference.Backward {
			return nil, fmt.Errorf("%s %w %s, with %d calls executed", r.host, errDiffers, leader.host,
				len(reference.Entries))
		}
	}
	return reference, nil
}

// judge compares what every client was told with what was executed. No client has a call in flight.
//
// What all replicas had executed when all of them were well is there for ever: that a client was
// told of a loss, or died, excuses no loss of it.
func (w *world) judge(history *journal.Dump) cluster.Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, e := range w.history {
		if i >= len(history.Entries) || history.Entries[i] != e {
			w.undone++
		}
	}
	w.history = history.Entries
	var ledgers []cluster.Ledger
	for _, l := range w.ledgers {
		ledgers = append(ledgers, *l)
	}
	w.verdict = cluster.Judge(history.Entries, ledgers)
	return w.verdict
}
