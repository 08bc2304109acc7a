package replica

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// RPCs that wait have a bound for all, and a share for each session; a forged one, of another's
// session, doesn't count.
func TestWaitingRPCsAreBoundedAndShared(t *testing.T) {
	t.Parallel()
	in := leadingAlone(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.seal = wire.NewSeal(make([]byte, secretSize))
	for n := range byte(20) {
		in.m.leading().primary.Open(orderstate.Nonce{n}, 1, nil, in.m.leading().now())
	}
	enters := func(s orderstate.Session, bytes int) (*call, error) {
		c := new(call)
		c.request.b = make([]byte, bytes)
		nonce, _ := in.m.leading().primary.History().Nonce(s)
		c.header = wire.Header{Session: s, SeqNum: 1, DestEpoch: 1, Token: in.m.sources.token(s, nonce)}
		_, err := in.m.enter(t.Context(), c)
		return c, err
	}
	forged := wire.Header{Session: 1, SeqNum: 1, DestEpoch: 1, Token: 1}
	for range 2 * maxRPCsOfSession {
		_, err := in.m.enter(t.Context(), &call{header: forged})
		wantCode(t, err, codes.PermissionDenied)
	}
	var first *call
	for n := range maxRPCsOfSession {
		c, err := enters(1, 1)
		if err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		first = c
	}
	_, err := enters(1, 1)
	wantCode(t, err, codes.ResourceExhausted)
	in.m.sources.goesOn(first)
	in.m.sources.goesOn(first)
	if _, err := enters(1, 1); err != nil {
		t.Errorf("after one has gone on: %v", err)
	}
	if _, err := enters(2, wire.MaxMessage); err != nil {
		t.Errorf("the greatest: %v", err)
	}
	_, err = enters(2, 1)
	wantCode(t, err, codes.ResourceExhausted)
	if _, err := enters(3, 1<<20); err != nil {
		t.Errorf("another session's: %v", err)
	}
	for s := orderstate.Session(4); in.m.sources.rpcs.n < maxRPCs; s++ {
		for range min(maxRPCsOfSession, maxRPCs-in.m.sources.rpcs.n) {
			if _, err := enters(s, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err = enters(20, 0)
	wantCode(t, err, codes.ResourceExhausted)
}
