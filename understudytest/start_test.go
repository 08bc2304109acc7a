package understudytest_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// A process that is started while the store doesn't make sense waits, and says so; it joins when
// the store does.
func TestStartWaitsForAStoreThatIsSuspect(t *testing.T) {
	for _, key := range []string{"id", "primary", "insync"} {
		t.Run(key, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := understudytest.New(t, 3, registerLedger)
				c.Kill(2)
				c.AwaitInSync(2)
				whole := c.Store().Backup()
				c.Store().Delete("test", key)
				c.Start(2)
				time.Sleep(5 * time.Second)
				if s := c.Replica(2).Status(); s.Role != replica.Joining || s.Suspect == "" {
					t.Errorf("%+v", s)
				}
				c.Store().Restore(whole)
				c.AwaitInSync(3)
			})
		})
	}
}
