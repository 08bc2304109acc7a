package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/election"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has what keeps a replica that joins from harming the group: a transfer that doesn't
// move ends, what is kept for a joiner and by it is bounded, and who fails to join tries less and
// less often.

// patience ends a context when nothing has moved for too long. Whoever sees something move says so.
// Its methods may be called concurrently.
type patience struct {
	timer *time.Timer
	limit atomic.Int64
	cause atomic.Pointer[error]
}

// withPatience returns a context that ends with cause unless something moves within limit.
func withPatience(
	ctx context.Context, limit time.Duration, cause *error,
) (context.Context, *patience, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := new(patience)
	p.limit.Store(int64(limit))
	p.cause.Store(cause)
	p.timer = time.AfterFunc(limit, func() { cancel(*p.cause.Load()) })
	return ctx, p, func() {
		p.timer.Stop()
		cancel(nil)
	}
}

// moved: something has.
func (p *patience) moved() { p.timer.Reset(time.Duration(p.limit.Load())) }

// now waits for something else, which may take so long.
func (p *patience) now(limit time.Duration, cause *error) {
	p.limit.Store(int64(limit))
	p.cause.Store(cause)
	p.moved()
}

var (
	errStalled    = fmt.Errorf("replica: nothing of the snapshot has moved for %v", transferSilence)
	errUnrestored = fmt.Errorf("replica: Restore has neither read nor returned for %v", restoreSilence)
	errKeepsAll   = errors.New("replica: more was ordered than a joiner may keep while it restores its snapshot")
	errTurnHangs  = errors.New("replica: Restore waits for a turn that hasn't ended: a handler hangs")
)

// movingReader is what Restore reads from: each read is progress. After the transfer's end it reads
// nothing more.
type movingReader struct {
	ctx context.Context
	r   io.Reader
	p   *patience
}

// Read implements io.Reader.
func (m movingReader) Read(b []byte) (int, error) {
	if m.ctx.Err() != nil {
		return 0, context.Cause(m.ctx)
	}
	m.p.moved()
	return m.r.Read(b)
}

// keptBack is what a joiner hears from the primary while it restores its snapshot. It is bounded as
// is what the primary keeps for a joiner.
type keptBack struct {
	responses []*pb.FollowResponse
	bytes     int
	heartbeat bool // the last one is nothing else
}

func (k *keptBack) add(resp *pb.FollowResponse) error {
	heartbeat := resp.GetWelcome() == nil && resp.GetEpochStart() == nil && !resp.GetInSync() &&
		len(resp.GetSourceOrderInfo())+len(resp.GetMessages())+len(resp.GetDetached()) == 0
	if heartbeat && k.heartbeat { // the newer one says all that this one did
		k.responses[len(k.responses)-1] = resp
		return nil
	}
	k.heartbeat = heartbeat
	k.responses = append(k.responses, resp)
	if k.bytes += proto.Size(resp); k.bytes > maxJoinBytes {
		return errKeepsAll
	}
	return nil
}

// gaveSnapshot notes the size of a snapshot that this replica gave: the primary warns of one that
// is near its limit, and a backup tells the primary.
func (in *incarnation) gaveSnapshot(bytes int) {
	in.m.mu.Lock()
	f, l := in.m.role.logs(), in.m.leading()
	if f != nil {
		f.gave = uint64(bytes)
	}
	in.m.mu.Unlock()
	if l != nil {
		l.warnOfSnapshot(in.self, uint64(bytes))
	}
}

// warnOfSnapshot warns of a state that is about to be too large, on the primary, where people look.
// It takes mu.
func (l *leading) warnOfSnapshot(donor election.Member, bytes uint64) {
	if bytes <= maxSnapshot/2 {
		return
	}
	l.m.mu.Lock()
	now := l.m.r.clock()
	again := l.warned != 0 && now-l.warned < snapshotWarnings
	if !again {
		l.warned = now
	}
	l.m.mu.Unlock()
	switch {
	case again:
	case bytes > maxSnapshot:
		l.m.log.Error("the state is larger than a snapshot may be: no replica can join", "from", donor.String(),
			"limit", maxSnapshot)
	default:
		l.m.log.Warn("the state has outgrown half of what a snapshot may have: beyond the limit no replica can join",
			"from", donor.String(), "bytes", bytes, "limit", maxSnapshot)
	}
}
