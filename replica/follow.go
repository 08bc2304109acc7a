package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// follow is a backup's life: it joins, follows one primary after the other, and stands for election
// when it suspects that there is none. It returns why it can't go on; the replica then begins
// again, as a new incarnation.
func (in *incarnation) follow() error {
	if err := in.findLeader(); err != nil {
		return err
	}
	for {
		in.mu.Lock()
		before := in.epoch()
		in.mu.Unlock()
		err := in.followOnce()
		in.mu.Lock()
		joined, epoch := in.inSync, in.epoch()
		in.mu.Unlock()
		switch {
		case in.ctx.Err() != nil:
			return context.Cause(in.ctx)
		case !joined && !in.admitted():
			return fmt.Errorf("replica: the state transfer ended: %w", err)
		case errors.Is(err, errEvicted) || isDiverged(err):
			return err
		case errors.As(err, new(*orderstate.UnstableError)):
			in.log.Error(
				"refused an epoch that lacks what is stable: an in-sync replica didn't begin it; state and log "+
					"are kept", "error", err,
			)
			if err := in.pause(silence); err != nil {
				return err
			}
			continue
		case epoch > before && before != 0:
			continue // another primary has asked (R12.1): follow it
		}
		in.log.Info("lost the primary", "error", err)
		won, err := in.stand(epoch, time.Now())
		if err != nil {
			return err
		}
		if won != nil {
			return in.takeOver(*won)
		}
	}
}

// admitted asks etcd whether a joiner with a state is in-sync: its primary may have written that,
// and died before it said so (R13). While etcd doesn't answer, it may be.
func (in *incarnation) admitted() bool {
	in.mu.Lock()
	restored, epoch := in.role == following, in.epoch()
	in.mu.Unlock()
	for restored {
		ctx, cancel := context.WithTimeout(in.ctx, authority)
		view, err := in.r.store.Read(ctx)
		cancel()
		if err == nil {
			in.mu.Lock()
			defer in.mu.Unlock()
			in.inSync = view.IsInSync(in.self)
			return in.inSync
		}
		if in.later(epoch, err) != nil {
			return false
		}
	}
	return false
}

func isDiverged(err error) bool {
	var diverged *orderstate.DivergedError
	return errors.As(err, &diverged)
}

// findLeader waits until etcd names a primary that is alive.
func (in *incarnation) findLeader() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for said := false; ; {
		if err := in.compatible(); err != nil {
			return err
		}
		if r, ok := in.view.Replica(in.view.Primary.Name); ok && r.Member == in.view.Primary && r.Member != in.self {
			in.leader, in.fence = in.view.Primary, in.view.Fence
			return nil
		}
		if !said && in.down() {
			said = true
			in.log.Error(errDown.Error())
		}
		if err := in.changes(in.ctx); err != nil {
			return err
		}
	}
}

// down says whether no in-sync replica is alive. Called with mu held.
func (in *incarnation) down() bool {
	for _, m := range in.view.InSync {
		if r, ok := in.view.Replica(m.Name); ok && r.Member == m {
			return false
		}
	}
	return true
}

// compatible compares this replica with the group that it joins. Called with mu held.
func (in *incarnation) compatible() error {
	g := in.view.Group
	switch {
	case g.IsZero():
		return nil
	case in.group != 0 && in.group != g.ID: // the view is believed
		return errReplaced
	case g.Protocol != wire.Protocol:
		return mismatchedProtocol(g.Protocol)
	case g.Level != in.r.config.level.String():
		return &MismatchError{"level", in.r.config.level.String(), g.Level}
	case g.Version != in.r.config.version:
		return &MismatchError{"version", in.r.config.version, g.Version}
	}
	return nil
}

// followOnce follows the known leader on one stream, until that ends.
func (in *incarnation) followOnce() error {
	in.mu.Lock()
	leader, epoch, joined, group := in.leader, in.epoch(), in.inSync, in.view.Group.ID
	r, ok := in.view.Replica(leader.Name)
	if !ok || r.Member != leader {
		in.mu.Unlock()
		return errors.New("replica: the primary isn't registered")
	}
	ctx, cancel := context.WithCancelCause(in.ctx)
	u := newUpstream(in.r.clock(), cancel) // a peer that asks isn't told that the primary is heard until it is
	in.upstream = u
	in.mu.Unlock()
	defer func() {
		cancel(nil)
		in.mu.Lock()
		in.upstream = nil
		in.mu.Unlock()
	}()

	peer, err := in.peers.client(r.PeerAddr)
	if err != nil {
		return err
	}
	stream, err := peer.Follow(ctx)
	if err != nil {
		return err
	}
	go in.listen(ctx, u)
	in.mu.Lock()
	in.tellAll()
	in.mu.Unlock()
	err = stream.Send(&pb.FollowRequest{Hello: &pb.FollowHello{
		Protocol: wire.Protocol, Group: group, Replica: in.self.Name, Incarnation: in.self.Incarnation,
		Epoch: uint64(epoch), Joining: !joined, Avoid: in.r.joins.avoided(),
		Version: in.r.config.version, Level: pb.Level(in.r.config.level + 1), Mark: markToProto(in.r.store.Known()),
	}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	err = in.read(ctx, stream, u, joined)
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
func (in *incarnation) listen(ctx context.Context, u *upstream) {
	t := time.NewTicker(heartbeat / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			in.mu.Lock()
			limit := silence
			if !in.inSync && in.view.Primary == in.leader {
				limit = joinSilence
			}
			silent := in.r.clock()-u.heard > limit
			in.mu.Unlock()
			if silent {
				u.cut(errors.New("replica: the primary is silent"))
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// read takes what the primary sends. A joiner keeps it until it has its snapshot.
func (in *incarnation) read(
	ctx context.Context, stream grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse], u *upstream, joined bool,
) error {
	if joined {
		for first := true; ; first = false {
			resp, err := receiveFrom(stream)
			if err != nil {
				return err
			}
			if err := in.followed(u, resp); err != nil {
				return err
			}
			if first { // not before: see startAcks
				in.startAcks(ctx, stream, u)
				in.goes(func() { in.fetcher(ctx) })
			}
		}
	}
	var kept keptBack
	var restored chan error
	transfer, stop := ctx, context.CancelFunc(nil) // until it begins
	responses, failed := make(chan *pb.FollowResponse), make(chan error, 1)
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
			in.mu.Lock()
			u.isHeard(in.r.clock())
			in.mu.Unlock()
			switch {
			case resp.GetWelcome() != nil && restored == nil:
				restored = make(chan error, 1)
				start := resp.GetEpochStart()
				var moving context.Context
				var p *patience
				moving, p, stop = withPatience(ctx, transferSilence, &errStalled)
				defer stop()
				transfer = moving
				// The next incarnation doesn't begin before this ends: both restore one state.
				in.goes(func() { restored <- in.restore(moving, p, resp.GetWelcome(), start) })
				in.startAcks(ctx, stream, u)
				if err := kept.add(resp); err != nil {
					return err
				}
			case in.hasState():
				if err := in.followed(u, resp); err != nil {
					return err
				}
			default:
				if err := kept.add(resp); err != nil {
					return err
				}
			}
		case err := <-restored:
			if err != nil {
				return err
			}
			stop()
			transfer = ctx
			in.becomes(following)
			for _, resp := range kept.responses {
				if err := in.followed(u, resp); err != nil {
					return err
				}
			}
			kept = keptBack{}
			u.isDue()
			in.goes(func() { in.fetcher(ctx) })
		case err := <-failed:
			return err
		case <-transfer.Done(): // or the stream was cut; who receives may not say so
			return context.Cause(transfer)
		}
	}
}

func (in *incarnation) hasState() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.role == following
}

func (in *incarnation) becomes(r role) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.role = r
	in.broadcast()
}

// startAcks acknowledges: at once when asked to, and at every heartbeat, which is all that a joiner
// says before it has a state. It ends with the stream's context. The primary must have been heard
// on the stream: until then gRPC may take another connection for it, once, and whoever sends
// meanwhile waits for that on a mutex, deaf to the context.
func (in *incarnation) startAcks(
	ctx context.Context, stream grpc.BidiStreamingClient[pb.FollowRequest, pb.FollowResponse], u *upstream,
) {
	in.goes(func() {
		t := time.NewTicker(heartbeat)
		defer t.Stop()
		for {
			req := in.says(u)
			if req == nil || stream.Send(req) != nil {
				return // whoever reads sees why
			}
			select {
			case <-u.due:
				runtime.Gosched() // as in pusher
			case <-t.C:
				in.mu.Lock()
				if in.role == following {
					in.cutUnheard()
					in.forgive()
				}
				in.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
}

// says is what a follower says now; nil when it is none any more.
func (in *incarnation) says(u *upstream) *pb.FollowRequest {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch in.role {
	case joining:
		return &pb.FollowRequest{}
	case following:
	default:
		return nil
	}
	req := &pb.FollowRequest{Restored: true, SnapshotBytes: in.gave, Executed: uint64(in.machine.Executed()),
		LogBytes: uint64(in.backup.History().Logged())}
	in.gave = 0
	u.tell(req)
	if e, k, ok := in.backup.Acknowledgement(); ok {
		req.Acknowledgement = &pb.Acknowledgement{Epoch: uint64(e), OrderNum: uint64(k)}
		u.acked = k
	}
	return req
}

// followed takes one message of the primary.
func (in *incarnation) followed(u *upstream, resp *pb.FollowResponse) error {
	announced, err := wire.RunsFromProto(resp.GetSourceOrderInfo())
	if err != nil {
		return err
	}
	runs := in.open(announced)
	in.mu.Lock()
	defer in.mu.Unlock()
	u.isHeard(in.r.clock())
	last := in.backup.Last()
	if s := resp.GetEpochStart(); s != nil && orderstate.Epoch(s.GetEpoch()) == in.backup.Epoch() {
		if _, err := in.backup.Start(orderstate.Epoch(s.GetEpoch()), orderstate.OrderNum(s.GetFirstOrderNum()),
			wire.StartsFromProto(s.GetEarlier())); err != nil {
			return err
		}
		in.start = s
		in.tellHeard()
		u.isDue()
		signal(in.work)
		in.broadcast()
	}
	for _, m := range resp.GetMessages() {
		if err := in.logMessage(&u.incoming, m); err != nil {
			return err
		}
	}
	if err := in.receive(runs); err != nil {
		return err
	}
	in.advanced(last)
	in.backup.LearnStable(in.backup.Epoch(), orderstate.OrderNum(resp.GetStable()))
	in.forget()
	in.confirmed(resp.GetDetached())
	u.waitsFor(orderstate.OrderNum(resp.GetAcknowledge()))
	if resp.GetInSync() && !in.inSync {
		in.inSync = true
		in.log.Info("joined", "epoch", in.backup.Epoch(), "at", in.backup.Last())
		in.broadcast()
	}
	return nil
}

// receive is FIG. 10 for announcements that were checked. Called with mu held.
func (in *incarnation) receive(runs []orderstate.Run) error {
	for _, r := range runs {
		if _, err := in.backup.Receive(r); err != nil {
			if !errors.As(err, new(*orderstate.UnstableError)) {
				in.end(err)
			}
			return err
		}
	}
	return nil
}

// logMessage logs a message that a peer has sent, once the last part of it has come. Called with mu
// held.
func (in *incarnation) logMessage(stream *parts, p *pb.LoggedMessage) error {
	p, err := stream.add(p)
	if p == nil {
		return err
	}
	m, err := in.messageOf(p)
	if err == nil && in.primary == nil {
		in.backup.Message(m)
	}
	return err
}

// advanced does what follows when the order may have grown: executes, acknowledges, fetches. Called
// with mu held; last is where the order ended before.
func (in *incarnation) advanced(last orderstate.OrderNum) {
	grown := in.backup.History().Above(last)
	if len(grown) > 0 {
		signal(in.work)
		in.upstream.grows(in.backup)
	}
	for _, o := range grown {
		if o.Kind == orderstate.Open {
			m, _ := in.backup.History().Has(o.Message())
			in.opened(m.Nonce)
			in.upstream.isDue()
			continue
		}
		if len(in.suspects) > 0 {
			if s := in.suspects[o.Session]; s != nil && s.score > 0 {
				s.score--
			}
		}
		if a := in.bySession[o.Session]; a != nil && in.backup.Started() &&
			(a.stable || in.r.config.level == understudy.Stable) {
			a.acknowledge()
		}
	}
	if len(in.backup.Lacks(1)) > 0 {
		signal(in.lacking)
	}
}
