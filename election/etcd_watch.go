package election

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// relist is how often a Watch lists although its watch seems to work. A watch that asks for a
// revision above that of a store restored from a backup, or one behind a connection that died
// silently, would stay silent for ever.
const relist = 5 * time.Second

// listTimeout bounds one list, so that a store that hangs is asked again; watchTimeout how long a
// member may take to make a watch.
const (
	listTimeout  = 5 * time.Second
	watchTimeout = time.Second
)

func (e *etcd) Watch(ctx context.Context) <-chan State {
	w := &watcher{e: e, out: make(chan State, 1)}
	go w.run(ctx)
	return w.out
}

// watcher follows a group; run is its only goroutine and the only sender on out.
type watcher struct {
	e    *etcd
	out  chan State // holds the newest State that wasn't received yet
	last *State     // what was sent last
}

// run lists and watches until ctx ends. It blocks on etcd only.
func (w *watcher) run(ctx context.Context) {
	defer close(w.out)
	if w.e.invalid != nil {
		w.e.log.Error("nothing to watch", "reason", w.e.invalid)
		<-ctx.Done()
		return
	}
	for delay := (retry{}); ctx.Err() == nil; {
		all, revision, err := w.list(ctx)
		if err == nil {
			if err = w.follow(ctx, all, revision); err == nil {
				delay.reset()
			}
		}
		if err != nil && ctx.Err() == nil {
			w.e.log.Warn("watching the group again", "reason", err)
			delay.wait(ctx)
		}
	}
}

func (w *watcher) list(ctx context.Context) (entries, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	return w.e.list(ctx)
}

// follow sends what was listed and then every change. It returns nil when it is time to list again.
func (w *watcher) follow(ctx context.Context, all entries, revision int64) error {
	w.send(all, revision)
	round, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), relist)
	defer cancel()
	// A watcher of its own has a stream of its own: on whichever member comes next, if the last one
	// says nothing.
	watcher := clientv3.NewWatcher(w.e.client)
	defer watcher.Close()
	silent := time.AfterFunc(watchTimeout, cancel) // Watch returns when the member has made the watch
	watch := watcher.Watch(round, w.e.keys.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1),
		clientv3.WithPrevKV())
	if !silent.Stop() {
		return errSilent
	}
	for {
		select {
		case <-round.Done():
			return nil
		case resp, ok := <-watch:
			if !ok && round.Err() != nil {
				return nil
			}
			if !ok {
				return errWatchClosed
			}
			if err := resp.Err(); err != nil {
				return err
			}
			if len(resp.Events) == 0 {
				continue
			}
			// One response holds whole revisions, so the entries are those of its last one.
			for _, event := range resp.Events {
				revision = event.Kv.ModRevision
				key := string(event.Kv.Key)
				switch sane := w.e.sane(key); {
				case sane && !all.precede(event):
					return errOtherStore
				case event.Type == clientv3.EventTypeDelete:
					delete(all, key)
				case sane:
					all[key] = newEntry(event.Kv.Value, event.Kv.ModRevision, event.Kv.Lease)
				}
			}
			if len(all) > maxKeys {
				return w.e.tooMany()
			}
			w.send(all, revision)
		}
	}
}

// precede says whether an event follows what is known of its key. When the store was replaced,
// etcd's client goes on in the other one at the next revision, as if nothing had happened: its
// events, with what was listed in the first one, would be a mixture that neither has ever held.
func (all entries) precede(event *clientv3.Event) bool {
	known, ok := all[string(event.Kv.Key)]
	if event.PrevKv == nil {
		return !ok
	}
	prev := newEntry(event.PrevKv.Value, event.PrevKv.ModRevision, event.PrevKv.Lease)
	return ok && known.mod == prev.mod && bytes.Equal(known.value, prev.value)
}

var (
	errWatchClosed = errors.New("the watch was closed")
	errSilent      = errors.New("etcd doesn't answer")
	errOtherStore  = errors.New("another store answers than was listed")
)

// send replaces what waits in out, unless nothing but the revision has changed.
func (w *watcher) send(all entries, revision int64) {
	s, err := w.e.decode(all, revision)
	if err != nil {
		w.e.log.Error("the group can't be understood", "reason", err)
		return
	}
	if w.last != nil && sameContent(*w.last, s) {
		return
	}
	select {
	case <-w.out: // too old
	default:
	}
	w.out <- s
	w.last = &s
}

// sameContent compares all but the revision.
func sameContent(a, b State) bool {
	a.Revision = b.Revision
	return reflect.DeepEqual(a, b)
}
