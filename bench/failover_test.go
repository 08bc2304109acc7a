package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/bench/counter"
	"github.com/understudy-rpc/understudy/internal/etcdnode"
)

// A primary that is killed, or stopped, is followed by another one; what was replied to is in all
// states.
func TestTrial(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and many processes")
	}
	etcd, err := etcdnode.Start(t.Context(), etcdnode.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := etcd.Stop(); err != nil {
			t.Error(err)
		}
	}()
	for _, c := range []struct {
		system string
		kinds  []kind
		tight  bool
	}{
		{"reflected", []kind{killed, stopped}, false},
		// at Reflected the other client may be told DataLoss: that is the level's window
		{"stable", []kind{vanished}, false},
		{"etcdraft", []kind{stopped, killed}, true},
	} {
		t.Run(c.system, func(t *testing.T) {
			s, _ := findSystem(c.system)
			f, err := startFleet(t.Context(), s, (&failoverCase{kind: c.kinds[0], tight: c.tight}).config(), etcd.Addr)
			defer f.stop()
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range c.kinds {
				got, err := f.trial(t.Context(), k)
				if err != nil {
					t.Fatalf("%s: %v", k.name, err)
				}
				if g := got.Gap; !g.Ended || g.Failed > 0 || g.Held <= 0 || g.First <= 0 || g.Calls < gapLeast {
					t.Errorf("%s: %+v", k.name, g)
				}
				if knows := !s.joins; knows != (got.Takeover > 0) {
					t.Errorf("%s: where the time went: %+v", k.name, got)
				}
				t.Logf("%s: %+v", k.name, got)
			}
		})
	}
}

func TestGapOf(t *testing.T) {
	t.Parallel()
	mark := time.Now()
	at := func(begun, ended int) called {
		return called{mark.Add(time.Duration(begun) * time.Millisecond),
			mark.Add(time.Duration(ended) * time.Millisecond)}
	}
	// A later silence isn't this one, and one that ended before the mark doesn't count, however
	// slow; one was on its way and came just after it.
	held, first := gapOf([]called{at(50, 53), at(-90, -1), at(-3, 1), at(-2, 40), at(-1, 45), at(54, 99)}, mark)
	if held != 46*time.Millisecond || first != 40*time.Millisecond {
		t.Errorf("held up %v, first reply after %v", held, first)
	}
	if held, first := gapOf(nil, mark); held != 0 || first != 0 {
		t.Errorf("no calls: %v, %v", held, first)
	}
}

// answers is a server that answers as its function does.
type answers func(context.Context) error

func (a answers) Add(ctx context.Context, _ *counter.AddRequest, _ ...grpc.CallOption) (*counter.AddReply, error) {
	return &counter.AddReply{}, a(ctx)
}

// The client goes on to whoever leads, doesn't ask again who took too long, and gives up when the
// call does.
func TestRedirected(t *testing.T) {
	t.Parallel()
	asked := make([]int, 3)
	answer := func(i int, then answers) counter.CounterClient {
		return answers(func(ctx context.Context) error {
			asked[i]++
			return then(ctx)
		})
	}
	stopped := func(ctx context.Context) error {
		<-ctx.Done()
		return status.FromContextError(ctx.Err()).Err()
	}
	follows := func(context.Context) error { return errNotLeading }
	elections := 3
	elected := func(context.Context) error {
		if elections--; elections >= 0 {
			return errNotLeading
		}
		return nil
	}
	r := &redirected{servers: []counter.CounterClient{answer(0, stopped), answer(1, follows), answer(2, elected)},
		attempt: 100 * time.Millisecond}
	for range 2 {
		if _, err := r.Add(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if want := []int{1, 4, 5}; asked[0] != want[0] || asked[1] != want[1] || asked[2] != want[2] {
		t.Errorf("asked %v times, want %v", asked, want)
	}
	elections = 1 << 30
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := r.Add(ctx, nil); err == nil {
		t.Error("nobody leads, and there is a reply")
	}
	r.servers[2] = answers(func(context.Context) error { return status.Error(codes.InvalidArgument, "no") })
	if _, err := r.Add(t.Context(), nil); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an error of the application: %v", err)
	}
}

// The whole section, from trials that were made up.
func TestWriteFailovers(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	cases := failoverConfig{runs: 2, peerRuns: 1, levels: []string{"reflected"}, systems: []string{"etcd"}}.cases()
	for _, c := range cases {
		for i := range c.runs {
			c.trials = append(c.trials,
				trial{Gap: gapReport{Held: time.Duration(20+i) * time.Millisecond, First: 19 * time.Millisecond},
					Takeover: 2 * time.Millisecond, Twice: 3})
		}
	}
	cases[0].notes = []string{"something\nhappened"}
	if err := writeFailovers(folder, &conditions{}, cases); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(folder, resultsFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"### SIGSTOP\n\nGoal of this library, for how long a call is held up: 700 ms",
		"| reflected | 2 | 20.0 | 21.0 | 21.0 | 21.0 | 19.0 | 19.0 | 0 | 6 |", "| etcd, tight | 1 |",
		"### kill -9, 1000 sessions", "- something happened", "failover-stop.svg",
	} {
		if !strings.Contains(string(got), part) {
			t.Errorf("%q is missing in\n%s", part, got)
		}
	}
}
