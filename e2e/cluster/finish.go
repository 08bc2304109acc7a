//go:build unix

package cluster

import (
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/e2e/journal"
)

// Result is how a run ended.
type Result struct {
	Verdict
	Ledgers []Ledger
	c       *Cluster
}

// Finish lets the clients come to rest, waits until every replica that runs is in-sync and has
// executed everything, and fails the test unless all replicas are in one state, and no call was
// lost, executed twice, executed although it was refused, or out of order.
func (c *Cluster) Finish() *Result {
	c.t.Helper()
	for _, x := range c.clients {
		if !x.killed && !x.rested {
			x.Rest()
		}
	}
	var running []*Replica
	var names []string
	for _, r := range c.replicas {
		if r.process != nil {
			running, names = append(running, r), append(names, r.Name)
		}
	}
	c.AwaitInSync(names...)
	primary := c.Primary()
	reference := c.settled(primary, running)

	result := &Result{c: c}
	for _, x := range c.clients {
		result.Ledgers = append(result.Ledgers, Ledger{
			Client: x.Name, Killed: x.killed, Forgiven: x.killed && c.level < understudy.Stable, Begun: x.begun,
			Calls: x.Calls(),
		})
	}
	result.Verdict = Judge(reference.Entries, result.Ledgers)
	c.t.Logf("%v; the longest call took %v", result.Verdict, Longest(result.Ledgers, 0, never).Round(time.Millisecond))
	if !result.Sound() || reference.Backward > 0 {
		c.t.Errorf("the service broke its promises: time went back %d times; %v", reference.Backward, result.Findings)
	}
	return result
}

// settled waits until all replicas have executed the same turns, compares their states, and returns
// the primary's. Sessions may expire meanwhile, which are turns that leave the journal as it is.
func (c *Cluster) settled(primary *Replica, all []*Replica) journal.Dump {
	c.t.Helper()
	count := primary.executed(0)
	reference := primary.dump()
	for _, r := range all {
		r.executed(count)
		d := r.dump()
		if d.Digest != reference.Digest || len(d.Entries) != len(reference.Entries) ||
			d.Backward != reference.Backward || d.Ballast != reference.Ballast || d.Sum != reference.Sum {
			c.t.Errorf("%s differs from the primary %s: %d entries and %d, %d bytes of ballast and %d; the first "+
				"difference is at %d",
				r.Name, primary.Name, len(d.Entries), len(reference.Entries), d.Ballast, reference.Ballast,
				difference(d.Entries, reference.Entries))
		}
	}
	return reference
}

// difference is the first place at which two histories differ.
func difference(a, b []journal.Entry) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i + 1
		}
	}
	return min(len(a), len(b)) + 1
}

// NoneFailed fails the test if any call has failed.
func (r *Result) NoneFailed() *Result {
	r.c.t.Helper()
	return r.FailedOnly()
}

// FailedOnly fails the test if any call has failed with another code.
func (r *Result) FailedOnly(may ...codes.Code) *Result {
	r.c.t.Helper()
	shown := 0
	for _, l := range r.Ledgers {
	calls:
		for _, call := range l.Calls {
			if call.Code == codes.OK {
				continue
			}
			for _, code := range may {
				if call.Code == code {
					continue calls
				}
			}
			if shown++; shown <= 5 {
				r.c.t.Errorf("%s/%d failed after %v: %v: %s", l.Client, call.Call,
					(call.End - call.Start).Round(time.Millisecond), call.Code, call.Text)
			}
		}
	}
	if shown > 5 {
		r.c.t.Errorf("and %d more", shown-5)
	}
	return r
}

// HeldUp is the longest of the calls that these clients, or all, had in flight between two times;
// it is logged.
func (r *Result) HeldUp(what string, from, to time.Duration, clients ...*Client) time.Duration {
	r.c.t.Helper()
	ledgers := slices.DeleteFunc(slices.Clone(r.Ledgers), func(l Ledger) bool {
		return len(clients) > 0 && !slices.ContainsFunc(clients, func(x *Client) bool { return x.Name == l.Client })
	})
	d := Longest(ledgers, from, to)
	r.c.t.Logf("%s: the longest call took %v", what, d.Round(time.Millisecond))
	return d
}
