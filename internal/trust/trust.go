// Package trust believes a group's store only as long as that never goes back. Who has known a
// group takes no word that is older than what it knows, nor another group for this one: by what a
// store that was emptied, replaced or restored says, nobody is elected, evicted or deposed.
package trust

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/understudy-rpc/understudy/election"
)

// A Mark is how far the store had got with a group, as somebody has seen it. It travels between
// those who know the group, so that a store which was restored from a backup is found out by
// whoever has seen more.
type Mark struct {
	// Group is the group's id; 0: none is known.
	Group uint64
	// Revision is the store's, Epoch and Fence are the group's; see State.
	Revision int64
	Epoch    uint64
	Fence    int64
}

// A SuspectError says that the store's word on a group can't be the newest, or isn't of that group:
// the store was emptied, replaced, or restored from a backup, or somebody changed the group's keys.
// Nothing may be concluded from what it says, and least of all that a state isn't needed any more.
type SuspectError struct {
	// Group is the id of the group that is known; 0: none is.
	Group  uint64
	Reason string
}

func (e *SuspectError) Error() string {
	text := "election: the store is suspect: " + e.Reason
	if e.Group == 0 {
		return text
	}
	return text + fmt.Sprintf("; group %x keeps its state, and its calls wait, until the store makes sense again"+
		" (to begin the group anew without its state: replica.ReplaceGroup(%q))", e.Group,
		strconv.FormatUint(e.Group, 16))
}

// IsSuspect reports whether err comes from a store that isn't believed.
func IsSuspect(err error) bool {
	var suspect *SuspectError
	return errors.As(err, &suspect)
}

// recheck is how often a store that is suspect is read again.
const recheck = 250 * time.Millisecond

// Store is an election with a memory. Where it doesn't believe what is below, it returns a
// *SuspectError, and sends States with Suspect set.
//
// A group is over only when the store's record of another one names it as replaced
// (Group.Replaces), which an operator's act has written. Then Store knows the new one.
type Store struct {
	election.Election

	mu      sync.Mutex // guards:
	known   Mark
	inSync  []election.Member          // as of known's Epoch and Fence; nil: not known
	newest  election.State             // that was believed
	suspect error                      // as a Watch has found it
	watches map[chan struct{}]struct{} // each is told when somebody has seen more; has room for one
}

// New returns e with a memory, which is empty at first.
func New(e election.Election) *Store {
	return &Store{Election: e, watches: map[chan struct{}]struct{}{}}
}

// Known is the newest that this process knows, to be told to others.
func (t *Store) Known() Mark {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known
}

// Learn takes the word of a member of the group for what it has seen. The caller has made sure who
// speaks. A Mark of another group than the known one is passed over. So is the revision, which
// moves with what others write to the store.
func (t *Store) Learn(m Mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.Group == 0 || m.Group != t.known.Group {
		return
	}
	if m.Epoch > t.known.Epoch || m.Fence > t.known.Fence {
		t.inSync = nil
		for more := range t.watches {
			select {
			case more <- struct{}{}:
			default:
			}
		}
	}
	t.known.Epoch = max(t.known.Epoch, m.Epoch)
	t.known.Fence = max(t.known.Fence, m.Fence)
}

// Read is Election.Read, or a *SuspectError.
func (t *Store) Read(ctx context.Context) (election.State, error) {
	before, inSync := t.memory()
	s, err := t.Election.Read(ctx)
	if err != nil {
		return election.State{}, err
	}
	if err := before.judge(s, inSync); err != nil {
		return election.State{}, err
	}
	t.believe(s)
	return s, nil
}

// JudgeMark returns an error if somebody was elected in m's epoch by a store that lacked what is
// known: an election sees every change of who is in sync that came before it.
func (t *Store) JudgeMark(m Mark) error {
	known, _ := t.memory()
	if m.Epoch > known.Epoch && m.Fence < known.Fence {
		return fmt.Errorf("election: epoch %d was begun by a store that was restored from before: it had who was in "+
			"sync at"+
			" revision %d, and that was changed at revision %d", m.Epoch, m.Fence, known.Fence)
	}
	return nil
}

// Relearn takes the word of a member of the group instead of what was known: it has shown that this
// was read in a store that isn't the group's.
func (t *Store) Relearn(m Mark) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m.Group != 0 && m.Group == t.known.Group {
		t.known, t.inSync = m, nil
	}
}

// Judge returns a *SuspectError if a State, which was read before, can't be the newest by what is
// known now.
func (t *Store) Judge(s election.State) error {
	known, inSync := t.memory()
	return known.judge(s, inSync)
}

// Primary is Election.Primary. What it says is looked at as a whole unless it is what was known.
func (t *Store) Primary(ctx context.Context) (election.Member, uint64, error) {
	t.mu.Lock()
	primary, known, suspect := t.newest.Primary, t.known, t.suspect
	t.mu.Unlock()
	p, epoch, err := t.Election.Primary(ctx)
	if err != nil || p == primary && epoch == known.Epoch && suspect == nil {
		return p, epoch, err
	}
	s, err := t.Read(ctx)
	return s.Primary, s.Epoch, err
}

// AddInSync is Election.AddInSync.
func (t *Store) AddInSync(ctx context.Context, epoch uint64, m election.Member) error {
	return t.change(ctx, "add in sync", func() error { return t.Election.AddInSync(ctx, epoch, m) })
}

// RemoveInSync is Election.RemoveInSync.
func (t *Store) RemoveInSync(ctx context.Context, epoch uint64, m election.Member) error {
	return t.change(ctx, "remove in sync", func() error { return t.Election.RemoveInSync(ctx, epoch, m) })
}

// change makes a change in a store that is believed before and afterwards. One that a suspect store
// has made, or refused, has an unknown outcome: the store that comes back needn't have it.
func (t *Store) change(ctx context.Context, op string, f func() error) error {
	if _, err := t.Read(ctx); err != nil {
		return err // nothing was sent
	}
	err := f()
	if election.IsUnknown(err) {
		return err
	}
	if _, suspect := t.Read(ctx); suspect != nil && IsSuspect(suspect) {
		return &election.UnknownError{Op: op, Err: suspect}
	} else if suspect != nil && err == nil {
		return nil // etcd went away after it had answered
	}
	return err
}

// Watch is Election.Watch. While the store is suspect it sends the State that was believed last,
// with Suspect set, and reads the store again every 250 ms.
func (t *Store) Watch(ctx context.Context) <-chan election.State {
	out, more := make(chan election.State, 1), make(chan struct{}, 1)
	t.mu.Lock()
	t.watches[more] = struct{}{}
	t.mu.Unlock()
	views := t.Election.Watch(ctx)
	go func() {
		defer close(out)
		defer func() {
			t.mu.Lock()
			defer t.mu.Unlock()
			delete(t.watches, more)
		}()
		w := trustedWatch{t: t, out: out}
		again := time.NewTicker(recheck)
		again.Stop()
		defer again.Stop()
		for {
			select {
			case s, ok := <-views:
				if !ok {
					return
				}
				w.look(ctx, s)
			case <-again.C:
				if w.suspect != nil || t.behind() {
					w.confirm(ctx)
				}
			case <-more: // the store's own watch has the time to say it, too
				again.Reset(recheck)
				continue
			}
			if w.suspect == nil {
				again.Stop()
			} else if !w.ticking {
				again.Reset(recheck)
			}
			w.ticking = w.suspect != nil
		}
	}()
	return out
}

// trustedWatch is one Watch, of one goroutine.
type trustedWatch struct {
	t        *Store
	out      chan election.State // has room for one
	suspect  error
	ticking  bool
	revision int64 // of the store's newest word
}

// look judges what the store's own watch has sent. That may be older than what was read meanwhile:
// so what isn't believed is read again.
func (w *trustedWatch) look(ctx context.Context, s election.State) {
	before, inSync := w.t.memory()
	before.Revision, w.revision = w.revision, s.Revision // a read has others' changes, too
	if before.judge(s, inSync) != nil || w.suspect != nil {
		w.confirm(ctx)
		return
	}
	w.t.believe(s)
	w.send(s)
}

// confirm reads the store, and tells what it finds.
func (w *trustedWatch) confirm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 4*recheck)
	defer cancel()
	s, err := w.t.Read(ctx)
	switch {
	case err == nil:
		w.suspect = nil
	case IsSuspect(err):
		if w.suspect != nil && w.suspect.Error() == err.Error() {
			return // the receiver knows
		}
		w.suspect = err
	default: // away: the store's own watch says nothing either
		if w.suspect == nil {
			w.suspect = errUnconfirmed
		}
		return
	}
	w.t.mu.Lock()
	if w.t.suspect = err; err != nil {
		s = w.t.newest
		s.Suspect = err
	}
	w.t.mu.Unlock()
	w.send(s)
}

// errUnconfirmed lets a store be read again that went away before it could be judged.
var errUnconfirmed = errors.New("election: the store went away")

// send replaces what wasn't received yet. The receiver owns what it gets.
func (w *trustedWatch) send(s election.State) {
	s.InSync, s.Replicas = slices.Clone(s.InSync), slices.Clone(s.Replicas)
	select {
	case <-w.out:
	default:
	}
	w.out <- s
}

// behind says whether somebody has seen more than any State that was believed.
func (t *Store) behind() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.newest.Epoch < t.known.Epoch || t.newest.Fence < t.known.Fence
}

func (t *Store) memory() (Mark, []election.Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known, t.inSync
}

// believe remembers a State that was judged, unless something newer was meanwhile.
func (t *Store) believe(s election.State) {
	t.mu.Lock()
	defer t.mu.Unlock()
	replaced := t.known.Group != 0 && s.Group.ID != t.known.Group
	switch {
	case replaced && !s.Group.HasReplaced(t.known.Group):
		return // a State from before the group that is known by now
	case replaced:
		t.known = Mark{}
	case s.Revision < t.known.Revision || s.Epoch < t.known.Epoch || s.Fence < t.known.Fence:
		return
	}
	t.newest, t.suspect = s, nil
	t.known = Mark{Group: s.Group.ID, Revision: s.Revision, Epoch: s.Epoch, Fence: s.Fence}
	t.inSync = slices.Clone(s.InSync)
}

// judge says what is wrong with a State that was read after m and inSync were known.
func (m Mark) judge(s election.State, inSync []election.Member) error {
	suspect := func(format string, args ...any) error {
		return &SuspectError{Group: m.Group, Reason: fmt.Sprintf(format, args...)}
	}
	replaced := m.Group != 0 && s.Group.HasReplaced(m.Group)
	switch {
	case s.Group.IsZero() && (!s.Primary.IsZero() || len(s.InSync) > 0):
		return suspect("the group's id is missing, though it has a primary or somebody in sync")
	case s.Group.IsZero() && m.Group != 0:
		return suspect("it has nothing of the group")
	case s.Group.IsZero():
		return nil
	case m.Group != 0 && s.Group.ID != m.Group && !replaced:
		return suspect("it has another group, with id %x, which doesn't replace this one", s.Group.ID)
	case s.Primary.IsZero():
		return suspect("the group's primary is missing")
	case !s.IsInSync(s.Primary):
		return suspect("the primary %v isn't in sync", s.Primary)
	case replaced || m.Group == 0:
		return nil
	case s.Epoch < m.Epoch:
		return suspect("its epoch is %d, after epoch %d had begun", s.Epoch, m.Epoch)
	case s.Fence < m.Fence:
		return suspect("it has who was in sync at revision %d, and that was changed at revision %d", s.Fence, m.Fence)
	case s.Revision < m.Revision:
		return suspect("its revision is %d, and was %d", s.Revision, m.Revision)
	case s.Epoch == m.Epoch && s.Fence == m.Fence && inSync != nil && !slices.Equal(s.InSync, inSync):
		return suspect("who is in sync was changed behind the group's back")
	}
	return nil
}
