package replica

import (
	"context"
	"testing"

	"github.com/understudy-rpc/understudy/orderstate"
)

// endsSoon is a context that has ended when it is asked for the second time.
type endsSoon struct {
	context.Context
	asked int
}

func (c *endsSoon) Err() error {
	if c.asked++; c.asked > 1 {
		return context.Canceled
	}
	return nil
}

// An incarnation that ends while it takes over says so, at whatever moment: else it would lead
// without a primary's state, and panic with its mutex held, on which its end waits.
func TestTakeoverEndsWithItsIncarnation(t *testing.T) {
	t.Parallel()
	in := backup(t)
	f := in.m.following()
	state, err := f.backup.Elected(2, []orderstate.Replica{"peer#1"}, false)
	if err != nil {
		t.Fatal(err)
	}
	taking := &takingOver{m: in.m, former: f, state: state, peers: others{}}
	in.m.role = taking
	in.ctx = &endsSoon{Context: context.Background()}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for { // until it has noticed
			select {
			case <-done:
				return
			default:
				in.m.mu.Lock()
				in.m.after(moved{rare: true})
				in.m.mu.Unlock()
			}
		}
	}()
	to := &takeover{elected{epoch: 2}, in, taking}
	if p, err := to.reconcile(&Failover{}); p != nil || err == nil {
		t.Errorf("reconciled: %v, %v", p, err)
	}
}
