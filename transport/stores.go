package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/understudy-rpc/understudy/election"
)

// stores are the groups' stores as dialled from targets. The ClientConns of one process that name
// the same target share one, with one connection and one watch: else each change of a group costs
// the store a message, and the process a wake-up of many goroutines, for each of them, just when a
// failover needs both.
type stores struct {
	dial func(target, etcdAccess) (election.Election, io.Closer, error) // must not block

	mu   sync.Mutex // guards open, and the users of each
	open map[storeKey]*store
}

// etcds is shared by the process; it is empty while no ClientConn is connected.
var etcds = stores{dial: dialEtcd, open: map[storeKey]*store{}}

// etcdAccess is how etcd is entered; the zero value is in plaintext, as nobody.
type etcdAccess struct {
	tls                *tls.Config
	username, password string
}

// dialEtcd is the default of WithStore.
func dialEtcd(t target, as etcdAccess) (election.Election, io.Closer, error) {
	if len(t.endpoints) == 0 {
		return nil, nil, errors.New("transport: the target names no endpoint of etcd")
	}
	client, err := election.DialAs(t.endpoints, as.tls, as.username, as.password)
	if err != nil {
		return nil, nil, err
	}
	return election.NewEtcd(client, t.group), client, nil
}

// storeKey tells stores apart.
type storeKey struct {
	target string
	as     etcdAccess
}

type store struct {
	election.Election // but for Watch
	of                *stores
	key               storeKey
	client            io.Closer
	users             int // guarded by stores.mu

	mu       sync.Mutex // guards what follows
	watchers map[chan election.State]struct{}
	watching *watching // nil without a watcher
}

// watching is the one watch of a store.
type watching struct {
	cancel context.CancelFunc
	ended  chan struct{} // closed when it has
	newest election.State
}

// elect makes one more use of the store that a target names; it is the default of WithStore.
func (all *stores) elect(t target, as etcdAccess) (election.Election, io.Closer, error) {
	key := storeKey{strings.Join(t.endpoints, ",") + "/" + t.group, as}
	all.mu.Lock()
	defer all.mu.Unlock()
	s := all.open[key]
	if s == nil {
		e, client, err := all.dial(t, as)
		if err != nil {
			return nil, nil, err
		}
		s = &store{Election: e, of: all, key: key, client: client, watchers: map[chan election.State]struct{}{}}
		all.open[key] = s
	}
	s.users++
	return s, closer(sync.OnceValue(s.leave)), nil
}

type closer func() error

// Close implements io.Closer.
func (c closer) Close() error { return c() }

// problematic is an election that can say why it doesn't answer.
type problematic interface {
	Problem(context.Context) error
}

// Problem is the election's own.
func (s *store) Problem(ctx context.Context) error {
	if p, ok := s.Election.(problematic); ok {
		return p.Problem(ctx)
	}
	return nil
}

// leave ends one use of the store, and the store with the last one.
func (s *store) leave() error {
	s.of.mu.Lock()
	s.users--
	last := s.users == 0
	if last {
		delete(s.of.open, s.key)
	}
	s.of.mu.Unlock()
	if !last {
		return nil
	}
	return s.client.Close()
}

// Watch is election.Election's, from the one watch that all watchers share: the first begins it,
// the last ends it. A later one's first State is what the others were sent last: it says what was
// before the call, as any State may, and comes while the store is away, too. Whatever has changed
// since is on its way.
func (s *store) Watch(ctx context.Context) <-chan election.State {
	out := make(chan election.State, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers[out] = struct{}{}
	if w := s.watching; w == nil {
		s.watching = s.watch()
	} else if w.newest.Revision != 0 {
		out <- owned(w.newest)
	}
	context.AfterFunc(ctx, func() { s.unwatch(out) })
	return out
}

// watch begins the one watch. What it brings is told to nobody before the caller has noted it.
func (s *store) watch() *watching {
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for view := range s.Election.Watch(ctx) {
			s.tell(w, view)
		}
	}()
	return w
}

// tell replaces what a watcher hasn't received yet.
func (s *store) tell(w *watching, view election.State) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watching != w { // another one has begun since
		return
	}
	w.newest = view
	for out := range s.watchers {
		select {
		case <-out:
		default:
		}
		out <- owned(view)
	}
}

// unwatch returns when nothing of the watch is left, if it was the last one's: the store may be
// closed then.
func (s *store) unwatch(out chan election.State) {
	s.mu.Lock()
	delete(s.watchers, out)
	w := s.watching
	last := len(s.watchers) == 0
	if last {
		s.watching = nil
	}
	s.mu.Unlock()
	if last {
		w.cancel()
		<-w.ended
	}
	close(out)
}

// owned is a watcher's own copy.
func owned(s election.State) election.State {
	s.InSync, s.Replicas = slices.Clone(s.InSync), slices.Clone(s.Replicas)
	return s
}
