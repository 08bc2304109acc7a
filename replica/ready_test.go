package replica_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/understudy-rpc/understudy/interceptor"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// healthNames are what a replica of the journal reports on.
var healthNames = []string{"", "test.Journal"}

// reports waits for a status of all names, as long as a probe would at most.
func reports(t *testing.T, what string, h *health.Server, want healthpb.HealthCheckResponse_ServingStatus) {
	t.Helper()
	for _, name := range healthNames {
		var got *healthpb.HealthCheckResponse
		var err error
		for range 2000 {
			got, err = h.Check(t.Context(), &healthpb.HealthCheckRequest{Service: name})
			if got.GetStatus() == want {
				break
			}
			time.Sleep(time.Millisecond) // fake
		}
		if err != nil || got.GetStatus() != want {
			t.Errorf("%s: %q is %v, %v; want %v", what, name, got.GetStatus(), err, want)
		}
	}
}

// now is Ready without waiting.
func now(r *replica.Replica) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return r.Ready(ctx)
}

// slowRestore is a state whose Restore waits until it may go on.
type slowRestore struct {
	journal
	once       sync.Once
	begun, may chan struct{}
}

func (s *slowRestore) Restore(r io.Reader) error {
	s.once.Do(func() { close(s.begun) })
	<-s.may
	return s.journal.Restore(r)
}

// TestReadyOnceInSync: a joiner is ready, and says SERVING, when it is in-sync, and not before; the
// first replica is ready alone.
func TestReadyOnceInSync(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		ha, hb := health.NewServer(), health.NewServer()
		a, _, link := p.linked("a", &journal{}, replica.Health(ha), replica.MinInSync(2))
		if err := a.Ready(t.Context()); err != nil || !inSync(a) {
			t.Fatalf("the first replica: %v, %+v", err, a.Status())
		}
		reports(t, "the first replica", ha, healthpb.HealthCheckResponse_SERVING)

		state := &slowRestore{begun: make(chan struct{}), may: make(chan struct{})}
		b, _ := p.start("b", state, replica.Health(hb), replica.MinInSync(2))
		<-state.begun
		reports(t, "a joiner", hb, healthpb.HealthCheckResponse_NOT_SERVING)
		mentions(t, "a joiner", now(b), "b isn't ready", "waits for a primary and its state", "context canceled")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("patience ends"))
		defer cancel()
		mentions(t, "a joiner", b.Ready(ctx), "waits for a primary and its state", "patience ends")
		link.Cut() // so that the primary can't write that the joiner is in-sync
		close(state.may)
		until(t, "state", func() bool { return b.Status().Role == replica.Following })
		mentions(t, "a joiner with a state", now(b), "isn't in-sync yet")
		reports(t, "a joiner with a state", hb, healthpb.HealthCheckResponse_NOT_SERVING)
		link.Mend()
		if err := b.Ready(t.Context()); err != nil || !inSync(b) || len(b.Status().InSync) != 2 {
			t.Errorf("the joiner: %v, %+v", err, b.Status())
		}
		if err := now(b); err != nil {
			t.Errorf("with a ctx that has ended, a replica that is ready: %v", err)
		}
		reports(t, "the joiner", hb, healthpb.HealthCheckResponse_SERVING)
	})
}

// TestNotReadyWithoutAWord: who hears from nobody isn't ready, whatever it was told before; it
// isn't ended for that, and is ready when it hears again.
func TestNotReadyWithoutAWord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		ha, hb := health.NewServer(), health.NewServer()
		a, endedA := p.start("a", &journal{}, replica.Health(ha))
		until(t, "primary", func() bool { return now(a) == nil })
		b, endedB := p.start("b", &journal{}, replica.Health(hb))
		until(t, "backup", func() bool { return now(b) == nil })

		reports(t, "the primary", ha, healthpb.HealthCheckResponse_SERVING)
		reports(t, "the backup", hb, healthpb.HealthCheckResponse_SERVING)
		p.store.SetDown(true)
		reports(t, "a primary without etcd", ha, healthpb.HealthCheckResponse_NOT_SERVING)
		mentions(t, "a primary without etcd", now(a), "etcd hasn't said so for too long")
		if err := now(b); err != nil {
			t.Errorf("a backup that hears its primary, without etcd: %v", err)
		}
		for _, l := range []simnet.Link{{From: "a", To: "b"}, {From: "b", To: "a"}} {
			p.net.Cut(l)
		}
		reports(t, "a backup that hears nobody", hb, healthpb.HealthCheckResponse_NOT_SERVING)
		mentions(t, "a backup that hears nobody", now(b), "doesn't hear its primary")
		time.Sleep(time.Minute) // fake
		for _, l := range []simnet.Link{{From: "a", To: "b"}, {From: "b", To: "a"}} {
			p.net.Mend(l)
		}
		p.store.SetDown(false)
		for _, r := range []*replica.Replica{a, b} {
			if err := r.Ready(t.Context()); err != nil {
				t.Error(err)
			}
		}
		reports(t, "a", ha, healthpb.HealthCheckResponse_SERVING)
		reports(t, "b", hb, healthpb.HealthCheckResponse_SERVING)
		backup := p.store.Backup()
		p.store.Restore(nil)
		for name, h := range map[string]*health.Server{"a": ha, "b": hb} {
			reports(t, name+" with a store that was emptied", h, healthpb.HealthCheckResponse_NOT_SERVING)
		}
		mentions(t, "a backup with a store that was emptied", now(b), "the store is suspect")
		p.store.Restore(backup)
		for name, h := range map[string]*health.Server{"a": ha, "b": hb} {
			reports(t, name+" with its store again", h, healthpb.HealthCheckResponse_SERVING)
		}
		for _, ended := range []<-chan error{endedA, endedB} {
			select {
			case err := <-ended:
				t.Errorf("a replica ended: %v", err)
			default:
			}
		}
	})
}

// closing is a listener that says when it is closed.
type closing struct {
	net.Listener
	closed func()
}

func (c closing) Close() error {
	c.closed()
	return c.Listener.Close()
}

// TestNotReadyBeforeTheEnd: a replica that stops says NOT_SERVING before its listener closes, and
// whoever waits for it is told that it has ended.
func TestNotReadyBeforeTheEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		h := health.NewServer()
		check := func() healthpb.HealthCheckResponse_ServingStatus {
			got, err := h.Check(context.Background(), &healthpb.HealthCheckRequest{})
			if err != nil {
				t.Error(err)
			}
			return got.GetStatus()
		}
		var atClose []healthpb.HealthCheckResponse_ServingStatus
		lis, err := p.net.Listen("a")
		if err != nil {
			t.Fatal(err)
		}
		peers, err := p.net.Listen("a")
		if err != nil {
			t.Fatal(err)
		}
		r, err := replica.Join(t.Context(), "etcd:///test", replica.State(&journal{}), replica.Name("a"),
			replica.Store(p.store.Client("test")),
			replica.Clock(p.clock), replica.Peers(peers, nil, nil), replica.InsecurePeers(), replica.Health(h))
		if err != nil {
			t.Fatal(err)
		}
		if got := check(); got != healthpb.HealthCheckResponse_NOT_SERVING {
			t.Errorf("after Join: %v", got)
		}
		mentions(t, "before Serve", now(r), "a isn't ready", "isn't served yet")
		waited := make(chan error, 1)
		go func() { waited <- r.Ready(context.Background()) }()
		s := grpc.NewServer(interceptor.ServerOptions(r)...)
		r.Registrar(s).RegisterService(&journalDesc, &journal{})
		ended := make(chan error, 1)
		go func() {
			ended <- r.Serve(context.Background(), s, closing{lis, func() { atClose = append(atClose, check()) }})
		}()
		if err := <-waited; err != nil {
			t.Errorf("who waited since before Serve: %v", err)
		}
		reports(t, "it", h, healthpb.HealthCheckResponse_SERVING)
		if err := r.Stop(context.Background()); !errors.Is(err, replica.ErrLastInSync) {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if len(atClose) == 0 || slices.Contains(atClose, healthpb.HealthCheckResponse_SERVING) {
			t.Errorf("when its listener was closed, it said %v", atClose)
		}
		reports(t, "in the end", h, healthpb.HealthCheckResponse_NOT_SERVING)
		mentions(t, "in the end", r.Ready(context.Background()), "a isn't ready", "Serve has ended")
	})
}

// TestReadyOfOneThatCantBeAMember: whoever waits for a replica that is refused isn't left waiting.
func TestReadyOfOneThatCantBeAMember(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		a, _ := p.start("a", &journal{})
		until(t, "primary", func() bool { return now(a) == nil })
		b, ended := p.start("b", &journal{}, replica.Version("2"))
		mentions(t, "the one refused", b.Ready(context.Background()), "b isn't ready", "Serve has ended")
		mentions(t, "Serve", <-ended, "version")
	})
}

// TestRollingRestartFailsNoCall: replicas that are restarted one after the other, each when the
// one before is ready, lose no state, and no call fails.
func TestRollingRestartFailsNoCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPlace(t)
		names := []string{"a", "b", "c"}
		replicas, states := map[string]*replica.Replica{}, map[string]*journal{}
		start := func(name string) {
			states[name] = &journal{}
			replicas[name], _ = p.start(name, states[name])
			if err := replicas[name].Ready(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range names {
			start(name)
		}
		conn := p.dial("client")
		stop, wrote := make(chan struct{}), make(chan []string)
		go func() {
			var all []string
			defer func() { wrote <- all }()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				value := fmt.Sprint(i)
				mustWrite(t, conn, value)
				all = append(all, value)
			}
		}()
		for range 2 {
			for _, name := range names {
				time.Sleep(100 * time.Millisecond)
				if err := replicas[name].Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
				start(name)
			}
		}
		time.Sleep(100 * time.Millisecond)
		close(stop)
		want := <-wrote
		until(t, "agreement", func() bool {
			return !slices.ContainsFunc(names, func(n string) bool { return !slices.Equal(states[n].read(), want) })
		})
		if len(want) < 100 {
			t.Errorf("only %d calls were made", len(want))
		}
	})
}
