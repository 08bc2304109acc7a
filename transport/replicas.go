package transport

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// This file knows who the replicas are: those whom the election lists, and those who have left it
// while their stream lives, since the store may forget replicas while it is away.

var errPolicy = errors.New(
	"transport: the ClientConn has another load-balancing policy: give the service config to WithServiceConfig, not " +
		"to grpc.WithDefaultServiceConfig",
)

// follow tells gRPC the replicas until the ClientConn is closed, and keeps a link to each.
func (c *Client) follow(elect election.Election, publish func([]route.Address) error) {
	var seen election.State
	var told map[string]route.Address
	var toldGroup uint64
	views := elect.Watch(c.life.ctx)
	for {
		select {
		case view, ok := <-views:
			if !ok {
				views = nil
				continue
			}
			if !c.viewed(view) {
				continue
			}
			seen = view
		case <-c.stale:
		case <-c.life.ctx.Done():
			if views != nil {
				for range views { // until the watch has ended
				}
			}
			return
		}
		addrs := c.addresses(seen)
		group := c.groupID()
		if seen.Revision == 0 || told != nil && maps.Equal(addrs, told) && group == toldGroup {
			continue
		}
		var all []route.Address
		for _, a := range addrs {
			all = append(all, a)
		}
		slices.SortFunc(all, func(a, b route.Address) int { return cmp.Compare(a.Name, b.Name) })
		if err := publish(all); err != nil {
			c.cfg.log.Error("gRPC refused the replicas", "err", err)
		}
		if !c.life.hasPolicy() {
			c.life.fail(errPolicy)
			continue
		}
		c.relink(addrs)
		told, toldGroup = addrs, group
	}
}

// addresses are those of the replicas listed, and of those who are gone from the list while their
// stream lives.
func (c *Client) addresses(view election.State) map[string]route.Address {
	addrs := map[string]route.Address{}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		return addrs
	}
	for _, r := range view.Replicas {
		addrs[r.Name] = route.Address{Name: r.Name, Addr: r.Addr}
	}
	for _, l := range c.links {
		if a, listed := addrs[l.name]; !listed && l.up || a.Addr == l.addr {
			addrs[l.name] = route.Address{Name: l.name, Addr: l.addr, Connection: l.connection}
		}
	}
	return addrs
}

// relink ends the links to replicas that are gone, begins those to new ones, and begins anew where
// the address has changed.
func (c *Client) relink(addrs map[string]route.Address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := map[string]bool{}
	c.links = slices.DeleteFunc(c.links, func(l *link) bool {
		if addrs[l.name].Addr != l.addr {
			l.stop()
			return true
		}
		has[l.name] = true
		return false
	})
	for name, a := range addrs {
		if has[name] || c.group == 0 { // nobody is welcome before the store has named the group
			continue
		}
		l := &link{client: c, name: name, addr: a.Addr, wake: make(chan struct{}, 1)}
		l.ctx, l.stop = context.WithCancel(c.life.ctx)
		c.links = append(c.links, l)
		c.work.Go(l.run)
	}
	c.broadcast()
}

// lookAgain lets follow drop replicas that are gone from the list, now that a stream has ended.
func (c *Client) lookAgain() {
	select {
	case c.stale <- struct{}{}:
	default:
	}
}
