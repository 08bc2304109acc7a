package understudytest_test

import (
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/understudytest"
	"github.com/understudy-rpc/understudy/understudytest/simnet"
)

// A backup must have a large message from the primary, on a network that needs seconds for it: it
// is seen to move, nobody is taken for dead, and the backup stays. First it is fetched, since the
// client's frames are dropped unnoticed; then, when its stream has ended, it is pushed.
func TestLargeMessageOnASlowNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logged{}
		c := understudytest.New(t, 2, registerLedger, understudytest.Level(understudy.Stable),
			understudytest.ServerOptions(grpc.MaxRecvMsgSize(math.MaxInt32)), log.to())
		conn := c.Dial("client")
		if _, err := add(t.Context(), conn, "x"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, l := range []simnet.Link{{From: "replica0", To: "replica1"}, {From: "replica1", To: "replica0"}} {
			c.Network().Slow(l, 100*time.Millisecond)
		}
		time.Sleep(time.Second)
		cut(c, "client", "replica1")
		large := strings.Repeat("x", 8<<20)
		for n := int64(2); n < 4; n++ {
			if got, err := add(t.Context(), conn, large); got != n || err != nil {
				t.Errorf("%d, %v", got, err)
			}
		}
		c.AwaitExecuted()
		if lines := append(log.lines("evicted"),
			append(log.lines("lost the primary"), log.lines("can't fetch")...)...); len(lines) > 0 ||
			!inSync(c, "replica1") {
			t.Errorf("in-sync are %v; %q", c.View().InSync, lines)
		}
	})
}

// A client's large message needs seconds to a backup, and small ones come before it: its stream
// there isn't given up while parts of it go.
func TestLargeFrameOnASlowNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logged{}
		c := understudytest.New(t, 2, registerLedger, understudytest.ServerOptions(grpc.MaxRecvMsgSize(math.MaxInt32)),
			log.to())
		conn := c.Dial("client")
		if _, err := add(t.Context(), conn, "x"); err != nil {
			t.Fatal(err)
		}
		for _, l := range []simnet.Link{{From: "client", To: "replica1"}, {From: "replica1", To: "client"}} {
			c.Network().Slow(l, 100*time.Millisecond)
		}
		time.Sleep(time.Second)
		for _, name := range []string{"small", strings.Repeat("x", 12<<20), "small"} {
			if _, err := add(t.Context(), conn, name); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(5 * time.Second)
		if lines := log.lines("a stream ended"); len(lines) > 0 {
			t.Errorf("%q", lines)
		}
	})
}
