// Package memory is an election.Election in memory, for tests in virtual time: it behaves as etcd
// does, and fails as etcd fails, at the instant that a test says.
//
//	store := memory.NewStore()
//	e := store.Client("greeter")  // one per process
//	e.Cut()                       // the process can't reach the store; its lease expires
//	e.Mend()                      // it registers again
//	store.SetDown(true)           // nobody can reach the store; no lease expires
//
// A Store has no goroutine of its own. Made inside a testing/synctest bubble it is of that bubble:
// its timers and the channels it returns. Whatever order several clients act in at one virtual
// instant is theirs; the store takes no random decision.
package memory

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/election"
)

// An Option configures NewStore.
type Option func(*Store)

// TTL sets how long a registration lives on when its client can't reach the store. Default
// election.DefaultTTL. It counts from the instant of the cut.
func TTL(ttl time.Duration) Option { return func(s *Store) { s.ttl = ttl } }

// Latency sets how long each way between a client and the store takes: an operation takes at least
// twice that, a change is seen by watches after it. Default 0.
func Latency(oneWay time.Duration) Option { return func(s *Store) { s.latency = oneWay } }

// A Store stands for one etcd cluster. Its methods may run concurrently.
type Store struct {
	ttl     time.Duration
	latency time.Duration

	mu      sync.Mutex // guards all below, and every field of group, registration, watcher and Client
	rev     int64      // grows by one with each transaction that changes something
	down    bool
	groups  map[string]*group
	clients []*Client
	moved   chan struct{} // closed, and made anew, when the store or a link comes back
}

// NewStore returns an empty store that is up.
func NewStore(opts ...Option) *Store {
	s := &Store{ttl: election.DefaultTTL, rev: 1, groups: map[string]*group{}, moved: make(chan struct{})}
	for _, opt := range opts {
		opt(s)
	}
	return s
}

// Group returns the election of a group, as Client does.
func (s *Store) Group(name string) election.Election { return s.Client(name) }

// Client returns one process's handle of a group, with a link of its own.
func (s *Store) Client(group string) *Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Client{store: s, name: group}
	s.clients = append(s.clients, c)
	return c
}

// SetDown takes the store away from everybody, or brings it back with all that it held. While it is
// down every operation waits for the end of its context or for the store's return, and no lease
// expires; when it comes back each lease has its whole TTL again, as in etcd.
func (s *Store) SetDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down == down {
		return
	}
	s.down = down
	s.linksChanged()
}

// Revision returns the newest revision.
func (s *Store) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

// State returns what the store holds for a group at this instant, without the latency, and whether
// it is up or down.
func (s *Store) State(group string) election.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state(s.group(group))
}

// A Backup is what a store held at some instant, leases excepted.
type Backup struct {
	rev    int64
	groups map[string]*group
}

// Backup copies what the store holds.
func (s *Store) Backup() *Backup {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Backup{rev: s.rev, groups: cloneGroups(s.groups)}
}

// Restore puts a backup in place of what the store holds, as when etcd is restored: revisions go
// back. A nil backup leaves an empty store. Every lease is gone; those who reach the store register
// again at once.
func (s *Store) Restore(b *Backup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b == nil {
		b = &Backup{rev: 1}
	}
	watchers := map[string][]*watcher{}
	for name, g := range s.groups {
		for _, r := range g.registrations {
			r.stopTimer()
		}
		watchers[name] = g.watchers
	}
	s.rev, s.groups = b.rev, cloneGroups(b.groups)
	for name, ws := range watchers {
		s.group(name).watchers = ws
	}
	s.linksChanged()
}

// Delete takes the group's id, its primary and who is in sync away, as whoever deletes keys does;
// or only those named: "id", "primary", "insync". Registrations stay, and revisions go on.
func (s *Store) Delete(name string, keys ...string) {
	gone := func(key string) bool { return len(keys) == 0 || slices.Contains(keys, key) }
	s.Tamper(name, func(state *election.State) {
		if gone("id") {
			state.Group, state.Fence = election.Group{}, 0
		}
		if gone("primary") {
			state.Primary, state.Epoch = election.Member{}, 0
		}
		if gone("insync") {
			state.InSync = nil
		}
	})
}

// Tamper changes what the store holds of a group, as somebody does who writes etcd's keys: its
// Group, Primary, Epoch, Fence and InSync. The revision moves, as with any change.
func (s *Store) Tamper(name string, change func(*election.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.group(name)
	state := s.state(g)
	change(&state)
	g.what, g.primary, g.epoch, g.fence = state.Group, state.Primary, int64(state.Epoch), state.Fence
	clear(g.inSync)
	for _, m := range state.InSync {
		g.inSync[m.Name] = m
	}
	s.changed(g)
}

func cloneGroups(groups map[string]*group) map[string]*group {
	clones := map[string]*group{}
	for name, g := range groups {
		clone := newGroup()
		clone.what, clone.fence, clone.primary, clone.epoch = g.what, g.fence, g.primary, g.epoch
		for _, m := range g.inSync {
			clone.inSync[m.Name] = m
		}
		clones[name] = clone
	}
	return clones
}

// A group is what the keys of one group hold.
type group struct {
	what    election.Group
	fence   int64 // ModRevision of `id`: see election.Election.AddInSync
	primary election.Member
	epoch   int64
	inSync  map[string]election.Member
	// registrations are those alive, by name.
	registrations map[string]*registration
	watchers      []*watcher
}

func newGroup() *group {
	return &group{inSync: map[string]election.Member{}, registrations: map[string]*registration{}}
}

// group returns the group's keys, none if there are none yet.
func (s *Store) group(name string) *group {
	g := s.groups[name]
	if g == nil {
		g = newGroup()
		s.groups[name] = g
	}
	return g
}

func (s *Store) state(g *group) election.State {
	state := election.State{Revision: s.rev, Group: g.what, Primary: g.primary, Epoch: uint64(g.epoch), Fence: g.fence}
	for _, m := range g.inSync {
		state.InSync = append(state.InSync, m)
	}
	for _, r := range g.registrations {
		state.Replicas = append(state.Replicas, r.replica)
	}
	slices.SortFunc(state.InSync, func(a, b election.Member) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(state.Replicas, func(a, b election.Replica) int { return cmp.Compare(a.Name, b.Name) })
	return state
}

// changed ends a transaction that changed g: it takes a revision, and tells the watchers.
func (s *Store) changed(g *group) int64 {
	s.rev++
	s.notify(g)
	return s.rev
}

func (s *Store) notify(g *group) {
	for _, w := range g.watchers {
		s.tell(w, g)
	}
}

// linksChanged follows a change of down or of any client's cut: leases run or rest, those who can
// come back do, and waiting operations look again.
func (s *Store) linksChanged() {
	// Everything in an order of its own: what happens at one instant mustn't depend on a map's.
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		g := s.groups[name]
		for _, name := range slices.Sorted(maps.Keys(g.registrations)) {
			g.registrations[name].linkChanged()
		}
	}
	for _, c := range s.clients {
		if c.reachable() {
			for _, r := range slices.Clone(c.registrations) {
				r.comeBack()
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		s.notify(s.groups[name])
	}
	close(s.moved)
	s.moved = make(chan struct{})
}

// A watcher is one Watch.
type watcher struct {
	client *Client
	out    chan election.State // holds the newest State that wasn't received yet
	sent   *election.State     // what was sent last
	done   bool                // out is closed
	turn   uint64              // the newest notification
	seen   uint64              // the newest that has arrived
}

// tell sends w what g is now, after the latency, if w's client is reachable then.
func (s *Store) tell(w *watcher, g *group) {
	w.turn++
	turn, state := w.turn, s.state(g)
	if s.latency == 0 {
		w.arrive(turn, state)
		return
	}
	time.AfterFunc(s.latency, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		w.arrive(turn, state)
	})
}

func (w *watcher) arrive(turn uint64, state election.State) {
	if w.done || turn <= w.seen || !w.client.reachable() {
		return // when the link is mended, everybody is told again
	}
	w.seen = turn
	if w.sent != nil {
		same := state
		same.Revision = w.sent.Revision
		if reflect.DeepEqual(same, *w.sent) {
			return
		}
	}
	select {
	case <-w.out: // too old
	default:
	}
	w.sent = &state
	state.InSync, state.Replicas = slices.Clone(state.InSync), slices.Clone(state.Replicas) // the receiver's own
	w.out <- state
}

// A registration is alive while group.registrations holds it. Else it is on its way back, lost or
// closed.
type registration struct {
	client  *Client
	replica election.Replica
	lost    chan struct{}
	err     error
	orphan  bool // its maker never learnt of it, so nobody keeps it alive
	timer   *time.Timer
	run     int // counts the timer's starts: a timer that fires late finds another one
}

var _ election.Registration = (*registration)(nil)

func (r *registration) Replica() election.Replica { return r.replica }

func (r *registration) Lost() <-chan struct{} { return r.lost }

func (r *registration) Err() error {
	r.client.store.mu.Lock()
	defer r.client.store.mu.Unlock()
	return r.err
}

func (r *registration) Close(ctx context.Context) error {
	s := r.client.store
	s.mu.Lock()
	if r.err == election.ErrClosed {
		s.mu.Unlock()
		return nil
	}
	r.lose(election.ErrClosed)
	r.orphan = true // if the revocation fails, the lease expires
	r.linkChanged()
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(ctx, s.ttl)
	defer cancel()
	if err := r.client.do(ctx, "close", false, func(g *group) error {
		r.withdraw(g)
		return nil
	}); err != nil {
		return fmt.Errorf("election: close: the lease expires by itself: %w", err)
	}
	return nil
}

// alive reports whether r stands in g.
func (r *registration) alive(g *group) bool { return g.registrations[r.replica.Name] == r }

// put makes r stand in g, over whoever holds the name; a holder who can learn of it is lost at
// once.
func (r *registration) put(g *group) {
	if old := g.registrations[r.replica.Name]; old != nil && old != r {
		old.stopTimer()
		delete(g.registrations, r.replica.Name)
		if old.client.reachable() {
			defer old.loseTo(r)
		}
	}
	g.registrations[r.replica.Name] = r
	r.linkChanged()
	r.client.store.changed(g)
}

// withdraw takes r out of g, if it stands there.
func (r *registration) withdraw(g *group) {
	r.stopTimer()
	if r.alive(g) {
		delete(g.registrations, r.replica.Name)
		r.client.store.changed(g)
	}
}

// comeBack puts r back after its lease expired, or loses it to who took the name meanwhile.
func (r *registration) comeBack() {
	if r.err != nil || r.orphan {
		return
	}
	g := r.client.store.group(r.client.name)
	switch holder := g.registrations[r.replica.Name]; {
	case holder == r:
	case holder == nil:
		r.put(g)
	default:
		r.loseTo(holder)
	}
}

func (r *registration) loseTo(holder *registration) {
	r.lose(&election.NameTakenError{Holder: holder.replica})
}

func (r *registration) lose(why error) {
	if r.err == nil {
		r.err = why
		close(r.lost)
	}
	r.client.registrations = slices.DeleteFunc(r.client.registrations, func(other *registration) bool {
		return other == r
	})
}

// linkChanged starts the TTL when nobody keeps r alive, and stops it when somebody does or the
// store is down.
func (r *registration) linkChanged() {
	s := r.client.store
	g := s.group(r.client.name)
	if !r.alive(g) || s.down || (!r.orphan && r.client.reachable()) {
		r.stopTimer()
		return
	}
	if r.timer != nil {
		return
	}
	r.run++
	run := r.run
	r.timer = time.AfterFunc(s.ttl, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.timer != nil && r.run == run {
			r.withdraw(s.group(r.client.name))
		}
	})
}

func (r *registration) stopTimer() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}
