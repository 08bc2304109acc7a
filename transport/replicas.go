package transport

import (
	"cmp"
	"errors"
	"maps"
	"slices"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/source"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

var errPolicy = errors.New(
	"transport: the ClientConn has another load-balancing policy: give the service config to WithServiceConfig, not " +
		"to grpc.WithDefaultServiceConfig",
)

// follow tells gRPC the replicas until the ClientConn is closed, and keeps a stream to each.
func (c *client) follow(elect election.Election, publish func([]route.Address) error) {
	var seen election.State
	var told map[string]source.Address
	var toldGroup uint64
	views := elect.Watch(c.life.ctx)
	for {
		select {
		case view, ok := <-views:
			if !ok {
				views = nil
				continue
			}
			believed, err := c.source.Viewed(view)
			if err != nil {
				c.life.fail(err)
			}
			if !believed || err != nil {
				continue
			}
			seen = view
		case <-c.source.Stale():
		case <-c.life.ctx.Done():
			if views != nil {
				for range views { // until the watch has ended
				}
			}
			return
		}
		addrs := c.source.Addresses(seen)
		group := c.source.Group()
		if seen.Revision == 0 || told != nil && maps.Equal(addrs, told) && group == toldGroup {
			continue
		}
		var all []route.Address
		for _, a := range addrs {
			all = append(all, route.Address(a))
		}
		slices.SortFunc(all, func(a, b route.Address) int { return cmp.Compare(a.Name, b.Name) })
		if err := publish(all); err != nil {
			c.cfg.log.Error("gRPC refused the replicas", "err", err)
		}
		if !c.life.hasPolicy() {
			c.life.fail(errPolicy)
			continue
		}
		for _, l := range c.source.Relink(addrs) {
			c.work.Go(func() { c.keep(l) })
		}
		told, toldGroup = addrs, group
	}
}
