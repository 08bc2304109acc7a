package election

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/logs"
)

// DefaultTTL is how long a replica counts as alive after its last word to etcd. It is the least
// that etcd grants with its own default timings.
const DefaultTTL = 2 * time.Second

// An EtcdOption configures NewEtcd.
type EtcdOption func(*etcd)

// WithTTL sets the lease's time to live, rounded up to seconds; at least 1 s. Etcd may grant more:
// its minimum is 1.5 times its own election timeout. Default DefaultTTL.
func WithTTL(ttl time.Duration) EtcdOption {
	return func(e *etcd) { e.ttl = max((ttl + time.Second - 1).Truncate(time.Second), time.Second) }
}

// WithLogger sets where malformed keys, lost leases and broken watches are reported. Default:
// nowhere. Its handler is called in a goroutine of its own; one that is too slow loses lines, and
// is told how many.
func WithLogger(log *slog.Logger) EtcdOption {
	return func(e *etcd) { e.log = logs.New(log) }
}

// NewEtcd returns the election of a group, kept in etcd. The client stays the caller's, who closes
// it after the registrations and watches; Dial makes a suitable one. If group isn't a ValidName,
// every method fails with an *InvalidError, and a Watch never sends.
func NewEtcd(client *clientv3.Client, group string, opts ...EtcdOption) Election {
	e := &etcd{
		client: client,
		keys:   keysOf(group),
		ttl:    DefaultTTL,
		log:    logs.New(nil),
	}
	if err := ValidName(group); err != nil {
		e.invalid = &InvalidError{Field: "group", Reason: err.(*InvalidError).Reason}
	}
	for _, opt := range opts {
		opt(e)
	}
	e.log = e.log.With("group", group)
	return e
}

type etcd struct {
	client  *clientv3.Client
	keys    keys
	ttl     time.Duration
	log     *logs.Logger
	invalid error // the group's name is

	reported struct {
		sync.Mutex
		mods map[string]int64 // malformed keys, so that each is logged once per ModRevision
	}
}

func (e *etcd) Read(ctx context.Context) (State, error) {
	if e.invalid != nil {
		return State{}, e.invalid
	}
	all, revision, err := e.list(ctx)
	if err != nil {
		return State{}, fmt.Errorf("election: read: %w", err)
	}
	return e.decode(all, revision)
}

// Problem says why etcd doesn't answer, as far as that is known at once: where it is, and what
// became of the last attempt to connect, or what it says. It returns nil if etcd answers. Errors
// for users are made of it.
func (e *etcd) Problem(ctx context.Context) error {
	// The client's own methods wait for a connection, and forget why there is none.
	kv := pb.NewKVClient(e.client.ActiveConnection())
	_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte(e.keys.id())}, grpc.WaitForReady(false))
	if err == nil {
		return nil
	}
	return fmt.Errorf("etcd at %s: %s", strings.Join(e.client.Endpoints(), ", "), status.Convert(err).Message())
}

// R10: a linearizable read of one key.
func (e *etcd) Primary(ctx context.Context) (Member, uint64, error) {
	if e.invalid != nil {
		return Member{}, 0, e.invalid
	}
	primary, entry, err := e.readPrimary(ctx)
	if err != nil {
		return Member{}, 0, fmt.Errorf("election: primary: %w", err)
	}
	return primary, uint64(entry.mod), nil
}

func (e *etcd) Create(ctx context.Context, g Group, self Registration) (uint64, error) {
	r, err := e.own(self)
	if err != nil {
		return 0, err
	}
	if err := g.Validate(); err != nil {
		return 0, err
	}
	m, key, lease := r.replica.Member, r.key(), r.leaseID()
	// A group without an id but with somebody primary or in sync has lost its id: its log may live
	// on somewhere, so it isn't made anew.
	vacant := []clientv3.Cmp{absent(e.keys.id()), absent(e.keys.primary()), absent(e.keys.inSync("")).WithPrefix()}
	var former []clientv3.Op
	if g.Replaces != "" {
		if vacant, former, err = e.replace(ctx, g, m.Name, vacant); err != nil {
			return 0, err
		}
	}
	resp, err := e.commit(ctx, "create", clientv3.OpTxn(
		append(vacant, underLease(key, lease)),
		append(former,
			clientv3.OpPut(e.keys.id(), encodeGroup(g)),
			clientv3.OpPut(e.keys.primary(), encodePrimary(m)),
			clientv3.OpPut(e.keys.inSync(m.Name), encodeInSync(m)),
		),
		[]clientv3.Op{
			clientv3.OpGet(e.keys.id()),
			clientv3.OpGet(key),
		},
	))
	switch {
	case err != nil:
		return 0, err
	case resp.Succeeded:
		return uint64(resp.Header.Revision), nil
	case found(resp, 0):
		return 0, ErrExists
	case !stillUnder(resp, 1, lease):
		return 0, ErrNotRegistered
	default:
		return 0, malformed(e.keys.id(), errors.New("is missing, though the group has a primary or somebody in sync"))
	}
}

// replace returns what must hold, and what is deleted, for g to take the place of the group that is
// there; vacant, and nothing, if none is.
func (e *etcd) replace(
	ctx context.Context, g Group, self string, vacant []clientv3.Cmp,
) ([]clientv3.Cmp, []clientv3.Op, error) {
	all, revision, err := e.list(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("election: create: %w", err)
	}
	s, err := e.decode(all, revision)
	switch {
	case err != nil:
		return nil, nil, err
	case s.Group.IsZero():
		return vacant, nil, nil
	case !strings.HasPrefix(g.Replaces+",", encodeHex(s.Group.ID)+","):
		return nil, nil, ErrExists
	case !s.IsDown():
		return nil, nil, ErrAlive
	}
	var former []clientv3.Op
	var absent []clientv3.Cmp // still, from here on
	for _, m := range s.InSync {
		if m.Name != self { // whose keys are put: one transaction can't do both
			former = append(former, clientv3.OpDelete(e.keys.inSync(m.Name)))
			key := e.keys.replica(m.Name)
			absent = append(absent, unchanged(key, all[key].mod))
		}
	}
	// A change of who is in sync puts `id` again; so does an election `primary`.
	unmoved := append(absent, unchanged(e.keys.id(), s.Fence), unchanged(e.keys.primary(), int64(s.Epoch)))
	return unmoved, former, nil
}

// R8: `primary` unchanged since it was seen, this incarnation in `insync`, its `replicas/<name>`
// alive under its lease → put `primary`, remove the former primary from `insync`. The revision is
// the epoch.
func (e *etcd) Elect(ctx context.Context, self Registration, seen uint64) (uint64, error) {
	r, err := e.own(self)
	if err != nil {
		return 0, err
	}
	m, key, lease := r.replica.Member, r.key(), r.leaseID()
	// Whom to remove is read first; the transaction then compares the ModRevision, hence the value
	// too.
	former, entry, err := e.readPrimary(ctx)
	switch {
	case err != nil:
		return 0, fmt.Errorf("election: elect: %w", err)
	case entry.mod == 0 || uint64(entry.mod) != seen:
		return 0, ErrLost
	case former == m:
		return 0, ErrPrimary
	}
	resp, err := e.commit(ctx, "elect", clientv3.OpTxn(
		[]clientv3.Cmp{
			unchanged(e.keys.primary(), entry.mod),
			clientv3.Compare(clientv3.Value(e.keys.inSync(m.Name)), "=", encodeInSync(m)),
			underLease(key, lease),
		},
		[]clientv3.Op{
			clientv3.OpPut(e.keys.primary(), encodePrimary(m)),
			// Only the incarnation that was primary leaves: a later one of its name, if it ever
			// gets in sync, stays.
			clientv3.OpTxn(
				[]clientv3.Cmp{clientv3.Compare(clientv3.Value(e.keys.inSync(former.Name)), "=", encodeInSync(former))},
				[]clientv3.Op{clientv3.OpDelete(e.keys.inSync(former.Name))},
				nil,
			),
		},
		[]clientv3.Op{
			clientv3.OpGet(e.keys.primary()),
			clientv3.OpGet(key),
		},
	))
	switch {
	case err != nil:
		return 0, err
	case resp.Succeeded:
		return uint64(resp.Header.Revision), nil
	case !unmoved(resp, 0, entry.mod):
		return 0, ErrLost
	case !stillUnder(resp, 1, lease):
		return 0, ErrNotRegistered
	default:
		return 0, ErrNotInSync
	}
}

// R13, grow.
func (e *etcd) AddInSync(ctx context.Context, epoch uint64, m Member) error {
	return e.changeInSync(ctx, "add in sync", epoch, m, func(all entries, primary Member) (change, error) {
		key := e.keys.replica(m.Name)
		registered := all[key]
		r, err := decodeReplica(m.Name, registered.value)
		if err != nil || r.Member != m {
			return change{}, ErrNotRegistered
		}
		return change{
			unless: []clientv3.Cmp{unchanged(key, registered.mod)},
			op:     clientv3.OpPut(e.keys.inSync(m.Name), encodeInSync(m)),
		}, nil
	})
}

// R13, shrink.
func (e *etcd) RemoveInSync(ctx context.Context, epoch uint64, m Member) error {
	return e.changeInSync(ctx, "remove in sync", epoch, m, func(all entries, primary Member) (change, error) {
		if m == primary {
			return change{}, ErrPrimary
		}
		key := e.keys.inSync(m.Name)
		return change{op: clientv3.OpTxn(
			[]clientv3.Cmp{clientv3.Compare(clientv3.Value(key), "=", encodeInSync(m))},
			[]clientv3.Op{clientv3.OpDelete(key)},
			nil,
		)}, nil
	})
}

// A change of insync/, and what must not have moved since it was decided.
type change struct {
	unless []clientv3.Cmp
	op     clientv3.Op
}

// changeInSync makes one change of insync/ in the name of epoch (R13).
//
// Each change compares the ModRevision of `id`, and puts `id` again as it is, even if there is
// nothing to change. So a change whose outcome was unknown, and which is still on its way, can't
// take place once a later one has: without this, a member that was removed could come back, be
// elected, and lack what was acknowledged without it.
func (e *etcd) changeInSync(
	ctx context.Context, op string, epoch uint64, m Member, decide func(entries, Member) (change, error),
) error {
	if e.invalid != nil {
		return e.invalid
	}
	if err := m.Validate(); err != nil {
		return err
	}
	for {
		all, _, err := e.list(ctx)
		if err != nil {
			return fmt.Errorf("election: %s: %w", op, err)
		}
		primary, id := all[e.keys.primary()], all[e.keys.id()]
		if primary.mod == 0 || uint64(primary.mod) != epoch {
			return ErrDeposed
		}
		if id.mod == 0 {
			return malformed(e.keys.id(), errors.New("is missing, though the group has a primary"))
		}
		if err := checkSize(id.value); err != nil {
			return malformed(e.keys.id(), err)
		}
		who, err := decodePrimary(primary.value)
		if err != nil {
			return malformed(e.keys.primary(), err)
		}
		change, err := decide(all, who)
		if err != nil {
			return err
		}
		resp, err := e.commit(ctx, op, clientv3.OpTxn(
			append(change.unless, unchanged(e.keys.primary(), primary.mod), unchanged(e.keys.id(), id.mod)),
			[]clientv3.Op{clientv3.OpPut(e.keys.id(), string(id.value)), change.op},
			nil,
		))
		if err != nil || resp.Succeeded {
			return err
		}
		// Another change came between, or m registered again: decide anew.
	}
}

// list reads the whole group, linearizably.
func (e *etcd) list(ctx context.Context) (entries, int64, error) {
	resp, err := e.get(ctx, e.keys.prefix, clientv3.WithPrefix(), clientv3.WithLimit(maxKeys))
	if err != nil {
		return nil, 0, err
	}
	if resp.More {
		return nil, 0, e.tooMany()
	}
	all := make(entries, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		if e.sane(string(kv.Key)) {
			all[string(kv.Key)] = newEntry(kv.Value, kv.ModRevision, kv.Lease)
		}
	}
	return all, resp.Header.Revision, nil
}

func (e *etcd) tooMany() error {
	return malformed(e.keys.prefix, fmt.Errorf("has more than %d keys under it", maxKeys))
}

// sane reports whether a key is short enough to be one of ours; its value is of no interest if not.
func (e *etcd) sane(key string) bool {
	return len(key) <= len(e.keys.replica(""))+maxName
}

// decode turns entries into a State, and logs what it skips.
func (e *etcd) decode(all entries, revision int64) (State, error) {
	s, skipped, err := e.keys.state(all, revision)
	for _, bad := range skipped {
		e.report(bad, all[bad.Key].mod)
	}
	return s, err
}

// report logs a malformed key, once for each ModRevision it has.
func (e *etcd) report(bad *MalformedError, mod int64) {
	e.reported.Lock()
	defer e.reported.Unlock()
	if e.reported.mods[bad.Key] == mod {
		return
	}
	if e.reported.mods == nil || len(e.reported.mods) >= maxKeys {
		e.reported.mods = map[string]int64{}
	}
	e.reported.mods[bad.Key] = mod
	e.log.Warn("ignored a malformed key", "key", bad.Key, "reason", bad.Reason)
}

// readPrimary returns who is primary, and its entry; both are zero when there is none.
func (e *etcd) readPrimary(ctx context.Context) (Member, entry, error) {
	resp, err := e.get(ctx, e.keys.primary())
	if err != nil || len(resp.Kvs) == 0 {
		return Member{}, entry{}, err
	}
	kv := newEntry(resp.Kvs[0].Value, resp.Kvs[0].ModRevision, resp.Kvs[0].Lease)
	m, err := decodePrimary(kv.value)
	if err != nil {
		return Member{}, entry{}, malformed(e.keys.primary(), err)
	}
	return m, kv, nil
}

// own returns a registration that this package made for this group.
func (e *etcd) own(self Registration) (*registration, error) {
	if e.invalid != nil {
		return nil, e.invalid
	}
	r, ok := self.(*registration)
	if !ok || r.e.keys != e.keys {
		return nil, &InvalidError{Field: "registration", Reason: "is not of this group"}
	}
	return r, nil
}

// commit runs a transaction. Its error says whether the outcome is known.
//
// A transaction is made again when it isn't answered soon. Each of ours compares what it changes,
// so at most one of the copies takes place. If one did, that is the outcome, and the others can't
// any more. If one failed while the outcome of another isn't known, that one may be why; so then
// the outcome is unknown.
func (e *etcd) commit(ctx context.Context, op string, txn clientv3.Op) (*clientv3.TxnResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("election: %s: %w", op, err) // nothing was sent
	}
	ifs, thens, elses := txn.Txn()
	resp, how, err := ask(ctx, func(ctx context.Context) (*clientv3.TxnResponse, error) {
		return e.client.Txn(ctx).If(ifs...).Then(thens...).Else(elses...).Commit()
	}, func(resp *clientv3.TxnResponse, err error) verdict {
		switch {
		case err == nil && resp.Succeeded:
			return settled
		case err == nil || refused(err):
			return final
		default:
			return open
		}
	})
	switch {
	case err == nil && (resp.Succeeded || how.begun == how.final):
		return resp, nil
	case err == nil:
		return nil, &UnknownError{Op: op, Err: errTwice}
	case refused(err) && how.begun == how.final:
		return nil, fmt.Errorf("election: %s: %w", op, err)
	}
	return nil, &UnknownError{Op: op, Err: err}
}

// errTwice is why the outcome of a transaction that was made again is unknown.
var errTwice = errors.New("etcd didn't answer in time, and when asked again said that what it depends on had changed")

// refused reports whether etcd itself answered that it didn't and won't run a transaction. All else
// (deadline, lost connection, lost leader) leaves it open.
func refused(err error) bool {
	var answer rpctypes.EtcdError
	if !errors.As(err, &answer) {
		return false
	}
	switch answer.Code() {
	case codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition, codes.OutOfRange, codes.ResourceExhausted,
		codes.PermissionDenied, codes.Unauthenticated:
		return true
	default:
		return false
	}
}

// found reports whether the i-th read of a failed transaction found its key.
func found(resp *clientv3.TxnResponse, i int) bool {
	return len(resp.Responses[i].GetResponseRange().Kvs) > 0
}

// unmoved reports whether the i-th read of a failed transaction found its key at this ModRevision.
func unmoved(resp *clientv3.TxnResponse, i int, mod int64) bool {
	return found(resp, i) && resp.Responses[i].GetResponseRange().Kvs[0].ModRevision == mod
}

// stillUnder reports whether the i-th read of a failed transaction found its key under this lease.
func stillUnder(resp *clientv3.TxnResponse, i int, lease clientv3.LeaseID) bool {
	return found(resp, i) && resp.Responses[i].GetResponseRange().Kvs[0].Lease == int64(lease)
}

func absent(key string) clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(key), "=", 0)
}

func unchanged(key string, mod int64) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", mod)
}

func underLease(key string, lease clientv3.LeaseID) clientv3.Cmp {
	return clientv3.Compare(clientv3.LeaseValue(key), "=", lease)
}
