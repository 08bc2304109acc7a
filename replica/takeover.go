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

// takeover drives R12, from the election until N is fixed.
type takeover struct {
	elected
	in *incarnation
	t  *takingOver
}

// takeOver is R12: it asks peers and sessions, fixes N, and leads.
func (in *incarnation) takeOver(e elected) error {
	in.log.Info("elected", "epoch", e.epoch, "from", e.former.String())
	report := Failover{
		Group: in.r.group, From: e.former.Name, To: in.self.Name, Epoch: uint64(e.epoch), Suspected: e.suspected,
		Elected: e.at,
	}
	t, peers, err := in.m.elected(e)
	if err != nil {
		return err
	}
	to := &takeover{e, in, t}
	for _, p := range peers {
		in.goes(func() { to.askPeer(p) })
	}
	l, err := to.reconcile(&report)
	if err != nil {
		return err
	}
	return (&reign{in, l}).lead(in.r.clock(), report)
}

// elected is R12.1: S2 tells the sessions of its epoch, which fences S1; the peers are to be asked.
// It takes mu.
func (m *member) elected(e elected) (*takingOver, []election.Member, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.following()
	if f == nil {
		return nil, nil, context.Cause(m.ctx)
	}
	t := &takingOver{m: m, former: f, peers: others{}}
	var peers []election.Member
	var ids []orderstate.Replica
	for _, other := range e.view.InSync {
		if other != m.self && other != e.former {
			peers, ids = append(peers, other), append(ids, t.peers.add(other, inSync).id)
		}
	}
	// At Stable peers are enough for what was ordered. But as long as a session may accept what S1
	// has read for it, nothing new may be ordered.
	waitForSessions := m.r.config.level != understudy.Stable || m.r.app.Reads()
	var err error
	if t.state, err = f.backup.Elected(e.epoch, ids, waitForSessions); err != nil {
		return nil, nil, err
	}
	for _, s := range f.backup.History().Sessions() {
		if waitForSessions && f.backup.Detached(s) {
			m.rarely(slog.LevelInfo, "doesn't wait for a session that it couldn't hear", "session", uint64(s))
		}
	}
	m.role, m.leader, m.fence = t, m.self, e.view.Fence
	for a := range m.sources.attached {
		a.newEpoch()
	}
	m.after(moved{rare: true})
	return t, peers, nil
}

// askPeer asks one in-sync peer until it has answered, or evicts it.
func (to *takeover) askPeer(m election.Member) {
	for began := to.in.r.clock(); to.in.ctx.Err() == nil; {
		err := to.peerAnswers(m)
		if err == nil {
			return
		}
		if to.in.r.clock()-began > silence {
			to.in.log.Info("an in-sync peer doesn't answer", "peer", m.String(), "error", err)
			ctx, cancel := context.WithTimeout(to.in.ctx, authority)
			err = to.in.shrink(ctx, to.epoch, m)
			cancel()
			if err == nil {
				to.t.m.mu.Lock()
				if !to.t.over() {
					to.t.state.Evicted(replicaID(m))
					delete(to.t.peers, replicaID(m))
				}
				to.t.m.after(moved{rare: true})
				to.t.m.mu.Unlock()
				return
			}
		}
		if to.in.later(to.epoch, nil) != nil {
			return
		}
	}
}

var errPeerStalled = fmt.Errorf("replica: nothing of the peer's answer has come for %v", silence)

// peerAnswers asks a peer once.
func (to *takeover) peerAnswers(m election.Member) error {
	to.t.m.mu.Lock()
	r, ok := to.t.m.view.Replica(m.Name)
	to.t.m.mu.Unlock()
	if !ok || r.Member != m {
		return errors.New("replica: the peer isn't registered")
	}
	peer, err := to.in.peers.client(r.PeerAddr)
	if err != nil {
		return err
	}
	ctx, patience, stop := withPatience(to.in.ctx, silence, &errPeerStalled) // what it has to say may be long
	defer stop()
	stream, err := peer.Answer(ctx, &pb.AnswerRequest{
		Group: to.in.group, NewEpoch: newEpochToProto(to.epoch, to.in.self, to.view.Fence),
		Mark: markToProto(to.in.r.store.Known()),
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
			return to.in.disown(m, resp.GetMark())
		}
		patience.moved()
		announced, err := wire.RunsFromProto(resp.GetOrder())
		if err != nil {
			return err
		}
		runs := to.in.open(announced)
		if len(runs) < len(announced) { // what it knows isn't less by that
			return errors.New("replica: the peer's answer can't be read")
		}
		to.t.m.mu.Lock()
		if to.t.over() {
			to.t.m.mu.Unlock()
			return nil
		}
		err = to.t.state.PeerKnows(wire.StartsFromProto(resp.GetStarts()), runs)
		if err == nil && resp.GetDone() {
			to.t.state.PeerAnswered(replicaID(m))
			to.t.m.after(moved{rare: true})
		}
		to.t.m.mu.Unlock()
		if errors.As(err, new(*orderstate.UnstableError)) {
			return err // this replica's state is kept; the peer is asked again, or evicted
		}
		if err != nil {
			to.in.end(err) // what the peers hold can't be merged: nothing that this replica does now would be right
			return err
		}
		if resp.GetDone() {
			return nil
		}
	}
}

// reconcile is R12.2 and 3: it waits for whom it must, fixes N, and makes this replica the primary.
func (to *takeover) reconcile(report *Failover) (*leading, error) {
	to.t.m.mu.Lock()
	defer to.t.m.mu.Unlock()
	_, sessions := to.t.state.Waiting()
	report.SessionsAwaited = len(sessions)
	to.t.heard(sessions)
	for fetched := false; ; {
		peers, sessions := to.t.state.Waiting()
		to.t.awaited = len(sessions)
		wait := to.giveUp(sessions)
		// also while sessions are waited for: one that is detached only as long as a message of its
		// is lacked
		if len(peers) == 0 && !fetched {
			if missing := to.t.state.Lacks(fetchBatch); len(missing) > 0 {
				fetched = to.fetchFromPeers(missing)
				continue
			}
		}
		if len(peers) == 0 && wait == 0 {
			break
		}
		fetched = false
		ctx, cancel := context.WithTimeout(to.in.ctx, max(wait, time.Millisecond))
		if len(peers) > 0 {
			cancel()
			ctx, cancel = context.WithCancel(to.in.ctx)
		}
		_ = to.t.m.changes(ctx)
		cancel()
		if to.in.ctx.Err() != nil {
			return nil, context.Cause(to.in.ctx)
		}
	}
	report.PeersAnswered, report.SessionsGivenUp = len(to.t.peers), to.t.givenUp
	return to.t.fix(to.authority)
}

// giveUp gives up the sessions whose time is over, and returns how long the others may take: 0 when
// there are none. A session without a stream has A + margin since S2 saw its own election: no reply
// of S1 is accepted after that (R10). Any other has the reconcile timeout.
func (to *takeover) giveUp(sessions []orderstate.Session) time.Duration {
	passed := to.in.r.clock() - to.saw
	var wait time.Duration
	for _, s := range sessions {
		limit := reconcileTimeout
		if to.t.m.sources.bySession[s] == nil {
			limit = authority + margin
		}
		if passed > limit {
			to.in.rarely(slog.LevelInfo, "gave up a session", "session", uint64(s),
				"hasStream", to.t.m.sources.bySession[s] != nil)
			to.t.givenUp++
			to.t.awaited--
			to.t.state.SessionAnswered(s)
			continue
		}
		if left := limit - passed + time.Millisecond; wait == 0 || left < wait {
			wait = left
		}
	}
	return wait
}

// fetchFromPeers asks every peer for messages that are ordered, and that nobody has sent (¶47). It
// says whether asking again is of no use. It gives up mu meanwhile.
func (to *takeover) fetchFromPeers(ids []orderstate.MessageID) bool {
	var peers []election.Replica
	for _, p := range to.t.peers {
		if r, ok := to.t.m.view.Replica(p.member.Name); ok && r.Member == p.member {
			peers = append(peers, r)
		}
	}
	to.t.m.mu.Unlock()
	for _, r := range peers {
		if err := to.in.fetch(to.in.ctx, r, ids); err != nil {
			to.in.log.Info("can't fetch messages", "from", r.Member.String(), "error", err)
		}
	}
	to.t.m.mu.Lock()
	left := to.t.state.Lacks(1)
	return len(left) > 0 && left[0] == ids[0]
}
