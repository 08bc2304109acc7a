package machine

import (
	"bytes"
	"fmt"
	"testing"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// FuzzHistory: the protocol's part of a snapshot. What is taken can be written, and read again.
func FuzzHistory(f *testing.F) {
	said := &Reply{OrderNum: 3, Payload: []byte("reply"), Header: metadata.Pairs("a", "b"),
		Trailer: metadata.Pairs("c-bin", "\xff")}
	logged := func(q orderstate.SeqNum, r *Reply) *pb.LoggedReply {
		p, err := replyToProto(orderstate.MessageID{Session: 1, SeqNum: q}, r)
		if err != nil {
			f.Fatal(err)
		}
		return p
	}
	for _, m := range []*pb.History{
		{},
		{
			Executed: 5, LastTime: 9, Starts: []*pb.Start{{Epoch: 1, FirstOrderNum: 1}},
			Sessions: []*pb.SessionState{{Session: 1, Nonce: make([]byte, 16), AnsweredUpTo: 1}},
			Replies: []*pb.LoggedReply{logged(2, said),
				logged(3, &Reply{OrderNum: 4, st: status.New(5, "no").Proto()})},
		},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m pb.History
		if proto.Unmarshal(b, &m) != nil {
			return
		}
		past, replies, err := ReadHistory(&m)
		if err != nil {
			return
		}
		h, err := orderstate.NewHistory(past.Executed, past.LastTime, past.Starts, past.Sessions)
		if err != nil {
			return
		}
		whole := &pb.History{}
		past.LastTime, past.Starts = h.TimeAt(past.Executed), h.Starts()
		past.Sessions = h.SessionStates(past.Executed)
		written, err := replies.log.history(past)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range split(written) {
			proto.Merge(whole, part)
		}
		again, _, err := ReadHistory(whole)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(past) {
			t.Fatalf("%+v, %v; want %+v", again, err, past)
		}
		for id, s := range replies.log.sessions {
			for q, r := range s.replies {
				p, err := replyToProto(orderstate.MessageID{Session: id, SeqNum: q}, r)
				if err != nil {
					t.Fatal(err)
				}
				back, err := replyFromProto(p)
				if err != nil || back.OrderNum != r.OrderNum || !bytes.Equal(back.Payload, r.Payload) {
					t.Fatalf("%v, %v", back, err)
				}
			}
		}
	})
}
