// Package e2e tests the whole product, and what it stands on, against real etcd.
package e2e

import (
	"context"
	"errors"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"github.com/understudy-rpc/understudy/e2e/etcdproc"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/electiontest"
	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

const electionLimit = 2 * time.Minute // ends a test whose State never comes

// Two TTLs: a busy machine keeps no brief lease alive, so leases are brief only where they are
// meant to expire.
const (
	electionTTL = 20 * time.Second
	briefTTL    = 2 * time.Second
)

// embeddedEtcd starts an etcd inside this process, and returns its host:port.
func embeddedEtcd(t *testing.T) string {
	t.Helper()
	etcd, err := etcdnode.Start(t.Context(), etcdnode.Config{Dir: t.TempDir(), Change: quick})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Server.Close)
	return etcd.Addr
}

// quick are the timings of an etcd of these tests. It doesn't fsync.
func quick(cfg *embed.Config) {
	cfg.TickMs, cfg.ElectionMs = 10, 100
	cfg.UnsafeNoFsync = true
}

// dialEtcd returns a client that ends with the test.
func dialEtcd(t *testing.T, addrs ...string) *clientv3.Client {
	t.Helper()
	client, err := election.Dial(addrs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

// etcdElection is one process's handle: an etcd client behind a link of its own.
type etcdElection struct {
	election.Election
	link *etcdproc.Link
	kv   *holdingKV
}

func newEtcdElection(t *testing.T, addr, group string, ttl time.Duration) *etcdElection {
	link := etcdproc.NewLink(t, addr)
	client := dialEtcd(t, link.Addr())
	kv := &holdingKV{KV: client.KV}
	client.KV = kv
	return &etcdElection{
		Election: election.NewEtcd(client, group, election.WithTTL(ttl)),
		link:     link,
		kv:       kv,
	}
}

func (e *etcdElection) Cut()                       { e.link.Stall() }
func (e *etcdElection) Mend()                      { e.link.Resume() }
func (e *etcdElection) HoldNext() (release func()) { return e.kv.holdNext() }

// holdingKV holds a transaction on its way to etcd, as a slow network or a slow server would.
type holdingKV struct {
	clientv3.KV

	mu      sync.Mutex // guards all below
	holding bool
	held    []clientv3.Txn
}

func (kv *holdingKV) holdNext() (release func()) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	kv.holding = true
	return func() {
		kv.mu.Lock()
		defer kv.mu.Unlock()
		held := kv.held
		kv.holding, kv.held = false, nil
		for _, txn := range held {
			_, _ = txn.Commit() // nobody waits for the answer
		}
	}
}

func (kv *holdingKV) Txn(ctx context.Context) clientv3.Txn {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	if !kv.holding {
		return kv.KV.Txn(ctx)
	}
	kv.holding = false
	txn := kv.KV.Txn(context.WithoutCancel(ctx))
	kv.held = append(kv.held, txn)
	return heldTxn{txn}
}

type heldTxn struct{ txn clientv3.Txn }

func (t heldTxn) If(cs ...clientv3.Cmp) clientv3.Txn  { t.txn.If(cs...); return t }
func (t heldTxn) Then(os ...clientv3.Op) clientv3.Txn { t.txn.Then(os...); return t }
func (t heldTxn) Else(os ...clientv3.Op) clientv3.Txn { t.txn.Else(os...); return t }
func (heldTxn) Commit() (*clientv3.TxnResponse, error) {
	return nil, context.DeadlineExceeded
}

func openEtcd(t *testing.T) electiontest.Factory {
	addr := embeddedEtcd(t)
	direct := dialEtcd(t, addr)
	var mu sync.Mutex // guards:
	var links []*etcdproc.Link
	client := func(ttl time.Duration) func(*testing.T, string) electiontest.Client {
		return func(t *testing.T, group string) electiontest.Client {
			e := newEtcdElection(t, addr, group, ttl)
			mu.Lock()
			defer mu.Unlock()
			links = append(links, e.link)
			return e
		}
	}
	return electiontest.Factory{
		Client: client(electionTTL),
		Brief:  client(briefTTL),
		SetDown: func(down bool) {
			mu.Lock()
			defer mu.Unlock()
			for _, link := range links {
				if down {
					link.Stall()
				} else {
					link.Resume()
				}
			}
		},
		Put: func(t *testing.T, values map[string]string) {
			t.Helper()
			var puts []clientv3.Op
			for key, value := range values {
				puts = append(puts, clientv3.OpPut(key, value))
			}
			for batch := range slices.Chunk(puts, 100) { // etcd takes 128 in one transaction
				if _, err := direct.Txn(t.Context()).Then(batch...).Commit(); err != nil {
					t.Fatal(err)
				}
			}
		},
	}
}

func parallel(t *testing.T, f func(*testing.T)) {
	t.Parallel()
	f(t)
}

func TestElectionContract(t *testing.T) {
	t.Parallel()
	electiontest.RunIn(t, parallel, openEtcd)
}

func TestElectionMalformed(t *testing.T) {
	t.Parallel()
	electiontest.RunMalformed(t, openEtcd)
}

// registered registers a replica, and withdraws it with the test.
func registered(t *testing.T, ctx context.Context, e election.Election, m election.Member) election.Registration {
	t.Helper()
	return registeredOver(t, ctx, e, m, election.Member{})
}

func registeredOver(
	t *testing.T, ctx context.Context, e election.Election, m, displaces election.Member,
) election.Registration {
	t.Helper()
	r, err := e.Register(ctx, election.Replica{Member: m, Addr: m.Name + ":1", PeerAddr: m.Name + ":2"}, displaces)
	if err != nil {
		t.Fatalf("Register(%v) = %v", m, err)
	}
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		_ = r.Close(ended)
	})
	return r
}

// foundElection makes a group of which all are in sync and the first is primary.
func foundElection(
	t *testing.T, ctx context.Context, e election.Election, ms ...election.Member,
) (rs []election.Registration, epoch uint64) {
	t.Helper()
	for i, m := range ms {
		r := registered(t, ctx, e, m)
		rs = append(rs, r)
		untilRegistered(t, func() (err error) {
			if i > 0 {
				return e.AddInSync(ctx, epoch, m)
			}
			epoch, err = e.Create(ctx, election.Group{ID: 7, Level: "stable", Version: "v1"}, r)
			return err
		})
	}
	return rs, epoch
}

// untilRegistered repeats f until a lease that had expired is back.
func untilRegistered(t *testing.T, f func() error) {
	t.Helper()
	for {
		err := f()
		if err == nil {
			return
		}
		if !errors.Is(err, election.ErrNotRegistered) {
			t.Fatal(err)
		}
	}
}

// awaitElection returns the first State that satisfies ok.
func awaitElection(
	t *testing.T, ctx context.Context, e election.Election, what string, ok func(election.State) bool,
) election.State {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var last election.State
	for last = range e.Watch(ctx) {
		if ok(last) {
			return last
		}
	}
	t.Fatalf("never seen: %s; last seen %+v", what, last)
	return last
}

var (
	memberA = election.Member{Name: "a", Incarnation: 0xa}
	memberB = election.Member{Name: "b", Incarnation: 0xb}
	memberC = election.Member{Name: "c", Incarnation: 0xc}
)

func electionContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), electionLimit)
	t.Cleanup(cancel)
	return ctx
}

// Etcd's own tools and resolvers read what replicas register.
func TestElectionNamingEndpoints(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	client := dialEtcd(t, embeddedEtcd(t))
	e := election.NewEtcd(client, "greeter", election.WithTTL(electionTTL))
	registered(t, ctx, e, memberA)
	manager, err := endpoints.NewManager(client, "/understudy/greeter/replicas")
	if err != nil {
		t.Fatal(err)
	}
	got, err := manager.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := endpoints.Key2EndpointMap{
		"/understudy/greeter/replicas/a": {Addr: "a:1", Metadata: map[string]any{"incarnation": "a", "peer": "a:2"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("List = %v, want %v", got, want)
	}
}

// A watch that was away while what it missed was compacted lists again; so does a registration's,
// once.
func TestElectionCompaction(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	addr := embeddedEtcd(t)
	direct := dialEtcd(t, addr)
	e := election.NewEtcd(direct, "greeter", election.WithTTL(electionTTL))
	rs, first := foundElection(t, ctx, e, memberA, memberB)

	log := &countingHandler{counts: map[string]int{}}
	link := etcdproc.NewLink(t, addr)
	away := election.NewEtcd(dialEtcd(t, link.Addr()), "greeter", election.WithTTL(electionTTL),
		election.WithLogger(slog.New(log)))
	displaced := registered(t, ctx, away, memberC)
	stays := registered(t, ctx, away, election.Member{Name: "d", Incarnation: 0xd})
	states := away.Watch(ctx)
	<-states
	// Not stalled but cut: a connection that only stalls brings what it missed, compacted or not.
	link.Cut()
	second, err := e.Elect(ctx, rs[1], first)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.AddInSync(ctx, second, memberA); err != nil {
		t.Fatal(err)
	}
	registeredOver(t, ctx, e, election.Member{Name: "c", Incarnation: 2}, memberC)
	s, err := e.Read(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := direct.Compact(ctx, s.Revision); err != nil {
		t.Fatal(err)
	}
	link.Mend()
	for got := range states {
		if got.Epoch == second && got.IsInSync(memberA) {
			break
		}
	}
	if ctx.Err() != nil {
		t.Error("the watch never saw what happened while it was away")
	}
	select {
	case <-displaced.Lost():
	case <-ctx.Done():
		t.Error("the displaced registration never learnt of it")
	}
	// While another one's lease expires, the one that stays has time to find that it has gone, were
	// that what it sees.
	abandoned := newEtcdElection(t, addr, "greeter", briefTTL)
	registered(t, ctx, abandoned, election.Member{Name: "e", Incarnation: 0xe})
	abandoned.Cut()
	awaitElection(t, ctx, e, "an expiry", func(s election.State) bool { _, ok := s.Replica("e"); return !ok })
	if err := stays.Err(); err != nil {
		t.Errorf("the registration that nobody displaced is lost: %v", err)
	}
	if n := log.count("registering again"); n != 0 {
		t.Errorf("a registration was made again %d times", n)
	}
}

// countingHandler counts log records by message.
type countingHandler struct {
	mu     sync.Mutex // guards:
	counts map[string]int
}

func (h *countingHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h *countingHandler) WithAttrs([]slog.Attr) slog.Handler       { return h }
func (h *countingHandler) WithGroup(string) slog.Handler            { return h }

func (h *countingHandler) Handle(_ context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.counts[r.Message]++
	return nil
}

func (h *countingHandler) count(message string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.counts[message]
}

// A process that dies without a word is gone after its TTL.
func TestElectionAbandoned(t *testing.T) {
	t.Parallel()
	ctx := electionContext(t)
	addr := embeddedEtcd(t)
	e := election.NewEtcd(dialEtcd(t, addr), "greeter", election.WithTTL(electionTTL))
	foundElection(t, ctx, e, memberA)
	dead := newEtcdElection(t, addr, "greeter", briefTTL)
	registered(t, ctx, dead, memberB)
	begin := time.Now()
	dead.link.Cut()
	awaitElection(t, ctx, e, "b's expiry", func(s election.State) bool { _, ok := s.Replica("b"); return !ok })
	if took := time.Since(begin); took > 10*briefTTL {
		t.Errorf("a lease of %v took %v to expire", briefTTL, took)
	}
	s, err := e.Read(ctx)
	if err != nil || !slices.Equal(s.InSync, []election.Member{memberA}) {
		t.Errorf("Read = %+v, %v", s, err)
	}
}

// Nothing runs on after the registrations are closed and the watches' contexts have ended.
func TestElectionLeavesNothing(t *testing.T) {
	addr := etcdproc.Start(t).Addr() // embedded, it would start goroutines of its own at any time
	ctx := electionContext(t)
	before := goleak.IgnoreCurrent()
	client, err := election.Dial([]string{addr})
	if err != nil {
		t.Fatal(err)
	}
	e := election.NewEtcd(client, "greeter", election.WithTTL(electionTTL))
	watching, stop := context.WithCancel(ctx)
	states := e.Watch(watching)
	rs, epoch := foundElection(t, ctx, e, memberA, memberB)
	if _, err := e.Register(ctx, election.Replica{Member: election.Member{Name: "a", Incarnation: 2}, Addr: "a:1"},
		memberC); err == nil {
		t.Error("a taken name was registered")
	}
	displacing, err := e.Register(ctx,
		election.Replica{Member: election.Member{Name: "a", Incarnation: 3}, Addr: "a:1"}, memberA)
	if err != nil {
		t.Fatal(err)
	}
	<-rs[0].Lost()
	if _, err := e.Elect(ctx, rs[1], epoch); err != nil {
		t.Error(err)
	}
	for _, r := range []election.Registration{rs[0], rs[1], displacing} {
		if err := r.Close(ctx); err != nil {
			t.Errorf("Close = %v", err)
		}
	}
	stop()
	for range states {
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	goleak.VerifyNone(t, before)
}
