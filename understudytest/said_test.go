package understudytest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/understudytest"
)

// An error's text that isn't UTF-8, and metadata that can't be sent, stop no join; after a failover
// the caller is told the same.
func TestUnsendableErrorsDontStopJoins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			h.handle = func(ctx context.Context, name string) (int64, error) {
				_, _ = h.ledger.add(ctx, name)
				if err := grpc.SetHeader(ctx, metadata.MD{"Key\xff": {"x"}}); status.Code(err) != codes.Internal {
					t.Errorf("the header was taken: %v", err)
				}
				if err := grpc.SetTrailer(ctx, metadata.MD{"key": {"a\nb"}}); status.Code(err) != codes.Internal {
					t.Errorf("the trailer was taken: %v", err)
				}
				return 0, errors.New("no such key: \xff\xfe")
			}
		}))
		_, err := add(t.Context(), c.Dial("client"), "x")
		if status.Convert(err).Message() != "no such key: \uFFFD\uFFFD" {
			t.Errorf("the caller was told %v", err)
		}
		time.Sleep(time.Second)
		c.Start(c.Grow())
		awaitStatus(t, c, 2, time.Minute, joined)
		c.AwaitInSync(3)
	})
}

// What a turn says that is too large ends its call, and nothing else: every replica has logged the
// same.
func TestTooLargeReplyIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			h.handle = func(ctx context.Context, name string) (int64, error) {
				n, err := h.ledger.add(ctx, name)
				if name == "large" {
					err = grpc.SetTrailer(ctx, metadata.MD{"large-bin": {strings.Repeat("x", 65<<20)}})
				}
				return n, err
			}
		}), understudytest.Level(understudy.Stable))
		conn := c.Dial("client")
		_, err := add(t.Context(), conn, "large")
		if status.Code(err) != codes.ResourceExhausted ||
			!strings.Contains(err.Error(), "/test.Counter/Add was executed, and its reply has") {
			t.Errorf("the caller was told %v", err)
		}
		if n, err := add(t.Context(), conn, "x"); n != 2 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		c.AwaitExecuted()
	})
}

// A method's name that no frame can carry is refused at once, and the streams stay.
func TestUnsendableMethodIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logged{}
		c := understudytest.New(t, 2, registerLedger, log.to())
		conn := c.Dial("client")
		for _, method := range []string{"Add\xff", strings.Repeat("x", 2000)} {
			if _, err := invoke(t.Context(), conn, method, "x"); status.Code(err) != codes.Unimplemented {
				t.Errorf("%v", err)
			}
		}
		if n, err := add(t.Context(), conn, "x"); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		time.Sleep(time.Second)
		if lines := log.lines("a stream ended"); len(lines) > 0 {
			t.Errorf("%q", lines)
		}
	})
}

// A read-only handler has its caller's deadline, and ends with the call: one that waits for that (a
// long poll) holds turns up no longer.
func TestReadEndsWithItsCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ended []error
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			h.reads = func(ctx context.Context) {
				if at, ok := ctx.Deadline(); !ok || time.Until(at) > 20*time.Second {
					t.Errorf("its deadline is %v, %v", at, ok)
				}
				<-ctx.Done()
				ended = append(ended, ctx.Err())
			}
		}))
		reader, writer := c.Dial("reader"), c.Dial("writer")
		if _, err := add(t.Context(), writer, "x"); err != nil {
			t.Fatal(err)
		}
		for _, want := range []error{context.DeadlineExceeded, context.Canceled} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if want == context.Canceled {
				time.AfterFunc(100*time.Millisecond, cancel)
			}
			began := time.Now()
			if _, err := get(ctx, reader); status.FromContextError(want).Code() != status.Code(err) {
				t.Errorf("the read: %v", err)
			}
			cancel()
			if _, err := add(t.Context(), writer, "x"); err != nil || time.Since(began) > 1100*time.Millisecond {
				t.Errorf("after %v another client's call: %v", time.Since(began), err)
			}
		}
		if len(ended) != 2 || !errors.Is(ended[1], context.Canceled) {
			t.Errorf("the handlers ended with %v", ended)
		}
	})
}

// A read-only handler that doesn't end is named in the log, with how many wait for it.
func TestSlowReadsAreNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logged{}
		c := understudytest.New(t, 2, registerHooked(func(h *hooked) {
			h.reads = func(context.Context) { time.Sleep(4 * time.Second) }
		}), log.to())
		reader, writer := c.Dial("reader"), c.Dial("writer")
		read := make(chan error, 1)
		go func() {
			_, err := get(t.Context(), reader)
			read <- err
		}()
		time.Sleep(time.Second)
		if _, err := add(t.Context(), writer, "x"); err != nil {
			t.Error(err)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
		log.wants(t, "level=WARN", "a read-only method takes long", "/test.Counter/Get", "waiting=1")
		lines := len(log.lines("a read-only method takes long"))
		time.Sleep(5 * time.Second)
		if n := len(log.lines("a read-only method takes long")); n != lines || n > 4 {
			t.Errorf("%d lines, and then %d", lines, n)
		}
	})
}
