package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func (e *etcd) Register(ctx context.Context, replica Replica, displaces Member) (Registration, error) {
	if e.invalid != nil {
		return nil, e.invalid
	}
	if err := replica.Validate(); err != nil {
		return nil, err
	}
	l, err := e.publish(ctx, replica, displaces)
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.Background())
	r := &registration{
		e:       e,
		replica: replica,
		stop:    stop,
		stopped: make(chan struct{}),
		lost:    make(chan struct{}),
		lease:   l.id,
		newest:  l.rev,
	}
	go r.run(life, l)
	return r, nil
}

// A lease is one grant, with the key that stands under it.
type lease struct {
	id      clientv3.LeaseID
	ttl     time.Duration // as etcd has granted it
	renewed time.Time     // when it was asked for, or kept alive
	rev     int64         // the ModRevision of the key
}

// publish puts replicas/<name> under a new lease, over nothing, over the same incarnation, or over
// displaces.
func (e *etcd) publish(ctx context.Context, replica Replica, displaces Member) (*lease, error) {
	key := e.keys.replica(replica.Name)
	mod, err := e.vacancy(ctx, key, replica, displaces)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	grant, err := e.grant(ctx)
	if err != nil {
		return nil, fmt.Errorf("election: register: lease: %w", err)
	}
	for {
		resp, err := e.commit(ctx, "register", clientv3.OpTxn(
			[]clientv3.Cmp{unchanged(key, mod)},
			[]clientv3.Op{clientv3.OpPut(key, encodeReplica(replica), clientv3.WithLease(grant.ID))},
			nil,
		))
		if err == nil && resp.Succeeded {
			ttl := time.Duration(grant.TTL) * time.Second
			return &lease{id: grant.ID, ttl: ttl, renewed: began, rev: resp.Header.Revision}, nil
		}
		if err == nil || errors.Is(err, errTwice) { // somebody moved it between, or it is ours already
			mod, err = e.vacancy(ctx, key, replica, displaces)
		}
		if err != nil {
			return nil, err // the lease expires by itself
		}
	}
}

// vacancy returns the ModRevision at which a key may be overwritten by replica (0: while it doesn't
// exist).
func (e *etcd) vacancy(ctx context.Context, key string, replica Replica, displaces Member) (int64, error) {
	holder, held, err := e.readReplica(ctx, key, replica.Name)
	switch {
	case err != nil:
		return 0, fmt.Errorf("election: register: %w", err)
	case held.mod == 0, holder.Member == replica.Member, holder.Member == displaces:
		return held.mod, nil
	default:
		return 0, &NameTakenError{Holder: holder, since: held.mod}
	}
}

// readReplica returns who holds a name, and its entry; both are zero when nobody does.
func (e *etcd) readReplica(ctx context.Context, key, name string) (Replica, entry, error) {
	resp, err := e.get(ctx, key)
	if err != nil {
		return Replica{}, entry{}, err
	}
	if len(resp.Kvs) == 0 {
		return Replica{}, entry{}, nil
	}
	kv := newEntry(resp.Kvs[0].Value, resp.Kvs[0].ModRevision, resp.Kvs[0].Lease)
	r, err := decodeReplica(name, kv.value)
	if err != nil {
		return Replica{}, entry{}, malformed(key, err)
	}
	return r, kv, nil
}

// registration is kept by one goroutine, run: started by Register, stopped by Close or by the
// registration's loss. It blocks on etcd, always with a context that Close cancels.
type registration struct {
	e       *etcd
	replica Replica
	stop    context.CancelFunc
	stopped chan struct{} // closed when run has returned

	lost chan struct{}

	mu     sync.Mutex // guards:
	lease  clientv3.LeaseID
	newest int64 // the highest ModRevision of our puts, also of those that a restored store doesn't have
	err    error // set before lost is closed
}

func (r *registration) Replica() Replica { return r.replica }

func (r *registration) Lost() <-chan struct{} { return r.lost }

func (r *registration) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *registration) Close(ctx context.Context) error {
	if errors.Is(r.lose(ErrClosed), ErrClosed) {
		return nil // closed before
	}
	r.stop()
	<-r.stopped
	// The lease outlives its TTL in no case, so there is no point in trying for longer.
	ctx, cancel := context.WithTimeout(ctx, r.e.ttl)
	defer cancel()
	if err := r.e.revoke(ctx, r.leaseID()); err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return fmt.Errorf("election: close: the lease expires by itself: %w", err)
	}
	return nil
}

// lose records why the registration is over, once, and returns why it was over before.
func (r *registration) lose(why error) (before error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = why
		close(r.lost)
		return nil
	}
	return r.err
}

func (r *registration) leaseID() clientv3.LeaseID {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lease
}

func (r *registration) newestPut() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.newest
}

func (r *registration) key() string { return r.e.keys.replica(r.replica.Name) }

// run keeps the registration: while a lease lives it looks after the key, then it registers again,
// until another incarnation has the name or ctx ends.
func (r *registration) run(ctx context.Context, l *lease) {
	defer close(r.stopped)
	for {
		err := r.keep(ctx, l)
		if ctx.Err() != nil || r.lostTo(err) {
			return
		}
		r.e.log.Warn("registering again", "replica", r.replica.Member, "reason", err)
		if l = r.again(ctx); l == nil {
			return
		}
	}
}

// again registers the same incarnation under a new lease. It returns nil when the registration is
// over.
func (r *registration) again(ctx context.Context) *lease {
	for delay := (retry{}); ; delay.wait(ctx) {
		attempt, cancel := context.WithTimeout(ctx, r.e.ttl)
		l, err := r.e.publish(attempt, r.replica, Member{})
		cancel()
		if err == nil {
			r.mu.Lock()
			r.lease, r.newest = l.id, max(r.newest, l.rev)
			r.mu.Unlock()
			return l
		}
		if ctx.Err() != nil || r.lostTo(err) {
			return nil
		}
		r.e.log.Warn("could not register again yet", "replica", r.replica.Member, "reason", err)
	}
}

// lostTo loses the registration if err says who took the name.
func (r *registration) lostTo(err error) bool {
	var taken *NameTakenError
	if !errors.As(err, &taken) {
		return false
	}
	if taken.since <= r.newestPut() {
		// The holder is from before: the store was restored. It is this registration itself, under
		// an earlier lease, or its lease runs out.
		return false
	}
	r.lose(taken)
	r.e.log.Warn("lost the name", "replica", r.replica.Member, "holder", taken.Holder.Member)
	return true
}

// keep keeps the lease alive until it is over, and says why: a *NameTakenError when somebody else
// has the key. It looks at the key as often: a watch would be on one member, which may be one that
// says nothing any more.
func (r *registration) keep(ctx context.Context, l *lease) error {
	t := time.NewTicker(min(l.ttl/3, time.Second))
	defer t.Stop()
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		began := time.Now()
		attempt, done := context.WithDeadline(ctx, l.renewed.Add(l.ttl))
		err := r.e.renew(attempt, l.id)
		if err == nil {
			l.renewed = began
		}
		holder, held, unread := r.e.readReplica(attempt, r.key(), r.replica.Name)
		done()
		if unread == nil {
			unread = r.check(l, holder, held)
		} else if !errors.As(unread, new(*MalformedError)) {
			unread = nil // it isn't known who has the key
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case unread != nil:
			return unread
		}
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || time.Since(l.renewed) >= l.ttl {
			return errExpired
		}
	}
}

var (
	errExpired = errors.New("the lease is over")
	errDeleted = errors.New("the key was deleted")
)

// check returns nil if the key stands under lease l. A put of the same incarnation by another
// registration counts as taken too: two that keep one name in turns would never end.
func (r *registration) check(l *lease, holder Replica, held entry) error {
	switch {
	case held.mod == 0:
		return errDeleted
	case held.lease == int64(l.id):
		return nil
	default:
		return &NameTakenError{Holder: holder, since: held.mod}
	}
}
