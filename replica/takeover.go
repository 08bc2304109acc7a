package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// takeover is R12 under way, from the election until N is fixed. It is guarded by the incarnation's
// mu.
type takeover struct {
	epoch   orderstate.Epoch
	state   *orderstate.Takeover
	givenUp int
	awaited int // how many sessions may answer before reconcile looks again: each look is at all of them
}

// answered: a session has acknowledged the epoch. Called with mu held.
func (t *takeover) answered(in *incarnation, s orderstate.Session) {
	t.state.SessionAnswered(s)
	if t.awaited--; t.awaited <= 0 {
		in.broadcast()
	}
}

// takeOver is R12: it asks peers and sessions, fixes N, and leads.
func (in *incarnation) takeOver(e elected) error {
	in.log.Info("elected", "epoch", e.epoch, "from", e.former.String())
	report := Failover{
		Group: in.r.group, From: e.former.Name, To: in.self.Name, Epoch: uint64(e.epoch), Suspected: e.suspected,
		Elected: e.at,
	}
	if err := in.ask(e); err != nil {
		return err
	}
	if err := in.reconcile(e, &report); err != nil {
		return err
	}
	return in.lead(in.r.clock(), report)
}

// ask is R12.1: S2 tells peers and sessions of its epoch, which fences S1.
func (in *incarnation) ask(e elected) error {
	t := &takeover{epoch: e.epoch}
	in.mu.Lock()
	defer in.mu.Unlock()
	var peers []orderstate.Replica
	for _, m := range e.view.InSync {
		if m != in.self && m != e.former {
			peers = append(peers, in.roster.add(m, inSync).id)
		}
	}
	// At Stable peers are enough for what was ordered. But as long as a session may accept what S1
	// has read for it, nothing new may be ordered.
	waitForSessions := in.r.config.level != understudy.Stable || in.r.app.Reads()
	var err error
	if t.state, err = in.backup.Elected(e.epoch, peers, waitForSessions); err != nil {
		return err
	}
	for _, s := range in.backup.History().Sessions() {
		if waitForSessions && in.backup.Detached(s) {
			in.rarely(slog.LevelInfo, "doesn't wait for a session that it couldn't hear", "session", uint64(s))
		}
	}
	in.role, in.leader, in.fence, in.start, in.taking = takingOver, in.self, e.view.Fence, nil, t
	for a := range in.attached {
		a.newEpoch(in)
	}
	for _, p := range in.roster {
		in.goes(func() { in.askPeer(e, p.member) })
	}
	in.broadcast()
	return nil
}

// askPeer asks one in-sync peer until it has answered, or evicts it.
func (in *incarnation) askPeer(e elected, m election.Member) {
	for began := in.r.clock(); in.ctx.Err() == nil; {
		err := in.peerAnswers(e, m)
		if err == nil {
			return
		}
		if in.r.clock()-began > silence {
			in.log.Info("an in-sync peer doesn't answer", "peer", m.String(), "error", err)
			if err = in.shrink(e.epoch, m); err == nil {
				in.mu.Lock()
				if in.taking != nil {
					in.taking.state.Evicted(replicaID(m))
					delete(in.roster, replicaID(m))
				}
				in.broadcast()
				in.mu.Unlock()
				return
			}
		}
		if in.later(e.epoch, nil) != nil {
			return
		}
	}
}

var errPeerStalled = fmt.Errorf("replica: nothing of the peer's answer has come for %v", silence)

// peerAnswers asks a peer once.
func (in *incarnation) peerAnswers(e elected, m election.Member) error {
	in.mu.Lock()
	r, ok := in.view.Replica(m.Name)
	in.mu.Unlock()
	if !ok || r.Member != m {
		return errors.New("replica: the peer isn't registered")
	}
	peer, err := in.peers.client(r.PeerAddr)
	if err != nil {
		return err
	}
	ctx, patience, stop := withPatience(in.ctx, silence, &errPeerStalled) // what it has to say may be long
	defer stop()
	stream, err := peer.Answer(ctx, &pb.AnswerRequest{
		Group: in.group, NewEpoch: newEpochToProto(e.epoch, in.self, e.view.Fence),
		Mark: markToProto(in.r.store.Known()),
	})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if resp.GetMark() != nil {
			return in.disown(m, resp.GetMark())
		}
		patience.moved()
		announced, err := wire.RunsFromProto(resp.GetOrder())
		if err != nil {
			return err
		}
		runs := in.open(announced)
		in.mu.Lock()
		if in.taking == nil {
			in.mu.Unlock()
			return nil
		}
		err = in.taking.state.PeerKnows(wire.StartsFromProto(resp.GetStarts()), runs)
		if err == nil && resp.GetDone() {
			in.taking.state.PeerAnswered(replicaID(m))
			in.broadcast()
		}
		in.mu.Unlock()
		if errors.As(err, new(*orderstate.UnstableError)) {
			return err // this replica's state is kept; the peer is asked again, or evicted
		}
		if err != nil {
			in.end(err) // what the peers hold can't be merged: nothing that this replica does now would be right
			return err
		}
		if resp.GetDone() {
			return nil
		}
	}
}

// reconcile is R12.2 and 3: it waits for whom it must, fixes N, and is the primary then.
func (in *incarnation) reconcile(e elected, report *Failover) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	t := in.taking
	_, sessions := t.state.Waiting()
	report.SessionsAwaited = len(sessions)
	for _, s := range sessions { // a stream that came up since the election has acknowledged already
		if a := in.bySession[s]; a != nil && a.acknowledged >= e.epoch {
			t.state.SessionAnswered(s)
		}
	}
	for fetched := false; ; {
		peers, sessions := t.state.Waiting()
		t.awaited = len(sessions)
		wait := in.giveUp(e, sessions)
		// also while sessions are waited for: one that is detached only as long as a message of its
		// is lacked
		if len(peers) == 0 && !fetched {
			if missing := t.state.Lacks(fetchBatch); len(missing) > 0 {
				fetched = in.fetchFromPeers(missing)
				continue
			}
		}
		if len(peers) == 0 && wait == 0 {
			break
		}
		fetched = false
		ctx, cancel := context.WithTimeout(in.ctx, max(wait, time.Millisecond))
		if len(peers) > 0 {
			cancel()
			ctx, cancel = context.WithCancel(in.ctx)
		}
		_ = in.changes(ctx)
		cancel()
		if in.ctx.Err() != nil {
			return context.Cause(in.ctx)
		}
	}
	report.PeersAnswered, report.SessionsGivenUp = len(in.roster), t.givenUp
	primary, tail, err := t.state.Fix(in.r.pendingMax())
	if err != nil {
		return err
	}
	in.taking, in.backup, in.tail = nil, nil, tail
	in.leads(primary)
	in.authority = e.authority // else the first replies would wait for another read
	signal(in.work)            // now what is up to N may be executed
	return nil
}

// giveUp gives up the sessions whose time is over, and returns how long the others may take: 0 when
// there are none. A session without a stream has A + margin since S2 saw its own election: no reply
// of S1 is accepted after that (R10). Any other has the reconcile timeout. Called with mu held.
func (in *incarnation) giveUp(e elected, sessions []orderstate.Session) time.Duration {
	passed := in.r.clock() - e.saw
	var wait time.Duration
	for _, s := range sessions {
		limit := reconcileTimeout
		if in.bySession[s] == nil {
			limit = authority + margin
		}
		if passed > limit {
			in.rarely(slog.LevelInfo, "gave up a session", "session", uint64(s), "hasStream", in.bySession[s] != nil)
			in.taking.givenUp++
			in.taking.awaited--
			in.taking.state.SessionAnswered(s)
			continue
		}
		if left := limit - passed + time.Millisecond; wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}

// fetchFromPeers asks every peer for messages that are ordered, and that nobody has sent (¶47). It
// says whether asking again is of no use. Called with mu held, which it gives up.
func (in *incarnation) fetchFromPeers(ids []orderstate.MessageID) bool {
	var peers []election.Replica
	for _, p := range in.roster {
		if r, ok := in.view.Replica(p.member.Name); ok && r.Member == p.member {
			peers = append(peers, r)
		}
	}
	in.mu.Unlock()
	for _, r := range peers {
		if err := in.fetch(in.ctx, r, ids); err != nil {
			in.log.Info("can't fetch messages", "from", r.Member.String(), "error", err)
		}
	}
	in.mu.Lock()
	left := in.taking.state.Lacks(1)
	return len(left) > 0 && left[0] == ids[0]
}
