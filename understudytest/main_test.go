package understudytest_test

import (
	"os"
	"testing"

	"github.com/understudy-rpc/understudy/internal/hang"
)

func TestMain(m *testing.M) { os.Exit(hang.Run(m)) }
