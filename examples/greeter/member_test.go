package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/understudy-rpc/understudy/internal/process"
)

// The test binary is also the program that runs as a child: the real subcommands, and "child" for
// the test of the supervision itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "child":
			os.Exit(playChild())
		case "replica", "client":
			os.Exit(dispatch(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/understudy-rpc/understudy/internal/process.startAll"))
}

// playChild answers doStatus, says one event unasked, and fails when it is told to.
func playChild() int {
	parent := process.NewLink[command, event](os.Stdout)
	parent.Tell(event{Failover: &failover{}})
	err := parent.Serve(context.Background(), os.Stdin, func(_ context.Context, c command) (event, error) {
		switch c.Do {
		case doStatus:
			return event{Status: &replicaStatus{}}, nil
		case "fail":
			fmt.Fprintln(os.Stderr, "the child fails")
			os.Exit(3)
		}
		return event{}, process.Unknown(c)
	})
	if err != nil {
		return 1
	}
	return 0
}

func TestMemberIsStartedAgain(t *testing.T) {
	t.Parallel()
	begun, said := make(chan event, 10), make(chan string, 10)
	m := &member{name: "m", args: []string{"child"}, rest: time.Millisecond,
		event: func(e event) { begun <- e },
		say:   func(format string, args ...any) { said <- fmt.Sprintf(format, args...) }}
	if _, ok := m.kill(); ok {
		t.Error("killed one that isn't there")
	}
	ctx, cancel := context.WithCancel(t.Context())
	var supervising sync.WaitGroup
	supervising.Go(func() { m.supervise(ctx) })
	<-begun
	first := m.process()
	if at, ok := m.kill(); !ok || at.IsZero() {
		t.Error("not killed")
	}
	if got := <-said; got != "m is started again" { // and no word on its end, which was meant
		t.Errorf("said %q", got)
	}
	<-begun
	second := m.process()
	if second == nil || second == first {
		t.Fatal("it is the same process")
	}
	if _, err := second.Ask(t.Context(), command{Do: "fail"}); !errors.Is(err, process.ErrEnded) {
		t.Error(err)
	}
	if got := <-said; !strings.HasPrefix(got, "m ended by itself: exit status 3\n") ||
		!strings.Contains(got, "the child fails") {
		t.Errorf("said %q", got)
	}
	if got := <-said; got != "m is started again" {
		t.Errorf("said %q", got)
	}
	<-begun
	e, err := m.ask(t.Context(), command{Do: doStatus})
	if err != nil || e.Status == nil {
		t.Errorf("%+v, %v", e, err)
	}
	cancel()
	supervising.Wait()
	if _, err := m.ask(t.Context(), command{Do: doStatus}); !errors.Is(err, process.ErrEnded) {
		t.Errorf("after the end: %v", err)
	}
}
