package machine

import (
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
)

// This file checks what user code has said in its turn, once and alike on every replica: the reply
// log has only what can be sent, to the caller and in a snapshot.

// tidies makes a reply one that can be sent. What gRPC does with a text that isn't UTF-8, or
// details that can't be marshalled, is done here already; what is too large becomes an error.
func (r *Reply) tidies(method string) {
	if r.st != nil {
		r.st.Message = validUTF8(r.st.GetMessage())
		if len(r.st.GetDetails()) > 0 {
			if _, err := proto.Marshal(r.st); err != nil {
				r.st.Details = nil
			}
		}
	}
	if size := r.bytes() - replyOverhead; size > wire.MaxMessage {
		*r = Reply{OrderNum: r.OrderNum, st: errReplyTooLarge(method, size).Proto()}
	}
}

// validUTF8 is a text as gRPC sends it.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}

func errReplyTooLarge(method string, size int) *status.Status {
	return status.Newf(codes.ResourceExhausted,
		"understudy: %s was executed, and its reply has %d bytes: at most %d are sent", method, size, wire.MaxMessage)
}

// errMarshal says why a reply can't be marshalled, in a text that is the same whichever build of
// the protobuf library made it: that varies a space.
func errMarshal(method string, err error) error {
	return status.Errorf(codes.Internal, "understudy: the reply of %s can't be marshalled: %s", method,
		strings.ReplaceAll(validUTF8(err.Error()), "\u00a0", " "))
}
