package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is also the program that startProcess runs: the real subcommands, and "child" for
// tests of the supervision itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "child":
			os.Exit(child(os.Args[2:]))
		case "replica", "client":
			os.Exit(dispatch(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		}
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/understudy-rpc/understudy/examples/greeter.startAll"))
}

// child answers doStatus with its arguments as the role, says one event unasked, and ends as it is
// told.
func child(args []string) int {
	parent := newLink(os.Stdout)
	fmt.Fprintln(os.Stderr, "the child has begun")
	parent.tell(event{Failover: &failover{To: strings.Join(args, " ")}})
	err := parent.serve(context.Background(), os.Stdin, func(ctx context.Context, c command) event {
		switch c.Do {
		case doStatus:
			return event{Status: &replicaStatus{Role: strings.Join(args, " ")}}
		case "fail":
			fmt.Fprintln(os.Stderr, "the child fails")
			os.Exit(3)
		case "babble":
			fmt.Println("no event")
		case "hang":
			<-ctx.Done()
		}
		return unknownCommand(c)
	})
	if err != nil {
		return 1
	}
	return 0
}

// startChild starts one whose unasked events are counted.
func startChild(t *testing.T, args ...string) (p *process, said <-chan event) {
	t.Helper()
	events := make(chan event, 100)
	p, err := startProcess("child", append([]string{"child"}, args...), nil, func(e event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill(); <-p.done })
	return p, events
}

func TestProcessAnswers(t *testing.T) {
	t.Parallel()
	p, said := startChild(t, "well", "brought", "up")
	if e := <-said; e.Failover == nil || e.Failover.To != "well brought up" {
		t.Errorf("it said %+v", e)
	}
	var asking sync.WaitGroup
	for range 10 {
		asking.Go(func() {
			e, err := p.ask(t.Context(), command{Do: doStatus})
			if err != nil || e.Status == nil || e.Status.Role != "well brought up" {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
	asking.Wait()
	if _, err := p.ask(t.Context(), command{Do: "dance"}); err == nil ||
		!strings.Contains(err.Error(), `unknown command "dance"`) {
		t.Errorf("dance: %v", err)
	}
	if _, err := p.ask(t.Context(), command{Do: "babble"}); err == nil ||
		!strings.Contains(p.log.String(), `no event`) {
		t.Errorf("after babble: %v, %s", err, p.log)
	}
	impatient, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrNoProgress)
	if _, err := p.ask(impatient, command{Do: "hang"}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("hang: %v", err)
	}
}

// The end of its stdin is the end of a child, also of one that is busy.
func TestProcessEndsWithItsStdin(t *testing.T) {
	t.Parallel()
	p, said := startChild(t)
	<-said
	if err := p.send(command{ID: 1, Do: "hang"}); err != nil {
		t.Fatal(err)
	}
	p.stop(time.Minute)
	if p.err != nil {
		t.Errorf("it ended with %v", p.err)
	}
	if _, err := p.ask(t.Context(), command{Do: doStatus}); err == nil {
		t.Error("it answers after its end")
	}
}

func TestProcessThatDiesLeavesNobodyWaiting(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*process) error{
		"killed": func(p *process) error { p.kill(); return nil },
		"failed": func(p *process) error { return p.send(command{Do: "fail"}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, said := startChild(t)
			<-said
			var asking sync.WaitGroup
			asking.Go(func() {
				if _, err := p.ask(t.Context(), command{Do: "hang"}); err == nil {
					t.Error("it was answered")
				}
			})
			if err := end(p); err != nil {
				t.Fatal(err)
			}
			asking.Wait()
			<-p.done
			if p.err == nil || !strings.Contains(p.log.String(), "the child has begun") {
				t.Errorf("it ended with %v, and logged %q", p.err, p.log)
			}
		})
	}
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
	if err := second.send(command{Do: "fail"}); err != nil {
		t.Fatal(err)
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
	if _, err := m.ask(t.Context(), command{Do: doStatus}); !errors.Is(err, errEnded) {
		t.Errorf("after the end: %v", err)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	var l tail
	for i := range 10000 {
		fmt.Fprintln(&l, i)
	}
	if got := l.String(); len(got) != tailLength-1 || !strings.HasSuffix(got, "\n9998\n9999") {
		t.Errorf("%d bytes: …%s", len(got), got[max(0, len(got)-20):])
	}
}
