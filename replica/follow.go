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
func (in *incarnation) follow() error {
	if err := in.findLeader(); err != nil {
		return err
	}
	for {
		in.m.mu.Lock()
		before := in.m.epoch()
		in.m.mu.Unlock()
		err := in.followOnce()
		in.m.mu.Lock()
		f, epoch := in.m.following(), in.m.epoch()
		joined := f != nil && f.inSync
		in.m.mu.Unlock()
		switch {
		case in.ctx.Err() != nil:
			return context.Cause(in.ctx)
		case !joined && !in.admitted(f):
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
		won, err := candidate{in}.stand(epoch, time.Now())
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
func (in *incarnation) admitted(f *following) bool {
	if f == nil {
		return false
	}
	in.m.mu.Lock()
	epoch := f.epoch()
	in.m.mu.Unlock()
	for {
		ctx, cancel := context.WithTimeout(in.ctx, authority)
		view, err := in.r.store.Read(ctx)
		cancel()
		if err == nil {
			in.m.mu.Lock()
			defer in.m.mu.Unlock()
			f.inSync = view.IsInSync(in.self)
			return f.inSync
		}
		if in.later(epoch, err) != nil {
			return false
		}
	}
}

func isDiverged(err error) bool {
	var diverged *orderstate.DivergedError
	return errors.As(err, &diverged)
}

// findLeader waits until etcd names a primary that is alive.
func (in *incarnation) findLeader() error {
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	for said := false; ; {
		if err := in.m.compatible(); err != nil {
			return err
		}
		if r, ok := in.m.view.Replica(in.m.view.Primary.Name); ok && r.Member == in.m.view.Primary &&
			r.Member != in.self {
			in.m.leader, in.m.fence = in.m.view.Primary, in.m.view.Fence
			return nil
		}
		if !said && in.m.down() {
			said = true
			in.log.Error(errDown.Error())
		}
		if err := in.m.changes(in.ctx); err != nil {
			return err
		}
	}
}

// down says whether no in-sync replica is alive. Called with mu held.
func (m *member) down() bool {
	for _, other := range m.view.InSync {
		if r, ok := m.view.Replica(other.Name); ok && r.Member == other {
			return false
		}
	}
	return true
}

// compatible compares this replica with the group that it joins. Called with mu held.
func (m *member) compatible() error {
	g := m.view.Group
	switch {
	case g.IsZero():
		return nil
	case m.group != 0 && m.group != g.ID: // the view is believed
		return errReplaced
	case g.Protocol != wire.Protocol:
		return mismatchedProtocol(g.Protocol)
	case g.Level != m.r.config.level.String():
		return &MismatchError{"level", m.r.config.level.String(), g.Level}
	case g.Version != m.r.config.version:
		return &MismatchError{"version", m.r.config.version, g.Version}
	}
	return nil
}

// followOnce follows the known leader on one stream, until that ends.
func (in *incarnation) followOnce() error {
	in.m.mu.Lock()
	leader, epoch, f, group := in.m.leader, in.m.epoch(), in.m.following(), in.m.view.Group.ID
	joined := f != nil && f.inSync
	r, ok := in.m.view.Replica(leader.Name)
	if !ok || r.Member != leader {
		in.m.mu.Unlock()
		return errors.New("replica: the primary isn't registered")
	}
	ctx, cancel := context.WithCancelCause(in.ctx)
	u := newUpstream(in.r.clock(), cancel) // a peer that asks isn't told that the primary is heard until it is
	in.m.upstream = u
	in.m.mu.Unlock()
	defer func() {
		cancel(nil)
		in.m.mu.Lock()
		in.m.upstream = nil
		in.m.mu.Unlock()
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
	if f != nil {
		in.m.mu.Lock()
		f.tellAll()
		in.m.mu.Unlock()
	}
	err = stream.Send(&pb.FollowRequest{Hello: &pb.FollowHello{
		Protocol: wire.Protocol, Group: group, Replica: in.self.Name, Incarnation: in.self.Incarnation,
		Epoch: uint64(epoch), Joining: !joined, Avoid: in.r.joins.avoided(),
		Version: in.r.config.version, Level: pb.Level(in.r.config.level + 1), Mark: markToProto(in.r.store.Known()),
	}})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if joined {
		err = in.read(ctx, stream, u, f)
	} else {
		err = in.readJoining(ctx, stream, u, f)
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
func (in *incarnation) listen(ctx context.Context, u *upstream) {
	t := time.NewTicker(heartbeat / 2)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			in.m.mu.Lock()
			limit := silence
			if f := in.m.following(); (f == nil || !f.inSync) && in.m.view.Primary == in.m.leader {
				limit = joinSilence
			}
			silent := in.r.clock()-u.heard > limit
			in.m.mu.Unlock()
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
func (in *incarnation) read(
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
			in.startAcks(ctx, stream, u)
			in.goes(func() { in.fetcher(ctx, f) })
		}
	}
}

// readJoining takes what the primary sends a joiner, which keeps it until it has its snapshot: then
// it is f.
func (in *incarnation) readJoining(
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
			in.m.mu.Lock()
			u.isHeard(in.r.clock())
			in.m.mu.Unlock()
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
				in.goes(func() {
					if f, err := in.restore(moving, p, welcome, start); err != nil {
						failed <- err
					} else {
						restored <- f
					}
				})
				in.startAcks(ctx, stream, u)
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
			in.follows(f, welcome)
			for _, resp := range kept.responses {
				if err := f.followed(u, resp); err != nil {
					return err
				}
			}
			kept = keptBack{}
			u.isDue()
			in.goes(func() { in.fetcher(ctx, f) })
		case err := <-failed:
			return err
		case <-transfer.Done(): // or the stream was cut; who receives may not say so
			return context.Cause(transfer)
		}
	}
}

// follows makes this incarnation a backup of the group that has welcomed it.
func (in *incarnation) follows(f *following, w *pb.FollowWelcome) {
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	in.group, in.secret, in.seal = w.GetGroup(), w.GetSecret(), wire.NewSeal(w.GetSecret())
	in.learn(w.GetMark())
	in.m.role = f
	in.m.after(moved{rare: true})
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
				in.m.mu.Lock()
				if f := in.m.following(); f != nil {
					f.cutUnheard()
					f.forgive()
				}
				in.m.mu.Unlock()
			case <-ctx.Done():
				return
			}
		}
	})
}

// says is what a follower says now; nil when it is none any more.
func (in *incarnation) says(u *upstream) *pb.FollowRequest {
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	switch role := in.m.role.(type) {
	case joining:
		return &pb.FollowRequest{}
	case *following:
		return role.says(u)
	}
	return nil
}

// says is what a backup says now. Called with mu held.
func (f *following) says(u *upstream) *pb.FollowRequest {
	req := &pb.FollowRequest{
		Restored: true, SnapshotBytes: f.gave, Executed: uint64(f.m.machine.Executed()),
		LogBytes: uint64(f.backup.History().Logged()),
	}
	f.gave = 0
	u.tell(req)
	if e, k, ok := f.backup.Acknowledgement(); ok {
		req.Acknowledgement = &pb.Acknowledgement{Epoch: uint64(e), OrderNum: uint64(k)}
		u.acked = k
	}
	return req
}

// followed takes one message of the primary.
func (f *following) followed(u *upstream, resp *pb.FollowResponse) error {
	announced, err := wire.RunsFromProto(resp.GetSourceOrderInfo())
	if err != nil {
		return err
	}
	runs := f.m.open(announced)
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	u.isHeard(f.m.r.clock())
	what := moved{kept: true}
	if s := resp.GetEpochStart(); s != nil && orderstate.Epoch(s.GetEpoch()) == f.backup.Epoch() {
		started, err := f.backup.Start(orderstate.Epoch(s.GetEpoch()), orderstate.OrderNum(s.GetFirstOrderNum()),
			wire.StartsFromProto(s.GetEarlier()))
		if err != nil {
			return err
		}
		what.Moved = started
		f.start = s
		f.tellHeard()
		u.isDue()
		what.begun, what.rare = true, true
	}
	for _, m := range resp.GetMessages() {
		logged, err := f.logMessage(&u.incoming, m)
		if err != nil {
			return err
		}
		what.Moved = what.With(logged)
	}
	received, err := f.receive(runs)
	if err != nil {
		return err
	}
	what.Moved = what.With(received)
	f.backup.LearnStable(f.backup.Epoch(), orderstate.OrderNum(resp.GetStable()))
	f.confirmed(resp.GetDetached())
	u.waitsFor(orderstate.OrderNum(resp.GetAcknowledge()))
	if resp.GetInSync() && !f.inSync {
		f.inSync = true
		f.m.log.Info("joined", "epoch", f.backup.Epoch(), "at", f.backup.Last())
		what.rare = true
	}
	f.m.after(what)
	return nil
}

// receive is FIG. 10 for announcements that were checked. Called with mu held.
func (f *following) receive(runs []orderstate.Run) (what orderstate.Moved, err error) {
	for _, r := range runs {
		received, err := f.backup.Receive(r)
		if err != nil {
			if !errors.As(err, new(*orderstate.UnstableError)) {
				f.m.end(err)
			}
			return what, err
		}
		what = what.With(received)
	}
	return what, nil
}

// logMessage logs a message that a peer has sent, once the last part of it has come. Called with mu
// held.
func (f *following) logMessage(stream *parts, p *pb.LoggedMessage) (what orderstate.Moved, err error) {
	p, err = stream.add(p)
	if p == nil {
		return what, err
	}
	m, err := f.m.messageOf(p)
	if err == nil {
		_, what = f.backup.Message(m)
	}
	return what, err
}
