package transport_test

import (
	"context"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/transport"
)

// TestWrongOptionsFailCalls: an option that can't be what it was given is told by its name, and
// nothing is dialled.
func TestWrongOptionsFailCalls(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		option transport.Option
		words  []string
	}{
		{nil, []string{"option 1", "nil"}},
		{transport.WithStore(nil), []string{"WithStore", "nil"}},
		{transport.WithLevel(understudy.Level(7)), []string{"WithLevel", "Level(7)"}},
		{transport.WithEtcd(nil, "", "secret"), []string{"WithEtcd", "one of them is empty"}},
		{transport.WithEtcd(nil, "", ""), []string{"WithEtcd", "give one of them"}}, // besides WithStore
		{transport.WithLevel(-1), []string{"WithLevel"}},
		{transport.WithGiveUp(-time.Second), []string{"WithGiveUp", "-1s"}},
		{transport.WithUnreplicated("/a.B/C"), []string{"WithUnreplicated", "/a.B/C"}},
		{transport.WithLogger(nil), []string{"WithLogger", "nil"}},
		{transport.WithClock(nil), []string{"WithClock", "nil"}},
		{transport.WithMonitor(nil), []string{"WithMonitor", "nil"}},
	} {
		elect := transport.WithDialled(func([]string, string) (election.Election, io.Closer, error) {
			t.Errorf("%v: the store was dialled", tt.words)
			return nil, nil, io.EOF
		})
		for _, connected := range []bool{false, true} {
			conn, err := grpc.NewClient(target, append(transport.DialOptions(elect, tt.option),
				grpc.WithTransportCredentials(insecure.NewCredentials()))...)
			if err != nil {
				t.Fatal(err)
			}
			if connected {
				conn.Connect()
			}
			_, err = say(t.Context(), conn, "hello")
			fails(t, err, codes.FailedPrecondition, tt.words...)
			_ = conn.Close()
		}
	}
}

// TestGroupsAreWhatTargetsSay: gRPC takes a target apart as a URL. The group that a client finds is
// the one that is written, or none.
func TestGroupsAreWhatTargetsSay(t *testing.T) {
	t.Parallel()
	for group, ok := range map[string]bool{
		"greeter": true, "a b": true, "ü": true, "..": true, "a&b": true, "a;b": true, "[x": true, "a:b": true,
		"@":  true,
		"\\": true, "a\"b": true,
		"greeter?v=2": false, "greeter?": false, "greeter#blue": false, "a%20b": false, "100%": false, "a%2Fb": false,
	} {
		for _, connected := range []bool{false, true} {
			found := make(chan string, 1)
			elect := transport.WithDialled(func(_ []string, group string) (election.Election, io.Closer, error) {
				found <- group
				return nil, nil, io.EOF
			})
			conn, err := grpc.NewClient("replicated://127.0.0.1:1/"+group,
				append(transport.DialOptions(elect), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
			if err != nil {
				if ok {
					t.Errorf("%q: %v", group, err)
				}
				continue
			}
			if connected {
				conn.Connect()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err = say(ctx, conn, "hello")
			cancel()
			_ = conn.Close()
			if !ok {
				fails(t, err, codes.FailedPrecondition)
				if !connected && len(found) > 0 {
					t.Errorf("%q: the group %q was asked for", group, <-found)
				}
				continue
			}
			select {
			case got := <-found:
				if got != group {
					t.Errorf("%q was taken for the group %q", group, got)
				}
			default:
				t.Errorf("%q: %v", group, err)
			}
		}
	}
}
