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
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.seal = wire.NewSeal(make([]byte, secretSize))
	in.m.leading().primary.Release("backup")
	for n := range maxSessions {
		o, _, _ := in.m.leading().primary.Open(orderstate.Nonce{byte(n), byte(n >> 8), 1}, 1, nil, in.m.leading().now())
		in.m.own(o)
		in.m.sources.bySession[o.Session] = &attachment{m: in.m, session: o.Session, bound: true}
		in.m.sources.attached[in.m.sources.bySession[o.Session]] = struct{}{}
	}
	return in
}

// opens opens one more session.
func opens(t *testing.T, in *incarnation, n byte) error {
	t.Helper()
	return in.m.sources.attach(t.Context(), &attachment{m: in.m, nonce: orderstate.Nonce{n, n, 2},
		out: newOutbox[pb.AttachResponse](nil)})
}

// With 10,000 sessions whose sources are there, another one waits, and is refused; those that are
// there notice nothing.
func TestSessionsBeyondTheirBoundAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := crowded(t)
		began := time.Now()
		wantCode(t, opens(t, in, 1), codes.ResourceExhausted)
		if waited := time.Since(began); waited != reconcileTimeout {
			t.Errorf("after %v", waited)
		}
		if n := in.m.leading().primary.History().OpenSessions(); n != maxSessions {
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
			in.m.sources.detach(in.m.sources.bySession[s])
		}
		time.Sleep(2 * time.Second)
		in.m.leading().expireSessions() // nobody wants their places
		synctest.Wait()
		go func() {
			for range 10 {
				time.Sleep(reconnect / 2)
				in.m.leading().expireSessions()
			}
		}()
		if err := opens(t, in, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		in.m.mu.Lock()
		defer in.m.mu.Unlock()
		h := in.m.history()
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
		in.m.mu.Lock()
		in.m.leading().gate = false
		woken := 0
		for n := range 3 {
			go func() {
				in.m.mu.Lock()
				defer in.m.mu.Unlock()
				_ = in.m.sources.comes(t.Context(), orderstate.Nonce{byte(n)})
				woken++
			}()
		}
		in.m.mu.Unlock()
		synctest.Wait()
		in.m.mu.Lock()
		o, _, _ := in.m.leading().primary.Open(orderstate.Nonce{9}, 1, nil, in.m.leading().now())
		in.m.bells.waiting++
		in.m.own(o)
		in.m.bells.waiting--
		in.m.sources.opened(orderstate.Nonce{1})
		in.m.mu.Unlock()
		synctest.Wait()
		in.m.mu.Lock()
		if woken != 1 || len(in.m.sources.coming) != 2 {
			t.Errorf("%d were woken, %d nonces are waited for", woken, len(in.m.sources.coming))
		}
		in.m.mu.Unlock()
		time.Sleep(2 * lookAgain)
		in.m.mu.Lock()
		defer in.m.mu.Unlock()
		if woken != 3 || len(in.m.sources.coming) != 0 {
			t.Errorf("later %d were woken, %d nonces are waited for", woken, len(in.m.sources.coming))
		}
	})
}
