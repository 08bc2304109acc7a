package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// follow is a backup's life: it joins, follows one primary after the other, and stands for election
// when it suspects that there is none. It returns why it can't go on; the replica then begins
// again, as a new incarnation.
func (pu pursuit) follow() error {
	if err := pu.findLeader(); err != nil {
		return err
	}
	for {
		pu.in.m.mu.Lock()
		before := pu.in.m.epoch()
		pu.in.m.mu.Unlock()
		err := pu.followOnce()
		pu.in.m.mu.Lock()
		f, epoch := pu.in.m.following(), pu.in.m.epoch()
		joined := f != nil && f.inSync
		pu.in.m.mu.Unlock()
		switch {
		case pu.in.ctx.Err() != nil:
			return context.Cause(pu.in.ctx)
		case !joined && !pu.admitted(f):
			return fmt.Errorf("replica: the state transfer ended: %w", err)
		case errors.Is(err, errEvicted) || isDiverged(err):
			return err
		case errors.As(err, new(*orderstate.UnstableError)):
			pu.in.log.Error(
				"refused an epoch that lacks what is stable: an in-sync replica didn't begin it; state and log "+
					"are kept", "error", err,
			)
			if err := pu.in.pause(silence); err != nil {
				return err
			}
			continue
		case epoch > before && before != 0:
			continue // another primary has asked (R12.1): follow it
		}
		pu.in.log.Info("lost the primary", "error", err)
		won, err := candidate(pu).stand(epoch, time.Now())
		if err != nil {
			return err
		}
		if won != nil {
			return pu.in.takeOver(*won)
		}
	}
}

// admitted asks etcd whether a joiner with a state is in-sync: its primary may have written that,
// and died before it said so (R13). While etcd doesn't answer, it may be.
func (pu pursuit) admitted(f *following) bool {
	if f == nil {
		return false
	}
	pu.in.m.mu.Lock()
	epoch := f.epoch()
	pu.in.m.mu.Unlock()
	for {
		ctx, cancel := context.WithTimeout(pu.in.ctx, authority)
		view, err := pu.in.r.store.Read(ctx)
		cancel()
		if err == nil {
			pu.in.m.mu.Lock()
			defer pu.in.m.mu.Unlock()
			f.inSync = view.IsInSync(pu.in.self)
			return f.inSync
		}
		if pu.in.later(epoch, err) != nil {
			return false
		}
	}
}

func isDiverged(err error) bool {
	var diverged *orderstate.DivergedError
	return errors.As(err, &diverged)
}

// findLeader waits until etcd names a primary that is alive.
func (pu pursuit) findLeader() error {
	pu.in.m.mu.Lock()
	defer pu.in.m.mu.Unlock()
	for said := false; ; {
		if err := pu.in.m.compatible(); err != nil {
			return err
		}
		if r, ok := pu.in.m.view.Replica(pu.in.m.view.Primary.Name); ok && r.Member == pu.in.m.view.Primary &&
			r.Member != pu.in.self {
			pu.in.m.leader, pu.in.m.fence = pu.in.m.view.Primary, pu.in.m.view.Fence
			return nil
		}
		if !said && pu.in.m.view.IsDown() {
			said = true
			pu.in.log.Error(errDown.Error())
		}
		if err := pu.in.m.changes(pu.in.ctx); err != nil {
			return err
		}
	}
}

// followOnce follows the known leader on one stream, until that ends.
func (pu pursuit) followOnce() error {
	pu.in.m.mu.Lock()
	leader, epoch, f, group := pu.in.m.leader, pu.in.m.epoch(), pu.in.m.following(), pu.in.m.view.Group.ID
	joined := f != nil && f.inSync
	r, ok := pu.in.m.view.Replica(leader.Name)
	if !ok || r.Member != leader {
		pu.in.m.mu.Unlock()
		return errors.New("replica: the primary isn't registered")
	}
	ctx, cancel := context.WithCancelCause(pu.in.ctx)
	u := newUpstream(pu.in.r.clock(), cancel) // a peer that asks isn't told that the primary is heard until it is
	pu.in.m.upstream = u
	pu.in.m.mu.Unlock()
	defer func() {
		cancel(nil)
		pu.in.m.mu.Lock()
		pu.in.m.upstream = nil
		pu.in.m.mu.Unlock()
	}()

	peer, err := pu.in.peers.client(r.PeerAddr)
	if err != nil {
		return err
	}
	stream, err := peer.Follow(ctx)
	if err != nil {
		return err
	}
	go pu.listen(ctx, u)
	if f != nil {
		pu.in.m.mu.Lock()
		f.tellAll()
		pu.in.m.mu.Unlock()
	}
	err = stream.Send(&pb.FollowRequest{Hello: &pb.FollowHello{
		Protocol: wire.Protocol, Group: group, Replica: pu.in.self.Name, Incarnation: pu.in.self.Incarnation,
		Epoch: uint64(epoch), Joining: !joined, Avoid: pu.in.r.joins.avoided(),
		Version: pu.in.r.config.version, Level: pb.Level(pu.in.r.config.level + 1),
		Mark: markToProto(pu.in.r.store.Known()),
	}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if joined {
		err = pu.read(ctx, stream, u, f)
	} else {
		err = pu.readJoining(ctx, stream, u, f)
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	return err
}

// receiveFrom receives from the primary. That it has evicted this replica is its own word, which
// nothing on the way can say.
func receiveFrom(stream grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse]) (*pb.FollowResponse, error) {
	resp, err := stream.Recv()
	if err != nil {
		if wire.RefusalIn(stream.Trailer().Get(wire.HeaderKey)) == pb.Refusal_REFUSAL_EVICTED {
			err = errEvicted
		}
		return nil, err
	}
	if w := resp.GetWelcome(); w != nil && w.GetProtocol() != wire.Protocol {
		return nil, mismatchedProtocol(w.GetProtocol())
	}
	return resp, nil
}

// listen cuts the stream when the primary is silent. A joiner is patient while etcd names no other
// primary: it can't be elected, and a transfer that begins again takes the longer, the busier
// everyone is.
func (pu pursuit) listen(ctx context.Context, u *upstream) {
	t := time.NewTicker(heartbeat / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			pu.in.m.mu.Lock()
			limit := silence
			if f := pu.in.m.following(); (f == nil || !f.inSync) && pu.in.m.view.Primary == pu.in.m.leader {
				limit = joinSilence
			}
			silent := pu.in.r.clock()-u.heard > limit
			pu.in.m.mu.Unlock()
			if silent {
				u.cut(errors.New("replica: the primary is silent"))
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// read takes what the primary sends a backup.
func (pu pursuit) read(
	ctx context.Context, stream grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse], u *upstream,
	f *following,
) error {
	for first := true; ; first = false {
		resp, err := receiveFrom(stream)
		if err != nil {
			return err
		}
		if err := f.followed(u, resp); err != nil {
			return err
		}
		if first { // not before: see startAcks
			pu.startAcks(ctx, stream, u)
			pu.in.goes(func() { pu.fetcher(ctx, f) })
		}
	}
}

// readJoining takes what the primary sends a joiner, which keeps it until it has its snapshot: then
// it is f.
func (pu pursuit) readJoining(
	ctx context.Context, stream grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse], u *upstream,
	f *following,
) error {
	var kept keptBack
	var welcome *pb.FollowWelcome
	restored := make(chan *following, 1)
	failed := make(chan error, 2)                  // of the two that are started here
	transfer, stop := ctx, context.CancelFunc(nil) // until it begins
	responses := make(chan *pb.FollowResponse)
	go func() {
		for {
			resp, err := receiveFrom(stream)
			if err != nil {
				failed <- err
				return
			}
			select {
			case responses <- resp:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case resp := <-responses:
			pu.in.m.mu.Lock()
			u.isHeard(pu.in.r.clock())
			pu.in.m.mu.Unlock()
			switch {
			case resp.GetWelcome() != nil && welcome == nil:
				welcome = resp.GetWelcome()
				start := resp.GetEpochStart()
				var moving context.Context
				var p *patience
				moving, p, stop = withPatience(ctx, transferSilence, &errStalled)
				defer stop()
				transfer = moving
				// The next incarnation doesn't begin before this ends: both restore one state.
				pu.in.goes(func() {
					if f, err := pu.restore(moving, p, welcome, start); err != nil {
						failed <- err
					} else {
						restored <- f
					}
				})
				pu.startAcks(ctx, stream, u)
				if err := kept.add(resp); err != nil {
					return err
				}
			case f != nil:
				if err := f.followed(u, resp); err != nil {
					return err
				}
			default:
				if err := kept.add(resp); err != nil {
					return err
				}
			}
		case f = <-restored:
			stop()
			transfer = ctx
			pu.follows(f, welcome)
			for _, resp := range kept.responses {
				if err := f.followed(u, resp); err != nil {
					return err
				}
			}
			kept = keptBack{}
			u.isDue()
			pu.in.goes(func() { pu.fetcher(ctx, f) })
		case err := <-failed:
			return err
		case <-transfer.Done(): // or the stream was cut; who receives may not say so
			return context.Cause(transfer)
		}
	}
}

// follows makes this incarnation a backup of the group that has welcomed it.
func (pu pursuit) follows(f *following, w *pb.FollowWelcome) {
	pu.in.m.mu.Lock()
	defer pu.in.m.mu.Unlock()
	pu.in.group, pu.in.secret, pu.in.seal = w.GetGroup(), w.GetSecret(), wire.NewSeal(w.GetSecret())
	pu.in.learn(w.GetMark())
	pu.in.m.role = f
	pu.in.m.after(moved{rare: true})
}

// startAcks acknowledges: at once when asked to, and at every heartbeat, which is all that a joiner
// says before it has a state. It ends with the stream's context. The primary must have been heard
// on the stream: until then gRPC may take another connection for it, once, and whoever sends
// meanwhile waits for that on a mutex, deaf to the context.
func (pu pursuit) startAcks(
	ctx context.Context, stream grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse], u *upstream,
) {
	pu.in.goes(func() {
		t := time.NewTicker(heartbeat)
		defer t.Stop()
		for {
			req := pu.says(u)
			if req == nil || stream.Send(req) != nil {
				return // whoever reads sees why
			}
			select {
			case <-u.due:
				runtime.Gosched() // as in pusher
			case <-t.C:
				pu.in.m.mu.Lock()
				if f := pu.in.m.following(); f != nil {
					f.cutUnheard()
					f.forgive()
				}
				pu.in.m.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
}

// says is what a follower says now; nil when it is none any more.
func (pu pursuit) says(u *upstream) *pb.FollowRequest {
	pu.in.m.mu.Lock()
	defer pu.in.m.mu.Unlock()
	switch role := pu.in.m.role.(type) {
	case joining:
		return &pb.FollowRequest{}
	case *following:
		return role.says(u)
	}
	return nil
}
