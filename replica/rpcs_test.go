package replica

import (
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// RPCs that wait have a bound for all, and a share for each session; a forged one, of another's
// session, doesn't count.
func TestWaitingRPCs(t *testing.T) {
	t.Parallel()
	in := leadingAlone(t)
	in.mu.Lock()
	defer in.mu.Unlock()
	in.seal = wire.NewSeal(make([]byte, secretSize))
	for n := range byte(20) {
		in.primary.Open(orderstate.Nonce{n}, 1, nil, in.now())
	}
	enters := func(s orderstate.Session, bytes int) (*call, error) {
		c := new(call)
		c.request.b = make([]byte, bytes)
		nonce, _ := in.primary.History().Nonce(s)
		c.header = wire.Header{Session: s, SeqNum: 1, DestEpoch: 1, Token: in.token(s, nonce)}
		return c, in.enter(t.Context(), c)
	}
	forged := wire.Header{Session: 1, SeqNum: 1, DestEpoch: 1, Token: 1}
	for range 2 * maxRPCsOfSession {
		wantCode(t, in.enter(t.Context(), &call{header: forged}), codes.PermissionDenied)
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
	in.goesOn(first)
	in.goesOn(first)
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
	for s := orderstate.Session(4); in.rpcs.n < maxRPCs; s++ {
		for range min(maxRPCsOfSession, maxRPCs-in.rpcs.n) {
			if _, err := enters(s, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, err = enters(20, 0)
	wantCode(t, err, codes.ResourceExhausted)
}
