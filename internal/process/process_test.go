package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary is also the program that is started: "talk" is talked with, "plain" isn't.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "talk":
			os.Exit(talk(os.Args[2:]))
		case "plain":
			fmt.Println("ready")
			fmt.Println("more")
			_, _ = io.Copy(io.Discard, os.Stdin)
			return
		}
	}
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/understudy-rpc/understudy/internal/process.startAll"))
}

type command struct {
	Do string `json:"do"`
}

func (c command) String() string { return c.Do }

type event struct {
	Said string `json:"said,omitempty"`
}

// talk says its arguments unasked, then answers what it is asked for.
func talk(args []string) int {
	link := NewLink[command, event](os.Stdout)
	fmt.Fprintln(os.Stderr, "the child has begun")
	link.Tell(event{strings.Join(args, " ")})
	err := link.Serve(context.Background(), os.Stdin, func(ctx context.Context, c command) (event, error) {
		switch c.Do {
		case "say":
			return event{strings.Join(args, " ")}, nil
		case "nothing":
			return event{}, nil
		case "fail":
			fmt.Fprintln(os.Stderr, "the child fails")
			os.Exit(3)
		case "babble":
			fmt.Println("no event")
		case "hang":
			<-ctx.Done()
		}
		return event{}, Unknown(c)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// startTalk starts one whose unasked events are counted.
func startTalk(t *testing.T, args ...string) (p *Partner[command, event], said <-chan event) {
	t.Helper()
	events := make(chan event, 100)
	p, err := Talk[command](Spec{Name: "child", Args: append([]string{"talk"}, args...)},
		func(e event) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.KillAndWait)
	return p, events
}

func TestProcessAnswers(t *testing.T) {
	t.Parallel()
	p, said := startTalk(t, "well", "brought", "up")
	<-p.Begun
	if e := <-said; e.Said != "well brought up" {
		t.Errorf("it said %+v", e)
	}
	var asking sync.WaitGroup
	for range 10 {
		asking.Go(func() {
			if e, err := p.Ask(t.Context(), command{"say"}); err != nil || e.Said != "well brought up" {
				t.Errorf("%+v, %v", e, err)
			}
		})
	}
	asking.Wait()
	if e, err := p.Ask(t.Context(), command{"nothing"}); err != nil || e.Said != "" {
		t.Errorf("nothing: %+v, %v", e, err)
	}
	if _, err := p.Ask(t.Context(), command{"dance"}); err == nil ||
		err.Error() != `child: dance: unknown command "dance"` {
		t.Errorf("dance: %v", err)
	}
	if _, err := p.Ask(t.Context(), command{"babble"}); err == nil || !strings.Contains(p.Log(), "no event") {
		t.Errorf("after babble: %v, %s", err, p.Log())
	}
	impatient, cancel := context.WithCancelCause(t.Context())
	cancel(io.ErrNoProgress)
	if _, err := p.Ask(impatient, command{"hang"}); !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("hang: %v", err)
	}
}

// The end of its stdin is the end of a child, also of one that is busy.
func TestProcessEndsWithItsStdin(t *testing.T) {
	t.Parallel()
	p, said := startTalk(t)
	<-said
	if err := p.send(1, command{"hang"}); err != nil {
		t.Fatal(err)
	}
	p.End(time.Minute)
	if p.Err != nil {
		t.Errorf("it ended with %v", p.Err)
	}
	if _, err := p.Ask(t.Context(), command{"say"}); err == nil {
		t.Error("it answers after its end")
	}
}

func TestProcessThatDiesLeavesNobodyWaiting(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Partner[command, event]) error{
		"killed": func(p *Partner[command, event]) error { p.Kill(); return nil },
		"failed": func(p *Partner[command, event]) error { return p.send(0, command{"fail"}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, said := startTalk(t)
			<-said
			var asking sync.WaitGroup
			asking.Go(func() {
				if _, err := p.Ask(t.Context(), command{"hang"}); err == nil {
					t.Error("it was answered")
				}
			})
			if err := end(p); err != nil {
				t.Fatal(err)
			}
			asking.Wait()
			<-p.Done
			if !p.Ended() || p.Err == nil || !strings.Contains(p.Why().Error(), "the child has begun") {
				t.Errorf("it ended with %v", p.Why())
			}
		})
	}
}

func TestPlainProcessSaysOneLine(t *testing.T) {
	t.Parallel()
	p, err := Start(Spec{Name: "plain", Args: []string{"plain"}})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Begun
	if got := p.FirstLine(); got != "ready" {
		t.Errorf("it said %q", got)
	}
	p.End(time.Minute)
	if p.Err != nil {
		t.Errorf("it ended with %v", p.Err)
	}
}

// A log that is a file gets all, of processes that follow each other, and what they say amiss.
func TestProcessLogsToAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	for range 2 {
		log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Talk[command](Spec{Name: "child", Args: []string{"talk"}, Stderr: log}, func(event) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Ask(t.Context(), command{"babble"}); err == nil {
			t.Error("it babbles, and says so")
		}
		p.End(time.Minute)
		if p.Log() != "" {
			t.Errorf("the log's end is kept, too: %q", p.Log())
		}
	}
	log, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"the child has begun\n", "child said what is no event: \"no event\\n\"\n"} {
		if strings.Count(string(log), line) != 2 {
			t.Errorf("%q isn't there twice:\n%s", line, log)
		}
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
