package replica

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// leadingAlone returns an incarnation that leads a group whose backup, "backup", acknowledges when
// it is told to.
func leadingAlone(t testing.TB) *incarnation {
	t.Helper()
	r, err := Join(t.Context(), "etcd:///test", Stateless(), Name("primary"), Store(memory.NewStore().Client("test")))
	if err != nil {
		t.Fatal(err)
	}
	in := newIncarnation(t.Context(), &r.env)
	t.Cleanup(func() { in.end(errStopped) })
	h, err := orderstate.NewHistory(0, 0, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := orderstate.NewPrimary(h, 1, 0, []orderstate.Replica{"backup"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.m.leads(p, nil, others{}).gate = true
	return in
}

// streams gives another replica a stream at a primary.
func streams(in *incarnation, p *peer, cut context.CancelCauseFunc) *follower {
	p.stream = &follower{peer: p, out: newOutbox[pb.FollowResponse](cut)}
	in.m.leading().roster.peers[p.id] = p
	return p.stream
}

// Who waits for room in the log is let in as soon as there is some.
func TestWhoWaitsForRoomIsLetIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := leadingAlone(t)
		in.m.mu.Lock()
		o, _, _ := in.m.leading().primary.Open(orderstate.Nonce{1}, 1, nil, in.m.leading().now())
		in.m.own(o)
		o, _, _ = in.m.leading().primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: 1,
			SeqNum: 1},
			Size: maxLogBytes}, in.m.leading().now())
		in.m.own(o)
		streams(in, &peer{id: "backup", stage: inSync}, nil)
		in.m.mu.Unlock()
		time.AfterFunc(10*time.Millisecond, func() {
			in.m.mu.Lock()
			defer in.m.mu.Unlock()
			if moved, err := in.m.leading().primary.Acknowledge("backup", 1, o.OrderNum); !moved.Stable || err != nil {
				t.Error(moved, err)
			}
			in.m.after(moved{Moved: orderstate.Moved{Stable: true}})
		})
		began := time.Now()
		in.m.mu.Lock()
		err := in.m.leading().room(context.Background(), 1)
		in.m.mu.Unlock()
		if waited := time.Since(began); err != nil || waited != 10*time.Millisecond {
			t.Errorf("after %v: %v", waited, err)
		}
	})
}

// A log that is full of what a backup held, and nobody ordered, is no reason to refuse calls: who
// leads now would never take one.
func TestRoomCountsWhatIsOrdered(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	m := orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: 2}, Size: maxLogBytes}
	in.m.following().backup.Message(m)
	taken, err := in.m.following().backup.Elected(2, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := taken.Fix(0)
	if err != nil {
		t.Fatal(err)
	}
	in.m.leads(p, nil, others{})
	if err := in.m.leading().room(t.Context(), 1); err != nil || p.History().Bytes() != maxLogBytes {
		t.Errorf("with %d bytes that nobody ordered: %v", p.History().Bytes(), err)
	}
}

// While the log is more than half full, a session that has filled it waits, and the others don't.
func TestRoomHasShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := leadingAlone(t)
		in.m.mu.Lock()
		defer in.m.mu.Unlock()
		for n := range orderstate.Session(2) {
			in.m.leading().primary.Open(orderstate.Nonce{byte(n)}, 1, nil, in.m.leading().now())
		}
		in.m.leading().primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: 2, SeqNum: 1},
			Size: 1 << 20},
			in.m.leading().now())
		orders := func(size int) {
			q := orderstate.SeqNum(in.m.leading().primary.Last())
			in.m.leading().primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: q},
				Size: size},
				in.m.leading().now())
		}
		orders(maxLogBytes / 4)
		if err := in.m.leading().room(t.Context(), 1); err != nil {
			t.Errorf("a quarter, of one: %v", err)
		}
		orders(maxLogBytes / 4)
		wantCode(t, in.m.leading().room(t.Context(), 1), codes.ResourceExhausted)
		if err := in.m.leading().room(t.Context(), 2); err != nil {
			t.Errorf("another session: %v", err)
		}
	})
}

// A source without room is told what is stable at once, and again when that has moved.
func TestSourceAsksForRoom(t *testing.T) {
	t.Parallel()
	in := leadingAlone(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	a := &attachment{m: in.m, session: 1, bound: true, out: newOutbox[pb.AttachResponse](nil)}
	in.m.sources.attached[a] = struct{}{}
	told := func(what string, want uint64) {
		t.Helper()
		if got := a.out.next.GetStable(); got != want || want > 0 && a.out.next.GetStableEpoch() != 1 {
			t.Errorf("%s: told %d, want %d", what, got, want)
		}
		a.out.take()
	}
	open, _, _ := in.m.leading().primary.Open(orderstate.Nonce{1}, 1, nil, in.m.leading().now())
	_, _ = in.m.leading().primary.Acknowledge("backup", 1, open.OrderNum)
	in.m.after(moved{Moved: orderstate.Moved{Stable: true}})
	told("nobody has asked", 0)
	o, _, _ := in.m.leading().primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: 1}},
		in.m.leading().now())

	a.waits(&pb.WaitingFor{Epoch: 2, Stable: true})
	told("asked in another epoch", 0)
	a.waits(&pb.WaitingFor{Epoch: 1, Stable: true})
	told("asked", 1)
	if len(a.out.next.GetSourceOrderInfo()) > 0 {
		t.Errorf("announced: %v", a.out.next.GetSourceOrderInfo())
	}
	_, _ = in.m.leading().primary.Acknowledge("backup", 1, o.OrderNum)
	in.m.after(moved{Moved: orderstate.Moved{Stable: true}})
	told("it has moved", 2)
	in.m.after(moved{Moved: orderstate.Moved{Stable: true}})
	told("it was told", 0)
	a.waits(&pb.WaitingFor{Epoch: 1, Stable: true})
	if told("all is stable", 2); len(in.m.leading().asking) > 0 {
		t.Error("all is stable, and it waits")
	}
}

// A backup whose log has many bytes acknowledges all that it holds at once: sources can't forget
// them before.
func TestManyBytesAreAcknowledgedAtOnce(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	holds := func(q orderstate.SeqNum, size int) bool {
		last := in.m.following().backup.Last()
		m := orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: q}, Digest: uint64(q), Size: size}
		in.m.following().backup.Message(m)
		received, err := in.m.following().backup.Receive(orderstate.Run{
			Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: last + 1, Count: 1},
			Entries: []orderstate.OrderInfo{{OrderNum: last + 1, SeqNum: q, Session: 1, Kind: orderstate.Request,
				First: 1, Digest: uint64(q)}},
		})
		if err != nil || in.m.following().backup.Last() != last+1 {
			t.Fatal(in.m.following().backup.Last(), err)
		}
		in.m.after(moved{Moved: received})
		select {
		case <-in.m.upstream.due:
			return true
		default:
			return false
		}
	}
	if holds(1, lazyAckBytes) {
		t.Error("it acknowledges what others will make it acknowledge")
	}
	if !holds(2, 1) {
		t.Error("it doesn't acknowledge, and holds many bytes")
	}
}

// A source that asks again and again, and doesn't read, has what it lacks queued once.
func TestQuestionsReplaceWhatIsNotSent(t *testing.T) {
	t.Parallel()
	in := leadingAlone(t)
	in.seal = wire.NewSeal(make([]byte, secretSize))
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.m.leading().primary.Open(orderstate.Nonce{1}, 1, nil, in.m.leading().now())
	a := &attachment{m: in.m, session: 1, bound: true, out: newOutbox[pb.AttachResponse](func(err error) {
		t.Errorf("cut: %v", err)
	})}
	for q := range orderstate.SeqNum(1000) {
		in.m.leading().primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: q + 1}},
			in.m.leading().now())
		a.waits(&pb.WaitingFor{Epoch: 1})
	}
	runs := a.out.next.GetSourceOrderInfo()
	if len(runs) != 1 || runs[0].GetFirst() != 1 || runs[0].GetCount() != 1001 ||
		a.out.size != len(runs[0].GetSealed()) || in.m.sources.queued != a.out.size {
		t.Errorf("%d runs of %d bytes are queued", len(runs), a.out.size)
	}
	a.waits(&pb.WaitingFor{Epoch: 1, HeldUpTo: 900})
	runs = a.out.next.GetSourceOrderInfo()
	if len(runs) != 1 || runs[0].GetFirst() != 901 || runs[0].GetCount() != 101 {
		t.Errorf("queued for who holds 900: %v", runs)
	}
}
