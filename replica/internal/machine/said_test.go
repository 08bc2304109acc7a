package machine

import (
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// TestWhatIsSaidCanBeSent: whatever a turn has said, its entry in the reply log can be part of a
// snapshot, and is what gRPC would have sent.
func TestWhatIsSaidCanBeSent(t *testing.T) {
	t.Parallel()
	const large = wire.MaxMessage
	for _, tt := range []struct {
		name  string
		reply Reply
		code  codes.Code
		words string
	}{
		{"a text that isn't UTF-8", Reply{st: &spb.Status{Code: 5, Message: "no key \xff\xfe"}}, codes.NotFound,
			"no key \uFFFD\uFFFD"},
		{"details that can't be marshalled",
			Reply{st: &spb.Status{Code: 5, Message: "no", Details: []*anypb.Any{{TypeUrl: "\xff"}}}}, codes.NotFound,
			"no"},
		{"the largest reply", Reply{Payload: make([]byte, large)}, codes.OK, ""},
		{"too large a reply", Reply{Payload: make([]byte, large+1)}, codes.ResourceExhausted,
			"/a.B/C was executed, and its reply has 67108865 bytes"},
		{"too large a header",
			Reply{Payload: make([]byte, 10), Header: metadata.MD{"a-bin": {string(make([]byte, large))}}},
			codes.ResourceExhausted, "67108879 bytes"},
		{"too large a trailer", Reply{Trailer: metadata.MD{"a-bin": {"", string(make([]byte, large))}}},
			codes.ResourceExhausted, "was executed"},
		{"too large an error", Reply{st: &spb.Status{Code: 5, Message: strings.Repeat("x", large)}},
			codes.ResourceExhausted, "was executed"},
	} {
		r := tt.reply
		r.OrderNum = 7
		r.tidies("/a.B/C")
		if err := r.Err(); status.Code(err) != tt.code || err != nil && !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v", tt.name, err)
		}
		p, err := replyToProto(orderstate.MessageID{Session: 1, SeqNum: 1}, &r)
		if err == nil {
			_, err = proto.Marshal(p)
		}
		if err != nil || p.GetOrderNum() != 7 || proto.Size(p) > wire.MaxMessage+1<<10 {
			t.Errorf("%s: %d bytes, %v", tt.name, proto.Size(p), err)
		}
	}
	if err := errMarshal("/a.B/C",
		errors.New("proto:\u00a0no\xff")); status.Convert(err).Message() != "understudy: the reply of /a.B/C can't "+
		"be marshalled: proto: no\uFFFD" {
		t.Errorf("%v", err)
	}
}
