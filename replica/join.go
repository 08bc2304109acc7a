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
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// restore takes a snapshot from the donor that the primary named, and makes this joiner a backup
// whose state is that snapshot. What was ordered since comes on the stream to the primary (R13).
func (pu pursuit) restore(
	ctx context.Context, p *patience, w *pb.FollowWelcome, start *pb.EpochStart,
) (*following, error) {
	if start == nil || len(w.GetSecret()) != secretSize || w.GetGroup() == 0 {
		return nil, errors.New("replica: the primary's welcome is malformed")
	}
	pu.in.r.joins.avoids(w.GetDonor()) // unless its snapshot arrives
	donor, err := pu.in.peers.client(w.GetDonorAddr())
	if err != nil {
		return nil, err
	}
	stream, err := donor.Snapshot(ctx, &pb.SnapshotRequest{
		Group: w.GetGroup(), Replica: pu.in.self.Name, Incarnation: pu.in.self.Incarnation, Epoch: start.GetEpoch(),
		ExecutedAtLeast: w.GetKeptAbove(),
	})
	if err != nil {
		return nil, err
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
			return nil, fmt.Errorf("replica: the snapshot of %s: %w", w.GetDonor(), err)
		}
		p.moved()
		proto.Merge(&h, resp.GetHistory()) // chunks append
		if state.Len()+len(resp.GetState()) > maxSnapshot {
			return nil, errTooLarge
		}
		state.Write(resp.GetState())
	}
	pu.in.r.joins.avoids("")
	past, replies, err := machine.ReadHistory(&h)
	if err != nil {
		return nil, err
	}
	history, err := orderstate.NewHistory(past.Executed, past.LastTime, past.Starts, past.Sessions)
	if err != nil {
		return nil, err
	}
	backup, err := orderstate.NewBackup(history, orderstate.Epoch(start.GetEpoch()),
		orderstate.OrderNum(start.GetFirstOrderNum()))
	if err != nil {
		return nil, err
	}
	p.now(transferSilence, &errTurnHangs)
	if err := pu.in.machine.Take(ctx); err != nil {
		return nil, context.Cause(ctx)
	}
	p.now(restoreSilence, &errUnrestored)
	err = pu.in.machine.Restore(w.GetSecret(), past.Executed, replies, movingReader{ctx, &state, p})
	pu.in.machine.End()
	if err != nil {
		return nil, err
	}
	pu.in.m.mu.Lock()
	defer pu.in.m.mu.Unlock()
	now := pu.in.r.clock()
	for s, absent := range past.Absent { // no stream is bound before there is a state
		pu.in.m.sources.absent[s] = now - min(absent, sessionTimeout)
	}
	return newFollowing(pu.in.m, backup, start), nil
}

var errTooLarge = status.Errorf(codes.ResourceExhausted, "understudy: the state has more than %d bytes", maxSnapshot)

// sendSnapshot is the donor's side: a snapshot at a turn's boundary, no earlier than the turn that
// the primary keeps the log from.
func (in *incarnation) sendSnapshot(
	ctx context.Context, req *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse], p *patience,
) error {
	in.m.mu.Lock()
	least := orderstate.OrderNum(req.GetExecutedAtLeast())
	err := in.m.awaitProgress(ctx, func() bool { return in.machine.Executed() >= least })
	stale := in.m.epoch() != orderstate.Epoch(req.GetEpoch())
	in.m.mu.Unlock()
	if err != nil {
		return err
	}
	if stale { // R13: a transfer begun in an older epoch starts again
		return status.Error(codes.Unavailable, "understudy: the epoch has changed")
	}
	if err := in.machine.Take(ctx); err != nil {
		return err
	}
	in.m.mu.Lock()
	past := in.m.past()
	in.m.mu.Unlock()
	snapshot, err := in.machine.Snapshot(past)
	in.machine.End()
	if err != nil {
		return err
	}
	for _, part := range snapshot.History() {
		if err := stream.Send(&pb.SnapshotResponse{History: part}); err != nil {
			return err
		}
		p.moved()
	}
	w := &chunkWriter{ctx: ctx, stream: stream, patience: p}
	err = snapshot.Write(w)
	in.gaveSnapshot(w.total)
	switch {
	case w.err != nil:
		return w.err
	case err != nil:
		return status.Errorf(codes.Internal, "understudy: writing the snapshot: %v", err)
	}
	return w.flush()
}

// past is what the protocol knows as of the last executed turn. In a turn.
func (m *member) past() machine.Past {
	h, executed := m.history(), m.machine.Executed()
	past := machine.Past{
		Executed: executed, LastTime: h.TimeAt(executed), Starts: h.Starts(),
		Sessions: h.SessionStates(executed), Absent: make(map[orderstate.Session]time.Duration, len(m.sources.absent)),
	}
	now := m.r.clock()
	for s, since := range m.sources.absent {
		past.Absent[s] = now - since
	}
	return past
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
