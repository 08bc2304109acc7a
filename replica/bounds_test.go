package replica

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election/memory"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// backup returns an incarnation that follows epoch 1, and knows session 1.
func backup(t testing.TB) *incarnation {
	t.Helper()
	r, err := Join(t.Context(), "etcd:///test", Stateless(), Name("a"), Store(memory.NewStore().Client("test")))
	if err != nil {
		t.Fatal(err)
	}
	in := newIncarnation(t.Context(), &r.env)
	h, err := orderstate.NewHistory(1, 0, nil, []orderstate.SessionState{{Session: 1}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := orderstate.NewBackup(h, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	in.m.upstream = newUpstream(0, nil)
	in.m.role, in.group, in.seal = newFollowing(in.m, b, nil), 7, wire.NewSeal(make([]byte, secretSize))
	return in
}

// knows makes an incarnation that follows know more sessions, each with a stream of its own.
func knows(t testing.TB, in *incarnation, sessions int) []*attachment {
	t.Helper()
	var states []orderstate.SessionState
	var all []*attachment
	for n := range orderstate.Session(sessions) {
		states = append(states, orderstate.SessionState{Session: n + 1, Nonce: orderstate.Nonce{byte(n), byte(n >> 8)}})
		a := &attachment{m: in.m, bound: true, session: n + 1, out: newOutbox[pb.AttachResponse](nil)}
		in.m.sources.attached[a], in.m.sources.bySession[n+1] = struct{}{}, a
		all = append(all, a)
	}
	h, err := orderstate.NewHistory(orderstate.OrderNum(sessions), 0, nil, states)
	if err == nil {
		in.m.following().backup, err = orderstate.NewBackup(h, 1, orderstate.OrderNum(sessions)+1)
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// logs gives a stream one frame, as take does.
func (a *attachment) logs(q orderstate.SeqNum, size int) bool {
	return a.logFrame(orderstate.Message{MessageID: orderstate.MessageID{Session: a.session, SeqNum: q},
		Digest: uint64(q), Size: size})
}

// TestUnorderedFramesAreBoundedForEachSession: of frames that nobody orders one session has a
// sixteenth of a backup's log, and 8,192 seqNums, wherever they are; what is beyond is dropped
// and counted, and costs nobody else.
func TestUnorderedFramesAreBoundedForEachSession(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	streams := knows(t, in, 20)
	hostile, bytes, large := streams[0], streams[1], streams[2]
	check := func(what string, a *attachment, messages, size, dropped int) {
		t.Helper()
		of := in.m.following().backup.History().Of(a.session)
		if of.Waiting != messages || of.WaitingBytes != size || int(in.r.stats.dropped.Load()) != dropped {
			t.Errorf("%s: %+v is held, %d dropped; want %d of %d bytes, %d", what, of, in.r.stats.dropped.Load(),
				messages, size, dropped)
		}
	}
	for q := range orderstate.SeqNum(10_000) {
		hostile.logs(1+q*1000, 1)
	}
	check("small ones, with gaps", hostile, maxOutstanding, maxOutstanding, 10_000-maxOutstanding)
	in.r.stats.dropped.Store(0)
	hostile.logs(1, 1)
	check("the same again", hostile, maxOutstanding, maxOutstanding, 0)

	bytes.logs(1, maxLogBytes/16)
	bytes.logs(2, 1)
	bytes.logs(3, 0)
	check("a share's bytes", bytes, 2, maxLogBytes/16, 1)
	large.logs(1, wire.MaxMessage)
	large.logs(2, 1)
	check("the greatest, alone", large, 1, wire.MaxMessage, 2)

	// If many do that, there is something left for the others.
	for _, a := range streams[3:19] {
		a.logs(100, wire.MaxMessage)
		for q := range orderstate.SeqNum(64) {
			a.logs(q+1, 1<<20)
		}
	}
	last := streams[19]
	in.r.stats.dropped.Store(0)
	last.logs(1, 1<<20)
	check("who comes last", last, 1, 1<<20, 0)
}

// TestAnnouncedFrameIsKept: a frame that the order waits for is kept, however full the log is, and
// whoever filled it.
func TestAnnouncedFrameIsKept(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	a := knows(t, in, 2)[1]
	for q := range orderstate.SeqNum(maxOutstanding) {
		a.logs(q+1, 0)
	}
	frame := orderstate.Message{MessageID: orderstate.MessageID{Session: 2, SeqNum: 1 << 20}, Digest: 7,
		Size: wire.MaxMessage}
	if a.logFrame(frame) {
		t.Error("a frame beyond the share was kept")
	}
	_, err := in.m.following().backup.Receive(orderstate.Run{
		Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 3, First: 3, Count: 1},
		Entries: []orderstate.OrderInfo{{OrderNum: 3, SeqNum: 1 << 20, Session: 2, Kind: orderstate.Request, First: 1,
			Digest: 7}},
	})
	if err != nil {
		t.Fatal(err)
	}
	other := frame
	if other.Digest = 8; a.logFrame(other) {
		t.Error("a frame with other bytes was kept")
	}
	if !a.logFrame(frame) || in.m.following().backup.Last() != 3 {
		t.Errorf("the frame was dropped, and the order ends at %d", in.m.following().backup.Last())
	}
}

// TestDroppedFramesAreNotAcknowledged: a source forgets an abandoned call's frame when every backup
// has acknowledged it, so a dropped one, and any above it, mustn't be.
func TestDroppedFramesAreNotAcknowledged(t *testing.T) {
	t.Parallel()
	in := backup(t)
	a := &attachment{m: in.m, bound: true, session: 1, out: newOutbox[pb.AttachResponse](nil)}
	var frames wire.Assembler
	send := func(q uint64, size int) {
		t.Helper()
		f := &pb.Frame{Group: in.group, Session: 1, SeqNum: q, Outstanding: q, Method: "/m",
			Message: make([]byte, size)}
		if err := a.take(&pb.AttachRequest{Frames: []*pb.Frame{f}}, &frames); err != nil {
			t.Fatal(err)
		}
	}
	send(1, 10)
	in.m.mu.Lock()
	a.logs(100, maxLogBytes/16-100)
	in.m.mu.Unlock()
	send(2, 1000)
	send(3, 10)
	held, dropped := in.m.following().backup.History().Held(), in.r.stats.dropped.Load()
	if told := a.next().GetFramesUpTo(); held != 3 || dropped != 1 || told != 1 {
		t.Errorf("%d are held, %d dropped, acknowledged up to %d; want 3, 1, 1", held, dropped, told)
	}
}

// TestPartialFramesAreBounded: what sources send of frames that they never end is of the log's
// bytes, and of each session's share.
func TestPartialFramesAreBounded(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.m.mu.Lock()
	streams := knows(t, in, 10)
	in.m.mu.Unlock()
	frames := make([]wire.Assembler, len(streams))
	send := func(i int, f *pb.Frame) {
		t.Helper()
		if err := streams[i].take(&pb.AttachRequest{Frames: []*pb.Frame{f}}, &frames[i]); err != nil {
			t.Fatal(err)
		}
	}
	begin := func(i int, q uint64, message []byte, more uint32) {
		t.Helper()
		send(i, &pb.Frame{Group: in.group, Session: uint64(streams[i].session), SeqNum: q, Outstanding: q, Method: "/m",
			Message: message, More: more})
	}
	check := func(when string, partial int, dropped uint64, held int) {
		t.Helper()
		if in.m.sources.partial != partial || in.r.stats.dropped.Load() != dropped ||
			in.m.following().backup.History().Held() != held {
			t.Errorf("%s %d bytes are kept, %d frames dropped, %d held; want %d, %d, %d", when, in.m.sources.partial,
				in.r.stats.dropped.Load(), in.m.following().backup.History().Held(), partial, dropped, held)
		}
	}
	const large = wire.MaxMessage
	some := make([]byte, large-1)
	for i := range 2 {
		begin(i, 1, some, 1)
	}
	check("with two", 2*(large-1), 0, 0) // two of the greatest, and no more
	begin(3, 1, some, 1)
	check("beyond what large ones may have", 2*(large-1), 1, 0)
	begin(4, 1, make([]byte, 2), 1)
	check("with a small one", 2*(large-1)+2, 1, 0)
	begin(5, 1, make([]byte, 8<<10), 0)
	begin(5, 2, make([]byte, maxLogBytes/16), 1)
	check("beyond a session's share", 2*(large-1)+2, 2, 1)
	send(3, &pb.Frame{Message: make([]byte, 1)})
	begin(3, 2, nil, 0)
	send(4, &pb.Frame{Message: make([]byte, 1)})
	check("with what is whole", 2*(large-1), 2, 3)
	if frames[3].Held() != 0 || streams[3].next() != nil || streams[4].next().GetFramesUpTo() != 1 {
		t.Error("a frame that was dropped, or one above it, was acknowledged, or another one wasn't")
	}
	send(0, &pb.Frame{Message: make([]byte, 1)})
	check("the greatest, once whole, isn't counted twice", large-1, 2, 4)
	for _, a := range streams {
		in.m.sources.detach(a)
	}
	check("without streams", 0, 2, 4)
	// who receives may notice it last
	if err := streams[3].take(&pb.AttachRequest{Frames: []*pb.Frame{{Message: make([]byte, 2)}}},
		&frames[3]); err == nil {
		t.Error("a stream that has ended goes on")
	}
	check("on a stream that has ended", 0, 2, 4)
}

// TestQueuesOfStreamsAreBounded: what is queued for a source, or for a follower, that doesn't
// read is bounded; then its stream is cut (R6). All sources together have no more than one
// follower.
func TestQueuesOfStreamsAreBounded(t *testing.T) {
	t.Parallel()
	in := backup(t)
	run := orderstate.Announcement{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 1, Count: 1},
		Sealed: make([]byte, 64<<10)}
	for n := range 100 {
		ctx, cut := context.WithCancelCause(t.Context())
		a := &attachment{m: in.m, bound: true, out: newOutbox[pb.AttachResponse](cut)}
		before := in.m.sources.queued
		for i := 0; ctx.Err() == nil && i <= 64; i++ {
			a.addRun(run)
		}
		if n == 0 && in.m.sources.queued != maxQueueBytes/16 {
			t.Errorf("a source's stream was cut after %d bytes, want %d", in.m.sources.queued, maxQueueBytes/16)
		}
		if in.m.sources.queued-before != a.out.size || in.m.sources.queued > maxQueueBytes {
			t.Errorf("%d bytes are queued for all, %d before, %d for one", in.m.sources.queued, before, a.out.size)
		}
		wantCode(t, statusOf(context.Cause(ctx)), codes.ResourceExhausted)
		if n%2 == 0 {
			in.m.sources.detach(a)
			if in.m.sources.queued != before {
				t.Errorf("%d bytes are left of a stream that has ended", in.m.sources.queued-before)
			}
		}
	}

	ctx, cut := context.WithCancelCause(t.Context())
	f := &follower{out: newOutbox[pb.FollowResponse](cut)}
	f.say(maxQueueBytes)
	if ctx.Err() != nil {
		t.Error("a follower's stream was cut at its bound, not beyond it")
	}
	f.say(1)
	if ctx.Err() == nil {
		t.Error("a follower's stream wasn't cut")
	}
	wantCode(t, statusOf(context.Cause(ctx)), codes.Unavailable)
}

// TestAttachmentEmptiesItsQueue: what was sent no longer counts.
func TestAttachmentEmptiesItsQueue(t *testing.T) {
	t.Parallel()
	in := backup(t)
	a := &attachment{m: in.m, bound: true, out: newOutbox[pb.AttachResponse](func(err error) {
		t.Errorf("cut: %v", err)
	})}
	run := orderstate.Announcement{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 1, Count: 1},
		Sealed: make([]byte, 1<<20)}
	for range 3 * maxQueueBytes >> 20 {
		a.addRun(run)
		if out := a.next(); len(out.GetSourceOrderInfo()) != 1 {
			t.Fatalf("sent %d runs", len(out.GetSourceOrderInfo()))
		}
	}
	if a.next() != nil {
		t.Error("there was more")
	}
}

func wantCode(t *testing.T, err error, code codes.Code) {
	t.Helper()
	if status.Code(err) != code || errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, code)
	}
}
