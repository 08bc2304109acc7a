package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/replica"
)

// A group is the replicas under the parent's hands.
type group []*member

// A view is what the replicas said of themselves, all asked at once.
type view []viewed

type viewed struct {
	name   string
	up     bool // it answered; else status is zero
	status replicaStatus
}

// askTimeout bounds a question to a replica's process: one that is busy says so by not answering.
const askTimeout = 500 * time.Millisecond

// view asks all replicas for their status.
func (g group) view(ctx context.Context) view {
	v := make(view, len(g))
	g.each(ctx, doStatus, askTimeout, func(i int, e event, err error) {
		v[i] = viewed{name: g[i].name, up: err == nil && e.Status != nil}
		if v[i].up {
			v[i].status = *e.Status
		}
	})
	return v
}

// dumps asks all replicas for their state. A replica that doesn't give it is an error.
func (g group) dumps(ctx context.Context) (map[string]map[string]uint64, []error) {
	dumps, errs := make([]map[string]uint64, len(g)), make([]error, len(g))
	g.each(ctx, doDump, 5*time.Second, func(i int, e event, err error) { dumps[i], errs[i] = e.Dump, err })
	states := map[string]map[string]uint64{}
	for i, m := range g {
		if errs[i] == nil {
			states[m.name] = dumps[i]
		}
	}
	return states, slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// each puts one question to all, and returns when each has answered or failed.
func (g group) each(ctx context.Context, do string, timeout time.Duration, then func(i int, e event, err error)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var asking sync.WaitGroup
	for i, m := range g {
		asking.Go(func() {
			e, err := m.ask(ctx, command{Do: do})
			then(i, e, err)
		})
	}
	asking.Wait()
}

// leader is the replica that leads, in the highest epoch if several say so: one that was deposed
// may not know yet.
func (v view) leader() (viewed, bool) {
	var leader viewed
	for _, r := range v {
		if r.up && r.status.Role == replica.Leading && (!leader.up || r.status.Epoch > leader.status.Epoch) {
			leader = r
		}
	}
	return leader, leader.up
}

// whole returns nil when one replica leads, and every other follows it in-sync: then any one may
// die.
func (v view) whole() error {
	leader, ok := v.leader()
	if !ok {
		return fmt.Errorf("nobody leads")
	}
	for _, r := range v {
		switch {
		case !r.up:
			return fmt.Errorf("%s doesn't answer", r.name)
		case r.name == leader.name:
		case r.status.Role != replica.Following || r.status.Epoch != leader.status.Epoch:
			return fmt.Errorf("%s is %s in epoch %d, %s leads in epoch %d", r.name, r.status.Role, r.status.Epoch,
				leader.name, leader.status.Epoch)
		case !slices.Contains(leader.status.InSync, r.name):
			return fmt.Errorf("%s isn't in-sync yet", r.name)
		}
	}
	return nil
}

// even returns nil when the group is whole and all have executed equally far.
func (v view) even() error {
	if err := v.whole(); err != nil {
		return err
	}
	for _, r := range v[1:] {
		if r.status.Executed != v[0].status.Executed {
			return fmt.Errorf("%s has executed up to %d, %s to %d", v[0].name, v[0].status.Executed, r.name,
				r.status.Executed)
		}
	}
	return nil
}

// await asks all replicas again and again until accept finds nothing to object to. When ctx ends
// first, it returns accept's last objection.
func (g group) await(ctx context.Context, accept func(view) error) (view, error) {
	for {
		v := g.view(ctx)
		err := accept(v)
		if err == nil {
			return v, nil
		}
		select {
		case <-ctx.Done():
			return v, err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// String is one line's part on the group: who leads, in which epoch, and who is in-sync.
func (v view) String() string {
	leader, ok := v.leader()
	if !ok {
		var roles []string
		for _, r := range v {
			role := string(r.status.Role)
			if !r.up {
				role = "down"
			}
			roles = append(roles, r.name+" "+role)
		}
		return "no primary (" + strings.Join(roles, ", ") + ")"
	}
	return fmt.Sprintf("primary %s   epoch %-4d in-sync %s", leader.name, leader.status.Epoch,
		strings.Join(slices.Sorted(slices.Values(leader.status.InSync)), " "))
}
