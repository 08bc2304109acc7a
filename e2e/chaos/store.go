//go:build linux

package chaos

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// What is done here to etcd is done to all of its nodes, by who runs it, and is undone when the
// phase heals: keys are deleted, and the data is gone, or that of an earlier day. The data of now
// is kept meanwhile.

const keys = "/understudy/" + group + "/"

func (w *world) data(host string) string { return filepath.Join(w.dir, host+".data") }

// copyData copies the data of every node. They are killed, or stand still: what is copied is what a
// crash would leave.
func (w *world) copyData(from, to func(host string) string) error {
	for _, n := range w.etcds {
		if err := os.RemoveAll(to(n.host)); err != nil {
			return err
		}
		if err := os.CopyFS(to(n.host), os.DirFS(from(n.host))); err != nil {
			return err
		}
	}
	return nil
}

// inFolder names the copies of the nodes' data in one folder.
func (w *world) inFolder(name string) func(host string) string {
	return func(host string) string { return filepath.Join(w.dir, name, host) }
}

// save copies the data of now, for which all nodes stand still for a moment.
func (w *world) save(name string) error {
	defer func() {
		for _, n := range w.etcds {
			_ = n.proceed() // it fails only when the process has ended, which is noticed elsewhere
		}
	}()
	for _, n := range w.etcds {
		if err := n.stop(); err != nil {
			return err
		}
	}
	return w.copyData(w.data, w.inFolder(name))
}

const (
	newest  = "newest"  // the data of before the fault
	earlier = "earlier" // that of an earlier phase
)

// etcdWhole says whether every node runs, on the data of now.
func (w *world) etcdWhole() bool {
	return !w.kept && !slices.ContainsFunc(w.etcds, func(n *node) bool { return !n.runs() })
}

// replaceData lets etcd run on other data until the phase heals: on a copy, or on none.
func (p *phase) replaceData(copied string) error {
	w := p.w
	for _, n := range w.etcds {
		n.kill()
	}
	if err := w.copyData(w.data, w.inFolder(newest)); err != nil {
		return err
	}
	w.kept = true
	for _, n := range w.etcds {
		if err := os.RemoveAll(w.data(n.host)); err != nil {
			return err
		}
	}
	if copied != "" {
		if err := w.copyData(w.inFolder(copied), w.data); err != nil {
			return err
		}
	}
	for _, n := range w.etcds {
		if err := n.launch(); err != nil {
			return err
		}
	}
	p.hold = max(p.hold, authority+time.Duration(1000+p.rng.IntN(3000))*time.Millisecond)
	return nil
}

func emptyEtcd(_ context.Context, p *phase) (string, error) {
	if !p.w.etcdWhole() {
		return "", nil
	}
	return "its data is gone", p.replaceData("")
}

func restoreEtcd(_ context.Context, p *phase) (string, error) {
	if !p.w.etcdWhole() || p.w.savedIn == 0 || p.w.savedIn == p.w.phases {
		return "", nil
	}
	return fmt.Sprintf("as it was %d phases ago", p.w.phases-p.w.savedIn), p.replaceData(earlier)
}

// deleteKeys deletes the group's keys, or some of them, unless the group is changed meanwhile: its
// replicas would have seen what the copy doesn't have.
func deleteKeys(ctx context.Context, p *phase) (string, error) {
	w := p.w
	if !w.etcdWhole() {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var unchanged []clientv3.Cmp
	for _, key := range []string{keys + "id", keys + "primary"} {
		got, err := w.etcd.Get(ctx, key)
		if err != nil || len(got.Kvs) != 1 {
			return "", nil // it is cut off, perhaps
		}
		unchanged = append(unchanged, clientv3.Compare(clientv3.ModRevision(key), "=", got.Kvs[0].ModRevision))
	}
	if err := w.save(newest); err != nil {
		return "", err
	}
	which := []string{"", "", "", "id", "primary", "insync/", "replicas/"}[p.rng.IntN(7)]
	done, err := w.etcd.Txn(ctx).If(unchanged...).Then(clientv3.OpDelete(keys+which, clientv3.WithPrefix())).Commit()
	if err == nil && !done.Succeeded {
		return "", nil
	}
	w.kept = true // also if the outcome is unknown
	p.hold = max(p.hold, authority+time.Duration(500+p.rng.IntN(2500))*time.Millisecond)
	return keys + which, nil
}

// putBack kills etcd's nodes, and puts the data of before the fault in place. They are to be
// launched. It returns up to which revision anyone may have seen the store.
func (w *world) putBack(ctx context.Context) (seen int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if got, err := w.etcd.Get(ctx, keys); err == nil {
		seen = got.Header.Revision
	}
	for _, n := range w.etcds {
		if n.process != nil {
			n.kill()
		}
	}
	w.kept = false
	return seen, w.copyData(w.inFolder(newest), w.data)
}

// advance brings the store's revision above what anyone has seen, as who restores an etcd has to.
func (w *world) advance(ctx context.Context, seen int64) error {
	ctx, cancel := context.WithTimeout(ctx, recovery)
	defer cancel()
	for {
		put, err := w.etcd.Put(ctx, "/restored", "")
		if err != nil {
			return fmt.Errorf("etcd's revision can't be advanced beyond %d: %w", seen, err)
		}
		if put.Header.Revision > seen {
			return nil
		}
	}
}

// stopEtcdAndKill lets one node of etcd hang, and kills the primary: an election must not wait for
// that node.
func stopEtcdAndKill(ctx context.Context, p *phase) (string, error) {
	if !p.w.etcdWhole() {
		return "", nil
	}
	etcd, err := p.loseEtcd(p.etcdNode(), false)
	if err != nil || etcd == "" {
		return "", err
	}
	killed, err := p.killReplica(ctx, p.primary(), nil)
	return strings.Trim(etcd+", "+killed, ", "), err
}
