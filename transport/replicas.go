package transport

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/understudy-rpc/understudy/election"
)

// This file knows who the replicas are: those whom the election lists, and those who have left it
// while their stream lives, since the store may forget replicas while it is away.

var errPolicy = errors.New(
	"transport: the ClientConn has another load-balancing policy: give the service config to WithServiceConfig, not " +
		"to grpc.WithDefaultServiceConfig",
)

// follow tells gRPC the replicas until the ClientConn is closed, and keeps a link to each.
func (c *Client) follow(elect election.Election, publish func([]address) error) {
	var seen election.State
	var told map[string]address
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
		var all []address
		for _, a := range addrs {
			all = append(all, a)
		}
		slices.SortFunc(all, func(a, b address) int { return cmp.Compare(a.name, b.name) })
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
func (c *Client) addresses(view election.State) map[string]address {
	addrs := map[string]address{}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over != nil {
		return addrs
	}
	for _, r := range view.Replicas {
		addrs[r.Name] = address{name: r.Name, addr: r.Addr}
	}
	for _, l := range c.links {
		if a, listed := addrs[l.name]; !listed && l.up || a.addr == l.addr {
			addrs[l.name] = address{l.name, l.addr, l.connection}
		}
	}
	return addrs
}

// relink ends the links to replicas that are gone, begins those to new ones, and begins anew where
// the address has changed.
func (c *Client) relink(addrs map[string]address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	has := map[string]bool{}
	c.links = slices.DeleteFunc(c.links, func(l *link) bool {
		if addrs[l.name].addr != l.addr {
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
		l := &link{client: c, name: name, addr: a.addr, wake: make(chan struct{}, 1)}
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
