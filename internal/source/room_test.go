package source

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestCallsWithoutRoomWaitUnsent: until one ends, or they do themselves.
func TestCallsWithoutRoomWaitUnsent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src, _ := welcomed(t)
		r := &Request{Method: "/a/b"}
		first, err := src.begin(t.Context(), r, false, new(prepared))
		if err != nil {
			t.Fatal(err)
		}
		src.mu.Lock()
		for src.session.frames.fits(0) {
			src.session.frames.end(src.session.frames.add(new(pb.Frame), new(call)), endRefused, 0, 0)
		}
		src.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = src.begin(ctx, r, false, new(prepared))
		if why := new(Error); !errors.As(err, &why) || why.Kind != Ended || why.Sent ||
			!strings.HasPrefix(err.Error(), "too much is outstanding") {
			t.Errorf("%v", err)
		}
		time.AfterFunc(time.Second, func() { first.end(endAbandoned) })
		began := time.Now()
		k, err := src.begin(t.Context(), r, false, new(prepared))
		if err != nil || k.outstanding != 1 || time.Since(began) != time.Second {
			t.Errorf("%+v, %v, after %v", k, err, time.Since(began))
		}
	})
}

// TestRoomIsGivenInTurn: calls that wait for room enter in the order in which they came, even
// before one that would fit; the first one asks the primary what has become stable, now and again.
func TestRoomIsGivenInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src, l := welcomed(t)
		src.mu.Lock()
		held := []*retained{
			src.session.frames.add(&pb.Frame{Message: make([]byte, maxRetained/2)}, new(call)),
			src.session.frames.add(&pb.Frame{Message: make([]byte, maxRetained/4)}, new(call)),
		}
		src.mu.Unlock()
		var order []int
		var gone error
		for i, size := range []int{maxRetained / 3, maxRetained / 3, 100, 0} {
			ctx, cancel := context.WithCancel(t.Context())
			if i == 1 { // who gives up doesn't hold up the others
				time.AfterFunc(time.Second, cancel)
			}
			go func() {
				defer cancel()
				_, err := src.begin(ctx, &Request{Method: "/a/b", Message: make([]byte, size)}, false, new(prepared))
				if src.mu.Lock(); err == nil {
					order = append(order, i)
				} else {
					gone = err
				}
				src.mu.Unlock()
			}()
			synctest.Wait()
		}
		asked := func(after time.Duration) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			src.mu.Lock()
			defer src.mu.Unlock()
			if !l.sender.question.GetStable() || l.sender.question.Epoch != 10 {
				t.Errorf("asked %v", l.sender.question)
			}
			l.sender.question = nil
		}
		entered := func(want ...int) {
			t.Helper()
			synctest.Wait()
			src.mu.Lock()
			defer src.mu.Unlock()
			if !slices.Equal(order, want) {
				t.Errorf("those who have entered are %v, want %v", order, want)
			}
		}
		asked(0)
		asked(askEvery)
		entered() // though the last two fit
		end := func(r *retained) {
			src.mu.Lock()
			defer src.mu.Unlock()
			src.session.frames.end(r, endRefused, 0, 0)
			src.session.makeRoom()
		}
		end(held[1])
		entered(0)
		asked(0) // by the second
		time.Sleep(time.Second)
		entered(0, 2, 3)
		if why := new(Error); !errors.As(gone, &why) || why.Kind != Ended {
			t.Errorf("the second one: %v", gone)
		}
	})
}
