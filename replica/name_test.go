package replica

import (
	"testing"

	"github.com/understudy-rpc/understudy/election"
)

// TestLoopbackElsewhereProvesNothing: another machine's loopback address isn't this one's, so what
// answers here says nothing about who holds the name there.
func TestLoopbackElsewhereProvesNothing(t *testing.T) {
	t.Parallel()
	in := &incarnation{}
	for _, addr := range []string{"127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1", "[::]:1", "no address"} {
		alive, unproved := in.isAlive(election.Replica{Member: election.Member{Name: "a", Incarnation: 1},
			PeerAddr: addr, Host: "another"})
		if alive || unproved == nil {
			t.Errorf("%s: alive is %v, %v", addr, alive, unproved)
		}
	}
	if thisHost() == "" {
		t.Error("this host isn't told apart from others")
	}
}
