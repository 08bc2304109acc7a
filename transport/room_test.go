package transport

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestFramesRoom: what may be outstanding, and what may be retained, is bounded; a request alone
// always has room.
func TestFramesRoom(t *testing.T) {
	t.Parallel()
	f := newFrames()
	if !f.fits(wire.MaxMessage) {
		t.Error("no room for one request")
	}
	for range maxOutstanding {
		if !f.fits(1) {
			t.Fatal("no room")
		}
		f.add(new(pb.Frame), new(call))
	}
	if f.fits(1) {
		t.Error("more are outstanding than may be")
	}
	f = newFrames()
	big := f.add(&pb.Frame{Message: make([]byte, maxRetained/2)}, new(call))
	if f.fits(maxRetained / 2) {
		t.Error("more is retained than may be")
	}
	f.end(big, endRefused, 0, 0)
	if !f.fits(maxRetained / 2) {
		t.Error("no room")
	}
}

// TestRoom: a call that has no room waits, with nothing sent, until one ends or it does itself.
func TestRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, _ := welcomed(t)
		defer c.life.cancel(nil)
		first, _, err := c.begin(request{ctx: t.Context(), method: "/a/b"}, understudy.Reflected, false)
		if err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		for c.session.frames.fits(0) {
			c.session.frames.end(c.session.frames.add(new(pb.Frame), new(call)), endRefused, 0, 0)
		}
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, _, err = c.begin(request{ctx: ctx, method: "/a/b"}, understudy.Reflected, false)
		if status.Code(err) != codes.DeadlineExceeded ||
			!strings.Contains(err.Error(), "nothing was sent (too much is outstanding") {
			t.Errorf("%v", err)
		}
		time.AfterFunc(time.Second, func() { first.end(endAbandoned) })
		began := time.Now()
		k, _, err := c.begin(request{ctx: t.Context(), method: "/a/b"}, understudy.Reflected, false)
		if err != nil || k.outstanding != 1 || time.Since(began) != time.Second {
			t.Errorf("%+v, %v, after %v", k, err, time.Since(began))
		}
	})
}

// TestRoomInLine: calls that wait for room come first whose turn it is, also before one that would
// fit; the first one asks the primary what has become stable, now and again.
func TestRoomInLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, l := welcomed(t)
		defer c.life.cancel(nil)
		c.mu.Lock()
		held := []*retained{
			c.session.frames.add(&pb.Frame{Message: make([]byte, maxRetained/2)}, new(call)),
			c.session.frames.add(&pb.Frame{Message: make([]byte, maxRetained/4)}, new(call)),
		}
		c.mu.Unlock()
		var order []int
		var gone error
		for i, size := range []int{maxRetained / 3, maxRetained / 3, 100, 0} {
			ctx, cancel := context.WithCancel(t.Context())
			if i == 1 { // who gives up doesn't hold up the others
				time.AfterFunc(time.Second, cancel)
			}
			go func() {
				defer cancel()
				_, _, err := c.begin(request{ctx: ctx, method: "/a/b", payload: make([]byte, size)},
					understudy.Reflected, false)
				if c.mu.Lock(); err == nil {
					order = append(order, i)
				} else {
					gone = err
				}
				c.mu.Unlock()
			}()
			synctest.Wait()
		}
		asked := func(after time.Duration) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			if !l.question.GetStable() || l.question.Epoch != 10 {
				t.Errorf("asked %v", l.question)
			}
			l.question = nil
		}
		entered := func(want ...int) {
			t.Helper()
			synctest.Wait()
			c.mu.Lock()
			defer c.mu.Unlock()
			if !slices.Equal(order, want) {
				t.Errorf("those who have entered are %v, want %v", order, want)
			}
		}
		asked(0)
		asked(askEvery)
		entered() // though the last two fit
		end := func(r *retained) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.session.frames.end(r, endRefused, 0, 0)
			c.session.makeRoom()
		}
		end(held[1])
		entered(0)
		asked(0) // by the second
		time.Sleep(time.Second)
		entered(0, 2, 3)
		if status.Code(gone) != codes.Canceled {
			t.Errorf("the second one: %v", gone)
		}
	})
}
