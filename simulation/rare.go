package simulation

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc/stats"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica"
	"github.com/understudy-rpc/understudy/transport"
)

// Coverage counts how often something rare has happened, by what it is called.
type Coverage struct {
	*counts
	headers headers
}

type counts struct {
	mu       sync.Mutex // guards what follows
	n        map[string]int
	ended    map[uint64]time.Time // sessions whose client has left, or crashed
	detached []detachment
}

// detachment is what was said of a session that a backup can't hear, which counts only if its
// client was there.
type detachment struct {
	what    string
	session uint64
	at      time.Time
}

func newCoverage() Coverage {
	c := &counts{n: map[string]int{}, ended: map[uint64]time.Time{}}
	return Coverage{c, headers{counts: c}}
}

func (c *counts) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[what] += n
}

// left notes that a client has left, with its session.
func (c *counts) left(session uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended[session] = time.Now()
}

// unheard counts the sessions that were detached while their clients were there.
func (c *counts) unheard() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.detached {
		if left, ok := c.ended[d.session]; !ok || d.at.Before(left) {
			c.n[d.what]++
		}
	}
}

// Counts returns what was counted.
func (c Coverage) Counts() map[string]int { return c.n }

// Rare is what a run of many seeds must have met, or it shows little.
var Rare = []string{
	"took over",
	"a takeover waited for sessions",
	"a takeover gave up a session without a stream",
	"a takeover gave up a session with a stream",
	"a takeover evicted a peer",
	"evicted",
	"in-sync",
	"a primary was deposed",
	"a new process took its predecessor's name",
	"a reply was fenced (R9)",
	"a reply was too late (R10)",
	"a call was issued again",
	"a duplicate was answered from the log",
	"a session was told DataLoss",
	"an undone reply was told (I5)",
	"a call's outcome was unknown",
	"a call of unknown outcome was executed",
	"a call was refused",
	"a header was more than half full (R5)",
	"a session ended in the order",
	"a session was detached (R11)",
	"a replica took over at which a session was detached (R11)",
	orderIt,
	"a read was accepted",
	suspected,
	"the store is believed again",
	"a call waited until a suspect store made sense again",
	"a wall clock leapt",
	"the store was slow",
	"the store hung",
	"a hostile client's call was executed",
	"a hostile client's act: withholds",
	"a hostile client's act: forges",
	"a hostile client's act: nobody's",
	"a hostile client's act: parts",
	"a hostile client's act: runs",
	"a hostile client's act: is to come",
	"porcupine decided",
}

func (c Coverage) failover(f replica.Failover) {
	if f.SessionsAwaited > 0 {
		c.add("a takeover waited for sessions", 1)
	}
}

// replica counts what a process has counted, at its end.
func (c Coverage) replica(s replica.Status) {
	c.add("a duplicate was answered from the log", int(s.Duplicates))
	c.add("turns", int(s.Turns))
}

func (c Coverage) client(s transport.Stats) {
	c.add("a reply was fenced (R9)", int(s.Fenced))
	c.add("a reply was too late (R10)", int(s.Expired))
	c.add("a call was issued again", int(s.Reissued))
	c.add("a session was told DataLoss", int(s.Lost))
	c.add("malformed", int(s.Malformed))
}

// handler counts what replicas and clients log, and passes it on.
func (c Coverage) handler(next slog.Handler) slog.Handler { return logged{next, c} }

type logged struct {
	slog.Handler
	c Coverage
}

func (l logged) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l logged) Handle(ctx context.Context, r slog.Record) error {
	switch r.Message {
	case "took over", "evicted", "in-sync", "a session is open", suspected, "the store is believed again":
		l.c.add(r.Message, 1)
	case "an in-sync peer doesn't answer":
		l.c.add("a takeover evicted a peer", 1)
	case "taking the name of a predecessor whose address this name's new process has":
		l.c.add("a new process took its predecessor's name", 1)
	case "beginning again as a new incarnation":
		l.c.add("a primary was deposed", 1)
	case "a backup can't hear a session":
		l.c.unhears("a session was detached (R11)", r)
	case "doesn't wait for a session that it couldn't hear":
		l.c.unhears("a replica took over at which a session was detached (R11)", r)
	case "gave up a session":
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "hasStream" && a.Value.Bool() {
				l.c.add("a takeover gave up a session with a stream", 1)
			} else if a.Key == "hasStream" {
				l.c.add("a takeover gave up a session without a stream", 1)
			}
			return true
		})
	}
	if l.Handler.Enabled(ctx, r.Level) {
		return l.Handler.Handle(ctx, r)
	}
	return nil
}

// unhears notes a record about a session that was detached.
func (c *counts) unhears(what string, r slog.Record) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "session" {
			c.detached = append(c.detached, detachment{what, a.Value.Uint64(), r.Time})
		}
		return true
	})
}

func (l logged) WithAttrs(as []slog.Attr) slog.Handler { return logged{l.Handler.WithAttrs(as), l.c} }
func (l logged) WithGroup(name string) slog.Handler    { return logged{l.Handler.WithGroup(name), l.c} }

// headers measures the library's header on requests and replies (R5).
type headers struct{ *counts }

// TagRPC implements stats.Handler.
func (h *headers) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

// HandleRPC implements stats.Handler.
func (h *headers) HandleRPC(_ context.Context, s stats.RPCStats) {
	var values []string
	switch s := s.(type) {
	case *stats.OutHeader:
		values = s.Header.Get(wire.HeaderKey)
	case *stats.InTrailer:
		values = s.Trailer.Get(wire.HeaderKey)
		reply := new(wire.Header)
		if reply.FromMetadata(values) == nil && reply.Refusal == pb.Refusal_REFUSAL_ORDER_IT {
			h.add(orderIt, 1)
		}
	case *stats.OutPayload:
		h.measure(s.Length - size(s.Payload))
	case *stats.InPayload:
		h.measure(s.Length - size(s.Payload))
	}
	for _, v := range values {
		h.measure(len(v))
	}
}

// size is a message's without what the header in front of it takes.
func size(payload any) int {
	m, _ := payload.(proto.Message)
	return proto.Size(m) + (&wire.Header{}).SizeFront() + 1 // a header's length takes two bytes, if it is of interest
}

func (h *headers) measure(n int) {
	if n > wire.MaxHeader {
		h.add(tooLarge, 1)
	}
	if n > wire.MaxHeader/2 {
		h.add("a header was more than half full (R5)", 1)
	}
}

const orderIt = "a read was refused because its session is detached, and made as an ordered call (R11)"

const suspected = "the store isn't believed: state and log are kept, and calls wait"

const tooLarge = "a header was larger than R5 allows"

// TagConn implements stats.Handler.
func (h *headers) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (h *headers) HandleConn(context.Context, stats.ConnStats) {}
