package replica

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/orderstate"
)

// leadingAlone returns an incarnation that leads a group whose backup, "backup", acknowledges when it is told to.
func leadingAlone(t testing.TB) *incarnation {
	t.Helper()
	r, err := Join(t.Context(), "etcd:///test", Stateless(), Name("primary"), Store(memory.NewStore().Client("test")))
	if err != nil {
		t.Fatal(err)
	}
	in := newIncarnation(t.Context(), r)
	t.Cleanup(func() { in.end(errStopped) })
	h, err := orderstate.NewHistory(0, 0, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := orderstate.NewPrimary(h, 1, 0, []orderstate.Replica{"backup"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.leads(p)
	in.gate = true
	return in
}

// Who waits for room in the log is let in as soon as there is some.
func TestRoomIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := leadingAlone(t)
		in.mu.Lock()
		o, _, _ := in.primary.Open(orderstate.Nonce{1}, 1, nil, now())
		in.turned(o, 1)
		o, _, _ = in.primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: 1}, Size: maxLogBytes}, now())
		in.turned(o, 1)
		f := &follower{id: "backup"}
		in.followers["backup"] = f
		in.mu.Unlock()
		time.AfterFunc(10*time.Millisecond, func() {
			in.mu.Lock()
			defer in.mu.Unlock()
			if moved, err := in.primary.Acknowledge("backup", 1, o.OrderNum); !moved || err != nil {
				t.Error(moved, err)
			}
			in.stableMoved()
		})
		began := time.Now()
		in.mu.Lock()
		err := in.room(context.Background())
		in.mu.Unlock()
		if waited := time.Since(began); err != nil || waited != 10*time.Millisecond {
			t.Errorf("after %v: %v", waited, err)
		}
	})
}
