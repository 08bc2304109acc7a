package replica

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// crowded is a primary that leads alone, with as many sessions as a group may have.
func crowded(t *testing.T) *incarnation {
	t.Helper()
	in := leadingAlone(t)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.seal = wire.NewSeal(make([]byte, secretSize))
	in.primary.Release("backup")
	for n := range maxSessions {
		o, _, _ := in.primary.Open(orderstate.Nonce{byte(n), byte(n >> 8), 1}, 1, nil, in.now())
		in.own(o)
		in.bySession[o.Session] = &attachment{in: in, session: o.Session, bound: true}
		in.attached[in.bySession[o.Session]] = struct{}{}
	}
	return in
}

// opens opens one more session.
func opens(t *testing.T, in *incarnation, n byte) error {
	t.Helper()
	return in.attach(t.Context(), &attachment{in: in, nonce: orderstate.Nonce{n, n, 2},
		out: newOutbox[pb.AttachResponse](nil)})
}

// With 10,000 sessions whose sources are there, another one waits, and is refused; those that are
// there notice nothing.
func TestMaxSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := crowded(t)
		began := time.Now()
		wantCode(t, opens(t, in, 1), codes.ResourceExhausted)
		if waited := time.Since(began); waited != reconcileTimeout {
			t.Errorf("after %v", waited)
		}
		if n := in.primary.History().OpenSessions(); n != maxSessions {
			t.Errorf("%d sessions", n)
		}
	})
}

// The session that has been without a stream for longest ends early for one that is opened, and no
// other.
func TestOldestSessionEndsForAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := crowded(t)
		for _, s := range []orderstate.Session{7, 3, 5} {
			time.Sleep(time.Second)
			in.detach(in.bySession[s])
		}
		time.Sleep(2 * time.Second)
		in.expireSessions() // nobody wants their places
		synctest.Wait()
		go func() {
			for range 10 {
				time.Sleep(reconnect / 2)
				in.expireSessions()
			}
		}()
		if err := opens(t, in, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		in.mu.Lock()
		defer in.mu.Unlock()
		h := in.primary.History()
		if h.Known(7) || !h.Known(3) || !h.Known(5) || h.OpenSessions() != maxSessions {
			t.Errorf("known are 7: %v, 3: %v, 5: %v, of %d", h.Known(7), h.Known(3), h.Known(5), h.OpenSessions())
		}
	})
}

// Streams that wait for what never comes cost the others nothing: no turn wakes them, nor an
// opening that isn't theirs.
func TestWhoWaitsForASessionIsNotWoken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := leadingAlone(t)
		in.mu.Lock()
		in.gate = false
		woken := 0
		for n := range 3 {
			go func() {
				in.mu.Lock()
				defer in.mu.Unlock()
				_ = in.comes(t.Context(), orderstate.Nonce{byte(n)})
				woken++
			}()
		}
		in.mu.Unlock()
		synctest.Wait()
		in.mu.Lock()
		o, _, _ := in.primary.Open(orderstate.Nonce{9}, 1, nil, in.now())
		in.progressWaiters++
		in.own(o)
		in.progressWaiters--
		in.opened(orderstate.Nonce{1})
		in.mu.Unlock()
		synctest.Wait()
		in.mu.Lock()
		if woken != 1 || len(in.coming) != 2 {
			t.Errorf("%d were woken, %d nonces are waited for", woken, len(in.coming))
		}
		in.mu.Unlock()
		time.Sleep(2 * lookAgain)
		in.mu.Lock()
		defer in.mu.Unlock()
		if woken != 3 || len(in.coming) != 0 {
			t.Errorf("later %d were woken, %d nonces are waited for", woken, len(in.coming))
		}
	})
}
