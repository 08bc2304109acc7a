package replica_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// calledBack is a slog.Handler that does what a test wants for each line.
type calledBack func()

func (f calledBack) Enabled(context.Context, slog.Level) bool  { f(); return true }
func (f calledBack) Handle(context.Context, slog.Record) error { f(); return nil }
func (f calledBack) WithAttrs([]slog.Attr) slog.Handler        { f(); return f }
func (f calledBack) WithGroup(string) slog.Handler             { f(); return f }
func callsBack(f func()) (replica.Option, transport.Option) {
	l := slog.New(calledBack(f))
	return replica.Logger(l), transport.WithLogger(l)
}

// TestLogHandlersMayAskBlockOrPanic: a user's log handler that asks who logs for its state, one
// that blocks for ever, and one that panics, for replicas and clients, through joining, calls,
// and a failover.
func TestLogHandlersMayAskBlockOrPanic(t *testing.T) {
	t.Parallel()
	for name, how := range map[string]func(ask func(), over chan struct{}){
		"asks":   func(ask func(), _ chan struct{}) { ask() },
		"blocks": func(_ func(), over chan struct{}) { <-over },
		"panics": func(func(), chan struct{}) { panic("no log today") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				t.Cleanup(func() { close(over) })
				var replicas [3]atomic.Pointer[replica.Replica]
				var m transport.Monitor
				var lines atomic.Int64
				onReplica, onClient := callsBack(func() {
					lines.Add(1)
					how(func() {
						for i := range replicas {
							if r := replicas[i].Load(); r != nil {
								_ = r.Status()
							}
						}
						_ = m.Stats()
					}, over)
				})
				p := newPlace(t)
				for i, host := range []string{"a", "b", "c"} {
					r, _ := p.start(host, &journal{}, onReplica)
					replicas[i].Store(r)
					until(t, "replica", func() bool { return inSync(r) })
				}
				conn := p.dial("client", onClient, transport.WithMonitor(&m))
				mustWrite(t, conn, "first")
				began := time.Now()
				if err := replicas[0].Load().Stop(t.Context()); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("Stop took %v", took)
				}
				mustWrite(t, conn, "second")
				began = time.Now()
				_ = conn.Close()
				if took := time.Since(began); took > time.Second {
					t.Errorf("Close took %v", took)
				}
				if lines.Load() == 0 {
					t.Error("nothing was logged")
				}
			})
		})
	}
}
