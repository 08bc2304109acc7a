package transport_test

import (
	"context"
	"testing"
)

func TestCall(t *testing.T) {
	t.Parallel()
	within(t, func(t *testing.T, ctx context.Context) {
		c := newCluster(t, "a", "b", "c")
		conn := c.dial()
		for range 3 {
			reply, err := say(ctx, conn, "hello")
			if err != nil || reply != "hello from a" {
				t.Fatalf("%q, %v", reply, err)
			}
		}
		if s := c.mon.Stats(); s.Calls != 3 || s.Reissued != 0 || s.Primary != "a" || s.Session == 0 {
			t.Errorf("%+v", s)
		}
	})
}
