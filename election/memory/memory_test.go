package memory_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/understudy-rpc/understudy/election/electiontest"
	"github.com/understudy-rpc/understudy/election/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func factory(opts ...memory.Option) func(*testing.T) electiontest.Factory {
	return func(*testing.T) electiontest.Factory {
		store := memory.NewStore(opts...)
		return electiontest.Factory{
			Client:  func(_ *testing.T, group string) electiontest.Client { return store.Client(group) },
			SetDown: store.SetDown,
		}
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	electiontest.RunIn(t, synctest.Test, factory())
}

func TestContractWithLatency(t *testing.T) {
	t.Parallel()
	electiontest.RunIn(t, synctest.Test, factory(memory.Latency(3*time.Millisecond), memory.TTL(5*time.Second)))
}
