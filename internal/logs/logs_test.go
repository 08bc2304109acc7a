package logs

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// sink is a user's handler: it notes the lines, after it has done what a test wants.
type sink struct {
	on    func(message string)
	with  string
	lines *[]string
	mu    *sync.Mutex // guards lines
}

func newSink(on func(string)) *sink { return &sink{on: on, lines: new([]string), mu: new(sync.Mutex)} }

func (s *sink) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelInfo }
func (s *sink) WithGroup(string) slog.Handler                { return s }
func (s *sink) WithAttrs(attrs []slog.Attr) slog.Handler {
	derived := *s
	derived.with += fmt.Sprint(attrs)
	return &derived
}

func (s *sink) Handle(_ context.Context, r slog.Record) error {
	if s.on != nil {
		s.on(r.Message)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text := r.Message + s.with
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	*s.lines = append(*s.lines, text)
	return nil
}

func (s *sink) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(*s.lines)
}

func (s *sink) wants(t *testing.T, lines ...string) {
	t.Helper()
	synctest.Wait()
	if got := s.got(); !slices.Equal(got, lines) {
		t.Errorf("got %q, want %q", got, lines)
	}
}

func TestLinesKeepTheirOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSink(nil)
		l := New(slog.New(s))
		other := l.With("a", 1)
		l.Info("one", "n", 1)
		other.Warn("two")
		l.Debug("isn't enabled")
		other.With("b", 2).Error("three")
		s.wants(t, "one n=1", "two[a=1]", "three[a=1][b=2]")
	})
}

// TestLoggingUnderALock: the handler takes the lock under which was logged.
func TestLoggingUnderALock(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	s := newSink(func(string) { mu.Lock(); defer mu.Unlock() })
	l := New(slog.New(s))
	mu.Lock()
	l.Info("locked")
	mu.Unlock()
	l.Flush(10 * time.Second)
	if got := s.got(); len(got) != 1 {
		t.Errorf("got %q", got)
	}
}

// TestBlockedSinkHoldsUpNobody: what it can't take is dropped, and counted where it is missing.
func TestBlockedSinkHoldsUpNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		unblock := make(chan struct{})
		s := newSink(func(string) { <-unblock })
		l := New(slog.New(s))
		l.Info("blocks")
		synctest.Wait()
		for range limit + 5 {
			l.Info("waits")
		}
		began := time.Now()
		l.Flush(100 * time.Millisecond)
		if passed := time.Since(began); passed != 100*time.Millisecond {
			t.Errorf("Flush took %v", passed)
		}
		close(unblock)
		synctest.Wait()
		l.Info("after")
		synctest.Wait()
		got := s.got()
		if len(got) != 1+limit+2 || !strings.HasSuffix(got[1+limit], "lines=5") || got[2+limit] != "after" {
			t.Errorf("%d lines, at last %q", len(got), got[max(len(got)-3, 0):])
		}
	})
}

// TestHandlerThatBreaks: panics and ends of its goroutine cost their lines, no others.
func TestHandlerThatBreaks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSink(func(m string) {
			switch m {
			case "panics":
				panic(m)
			case "exits":
				runtime.Goexit()
			}
		})
		l := New(slog.New(s))
		for _, m := range []string{"one", "panics", "two", "exits", "three"} {
			l.Info(m)
			l.Flush(time.Second)
		}
		const lost = "lines were dropped: the log's handler is too slow, or it has panicked lines=1"
		s.wants(t, "one", lost, "two", lost, "three")
	})
}

// TestHandlerThatAlwaysPanics: saying how many lines were lost doesn't go on for ever.
func TestHandlerThatAlwaysPanics(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, end := range []func(string){func(m string) { panic(m) }, func(string) { runtime.Goexit() }} {
			l := New(slog.New(newSink(end)))
			l.Info("one")
			l.Flush(time.Second)
		}
	})
}

func TestDiscards(t *testing.T) {
	for _, l := range []*Logger{New(nil), New(slog.New(slog.DiscardHandler)).With("a", 1)} {
		if n := testing.AllocsPerRun(10, func() { l.Info("nobody") }); n > 0 {
			t.Errorf("%v allocations", n)
		}
		l.Flush(time.Hour)
	}
}
