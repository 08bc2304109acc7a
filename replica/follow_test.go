package replica

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// followStream is a stream to a primary that says what the test says.
type followStream struct {
	grpc.ClientStream
	ctx   context.Context
	heard chan *pb.FollowResponse
	sent  chan *pb.FollowRequest

	err     error // with which it has ended; nil: it hasn't
	trailer metadata.MD
}

func (s *followStream) Send(req *pb.FollowRequest) error {
	s.sent <- req
	return nil
}

func (s *followStream) Recv() (*pb.FollowResponse, error) {
	if s.err != nil {
		return nil, s.err
	}
	select {
	case resp := <-s.heard:
		return resp, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *followStream) Trailer() metadata.MD { return s.trailer }

// TestEvictionIsThePrimarysOwnWord: a stream that ends with a status that anything on the way can
// make up evicts nobody; the refusal in its trailer does, whatever the status.
func TestEvictionIsThePrimarysOwnWord(t *testing.T) {
	for _, c := range []codes.Code{codes.Aborted, codes.Unavailable} {
		err := status.Error(c, errEvicted.Error())
		if _, got := receiveFrom(&followStream{err: err}); errors.Is(got, errEvicted) {
			t.Errorf("%v without a trailer: %v", c, got)
		}
		for _, r := range []pb.Refusal{pb.Refusal_REFUSAL_EVICTED, pb.Refusal_REFUSAL_NOT_PRIMARY} {
			_, got := receiveFrom(&followStream{err: err, trailer: refusalTrailer(r)})
			if errors.Is(got, errEvicted) != (r == pb.Refusal_REFUSAL_EVICTED) {
				t.Errorf("%v with %v in the trailer: %v", c, r, got)
			}
		}
	}
}

// TestPrimaryOfAnotherProtocolEndsItsFollower ends its follower by name, before anything of its
// welcome is read.
func TestPrimaryOfAnotherProtocolEndsItsFollower(t *testing.T) {
	stream := &followStream{ctx: t.Context(), heard: make(chan *pb.FollowResponse, 1)}
	stream.heard <- &pb.FollowResponse{Welcome: &pb.FollowWelcome{Protocol: wire.Protocol + 1}}
	_, err := receiveFrom(stream)
	if mismatch := new(MismatchError); !errors.As(err, &mismatch) || mismatch.Field != "protocol" ||
		mismatch.Mine != "1" || mismatch.Group != "2" {
		t.Errorf("got %v", err)
	}
}

// A backup says nothing on a new stream before it has heard the primary there: gRPC may still be
// taking another connection for it, and would hold up who sends for as long as that takes, whatever
// becomes of the context.
func TestBackupHearsBeforeItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := backup(t)
		in.m.following().tellAll()
		ctx, cancel := context.WithCancel(in.ctx)
		stream := &followStream{ctx: ctx, heard: make(chan *pb.FollowResponse), sent: make(chan *pb.FollowRequest, 1)}
		ended := make(chan error)
		go func() { ended <- pursuit{in}.read(ctx, stream, in.m.upstream, in.m.following()) }()
		synctest.Wait()
		if len(stream.sent) > 0 {
			t.Errorf("it has sent %v, and heard nothing", <-stream.sent)
		}
		stream.heard <- &pb.FollowResponse{}
		if req := <-stream.sent; !req.GetRestored() {
			t.Errorf("it has heard a heartbeat, and sent %v", req)
		}
		cancel()
		<-ended
		in.end(errStopped)
		in.wg.Wait()
	})
}
