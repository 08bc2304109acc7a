//go:build unix

package cluster

import (
	"context"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/understudy-rpc/understudy/election"
)

func (c *Cluster) endpoints() string {
	var addrs []string
	for _, e := range c.Etcds {
		addrs = append(addrs, e.Addr())
	}
	return strings.Join(addrs, ",")
}

// Group returns who leads and who is in-sync, as etcd has it: processes that are replaced, or begin
// again, are others.
func (c *Cluster) Group() election.State {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	s, err := c.store.Read(ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	return s
}

// DeleteKeys deletes the group's keys.
func (c *Cluster) DeleteKeys() {
	c.t.Helper()
	c.did("the group's keys are deleted")
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	if _, err := c.etcd.Delete(ctx, "/understudy/"+group+"/", clientv3.WithPrefix()); err != nil {
		c.t.Fatal(err)
	}
}

// Revision is etcd's.
func (c *Cluster) Revision() int64 { return c.advance(0) }

// Advance brings etcd's revision above one that was seen, as whoever restores an etcd has to.
func (c *Cluster) Advance(seen int64) {
	c.t.Helper()
	for c.advance(1) <= seen {
	}
}

// advance writes so often, and returns etcd's revision.
func (c *Cluster) advance(times int) (revision int64) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, 10*time.Second)
	defer cancel()
	got, err := c.etcd.Get(ctx, "/restored")
	if err != nil {
		c.t.Fatal(err)
	}
	revision = got.Header.Revision
	for range times {
		put, err := c.etcd.Put(ctx, "/restored", "")
		if err != nil {
			c.t.Fatal(err)
		}
		revision = put.Header.Revision
	}
	return revision
}

// Data kills etcd, copies its data, and starts it again.
func (c *Cluster) Data() (copied string) {
	c.t.Helper()
	c.Etcd.Kill()
	copied = c.Etcd.Save()
	c.Etcd.Restart()
	return copied
}

// Replace kills etcd, and starts it on other data, or on none; it returns a copy of what it had.
func (c *Cluster) Replace(data string) (had string) {
	c.t.Helper()
	c.did("etcd has other data")
	c.Etcd.Kill()
	had = c.Etcd.Save()
	if data == "" {
		c.Etcd.Wipe()
	} else {
		c.Etcd.Load(data)
	}
	c.Etcd.Restart()
	return had
}
