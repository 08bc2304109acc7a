package replica

import (
	"context"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"

	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// followStream is a stream to a primary that says what the test says.
type followStream struct {
	grpc.ClientStream
	ctx   context.Context
	heard chan *pb.FollowResponse
	sent  chan *pb.FollowRequest
}

func (s *followStream) Send(req *pb.FollowRequest) error {
	s.sent <- req
	return nil
}

func (s *followStream) Recv() (*pb.FollowResponse, error) {
	select {
	case resp := <-s.heard:
		return resp, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

// A backup says nothing on a new stream before it has heard the primary there: gRPC may still be
// taking another connection for it, and would hold up who sends for as long as that takes, whatever
// becomes of the context.
func TestBackupHearsBeforeItSays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := backup(t)
		in.tellAll()
		ctx, cancel := context.WithCancel(in.ctx)
		stream := &followStream{ctx: ctx, heard: make(chan *pb.FollowResponse), sent: make(chan *pb.FollowRequest, 1)}
		ended := make(chan error)
		go func() { ended <- in.read(ctx, stream, in.upstream, true) }()
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
