package source

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what is believed of the group as a whole: who its replicas are, those whom the
// election lists, and those who have left it while their stream lives, since the store may forget
// replicas while it is away; whether the store may be believed now (trust.Store); and whether
// the group is down, or was replaced.

// Address is where one replica is reached, on the how-manieth connection: the source wants another
// one when it says a higher number.
type Address struct {
	Name, Addr string
	Connection int
}

// Trust gives the source what judges the store. It is called before the first view.
func (src *Source) Trust(t *trust.Store) {
	src.mu.Lock()
	defer src.mu.Unlock()
	src.group.trust = t
}

// Viewed takes a view of the store, and says whether it is believed. An error says that the group
// speaks another protocol, and can't be called.
func (src *Source) Viewed(view election.State) (believed bool, err error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	before := src.group.suspect
	src.group.suspect = view.Suspect
	src.broadcast()
	switch {
	case view.Suspect == nil:
		err = src.believe(view)
		if before != nil {
			src.log.Info("the store is believed again")
		}
	case before == nil || before.Error() != view.Suspect.Error():
		src.log.Error("the store isn't believed: calls go on with the replicas that are known", "err", view.Suspect)
	}
	return view.Suspect == nil, err
}

func (src *Source) believe(view election.State) error {
	g := &src.group
	switch now := view.Group; {
	case now.ID == 0 || now.ID == g.id:
	case now.Protocol != wire.Protocol && !g.adopted: // else its callers are told what they have lost
		return errProtocol("the group", now.Protocol)
	case g.id == 0:
		g.id = now.ID
	default:
		src.replaced(now.ID)
	}
	g.inSync = view.InSync
	switch {
	case !view.IsDown():
		g.down = time.Time{}
	case g.down.IsZero():
		g.down = time.Now()
	}
	return nil
}

// replaced: an operator has begun the group anew, without its state, as the store's record says. A
// source that had a session is told what it has lost; this source isn't for the new group, whose
// state knows nothing of what this program has done.
func (src *Source) replaced(by uint64) {
	g := &src.group
	if g.over != nil {
		return
	}
	if !g.adopted { // nothing was done in the old group
		g.id = by
		src.session.end(errUnknownSession)
		src.session.source, src.primary = newSession(src).source, election.Member{}
		return
	}
	why := &replacedError{old: g.id, by: by}
	src.counts.lost.Add(1)
	src.loss, g.over = errReplaced(why), errGone(why)
	src.session.end(why)
}

// marked takes how far a replica has seen the store, and keeps it for others.
func (g *group) marked(m *pb.StoreMark) {
	const macSize = 16
	if m == nil || len(m.Mac) != macSize {
		return
	}
	g.mark = m
	g.trust.Learn(trust.Mark{Group: g.id, Revision: m.Revision, Epoch: m.Epoch, Fence: m.Fence})
}

// unavailable is an error if no call may be sent now: the group was replaced, or is down.
func (src *Source) unavailable() error {
	g := &src.group
	switch {
	case g.over != nil:
		return g.over
	case g.suspect != nil || g.down.IsZero() || slices.ContainsFunc(src.links, func(l *Link) bool { return l.up }):
		return nil
	}
	return errDown(g.down, g.inSync)
}

// refused is what a call is told that waits for a session while every replica refuses this client:
// nil while there is one that doesn't.
func (src *Source) refused() error {
	for _, l := range src.links {
		if !l.refused {
			return nil
		}
	}
	if len(src.links) == 0 {
		return nil
	}
	return errRefused(src.links[len(src.links)-1].problem)
}

// problem says what a call waits for, for its error: which replicas aren't reached, and why.
func (src *Source) problem() string {
	var b strings.Builder
	if src.group.suspect != nil {
		fmt.Fprintf(&b, "%v; ", src.group.suspect)
	}
	if down := src.unavailable(); down != nil {
		b.WriteString(strings.TrimPrefix(down.Error(), "understudy: ") + "; ")
	}
	switch {
	case len(src.links) == 0:
		b.WriteString("no replica is known")
	case src.session.number == 0:
		b.WriteString("no session is open")
	default:
		fmt.Fprintf(&b, "the primary is %v, in epoch %d", src.primary, src.session.source.Epoch())
	}
	for _, l := range src.links {
		if !l.up {
			fmt.Fprintf(&b, "; no stream to %s at %s", l.Name, l.Addr)
			if why := cmp.Or(l.dialled, l.problem); why != nil {
				fmt.Fprintf(&b, ": %v", why)
			}
		}
	}
	return b.String()
}

// Group is the group's id, as the store says; 0 before it has.
func (src *Source) Group() uint64 {
	src.mu.Lock()
	defer src.mu.Unlock()
	return src.group.id
}

// Addresses are those of the replicas listed, and of those who are gone from the list while their
// stream lives; by name.
func (src *Source) Addresses(view election.State) map[string]Address {
	addrs := map[string]Address{}
	src.mu.Lock()
	defer src.mu.Unlock()
	if src.group.over != nil {
		return addrs
	}
	for _, r := range view.Replicas {
		addrs[r.Name] = Address{Name: r.Name, Addr: r.Addr}
	}
	for _, l := range src.links {
		if a, listed := addrs[l.Name]; !listed && l.up || a.Addr == l.Addr {
			addrs[l.Name] = Address{l.Name, l.Addr, l.connected}
		}
	}
	return addrs
}

// Stale has a value when Addresses may give others than before.
func (src *Source) Stale() <-chan struct{} { return src.stale }

// Relink ends the links to replicas that are gone, and to those with another address, and returns
// new ones: their streams are the caller's to keep.
func (src *Source) Relink(addrs map[string]Address) (begun []*Link) {
	src.mu.Lock()
	defer src.mu.Unlock()
	has := map[string]bool{}
	src.links = slices.DeleteFunc(src.links, func(l *Link) bool {
		if addrs[l.Name].Addr != l.Addr {
			l.stop()
			return true
		}
		has[l.Name] = true
		return false
	})
	for name, a := range addrs {
		if has[name] || src.group.id == 0 { // nobody is welcome before the store has named the group
			continue
		}
		l := &Link{source: src, Name: name, Addr: a.Addr, sender: sender{wake: make(chan struct{}, 1)}}
		l.Ctx, l.stop = context.WithCancel(src.ctx)
		src.links = append(src.links, l)
		begun = append(begun, l)
	}
	src.broadcast()
	return begun
}

// Reached notes what became of connecting to a replica.
func (src *Source) Reached(name, addr string, err error) {
	src.mu.Lock()
	defer src.mu.Unlock()
	for _, l := range src.links {
		if l.Name == name && l.Addr == addr {
			l.dialled = err
		}
	}
}

// Reconnected is called when a new connection to a replica is there: what went over the old one
// begins anew, the stream, and the attempts if that is the primary.
func (src *Source) Reconnected(name string) {
	src.mu.Lock()
	defer src.mu.Unlock()
	for _, l := range src.links {
		if l.Name == name && l.restart != nil {
			l.restart()
		}
	}
	if name != src.primary.Name {
		return
	}
	for s := src.session; s != nil; s = s.before {
		for k := range s.inFlight {
			k.stop()
		}
	}
}
