package wire

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// pattern makes n bytes in which no place looks like another.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func goodFrame(n int) *pb.Frame {
	return &pb.Frame{Group: 9, Session: 1, SeqNum: 7, Outstanding: 3, Method: "/m", Message: pattern(n),
		Level: pb.Level_LEVEL_STABLE}
}

// TestChunkedFramesAreThemselvesAgain: a frame of any size is itself again, whatever fields it has,
// and no chunk is beyond its bound.
func TestChunkedFramesAreThemselvesAgain(t *testing.T) {
	t.Parallel()
	fields := (&pb.Frame{}).ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() { // a field that is new must be carried, too
		if f := fields.Get(i); f.Name() != "more" && !goodFrame(1).ProtoReflect().Has(f) {
			t.Errorf("the test's frame has no %s", f.Name())
		}
	}
	for _, n := range []int{0, 1, ChunkSize - 1, ChunkSize, ChunkSize + 1, 2 * ChunkSize, 2*ChunkSize + 1, 5<<20 + 3} {
		f := goodFrame(n)
		want := proto.Clone(f)
		chunks := Chunks(f)
		if most := max(1, (n+ChunkSize-1)/ChunkSize); len(chunks) != most {
			t.Errorf("%d bytes are %d chunks, want %d", n, len(chunks), most)
		}
		var a Assembler
		for round := range 2 { // of one assembler, frame after frame
			for i, c := range chunks {
				if len(c.GetMessage()) > ChunkSize {
					t.Errorf("%d bytes: chunk %d has %d", n, i, len(c.GetMessage()))
				}
				if i > 0 {
					c.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
						if f.Name() != "message" && f.Name() != "more" {
							t.Errorf("chunk %d has %s", i, f.Name())
						}
						return true
					})
				}
				got, err := a.Add(proto.Clone(c).(*pb.Frame)) // as it arrives
				switch {
				case err != nil:
					t.Fatalf("%d bytes, round %d, chunk %d: %v", n, round, i, err)
				case i < len(chunks)-1 && got != nil:
					t.Fatalf("%d bytes: whole after chunk %d of %d", n, i, len(chunks))
				case i == len(chunks)-1 && !proto.Equal(got, want):
					t.Errorf("%d bytes come out as %d", n, len(got.GetMessage()))
				}
			}
		}
		if !proto.Equal(f, want) {
			t.Errorf("%d bytes: the frame itself has changed", n)
		}
	}
}

// Parts are a message's encoding, whatever it has, and large messages in them aren't copies.
func TestPartsAreTheMessagesEncoding(t *testing.T) {
	rest := &pb.AttachRequest{
		Hello: &pb.Hello{Nonce: pattern(16)}, DestOrderInfo: []*pb.Run{{Epoch: 3, Sealed: pattern(40)}},
		AcknowledgedEpoch: 4, WaitingFor: &pb.WaitingFor{Epoch: 5, HeldUpTo: 6},
		Ended: &pb.Ended{UpTo: 7, Above: pattern(3)}, ToldEpoch: 8, Hail: true,
	}
	if fields := rest.ProtoReflect().Descriptor().Fields().Len(); fields != 8 {
		t.Errorf("AttachRequest has %d fields: Parts and this test know 8", fields)
	}
	if fields := new(pb.Frame).ProtoReflect().Descriptor().Fields().Len(); fields != 8 {
		t.Errorf("Frame has %d fields: Parts knows 8", fields)
	}
	more := goodFrame(byReference)
	more.More = 8
	for _, sizes := range [][]int{nil, {0}, {byReference - 1, 10}, {byReference},
		{100, 2 * byReference, 0, byReference, 5}, {ChunkSize}} {
		req := proto.CloneOf(rest)
		var large [][]byte
		for _, n := range sizes {
			req.Frames = append(req.Frames, goodFrame(n))
			if n >= byReference {
				large = append(large, req.Frames[len(req.Frames)-1].Message)
			}
		}
		for _, req := range []*pb.AttachRequest{req, {Frames: req.Frames},
			{Frames: append([]*pb.Frame{more}, req.Frames...)}} {
			large := large
			if len(req.Frames) > 0 && req.Frames[0] == more {
				large = append([][]byte{more.Message}, large...)
			}
			parts, err := Parts(req)
			if err != nil {
				t.Fatal(err)
			}
			if len(large) == 0 {
				if parts != nil {
					t.Errorf("%v: %d parts, and nothing is large", sizes, len(parts))
				}
				continue
			}
			var got pb.AttachRequest
			if err := proto.Unmarshal(bytes.Join(parts, nil), &got); err != nil || !proto.Equal(&got, req) {
				t.Errorf("%v: the parts are of another message: %v", sizes, err)
			}
			for _, message := range large {
				if !slices.ContainsFunc(parts, func(p []byte) bool {
					return &p[0] == &message[0] && len(p) == len(message)
				}) {
					t.Errorf("%v: a message of %d bytes was copied", sizes, len(message))
				}
			}
		}
	}
}

// TestAssemblerRefusesOtherChunks: chunks that aren't.
func TestAssemblerRefusesOtherChunks(t *testing.T) {
	t.Parallel()
	change := func(c func(*pb.Frame)) *pb.Frame {
		f := goodFrame(10)
		c(f)
		return f
	}
	chunk := func(n int, more uint32) *pb.Frame { return &pb.Frame{Message: pattern(n), More: more} }
	begin := change(func(f *pb.Frame) { f.More = 20 })
	for name, tt := range map[string]struct {
		chunks []*pb.Frame
		words  string
	}{
		"nil": {[]*pb.Frame{nil}, "needs a session and a seqNum"},
		"no session": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.Session = 0
		})}, "needs a session and a seqNum"},
		"no seqNum": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.SeqNum = 0
		})}, "needs a session and a seqNum"},
		"none outstanding": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.Outstanding = 0
		})}, "can't have 0 outstanding"},
		"a mark below 0": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.Outstanding = 8
		})}, "can't have 8 outstanding"},
		"no method": {[]*pb.Frame{change(func(f *pb.Frame) { f.Method = "" })}, "method has 0 bytes"},
		"a long method": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.Method = strings.Repeat("m", MaxMethod+1)
		})}, "method has 1025 bytes"},
		"too large": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.More = MaxMessage - 9
		})}, "a frame of 67108865 bytes; at most 67108864 are taken"},
		"4 GiB": {[]*pb.Frame{change(func(f *pb.Frame) {
			f.More = math.MaxUint32
		})}, "a frame of 4294967305 bytes"},
		"another frame begins":       {[]*pb.Frame{begin, goodFrame(20)}, "doesn't continue"},
		"a session in a later chunk": {[]*pb.Frame{begin, {Session: 1, Message: pattern(20)}}, "doesn't continue"},
		"a method in a later chunk":  {[]*pb.Frame{begin, {Method: "/m", Message: pattern(20)}}, "doesn't continue"},
		"a chunk of nothing":         {[]*pb.Frame{begin, chunk(0, 20)}, "doesn't continue"},
		"nil in the middle":          {[]*pb.Frame{begin, nil}, "doesn't continue"},
		"too few":                    {[]*pb.Frame{begin, chunk(10, 9)}, "doesn't continue"},
		"too many":                   {[]*pb.Frame{begin, chunk(10, 11)}, "doesn't continue"},
		"more than was declared":     {[]*pb.Frame{begin, chunk(21, 0)}, "doesn't continue"},
		"a sum that wraps around":    {[]*pb.Frame{begin, chunk(21, math.MaxUint32)}, "doesn't continue"},
		"the third of two":           {[]*pb.Frame{begin, chunk(20, 0), chunk(1, 0)}, "needs a session"},
	} {
		var a Assembler
		for i, c := range tt.chunks {
			f, err := a.Add(proto.Clone(c).(*pb.Frame))
			if i < len(tt.chunks)-1 {
				if err != nil {
					t.Fatalf("%s: chunk %d: %v", name, i, err)
				}
			} else if err == nil || !strings.Contains(err.Error(), tt.words) || f != nil {
				t.Errorf("%s: got %v, %v, want %q", name, f, err, tt.words)
			}
		}
	}
	var a Assembler
	if f, err := a.Add(change(func(f *pb.Frame) {
		f.Method = strings.Repeat("m", MaxMethod)
		f.More = MaxMessage - 10
	})); f != nil || err != nil {
		t.Errorf("at the bounds: %v, %v", f, err)
	}
	if n := cap(a.partial.Message); n > 1<<10 {
		t.Errorf("%d bytes are allocated for what is declared", n)
	}
	id, mark := FrameMessage(goodFrame(0))
	if id != (orderstate.MessageID{Session: 1, SeqNum: 7}) || mark != 4 {
		t.Errorf("got %v, answered up to %d", id, mark)
	}
}

// TestDroppedFramesArePassedOver: the rest of a frame that was given up is checked, and isn't kept;
// the next frame is.
func TestDroppedFramesArePassedOver(t *testing.T) {
	t.Parallel()
	var a Assembler
	add := func(f *pb.Frame, want *pb.Frame) {
		t.Helper()
		if got, err := a.Add(f); err != nil || !proto.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
	}
	begin := func() *pb.Frame {
		f := goodFrame(10)
		f.More = 20
		return f
	}
	a.Drop() // nothing
	add(begin(), nil)
	if a.Held() < 10 {
		t.Errorf("%d bytes are kept of 10", a.Held())
	}
	a.Drop()
	add(&pb.Frame{Message: pattern(15), More: 5}, nil)
	if a.Held() != 0 {
		t.Errorf("%d bytes are kept of a frame that was dropped", a.Held())
	}
	add(&pb.Frame{Message: pattern(5)}, nil)
	add(goodFrame(3), goodFrame(3))
	add(begin(), nil)
	whole := goodFrame(10)
	whole.Message = append(whole.Message, pattern(20)...)
	add(&pb.Frame{Message: pattern(20)}, whole)

	add(begin(), nil)
	a.Drop()
	if _, err := a.Add(&pb.Frame{Message: pattern(15), More: 6}); err == nil {
		t.Error("a chunk that doesn't continue a dropped frame was taken")
	}
}

// FuzzAssembler: whatever chunks come, frames are what their chunks say, within their bound, or
// there is an error. Each chunk is 2 bytes of its message's length, 4 of more, 1 of what else it
// has.
func FuzzAssembler(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{10, 0, 20, 0, 0, 0, 1, 20, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 1})
	f.Add([]byte{10, 0, 30, 0, 0, 0, 1, 20, 0, 10, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{10, 0, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		var a Assembler
		var sent []byte
		for len(data) >= 7 {
			n, more, what := int(data[0])|int(data[1])<<8,
				uint32(data[2])|uint32(data[3])<<8|uint32(data[4])<<16|uint32(data[5])<<24, data[6]
			data = data[7:]
			c := &pb.Frame{Message: pattern(n), More: more}
			if what&1 != 0 {
				c.Session, c.SeqNum, c.Outstanding, c.Method = 1, 7, uint64(what>>1), "/m"
			}
			fresh := a.partial == nil
			if fresh {
				sent = nil
			}
			got, err := a.Add(c)
			if err != nil {
				if got != nil {
					t.Fatalf("an error, and %v", got)
				}
				return // the stream ends
			}
			sent = append(sent, pattern(n)...)
			if got != nil && (more != 0 || !bytes.Equal(got.GetMessage(), sent) || got.GetSession() != 1 ||
				got.GetMore() != 0) {
				t.Fatalf("got %v, %d bytes were sent", got, len(sent))
			}
			if got == nil && (more == 0 || cap(a.partial.Message) > 2*len(sent)+4096 ||
				uint64(len(sent))+uint64(more) > MaxMessage) {
				t.Fatalf("%d bytes are kept, in %d, with %d to come", len(sent), cap(a.partial.Message), more)
			}
		}
	})
}

// TestRunFromProtoRefusesWhatIsOutOfBounds: what an envelope may say.
func TestRunFromProtoRefusesWhatIsOutOfBounds(t *testing.T) {
	t.Parallel()
	good := &pb.Run{Epoch: 1, EpochFirst: 2, First: 3, Count: 4, Sealed: []byte("sealed")}
	for name, tt := range map[string]struct {
		run   *pb.Run
		words string
	}{
		"good":          {good, ""},
		"longest":       {&pb.Run{Epoch: 1, EpochFirst: 1, First: 1, Count: MaxRun}, ""},
		"last there is": {&pb.Run{Epoch: 1, EpochFirst: 1, First: math.MaxUint64, Count: 1}, ""},
		"nil":           {nil, "has a field of 0"},
		"no epoch":      {&pb.Run{EpochFirst: 2, First: 3, Count: 4}, "has a field of 0"},
		"no start":      {&pb.Run{Epoch: 1, First: 3, Count: 4}, "has a field of 0"},
		"no first":      {&pb.Run{Epoch: 1, EpochFirst: 2, Count: 4}, "has a field of 0"},
		"no count":      {&pb.Run{Epoch: 1, EpochFirst: 2, First: 3}, "has a field of 0"},
		"too long":      {&pb.Run{Epoch: 1, EpochFirst: 2, First: 3, Count: MaxRun + 1}, "more than 65536 entries"},
		"far too long": {&pb.Run{Epoch: 1, EpochFirst: 2, First: 3, Count: math.MaxUint32},
			"more than 65536 entries"},
		"over the edge": {&pb.Run{Epoch: 1, EpochFirst: 2, First: math.MaxUint64, Count: 2}, "overflows"},
		"over the edge ": {&pb.Run{Epoch: 1, EpochFirst: 2, First: math.MaxUint64 - MaxRun + 2, Count: MaxRun},
			"overflows"},
	} {
		a, err := RunFromProto(tt.run)
		if tt.words != "" {
			if err == nil || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("%s: got %v, want %q", name, err, tt.words)
			}
			if as, err := RunsFromProto([]*pb.Run{good, tt.run}); err == nil || as != nil {
				t.Errorf("%s, with a good one: got %v, %v", name, as, err)
			}
			continue
		}
		if err != nil || !proto.Equal(RunToProto(a, false), tt.run) {
			t.Errorf("%s: got %v, %v", name, a, err)
		}
		if e := RunToProto(a, true); e.GetSealed() != nil || e.GetCount() != tt.run.GetCount() {
			t.Errorf("%s: the envelope is %v", name, e)
		}
	}
	if as, err := RunsFromProto(nil); as != nil || err != nil || RunsToProto(nil, false) != nil {
		t.Errorf("no runs are %v, %v", as, err)
	}
	as, err := RunsFromProto([]*pb.Run{good, good})
	if err != nil || len(RunsToProto(as, true)) != 2 ||
		!slices.Equal(Envelopes(as), []orderstate.Envelope{as[0].Envelope, as[0].Envelope}) {
		t.Errorf("two are %v, %v", as, err)
	}
}

// FuzzRunFromProto: whatever bytes come as a run are an announcement within its bounds, which goes
// back to the same, or an error.
func FuzzRunFromProto(f *testing.F) {
	for _, r := range []*pb.Run{{}, {Epoch: 1, EpochFirst: 2, First: 3, Count: 4, Sealed: []byte("sealed")},
		{Epoch: 1, EpochFirst: 1, First: math.MaxUint64, Count: math.MaxUint32}} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := new(pb.Run)
		if proto.Unmarshal(b, r) != nil {
			return
		}
		a, err := RunFromProto(r)
		if err != nil {
			return
		}
		if a.Epoch == 0 || a.EpochFirst == 0 || a.First == 0 || a.Count < 1 || a.Count > MaxRun || a.Last() < a.First ||
			fmt.Sprint(a.Envelope) == "" {
			t.Fatalf("%v is taken", a.Envelope)
		}
		again, err := RunFromProto(RunToProto(a, false))
		if err != nil || again.Envelope != a.Envelope || !bytes.Equal(again.Sealed, a.Sealed) {
			t.Fatalf("%v comes back as %v, %v", a, again, err)
		}
		if _, err := testSeal().Open(a); err == nil {
			t.Fatalf("%v was sealed by nobody", a)
		}
	})
}
