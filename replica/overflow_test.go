package replica

import (
	"context"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// behind is a primary that has ordered entries of one session which its backup hasn't acknowledged,
// and the stream of that session.
func behind(t testing.TB, entries int) (*incarnation, *attachment) {
	t.Helper()
	in := leadingAlone(t)
	in.seal = wire.NewSeal(make([]byte, secretSize))
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.m.leading().authority = math.MaxInt64
	opening, _, _ := in.m.leading().primary.Open(orderstate.Nonce{1}, 1, nil, in.m.leading().now())
	if _, err := in.m.leading().primary.Acknowledge("backup", 1, opening.OrderNum); err != nil {
		t.Fatal(err)
	}
	in.m.leading().primary.Attach("backup", opening.Session)
	a := &attachment{m: in.m, session: opening.Session, bound: true, out: newOutbox[pb.AttachResponse](func(err error) {
		t.Errorf("cut: %v", err)
	})}
	in.m.sources.bySession[a.session] = a
	orderMore(in, a.session, 1, entries)
	return in, a
}

func orderMore(in *incarnation, s orderstate.Session, first orderstate.SeqNum, n int) {
	for q := first; q < first+orderstate.SeqNum(n); q++ {
		in.m.leading().primary.Order(orderstate.Message{MessageID: orderstate.MessageID{Session: s, SeqNum: q},
			Digest: uint64(q)},
			in.m.leading().now())
	}
}

// replies makes the header of the reply to an entry, of a caller whose session held nothing when it
// called.
func replies(t testing.TB, in *incarnation, a *attachment, k orderstate.OrderNum) *wire.Header {
	t.Helper()
	c := &call{header: wire.Header{Session: a.session, SeqNum: orderstate.SeqNum(k - 1), SourceEpoch: 1, DestEpoch: 1}}
	if o := in.m.leading().transmit(context.Background(), c, k, outcome{}); o.err != nil {
		t.Fatal(o.err)
	}
	return &c.replyHeader
}

// source is what a client does with announcements.
func source(t testing.TB) *orderstate.Source {
	t.Helper()
	s := orderstate.NewSource()
	s.NewEpoch(1)
	if err := s.Start(1, 1, 1, nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func hears(t testing.TB, s *orderstate.Source, announced ...orderstate.Announcement) {
	t.Helper()
	for _, r := range announced {
		if err := s.Receive(r); err != nil {
			t.Fatal(err)
		}
	}
}

// drain reads a stream, as a client with its bounds does; it returns how many bytes of runs there
// were.
func drain(t testing.TB, a *attachment, s *orderstate.Source) (bytes int) {
	t.Helper()
	for out := a.next(); out != nil; out = a.next() {
		if a.out.next != nil && len(a.out.wake) == 0 {
			t.Error("the sender wasn't woken for the rest")
		}
		runs, err := wire.RunsFromProto(out.GetSourceOrderInfo())
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range runs {
			if bytes += len(r.Sealed); i > 0 && proto.Size(out) > wire.ChunkSize+1<<10 {
				t.Errorf("a message has %d bytes and %d runs", proto.Size(out), len(runs))
			}
			if _, err := a.m.seal.Open(r); err != nil {
				t.Error(err)
			}
		}
		hears(t, s, runs...)
	}
	return bytes
}

// TestOverflowIsAnnouncedOnce: many callers of a session that was idle while much was ordered wake
// at once. What doesn't fit on their replies is sent on the stream once, in messages that a client
// takes (R5), and with that each reply can be accepted (R1).
func TestOverflowIsAnnouncedOnce(t *testing.T) {
	t.Parallel()
	const entries, callers = 20_000, 64
	in, a := behind(t, entries)
	s := source(t)
	last := in.m.leading().primary.Last()
	for i := range orderstate.OrderNum(callers) {
		h := replies(t, in, a, last-(i*37)%callers) // in no order
		if h.Size() > wire.MaxHeader {
			t.Errorf("a header of %d bytes", h.Size())
		}
		if i > 0 && len(h.SourceOrderInfo) > 0 && h.SourceOrderInfo[0].First <= a.announced {
			t.Errorf("a reply carries %v, the stream up to %d", h.SourceOrderInfo[0].Envelope, a.announced)
		}
		hears(t, s, h.SourceOrderInfo...)
	}
	if bytes := drain(t, a, s); bytes > 20*entries {
		t.Errorf("the stream carried %d bytes for %d entries", bytes, entries)
	}
	if s.HeldUpTo() != last {
		t.Errorf("the source holds %d of %d", s.HeldUpTo(), last)
	}
	in.m.mu.Lock()
	orderMore(in, a.session, entries+1, 1000)
	in.m.mu.Unlock()
	last = in.m.leading().primary.Last()
	hears(t, s, replies(t, in, a, last).SourceOrderInfo...)
	if bytes := drain(t, a, s); bytes > 20*1000 {
		t.Errorf("the stream carried %d bytes for %d more entries", bytes, 1000)
	}
	if s.HeldUpTo() != last {
		t.Errorf("the source holds %d of %d", s.HeldUpTo(), last)
	}
}

// TestOverlappingRunsAreAnnouncedOnce: two replies may be made at the same time, neither knowing of
// the other's run.
func TestOverlappingRunsAreAnnouncedOnce(t *testing.T) {
	t.Parallel()
	in, a := behind(t, 1000)
	first := in.m.leading().primary.Multicast(a.session, 0, 600, nil)
	in.m.mu.Lock()
	for _, upTo := range []orderstate.OrderNum{600, 600, 400, 1000} {
		a.announce(in.m.leading().primary.Multicast(a.session, 0, upTo, nil))
	}
	in.m.mu.Unlock()
	out := a.next().GetSourceOrderInfo()
	if len(out) != 2 || out[0].GetFirst() != uint64(first.First) || out[0].GetCount() != uint32(first.Count) ||
		out[1].GetFirst() != 601 || out[1].GetCount() != 400 {
		t.Errorf("the stream carried %v", out)
	}
}

// TestANewStreamHasAnnouncedNothing: what an earlier stream carried may be lost.
func TestANewStreamHasAnnouncedNothing(t *testing.T) {
	t.Parallel()
	in, a := behind(t, 1000)
	last := in.m.leading().primary.Last()
	replies(t, in, a, last)
	a = &attachment{m: in.m, session: a.session, bound: true, out: newOutbox[pb.AttachResponse](a.out.cut)}
	in.m.mu.Lock()
	in.m.sources.bySession[a.session] = a
	in.m.mu.Unlock()
	s := source(t)
	hears(t, s, replies(t, in, a, last).SourceOrderInfo...)
	drain(t, a, s)
	if s.HeldUpTo() != last {
		t.Errorf("the source holds %d of %d", s.HeldUpTo(), last)
	}
}

// TestWhoWaitsIsToldAgain: a source that says what it holds gets the rest, whatever its stream has
// carried.
func TestWhoWaitsIsToldAgain(t *testing.T) {
	t.Parallel()
	in, a := behind(t, 1000)
	last := in.m.leading().primary.Last()
	h := replies(t, in, a, last)
	for a.next() != nil { // lost
	}
	s := source(t)
	hears(t, s, h.SourceOrderInfo...)
	if err := a.take(&pb.AttachRequest{WaitingFor: &pb.WaitingFor{Epoch: 1, HeldUpTo: uint64(s.HeldUpTo())}},
		new(wire.Assembler)); err != nil {
		t.Fatal(err)
	}
	drain(t, a, s)
	if s.HeldUpTo() != last {
		t.Errorf("the source holds %d of %d", s.HeldUpTo(), last)
	}
}

// TestRunsAreWithinTheirBound: a client takes no run of more entries than MaxRun.
func TestRunsAreWithinTheirBound(t *testing.T) {
	t.Parallel()
	in, a := behind(t, 2*wire.MaxRun+10)
	s := source(t)
	last := in.m.leading().primary.Last()
	hears(t, s, replies(t, in, a, last).SourceOrderInfo...)
	drain(t, a, s)
	if s.HeldUpTo() != last {
		t.Errorf("the source holds %d of %d", s.HeldUpTo(), last)
	}
}
