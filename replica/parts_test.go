package replica

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestLargeMessagesTravelInParts: what a follower is sent comes in parts that are no larger than a
// chunk, in the same order, and is the same when it is whole.
func TestLargeMessagesTravelInParts(t *testing.T) {
	t.Parallel()
	var sent []*pb.LoggedMessage
	for q, size := range []int{0, 10, wire.ChunkSize, wire.ChunkSize + 1, 3*wire.ChunkSize - 1, 5, 4 * wire.ChunkSize} {
		sent = append(sent, &pb.LoggedMessage{Session: 1, SeqNum: uint64(q + 1), Outstanding: 1, Method: "/a.B/C",
			Message: bytes.Repeat([]byte{byte(q)}, size)})
	}
	out := &pb.FollowResponse{Welcome: &pb.FollowWelcome{Group: 1}, EpochStart: &pb.EpochStart{Epoch: 1},
		Messages: sent, Stable: 7, InSync: true, SourceOrderInfo: []*pb.Run{{Epoch: 1}}}
	var got []*pb.LoggedMessage
	var stream parts
	split := append(before(out), out)
	for i, part := range split {
		if n := proto.Size(part); n > wire.ChunkSize+1<<10 {
			t.Errorf("part %d has %d bytes", i, n)
		}
		if (part.Welcome != nil && part.EpochStart != nil) != (i == 0) ||
			(part.Stable == 7 && part.InSync && len(part.SourceOrderInfo) == 1) != (i == len(split)-1) {
			t.Errorf("part %d has %v", i, part.Welcome)
		}
		for _, c := range part.Messages {
			m, err := stream.add(c)
			if err != nil {
				t.Fatal(err)
			}
			if m != nil {
				got = append(got, m)
			}
		}
	}
	if len(got) != len(sent) {
		t.Fatalf("%d messages came of %d", len(got), len(sent))
	}
	for i := range got {
		if !proto.Equal(got[i], sent[i]) {
			t.Errorf("message %d came as one of %d bytes", i, len(got[i].Message))
		}
	}
	if small := (&pb.FollowResponse{Stable: 3, Messages: sent[:2]}); before(small) != nil {
		t.Error("a small message was split")
	}
}

// TestPartsThatDontFitAreRefused: a message is bounded before it has come, and nothing else can
// be put into it.
func TestPartsThatDontFitAreRefused(t *testing.T) {
	t.Parallel()
	for what, chunks := range map[string][]*pb.LoggedMessage{
		"too large": {{Session: 1, SeqNum: 1, Message: []byte("x"), More: wire.MaxMessage}},
		"another begins": {{Session: 1, SeqNum: 1, Message: []byte("x"), More: 1},
			{Session: 1, SeqNum: 2, Message: []byte("x")}},
		"nothing comes":    {{Session: 1, SeqNum: 1, Message: []byte("x"), More: 1}, {More: 1}},
		"less is to come":  {{Session: 1, SeqNum: 1, Message: []byte("x"), More: 5}, {Message: []byte("x"), More: 3}},
		"more has come":    {{Session: 1, SeqNum: 1, Message: []byte("x"), More: 1}, {Message: []byte("xx")}},
		"more is to come":  {{Session: 1, SeqNum: 1, Message: []byte("x"), More: 2}, {Message: []byte("x"), More: 2}},
		"it never was one": {{Message: []byte("x"), More: 1}, {Message: []byte("x"), More: 1}},
	} {
		var stream parts
		var err error
		for _, c := range chunks {
			if err == nil {
				_, err = stream.add(c)
			}
		}
		if err == nil {
			t.Errorf("%s: it was taken", what)
		}
	}
}
