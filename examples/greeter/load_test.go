package main

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/examples/greeter/helloworld"
	"github.com/understudy-rpc/understudy/internal/process"
)

// direct is a client without a network: call is asked what becomes of the nth call, from 1.
type direct struct {
	server *greeter
	calls  atomic.Int64
	call   func(n int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error)
}

func (d *direct) SayHello(
	ctx context.Context, req *helloworld.HelloRequest, _ ...grpc.CallOption,
) (*helloworld.HelloReply, error) {
	execute := func() (*helloworld.HelloReply, error) { return d.server.SayHello(ctx, req) }
	return d.call(d.calls.Add(1), execute)
}

type outcomeOf = func(n int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error)

// What a load of four callers makes of a hundred calls or so, one of which is strange.
func TestLoadBooksEachOutcome(t *testing.T) {
	t.Parallel()
	strange := func(what outcomeOf) outcomeOf {
		return func(n int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error) {
			if n == 50 {
				return what(n, execute)
			}
			return execute()
		}
	}
	for _, c := range []struct {
		claim                    string
		call                     outcomeOf
		failed, lost, duplicated int
		code                     string
	}{
		{claim: "all well", call: strange(func(_ int64,
			execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error) {
			return execute()
		})},
		{claim: "refused and not executed", failed: 1, code: "Unavailable",
			call: strange(func(int64, func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error) {
				return nil, status.Error(codes.Unavailable, "no")
			})},
		{claim: "refused, yet executed: a promise broken", failed: 1, lost: 1, code: "ResourceExhausted",
			call: strange(func(_ int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply,
				error) {
				_, _ = execute()
				return nil, status.Error(codes.ResourceExhausted, "no")
			})},
		{claim: "unknown and executed", failed: 1, code: "DeadlineExceeded",
			call: strange(func(_ int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply,
				error) {
				_, _ = execute()
				return nil, status.Error(codes.DeadlineExceeded, "too late")
			})},
		{claim: "unknown and not executed", failed: 1, code: "Canceled",
			call: strange(func(int64, func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error) {
				return nil, status.Error(codes.Canceled, "never mind")
			})},
		{claim: "executed twice", lost: 1,
			call: strange(func(_ int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply,
				error) {
				_, _ = execute()
				return execute()
			})},
		{claim: "no greeting", failed: 1, code: "unreadable reply",
			call: strange(func(_ int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply,
				error) {
				_, err := execute()
				return &helloworld.HelloReply{Message: "Good bye"}, err
			})},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			server, enough := newGreeter(), make(chan struct{})
			l := newLoad(t.Context(),
				&direct{server: server,
					call: func(n int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply,
						error) {
						if n == 100 {
							close(enough)
						}
						return c.call(n, execute)
					}}, 4)
			l.start()
			<-enough
			l.stop()
			got := l.tally()
			v := judge(got.Accounts, map[string]map[string]uint64{"a": server.dump()}, "a")
			if got.Calls < 100 || got.Failed != c.failed || v.Lost != c.lost || v.Duplicated != c.duplicated {
				t.Errorf("%d calls, %d failed, %d lost, %d duplicated: %q", got.Calls, got.Failed, v.Lost, v.Duplicated,
					v.Findings)
			}
			if f := got.Failures[c.code]; c.code != "" && (f.Count != 1 || f.First == "") || len(got.Failures) > 1 {
				t.Errorf("failures: %v", got.Failures)
			}
			if s := l.stats(); s.Calls != got.Calls || s.Failed != got.Failed || s.At.IsZero() {
				t.Errorf("stats: %+v", s)
			}
		})
	}
}

// Callers greet names of their own and shared ones.
func TestLoadSharesNames(t *testing.T) {
	t.Parallel()
	server, enough := newGreeter(), make(chan struct{})
	l := newLoad(t.Context(),
		&direct{server: server,
			call: func(n int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error) {
				if n == 2000 {
					close(enough)
				}
				return execute()
			}}, 3)
	l.start()
	<-enough
	l.stop()
	shared, own := 0, 0
	for name := range l.tally().Accounts {
		if strings.Contains(name, "/shared/") {
			shared++
		} else {
			own++
		}
	}
	if shared != sharedNames || own < ownNames || own > 3*ownNames {
		t.Errorf("%d shared names, %d own", shared, own)
	}
}

// The parent's commands, through the pipe.
func TestLoadAnswersTheParent(t *testing.T) {
	t.Parallel()
	server, enough := newGreeter(), make(chan struct{})
	l := newLoad(t.Context(),
		&direct{server: server,
			call: func(n int64, execute func() (*helloworld.HelloReply, error)) (*helloworld.HelloReply, error) {
				if n == 100 {
					close(enough)
				}
				return execute()
			}}, 2)
	commandsOut, commands := io.Pipe()
	events, eventsIn := io.Pipe()
	served := make(chan error, 1)
	go func() { served <- process.NewLink[command, event](eventsIn).Serve(t.Context(), commandsOut, l.answer) }()
	decoder := json.NewDecoder(events)
	type answer struct {
		ID    int
		Error string
		event
	}
	asked := 0
	ask := func(c command) (a answer) {
		t.Helper()
		asked++
		if err := json.NewEncoder(commands).Encode(struct {
			ID int `json:"id"`
			command
		}{asked, c}); err != nil {
			t.Fatal(err)
		}
		if err := decoder.Decode(&a); err != nil {
			t.Fatal(err)
		}
		if a.ID != asked {
			t.Fatalf("answer %d to command %d", a.ID, asked)
		}
		return a
	}
	before := time.Now()
	ask(command{Do: doStart})
	<-enough
	if e := ask(command{Do: doStats}); e.Stats == nil || e.Stats.Calls < 98 {
		t.Errorf("stats: %+v", e.Stats)
	}
	if e := ask(command{Do: doStop}); e.Tally == nil ||
		judge(e.Tally.Accounts, map[string]map[string]uint64{"a": server.dump()}, "a").Lost != 0 {
		t.Errorf("tally: %+v", e.Tally)
	}
	if e := ask(command{Do: doGaps, Marks: []time.Time{before, time.Now().Add(time.Hour)}}); len(e.Gaps) != 2 ||
		e.Gaps[0].Took <= 0 || e.Gaps[1].Took != 0 {
		t.Errorf("gaps: %v", e.Gaps)
	}
	if e := ask(command{Do: "dance"}); e.Error == "" {
		t.Errorf("the load can dance: %+v", e)
	}
	commands.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
