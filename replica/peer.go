package replica

import (
	"context"
	"errors"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// peerServer serves Peer on the replicas' own listener.
type peerServer struct {
	pb.UnimplementedPeerServer
	r *Replica
}

func newPeerServer(r *Replica, creds credentials.TransportCredentials) *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxPeerMessage), grpc.MaxSendMsgSize(maxPeerMessage),
		grpc.StaticStreamWindowSize(wire.StreamWindow), grpc.StaticConnWindowSize(wire.ConnWindow),
	}
	if creds != nil {
		opts = append(opts, grpc.Creds(creds))
	}
	s := grpc.NewServer(opts...)
	pb.RegisterPeerServer(s, &peerServer{r: r})
	return s
}

// of returns this replica's incarnation, for a peer of the same group.
func (p *peerServer) of(group uint64) (*incarnation, error) {
	in := p.r.current()
	if in == nil {
		return nil, status.Error(codes.Unavailable, "understudy: this replica isn't running")
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	if in.group == 0 {
		return nil, status.Error(codes.Unavailable, "understudy: this replica has no state yet")
	}
	if group != in.group {
		return nil, status.Errorf(codes.FailedPrecondition,
			"understudy: a peer of group %x, this is a replica of group %x", group, in.group)
	}
	return in, nil
}

// Hears implements pb.PeerServer: the primary hears itself.
func (p *peerServer) Hears(_ context.Context, req *pb.HearsRequest) (*pb.HearsResponse, error) {
	in := p.r.current()
	if in == nil {
		return nil, status.Error(codes.Unavailable, "understudy: this replica isn't running")
	}
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	resp := &pb.HearsResponse{
		Incarnation: in.self.Incarnation, Replica: in.self.Name, GroupName: in.r.group,
		AcknowledgedEpoch: uint64(in.m.epoch()),
	}
	if in.group == 0 || req.GetGroup() != in.group {
		return resp, nil
	}
	in.learn(req.GetMark())
	resp.Mark = markToProto(in.r.store.Known())
	if req.GetEpoch() != resp.AcknowledgedEpoch {
		return resp, nil
	}
	switch in.m.role.(type) {
	case *leading, *takingOver:
		resp.Hears = true
	case *following:
		resp.Hears = in.m.upstream.hears(in.r.clock())
	}
	return resp, nil
}

// Answer implements pb.PeerServer: R9 and R12.1.
func (p *peerServer) Answer(req *pb.AnswerRequest, stream grpc.ServerStreamingServer[pb.AnswerResponse]) error {
	in, err := p.of(req.GetGroup())
	if err != nil {
		return err
	}
	e := orderstate.Epoch(req.GetNewEpoch().GetEpoch())
	elected := trust.Mark{Group: in.group, Epoch: uint64(e), Fence: req.GetNewEpoch().GetFence()}
	if err := in.r.store.JudgeMark(elected); err != nil {
		in.log.Error("refused a primary that a store from before has elected", "primary",
			req.GetNewEpoch().GetPrimary(), "error", err)
		return stream.Send(&pb.AnswerResponse{Mark: markToProto(in.r.store.Known())})
	}
	in.learn(req.GetMark())
	in.m.mu.Lock()
	f := in.m.following()
	if f == nil && e > in.m.epoch() && in.m.history() != nil {
		in.end(errDeposed)
	}
	if f == nil {
		in.m.mu.Unlock()
		return status.Error(codes.FailedPrecondition, "understudy: this replica isn't a backup")
	}
	known, err := f.backup.Answer(e)
	if err != nil {
		in.m.mu.Unlock()
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	in.m.leader = election.Member{Name: req.GetNewEpoch().GetPrimary(), Incarnation: req.GetNewEpoch().GetIncarnation()}
	in.m.fence, f.start = req.GetNewEpoch().GetFence(), nil
	resp := &pb.AnswerResponse{Starts: wire.StartsToProto(f.backup.History().Starts())}
	runs, err := f.runsOf(known)
	if in.m.upstream != nil {
		in.m.upstream.cut(errNewEpoch)
	}
	in.m.after(moved{rare: true})
	in.m.mu.Unlock()
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	size := 0
	for _, r := range runs {
		if size += len(r.GetSealed()); size > wire.ChunkSize && len(resp.GetOrder()) > 0 {
			if err := stream.Send(resp); err != nil {
				return err
			}
			resp, size = &pb.AnswerResponse{}, len(r.GetSealed())
		}
		resp.Order = append(resp.Order, r)
	}
	resp.Done = true
	return stream.Send(resp)
}

var errNewEpoch = errors.New("replica: another primary was elected")

// Fetch implements pb.PeerServer (¶47).
func (p *peerServer) Fetch(req *pb.FetchRequest, stream grpc.ServerStreamingServer[pb.FetchResponse]) error {
	in, err := p.of(req.GetGroup())
	if err != nil {
		return err
	}
	if len(req.GetMessages()) > fetchBatch {
		return status.Errorf(codes.InvalidArgument, "understudy: %d messages at once, at most %d",
			len(req.GetMessages()), fetchBatch)
	}
	for _, id := range req.GetMessages() {
		in.m.mu.Lock()
		m, ok := in.m.history().Has(orderstate.MessageID{Session: orderstate.Session(id.GetSession()),
			SeqNum: orderstate.SeqNum(id.GetSeqNum())})
		in.m.mu.Unlock()
		if !ok {
			continue
		}
		for _, c := range chunked(loggedMessage(m)) {
			if err := stream.Send(&pb.FetchResponse{Messages: []*pb.LoggedMessage{c}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Snapshot implements pb.PeerServer (R13).
func (p *peerServer) Snapshot(req *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	in, err := p.of(req.GetGroup())
	if err != nil {
		return err
	}
	ctx, patience, stop := withPatience(stream.Context(), transferSilence, &errStalled)
	defer stop()
	sent := make(chan error, 1)
	go func() { sent <- in.sendSnapshot(ctx, req, stream, patience) }() // which may wait for a joiner that doesn't read
	select {
	case err = <-sent:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	return statusOf(err)
}

// Follow implements pb.PeerServer: a backup, or a joiner, at the primary.
func (p *peerServer) Follow(stream grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello != nil && hello.GetProtocol() != wire.Protocol {
		return endStream(stream, errProtocol("follower", hello.GetProtocol()))
	}
	in, err := p.of(hello.GetGroup())
	if err != nil {
		return err
	}
	ctx, cut := context.WithCancelCause(stream.Context())
	defer cut(nil)
	stop := context.AfterFunc(in.ctx, func() { cut(context.Cause(in.ctx)) })
	defer stop()
	l, f, err := in.admitFollower(ctx, hello, cut, stream)
	if err != nil {
		return endStream(stream, err)
	}
	defer l.roster.left(f)
	received := make(chan error, 1)
	go func() { // ends with the stream's context, when this returns
		for {
			req, err := stream.Recv()
			if err == nil {
				l.warnOfSnapshot(f.peer.member, req.GetSnapshotBytes())
				var grows bool
				if grows, err = l.roster.acknowledged(f, req); grows {
					in.m.mu.Lock()
					if !l.over() { // who ends the reign waits for its goroutines afterwards
						in.goes(func() { (&reign{in, l}).grow(f) })
					}
					in.m.mu.Unlock()
				}
			}
			if err != nil {
				received <- err
				return
			}
		}
	}()
	sent := make(chan error, 1)
	go func() { sent <- l.sendTo(ctx, f, stream) }()
	select {
	case err = <-received:
		cut(err)
	case err = <-sent:
	case <-ctx.Done(): // who sends may be waiting for a follower that doesn't read
	}
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.As(err, new(*droppedError)) {
		in.log.Warn("cut a joiner's stream", "joiner", f.peer.member.String(), "because", err)
	}
	if errors.Is(err, errEvicted) {
		err = errNotFollower
	}
	return endStream(stream, err)
}

// admitFollower makes a stream a follower's, once this replica leads; until then (a takeover is
// fixing N) the follower hears heartbeats.
func (in *incarnation) admitFollower(
	ctx context.Context, hello *pb.FollowHello, cut context.CancelCauseFunc,
	stream grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse],
) (*leading, *follower, error) {
	in.learn(hello.GetMark())
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	for in.m.takingOver() != nil {
		wait, cancel := context.WithTimeout(ctx, heartbeat)
		_ = in.m.await(wait, func() bool { return in.m.takingOver() == nil })
		cancel()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		in.m.mu.Unlock()
		err := stream.Send(&pb.FollowResponse{})
		in.m.mu.Lock()
		if err != nil {
			return nil, nil, err
		}
	}
	l := in.m.leading()
	if l == nil {
		return nil, nil, status.Error(codes.Unavailable, errNotPrimary.text)
	}
	m := election.Member{Name: hello.GetReplica(), Incarnation: hello.GetIncarnation()}
	epoch := orderstate.Epoch(hello.GetEpoch())
	p := l.roster.peers[replicaID(m)]
	member := p != nil && p.stage.isMember()
	switch {
	case m.Validate() != nil || m == in.self:
		return nil, nil, status.Errorf(codes.InvalidArgument, "understudy: %v can't follow %v", m, in.self)
	case epoch > l.primary.Epoch():
		in.end(errDeposed)
		return nil, nil, status.Error(codes.Unavailable, errDeposed.Error())
	case !hello.GetJoining() && (!member || epoch < l.primary.Epoch()):
		return nil, nil, errNotFollower
	case hello.GetJoining() && hello.GetLevel() != pb.Level(in.r.config.level+1):
		return nil, nil, status.Errorf(codes.FailedPrecondition, "understudy: the group's level is %v",
			in.r.config.level)
	case hello.GetJoining() && hello.GetVersion() != in.r.config.version:
		return nil, nil, status.Errorf(codes.FailedPrecondition, "understudy: the group's version is %q",
			in.r.config.version)
	}
	return l, l.roster.admit(m, hello.GetAvoid(), cut), nil
}

// sendTo sends a follower what is queued for it, or a heartbeat. It takes mu.
func (l *leading) sendTo(
	ctx context.Context, f *follower, stream grpc.BidiStreamingServer[pb.FollowRequest, pb.FollowResponse],
) error {
	t := time.NewTicker(heartbeat)
	defer t.Stop()
	for {
		select {
		case <-f.out.wake:
			runtime.Gosched() // as in pusher
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		l.m.mu.Lock()
		out := l.tells(f)
		l.m.mu.Unlock()
		for _, part := range before(out) {
			if err := stream.Send(part); err != nil {
				return err
			}
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}
