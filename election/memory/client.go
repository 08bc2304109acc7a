package memory

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/understudy-rpc/understudy/election"
)

// A Client is one process's handle of one group. Its methods may run concurrently.
//
// Transactions and reads happen in one instant, after the store's latency; a call whose context
// ends before its answer is back fails, a transaction with an unknown outcome even if it never
// reached the store.
type Client struct {
	store *Store
	name  string

	// Guarded by store.mu:
	cut           bool
	registrations []*registration // neither lost nor closed
	holding       bool            // the next transaction is to be held
	held          []func()        // transactions that are on their way
}

var _ election.Election = (*Client)(nil)

// Cut breaks the link between this client and the store: operations wait for the end of their
// context or for Mend, watches are silent, and registrations expire after their TTL.
func (c *Client) Cut() { c.setCut(true) }

// Mend restores the link. Registrations that had expired come back at once, those whose name was
// taken are lost.
func (c *Client) Mend() { c.setCut(false) }

func (c *Client) setCut(cut bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if c.cut != cut {
		c.cut = cut
		c.store.linksChanged()
	}
}

// HoldNext holds this client's next transaction (of Register, Create, Elect, AddInSync or
// RemoveInSync): its caller is told at once that the outcome is unknown, while it is on its way.
// Release lets what is held arrive at the store, however late.
func (c *Client) HoldNext() (release func()) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	c.holding = true
	return func() {
		c.store.mu.Lock()
		defer c.store.mu.Unlock()
		held := c.held
		c.holding, c.held = false, nil
		for _, transaction := range held {
			transaction()
		}
	}
}

// Read implements election.Election.
func (c *Client) Read(ctx context.Context) (election.State, error) {
	var state election.State
	err := c.do(ctx, "read", false, func(g *group) error {
		state = c.store.state(g)
		return nil
	})
	if err != nil {
		return election.State{}, err
	}
	return state, nil
}

// Primary implements election.Election.
func (c *Client) Primary(ctx context.Context) (election.Member, uint64, error) {
	var primary election.Member
	var epoch uint64
	err := c.do(ctx, "primary", false, func(g *group) error {
		primary, epoch = g.primary, uint64(g.epoch)
		return nil
	})
	if err != nil {
		return election.Member{}, 0, err
	}
	return primary, epoch, nil
}

// Register implements election.Election.
func (c *Client) Register(
	ctx context.Context, replica election.Replica, displaces election.Member,
) (election.Registration, error) {
	if err := replica.Validate(); err != nil {
		return nil, err
	}
	r := &registration{client: c, replica: replica, lost: make(chan struct{})}
	for {
		// Two operations, as with etcd: who is seen to hold the name is who is replaced.
		var seen *registration
		if err := c.do(ctx, "register", false, func(g *group) error {
			seen = g.registrations[replica.Name]
			if seen != nil && seen.replica.Member != replica.Member && seen.replica.Member != displaces {
				return &election.NameTakenError{Holder: seen.replica}
			}
			return nil
		}); err != nil {
			return nil, err
		}
		err := c.do(ctx, "register", true, func(g *group) error {
			if g.registrations[replica.Name] != seen {
				return errMoved
			}
			// Until the caller has it, it is nobody's, and lives no longer than its TTL.
			r.orphan = true
			r.put(g)
			return nil
		})
		if err == nil {
			break
		}
		if err != errMoved {
			return nil, err
		}
	}
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	r.orphan = false
	c.registrations = append(c.registrations, r)
	r.linkChanged()
	if c.reachable() {
		r.comeBack()
	}
	return r, nil
}

// Create implements election.Election.
func (c *Client) Create(ctx context.Context, what election.Group, self election.Registration) (uint64, error) {
	r, err := c.own(self)
	if err != nil {
		return 0, err
	}
	if err := what.Validate(); err != nil {
		return 0, err
	}
	var epoch uint64 // not a result: a held transaction writes it late
	err = c.do(ctx, "create", true, func(g *group) error {
		switch {
		case !g.what.IsZero() && !strings.HasPrefix(what.Replaces+",", strconv.FormatUint(g.what.ID, 16)+","):
			return election.ErrExists
		case !g.what.IsZero() && !c.store.state(g).IsDown():
			return election.ErrAlive
		case !r.alive(g):
			return election.ErrNotRegistered
		}
		clear(g.inSync)
		g.what, g.primary = what, r.replica.Member
		g.inSync[r.replica.Name] = r.replica.Member
		c.newEpoch(g)
		g.fence = g.epoch
		epoch = uint64(g.epoch)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return epoch, nil
}

// Elect implements election.Election.
func (c *Client) Elect(ctx context.Context, self election.Registration, seen uint64) (uint64, error) {
	r, err := c.own(self)
	if err != nil {
		return 0, err
	}
	me := r.replica.Member
	// Two operations, as with etcd: what is decided by the first is no transaction, whose outcome
	// could be unknown.
	seenPrimary := func(g *group) error {
		switch {
		case g.epoch == 0 || uint64(g.epoch) != seen:
			return election.ErrLost
		case g.primary == me:
			return election.ErrPrimary
		}
		return nil
	}
	if err := c.do(ctx, "elect", false, seenPrimary); err != nil {
		return 0, err
	}
	var epoch uint64
	err = c.do(ctx, "elect", true, func(g *group) error {
		if err := seenPrimary(g); err != nil {
			return err
		}
		switch {
		case !r.alive(g):
			return election.ErrNotRegistered
		case g.inSync[me.Name] != me:
			return election.ErrNotInSync
		}
		if g.inSync[g.primary.Name] == g.primary {
			delete(g.inSync, g.primary.Name)
		}
		g.primary = me
		c.newEpoch(g)
		epoch = uint64(g.epoch)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return epoch, nil
}

// newEpoch ends a transaction that put `primary`.
func (c *Client) newEpoch(g *group) {
	g.epoch = c.store.rev + 1
	c.store.changed(g)
}

// AddInSync implements election.Election.
func (c *Client) AddInSync(ctx context.Context, epoch uint64, m election.Member) error {
	return c.changeInSync(ctx, "add in sync", epoch, m,
		func(g *group) error {
			if r := g.registrations[m.Name]; r == nil || r.replica.Member != m {
				return election.ErrNotRegistered
			}
			return nil
		},
		func(g *group) { g.inSync[m.Name] = m },
	)
}

// RemoveInSync implements election.Election.
func (c *Client) RemoveInSync(ctx context.Context, epoch uint64, m election.Member) error {
	return c.changeInSync(ctx, "remove in sync", epoch, m,
		func(g *group) error {
			if g.primary == m {
				return election.ErrPrimary
			}
			return nil
		},
		func(g *group) {
			if g.inSync[m.Name] == m {
				delete(g.inSync, m.Name)
			}
		},
	)
}

var errMoved = errors.New("another change came between")

// changeInSync decides and then changes, as two operations, because etcd takes two; the fence lets
// no held change take place once a later one has.
func (c *Client) changeInSync(
	ctx context.Context, op string, epoch uint64, m election.Member, decide func(*group) error, change func(*group),
) error {
	if err := m.Validate(); err != nil {
		return err
	}
	may := func(g *group) error {
		if g.epoch == 0 || uint64(g.epoch) != epoch {
			return election.ErrDeposed
		}
		return decide(g)
	}
	for {
		var seen int64
		if err := c.do(ctx, op, false, func(g *group) error {
			seen = g.fence
			return may(g)
		}); err != nil {
			return err
		}
		err := c.do(ctx, op, true, func(g *group) error {
			if g.fence != seen {
				return errMoved
			}
			if err := may(g); err != nil {
				return err
			}
			change(g)
			g.fence = c.store.changed(g)
			return nil
		})
		if err != errMoved {
			return err
		}
	}
}

// Watch implements election.Election.
func (c *Client) Watch(ctx context.Context) <-chan election.State {
	s := c.store
	w := &watcher{client: c, out: make(chan election.State, 1)}
	if c.invalid() != nil {
		context.AfterFunc(ctx, func() { close(w.out) })
		return w.out
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.group(c.name)
	g.watchers = append(g.watchers, w)
	s.tell(w, g)
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		g := s.group(c.name) // a Restore may have replaced it
		g.watchers = slices.DeleteFunc(g.watchers, func(other *watcher) bool { return other == w })
		w.done = true
		close(w.out)
	})
	return w.out
}

// own returns a registration that this store made for this group.
func (c *Client) own(self election.Registration) (*registration, error) {
	r, ok := self.(*registration)
	if !ok || r.client.store != c.store || r.client.name != c.name {
		return nil, &election.InvalidError{Field: "registration", Reason: "is not of this group"}
	}
	return r, nil
}

func (c *Client) invalid() error {
	if err := election.ValidName(c.name); err != nil {
		return &election.InvalidError{Field: "group", Reason: err.(*election.InvalidError).Reason}
	}
	return nil
}

// reachable reports whether this client reaches the store.
func (c *Client) reachable() bool { return !c.cut && !c.store.down }

// do runs f in the store, there and back taking the latency, and as long as the link is cut or the
// store down. A transaction that ctx cuts short has an unknown outcome.
func (c *Client) do(ctx context.Context, op string, transaction bool, f func(*group) error) error {
	if err := c.invalid(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("election: %s: %w", op, err)
	}
	failed := func(err error) error {
		if transaction {
			return &election.UnknownError{Op: op, Err: err}
		}
		return fmt.Errorf("election: %s: %w", op, err)
	}
	var answer error
	late := false // f is done when the test releases it
	if err := c.travel(ctx, func() {
		if late = transaction && c.holding; late {
			c.holding = false
			c.held = append(c.held, func() { _ = f(c.store.group(c.name)) })
			return
		}
		answer = f(c.store.group(c.name))
	}); err != nil {
		return failed(err)
	}
	if late {
		return failed(context.DeadlineExceeded)
	}
	if err := c.travel(ctx, func() {}); err != nil {
		return failed(err)
	}
	return answer
}

// travel takes the latency, waits until the store is reachable, and then calls arrived, which has
// the store to itself; or returns the context's error.
func (c *Client) travel(ctx context.Context, arrived func()) error {
	if c.store.latency > 0 {
		timer := time.NewTimer(c.store.latency)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for {
		moved, ok := c.arrive(arrived)
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// arrive calls arrived if the store is reachable; else moved is closed when that may have changed.
func (c *Client) arrive(arrived func()) (moved <-chan struct{}, ok bool) {
	c.store.mu.Lock()
	defer c.store.mu.Unlock()
	if !c.reachable() {
		return c.store.moved, false
	}
	arrived()
	return nil, true
}
