package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// restore takes a snapshot from the donor that the primary named, and makes this joiner a backup
// whose state is that snapshot. What was ordered since comes on the stream to the primary (R13).
func (in *incarnation) restore(ctx context.Context, p *patience, w *pb.FollowWelcome, start *pb.EpochStart) error {
	if start == nil || len(w.GetSecret()) != secretSize || w.GetGroup() == 0 {
		return errors.New("replica: the primary's welcome is malformed")
	}
	in.r.avoids(w.GetDonor()) // unless its snapshot arrives
	donor, err := in.peers.client(w.GetDonorAddr())
	if err != nil {
		return err
	}
	stream, err := donor.Snapshot(ctx, &pb.SnapshotRequest{
		Group: w.GetGroup(), Replica: in.self.Name, Incarnation: in.self.Incarnation, Epoch: start.GetEpoch(),
		ExecutedAtLeast: w.GetKeptAbove(),
	})
	if err != nil {
		return err
	}
	var h pb.History
	var state bytes.Buffer
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return fmt.Errorf("replica: the snapshot of %s: %w", w.GetDonor(), err)
		}
		p.moved()
		proto.Merge(&h, resp.GetHistory()) // chunks append
		if state.Len()+len(resp.GetState()) > maxSnapshot {
			return errTooLarge
		}
		state.Write(resp.GetState())
	}
	in.r.avoids("")
	sessions, replies, err := readHistory(&h)
	if err != nil {
		return err
	}
	history, err := orderstate.NewHistory(orderstate.OrderNum(h.GetExecuted()), h.GetLastTime(),
		wire.StartsFromProto(h.GetStarts()), sessions)
	if err != nil {
		return err
	}
	backup, err := orderstate.NewBackup(history, orderstate.Epoch(start.GetEpoch()),
		orderstate.OrderNum(start.GetFirstOrderNum()))
	if err != nil {
		return err
	}
	p.now(transferSilence, &errTurnHangs)
	if err := in.r.turns.take(ctx); err != nil {
		return context.Cause(ctx)
	}
	p.now(restoreSilence, &errUnrestored)
	in.r.turns.running(&restoring)
	err = in.r.apart(context.Background(), restoring, func() error {
		return in.r.config.state.Restore(movingReader{ctx, &state, p})
	})
	in.r.turns.end()
	if err != nil {
		return fmt.Errorf("replica: Restore: %w", err)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.group, in.secret, in.seal = w.GetGroup(), w.GetSecret(), wire.NewSeal(w.GetSecret())
	in.learn(w.GetMark())
	in.backup, in.start, in.replies = backup, start, replies
	now := in.r.clock()
	for _, s := range h.GetSessions() { // no stream is bound before there is a state
		absent := min(time.Duration(s.GetAbsentUs()), time.Duration(sessionTimeout/time.Microsecond)) * time.Microsecond
		in.absent[orderstate.Session(s.GetSession())] = now - absent
	}
	in.executed, in.lastTime = orderstate.OrderNum(h.GetExecuted()), h.GetLastTime()
	return nil
}

// What the watchdog calls turns that execute no method.
var restoring, snapshotting = "Restore", "Snapshot"

var errTooLarge = status.Errorf(codes.ResourceExhausted, "understudy: the state has more than %d bytes", maxSnapshot)

// sendSnapshot is the donor's side: a snapshot at a turn's boundary, no earlier than the turn that
// the primary keeps the log from.
func (in *incarnation) sendSnapshot(
	ctx context.Context, req *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse], p *patience,
) error {
	in.mu.Lock()
	err := in.awaitProgress(ctx, func() bool { return in.executed >= orderstate.OrderNum(req.GetExecutedAtLeast()) })
	stale := in.epoch() != orderstate.Epoch(req.GetEpoch())
	in.mu.Unlock()
	if err != nil {
		return err
	}
	if stale { // R13: a transfer begun in an older epoch starts again
		return status.Error(codes.Unavailable, "understudy: the epoch has changed")
	}
	if err := in.r.turns.take(ctx); err != nil {
		return err
	}
	in.mu.Lock()
	h, err := in.writeHistory()
	in.mu.Unlock()
	if err != nil {
		in.r.turns.end()
		return status.Errorf(codes.Internal, "understudy: the reply log can't be sent: %v", err)
	}
	in.r.turns.running(&snapshotting)
	var write func(io.Writer) error
	err = in.r.apart(context.Background(), snapshotting, func() (err error) {
		write, err = in.r.config.state.Snapshot()
		return err
	})
	in.r.turns.end()
	if err == nil && write == nil {
		err = errors.New("it has returned no function, and no error")
	}
	if err != nil {
		return status.Errorf(codes.Internal, "understudy: Snapshot: %v", err)
	}
	for _, part := range splitHistory(h) {
		if err := stream.Send(&pb.SnapshotResponse{History: part}); err != nil {
			return err
		}
		p.moved()
	}
	w := &chunkWriter{ctx: ctx, stream: stream, patience: p}
	err = in.r.apart(context.Background(), "writing a snapshot", func() error { return write(w) })
	in.gaveSnapshot(w.total)
	switch {
	case w.err != nil:
		return w.err
	case err != nil:
		return status.Errorf(codes.Internal, "understudy: writing the snapshot: %v", err)
	}
	return w.flush()
}

// writeHistory is the protocol's state as of the last executed turn. Called with mu held, in a
// turn.
func (in *incarnation) writeHistory() (*pb.History, error) {
	h := &pb.History{Executed: uint64(in.executed), LastTime: in.lastTime,
		Starts: wire.StartsToProto(in.history().Epochs().Starts())}
	for n, s := range in.replies.sessions {
		state := &pb.SessionState{Session: uint64(n), Nonce: s.nonce[:], AnsweredUpTo: uint64(s.answered)}
		if since, absent := in.absent[n]; absent {
			state.AbsentUs = uint64((in.r.clock() - since) / time.Microsecond)
		}
		h.Sessions = append(h.Sessions, state)
		for q, r := range s.replies {
			p, err := replyToProto(orderstate.MessageID{Session: n, SeqNum: q}, r)
			if err != nil {
				return nil, err
			}
			h.Replies = append(h.Replies, p)
		}
	}
	return h, nil
}

// readHistory checks what a donor has sent.
func readHistory(h *pb.History) ([]orderstate.SessionState, *replyLog, error) {
	replies := newReplyLog()
	states := make(map[orderstate.Session]*orderstate.SessionState, len(h.GetSessions()))
	for _, s := range h.GetSessions() {
		if len(s.GetNonce()) != len(orderstate.Nonce{}) {
			return nil, nil, fmt.Errorf("replica: session %d of a snapshot has a nonce of %d bytes", s.GetSession(),
				len(s.GetNonce()))
		}
		n := orderstate.Session(s.GetSession())
		states[n] = &orderstate.SessionState{
			Session: n, Nonce: orderstate.Nonce(s.GetNonce()), AnsweredUpTo: orderstate.SeqNum(s.GetAnsweredUpTo()),
			Ordered: map[orderstate.SeqNum]orderstate.OrderNum{},
		}
		replies.open(n, orderstate.Nonce(s.GetNonce()))
		replies.sessions[n].answered = orderstate.SeqNum(s.GetAnsweredUpTo())
	}
	for _, p := range h.GetReplies() {
		s := states[orderstate.Session(p.GetSession())]
		if s == nil {
			return nil, nil, fmt.Errorf("replica: a snapshot has a reply of session %d, and no such session",
				p.GetSession())
		}
		r, err := replyFromProto(p)
		if err != nil {
			return nil, nil, err
		}
		s.Ordered[orderstate.SeqNum(p.GetSeqNum())] = r.orderNum
		replies.keep(replies.sessions[s.Session], orderstate.SeqNum(p.GetSeqNum()), r)
	}
	sessions := make([]orderstate.SessionState, 0, len(states))
	for _, s := range states {
		sessions = append(sessions, *s)
	}
	return sessions, replies, nil
}

// splitHistory keeps each message on the stream within the chunk size, or at one entry.
func splitHistory(h *pb.History) []*pb.History {
	parts := []*pb.History{{Executed: h.GetExecuted(), LastTime: h.GetLastTime(), Starts: h.GetStarts()}}
	size := 0
	part := func(bytes int) *pb.History {
		if size+bytes > wire.ChunkSize && size > 0 {
			parts = append(parts, &pb.History{})
			size = 0
		}
		size += bytes
		return parts[len(parts)-1]
	}
	for _, s := range h.GetSessions() {
		p := part(64)
		p.Sessions = append(p.Sessions, s)
	}
	for _, r := range h.GetReplies() {
		p := part(proto.Size(r) + 8)
		p.Replies = append(p.Replies, r)
	}
	return parts
}

func replyToProto(id orderstate.MessageID, r *reply) (*pb.LoggedReply, error) {
	p := &pb.LoggedReply{Session: uint64(id.Session), SeqNum: uint64(id.SeqNum), OrderNum: uint64(r.orderNum),
		Message: r.payload, Ended: r.ended,
		Header: mdToProto(r.header), Trailer: mdToProto(r.trailer)}
	if r.st != nil {
		var err error
		if p.Status, err = proto.Marshal(r.st); err != nil { // it was checked in its turn
			return nil, err
		}
	}
	return p, nil
}

func replyFromProto(p *pb.LoggedReply) (*reply, error) {
	r := &reply{orderNum: orderstate.OrderNum(p.GetOrderNum()), payload: p.GetMessage(),
		header: mdFromProto(p.GetHeader()), trailer: mdFromProto(p.GetTrailer()), ended: p.GetEnded()}
	if len(p.GetStatus()) > 0 {
		r.st = new(spb.Status)
		if err := proto.Unmarshal(p.GetStatus(), r.st); err != nil {
			return nil, fmt.Errorf("replica: the status of logged reply %d/%d: %w", p.GetSession(), p.GetSeqNum(), err)
		}
	}
	return r, nil
}

func mdToProto(md metadata.MD) []*pb.MetadataEntry {
	var es []*pb.MetadataEntry
	for k, vs := range md {
		e := &pb.MetadataEntry{Key: k}
		for _, v := range vs {
			e.Values = append(e.Values, []byte(v)) // -bin values needn't be UTF-8
		}
		es = append(es, e)
	}
	return es
}

func mdFromProto(es []*pb.MetadataEntry) metadata.MD {
	var md metadata.MD
	for _, e := range es {
		if md == nil {
			md = metadata.MD{}
		}
		for _, v := range e.GetValues() {
			md[e.GetKey()] = append(md[e.GetKey()], string(v))
		}
	}
	return md
}

// chunkWriter sends the state's bytes in chunks. After an error it writes nothing more, and keeps
// the error: who writes the state may ignore it, who restores it must not.
type chunkWriter struct {
	ctx      context.Context
	stream   grpc.ServerStreamingServer[pb.SnapshotResponse]
	patience *patience
	buf      []byte
	total    int
	err      error
}

// Write implements io.Writer.
func (w *chunkWriter) Write(b []byte) (int, error) {
	if w.total += len(b); w.total > maxSnapshot && w.err == nil {
		w.err = errTooLarge
	}
	if w.ctx.Err() != nil && w.err == nil { // the RPC has ended
		w.err = context.Cause(w.ctx)
	}
	n := len(b)
	for len(b) > 0 && w.err == nil {
		k := min(wire.ChunkSize-len(w.buf), len(b))
		w.buf = append(w.buf, b[:k]...)
		b = b[k:]
		if len(w.buf) == wire.ChunkSize {
			w.err = w.flush()
		}
	}
	if w.err != nil {
		return 0, w.err
	}
	return n, nil
}

func (w *chunkWriter) flush() error {
	if len(w.buf) == 0 {
		return nil
	}
	err := w.stream.Send(&pb.SnapshotResponse{State: w.buf})
	w.buf = nil
	w.patience.moved()
	return err
}
