package understudytest_test

import (
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/understudytest"
)

// hooked is a ledger some of whose methods a test replaces.
type hooked struct {
	ledger
	host     int
	handle   func(ctx context.Context, name string) (int64, error)
	reads    func(ctx context.Context)
	snapshot func() (func(io.Writer) error, error)
	restore  func(io.Reader) error
}

func (h *hooked) add(ctx context.Context, name string) (int64, error) {
	if h.handle != nil {
		return h.handle(ctx, name)
	}
	return h.ledger.add(ctx, name)
}

func (h *hooked) get(ctx context.Context) int64 {
	if h.reads != nil {
		h.reads(ctx)
	}
	return h.ledger.get(ctx)
}

func (h *hooked) Snapshot() (func(io.Writer) error, error) {
	if h.snapshot != nil {
		return h.snapshot()
	}
	return h.ledger.Snapshot()
}

func (h *hooked) Restore(r io.Reader) error {
	if h.restore != nil {
		return h.restore(r)
	}
	return h.ledger.Restore(r)
}

// registerHooked tells each service to change before it serves; host is its replica's number, if
// each is started once.
func registerHooked(change func(*hooked)) understudytest.Register {
	next := 0
	return func(s grpc.ServiceRegistrar) replica.Snapshotter {
		h := &hooked{host: next}
		next++
		change(h)
		s.RegisterService(&counterDesc, h)
		return h
	}
}

// logged is a log that can be asked.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// to is the option that makes a cluster log here.
func (l *logged) to() understudytest.Option {
	return understudytest.Logger(slog.New(slog.NewTextHandler(l, nil)))
}

// lines are those that have all the words.
func (l *logged) lines(words ...string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
next:
	for line := range strings.Lines(l.b.String()) {
		for _, w := range words {
			if !strings.Contains(line, w) {
				continue next
			}
		}
		found = append(found, line)
	}
	return found
}

// wants says that there must be such a line.
func (l *logged) wants(t *testing.T, words ...string) {
	t.Helper()
	if len(l.lines(words...)) == 0 {
		t.Errorf("the log has no line with %q", words)
	}
}
