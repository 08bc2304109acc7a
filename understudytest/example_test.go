package understudytest_test

// The example of this package is a test, because fake time needs one: TestExample.

import (
	"testing"
	"testing/synctest"

	"github.com/understudy-rpc/understudy/understudytest"
)

func TestExample(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 3, registerCounter)
		conn := c.Dial("client")
		before, err := add(t.Context(), conn, "apples")
		if err != nil {
			t.Fatal(err)
		}
		c.Kill(c.Primary())
		after, err := add(t.Context(), conn, "apples")
		if err != nil {
			t.Fatal(err)
		}
		if before != 1 || after != 2 {
			t.Errorf("counted %d before the primary died, %d after", before, after)
		}
	})
}
