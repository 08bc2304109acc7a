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
	in := newIncarnation(t.Context(), r)
	h, err := orderstate.NewHistory(1, 0, nil, []orderstate.SessionState{{Session: 1}})
	if err != nil {
		t.Fatal(err)
	}
	if in.backup, err = orderstate.NewBackup(h, 1, 1); err != nil {
		t.Fatal(err)
	}
	in.role, in.group, in.seal = following, 7, wire.NewSeal(make([]byte, secretSize))
	return in
}

// TestLogBounds: the frames that a backup holds are bounded in number and in bytes; what is beyond is dropped and counted.
func TestLogBounds(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.mu.Lock()
	defer in.mu.Unlock()
	frame := func(q orderstate.SeqNum, size int) {
		in.logFrame(orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: q}, Digest: uint64(q), Size: size})
	}
	const half = maxLogBytes / 2
	frame(1, half)
	frame(2, half)
	if held, dropped := in.backup.Held(), in.r.stats.dropped.Load(); held != 2 || dropped != 0 {
		t.Errorf("of two that fit exactly %d are held, %d dropped", held, dropped)
	}
	frame(3, 1)
	if held, dropped, bytes := in.backup.Held(), in.r.stats.dropped.Load(), in.backup.Bytes(); held != 2 || dropped != 1 || bytes != maxLogBytes {
		t.Errorf("beyond the bytes %d are held, %d dropped; %d bytes", held, dropped, bytes)
	}
	frame(1, 0) // the same again needs no room
	for q := orderstate.SeqNum(4); in.r.stats.dropped.Load() < 10 && q < 2*maxLog; q++ {
		frame(q, 0)
	}
	if held, bytes := in.backup.Held(), in.backup.Bytes(); held != maxLog || bytes != maxLogBytes {
		t.Errorf("%d messages of %d bytes are held, want %d of %d", held, bytes, maxLog, maxLogBytes)
	}
}

// TestDroppedFramesAreNotAcknowledged: a source forgets an abandoned call's frame when every backup has acknowledged it, so a dropped one, and any above it, mustn't be.
func TestDroppedFramesAreNotAcknowledged(t *testing.T) {
	t.Parallel()
	in := backup(t)
	a := &attachment{in: in, bound: true, session: 1, wake: make(chan struct{}, 1)}
	var frames wire.Assembler
	send := func(q uint64, size int) {
		t.Helper()
		f := &pb.Frame{Group: in.group, Session: 1, SeqNum: q, Outstanding: q, Method: "/m", Message: make([]byte, size)}
		if err := a.take(&pb.AttachRequest{Frames: []*pb.Frame{f}}, &frames); err != nil {
			t.Fatal(err)
		}
	}
	send(1, 10)
	in.mu.Lock()
	in.logFrame(orderstate.Message{MessageID: orderstate.MessageID{Session: 1, SeqNum: 100}, Size: maxLogBytes - 100})
	in.mu.Unlock()
	send(2, 1000)
	send(3, 10)
	if held, dropped, told := in.backup.Held(), in.r.stats.dropped.Load(), a.next().GetFramesUpTo(); held != 3 || dropped != 1 || told != 1 {
		t.Errorf("%d are held, %d dropped, acknowledged up to %d; want 3, 1, 1", held, dropped, told)
	}
}

// TestPartialFramesBounds: what sources send of frames that they never end is bounded, over all streams.
func TestPartialFramesBounds(t *testing.T) {
	t.Parallel()
	in := backup(t)
	type stream struct {
		*attachment
		frames wire.Assembler
	}
	attach := func() *stream {
		s := &stream{attachment: &attachment{in: in, bound: true, session: 1, wake: make(chan struct{}, 1)}}
		in.attached[s.attachment] = struct{}{}
		return s
	}
	send := func(s *stream, f *pb.Frame) {
		t.Helper()
		if err := s.take(&pb.AttachRequest{Frames: []*pb.Frame{f}}, &s.frames); err != nil {
			t.Fatal(err)
		}
	}
	begin := func(s *stream, q uint64, message []byte, more uint32) {
		t.Helper()
		send(s, &pb.Frame{Group: in.group, Session: 1, SeqNum: q, Outstanding: q, Method: "/m", Message: message, More: more})
	}
	check := func(when string, partial int, dropped uint64, held int) {
		t.Helper()
		if in.partial != partial || in.r.stats.dropped.Load() != dropped || in.backup.Held() != held {
			t.Errorf("%s %d bytes are kept, %d frames dropped, %d held; want %d, %d, %d", when, in.partial, in.r.stats.dropped.Load(), in.backup.Held(), partial, dropped, held)
		}
	}
	const large = maxLogBytes / 4
	some := make([]byte, large-1)
	var four []*stream
	for q := range uint64(4) {
		four = append(four, attach())
		begin(four[q], q+1, some, 1)
	}
	check("with four", 4*(large-1), 0, 0)
	small, fifth := attach(), attach()
	begin(small, 5, make([]byte, 2), 1)
	begin(fifth, 6, some, 1)
	check("beyond the bound", 4*(large-1)+2, 1, 0)
	send(fifth, &pb.Frame{Message: make([]byte, 1)})
	begin(fifth, 7, nil, 0)
	send(small, &pb.Frame{Message: make([]byte, 1)})
	check("with what is whole", 4*(large-1), 1, 2)
	if fifth.frames.Held() != 0 || fifth.next() != nil || small.next().GetFramesUpTo() != 5 {
		t.Error("a frame that was dropped, or one above it, was acknowledged, or another one wasn't")
	}
	for _, s := range append(four, fifth) {
		in.detach(s.attachment)
	}
	check("without streams", 0, 1, 2)
	begin(fifth, 8, make([]byte, 2), 1) // who receives may notice it last
	check("on a stream that has ended", 0, 1, 2)
}

// TestStreamQueueBounds: what is queued for a source, or for a follower, that doesn't read is bounded; then its stream is cut (R6).
func TestStreamQueueBounds(t *testing.T) {
	t.Parallel()
	in := backup(t)
	ctx, cut := context.WithCancelCause(t.Context())
	a := &attachment{in: in, bound: true, wake: make(chan struct{}, 1), cut: cut}
	run := orderstate.Announcement{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 1, Count: 1}, Sealed: make([]byte, 1<<20)}
	n := 0
	for ; ctx.Err() == nil && n <= maxQueueBytes>>20+1; n++ {
		a.addRun(run)
	}
	if n != maxQueueBytes>>20+1 {
		t.Errorf("a source's stream was cut after %d MiB, want %d", n, maxQueueBytes>>20+1)
	}
	wantCode(t, statusOf(context.Cause(ctx)), codes.Unavailable)

	ctx, cut = context.WithCancelCause(t.Context())
	f := &follower{wake: make(chan struct{}, 1), cut: cut}
	f.add(maxQueueBytes)
	if ctx.Err() != nil {
		t.Error("a follower's stream was cut at its bound, not beyond it")
	}
	f.add(1)
	if ctx.Err() == nil {
		t.Error("a follower's stream wasn't cut")
	}
	wantCode(t, statusOf(context.Cause(ctx)), codes.Unavailable)
}

// TestAttachmentEmptiesItsQueue: what was sent no longer counts.
func TestAttachmentEmptiesItsQueue(t *testing.T) {
	t.Parallel()
	in := backup(t)
	a := &attachment{in: in, bound: true, wake: make(chan struct{}, 1), cut: func(err error) { t.Errorf("cut: %v", err) }}
	run := orderstate.Announcement{Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 1, First: 1, Count: 1}, Sealed: make([]byte, 1<<20)}
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
