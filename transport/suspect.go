package transport

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/election"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what the client believes of the store: whether it may be believed now
// (election.Trusted), and whether the group is down, or was replaced.

// groupView is what the store says of the group as a whole. It is guarded by Client.mu.
type groupView struct {
	suspect error             // why the store isn't believed now; nil: it is
	down    time.Time         // since when, by this client's clock, no in-sync replica is registered; zero: one is
	inSync  []election.Member // as it was believed last
}

// viewed takes a view of the store, and says whether it is believed.
func (c *Client) viewed(view election.State) bool {
	c.mu.Lock()
	before := c.view.suspect
	c.view.suspect = view.Suspect
	if view.Suspect == nil {
		c.believe(view)
	}
	c.broadcast()
	c.mu.Unlock()
	switch {
	case view.Suspect != nil && (before == nil || before.Error() != view.Suspect.Error()):
		c.cfg.log.Error("the store isn't believed: calls go on with the replicas that are known", "err", view.Suspect)
	case view.Suspect == nil && before != nil:
		c.cfg.log.Info("the store is believed again")
	}
	return view.Suspect == nil
}

// believe is called with mu held.
func (c *Client) believe(view election.State) {
	switch id := view.Group.ID; {
	case id == 0:
	case c.group == 0:
		c.group = id
	case c.group != id:
		c.replaced(id)
	}
	c.view.inSync = view.InSync
	switch {
	case !view.IsDown():
		c.view.down = time.Time{}
	case c.view.down.IsZero():
		c.view.down = time.Now()
	}
}

// replaced: an operator has begun the group anew, without its state, as the store's record says. A
// source that had a session is told what it has lost; this connection isn't for the new group,
// whose state knows nothing of what this program has done. mu is held.
func (c *Client) replaced(by uint64) {
	if c.over != nil {
		return
	}
	if !c.adopted { // nothing was done in the old group
		c.group = by
		c.endSession(c.session, errUnknownSession)
		c.session.source, c.primary = newSession().source, election.Member{}
		return
	}
	why := &replacedError{old: c.group, by: by}
	c.counts.lost.Add(1)
	c.loss, c.over = statusReplaced(why), statusGone(why)
	c.endSession(c.session, why)
}

// unavailable is a status if no call may be sent now: the group was replaced, or is down. mu is
// held.
func (c *Client) unavailable() error {
	switch {
	case c.over != nil:
		return c.over
	case c.view.suspect != nil || c.view.down.IsZero() || slices.ContainsFunc(c.links, func(l *link) bool {
		return l.up
	}):
		return nil
	}
	names := make([]string, len(c.view.inSync))
	for i, m := range c.view.inSync {
		names[i] = m.Name
	}
	return statusDown(c.view.down, strings.Join(names, ", "))
}

func (c *Client) groupID() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.group
}

// marked takes how far a replica has seen the store, and keeps it for others. mu is held.
func (c *Client) marked(m *pb.StoreMark) {
	const macSize = 16
	if m == nil || len(m.Mac) != macSize {
		return
	}
	c.mark = m
	c.trust.Learn(election.Mark{Group: c.group, Revision: m.Revision, Epoch: m.Epoch, Fence: m.Fence})
}

// replacedError ends the sessions of a group that was begun anew without its state.
type replacedError struct{ old, by uint64 }

func (e *replacedError) Error() string {
	return fmt.Sprintf("the group with id %x was replaced: an operator has begun it anew, as %x, without its state",
		e.old, e.by)
}
