package replica

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has detaching (R11): a backup that can't hear a session says so to the primary, and once the primary has confirmed, a takeover of that backup doesn't wait for that session.

// findUnheard finds the sessions that have no stream here, to be told to the primary: with the first look of an epoch, or when a second look finds them still without one. A session
// that has just been opened, or whose source is coming back, isn't worth the telling. Called with mu held, while following.
func (in *incarnation) findUnheard(firstLook bool) {
	silent := map[orderstate.Session]bool{}
	now := in.r.clock()
	for _, s := range in.backup.Sessions() {
		if a := in.bySession[s]; a != nil {
			if a.missed != 0 && now-a.missed > silence {
				a.cut(errUnheard)
			}
			continue
		}
		if in.backup.Detached(s) {
			continue
		}
		silent[s] = true
		if firstLook || in.silent[s] {
			in.unheard[s] = true
		}
	}
	in.silent = silent
}

// errUnheard ends a stream that carries nothing, while the session's messages are ordered: nothing tells this backup that a network drops what the source sends.
var errUnheard = status.Error(codes.Unavailable, "understudy: nothing comes on the stream, and the session's messages are ordered")

// missed notes that messages had to be fetched whose sources have streams here. Called with mu held.
func (in *incarnation) missed(ids []orderstate.MessageID) {
	for _, id := range ids {
		if a := in.bySession[id.Session]; a != nil && a.missed == 0 {
			a.missed = in.r.clock()
		}
	}
}

// cantHear: the session's stream has ended. Called with mu held, while following.
func (in *incarnation) cantHear(s orderstate.Session) {
	in.unheard[s] = true
	signal(in.ackDue)
}

// canHear: the session's source has sent all that it holds (R12.1), on a stream of its own. Called with mu held, while following.
func (in *incarnation) canHear(s orderstate.Session) {
	delete(in.unheard, s)
	if number, asked := in.backup.Attach(s); asked {
		in.heardAgain = append(in.heardAgain, &pb.Detaching{Session: uint64(s), Number: number})
		signal(in.ackDue)
	}
}

// forgetUnheard begins anew, as the primary does with a new stream. Called with mu held.
func (in *incarnation) forgetUnheard() {
	clear(in.unheard)
	in.silent, in.heardAgain, in.pushed = nil, nil, 0
	if in.backup != nil {
		in.backup.AttachAll()
	}
}

// tellUnheard puts what there is to say into a message for the primary. Called with mu held.
func (in *incarnation) tellUnheard(req *pb.FollowRequest) {
	req.Attach, in.heardAgain = in.heardAgain, nil
	for s := range in.unheard {
		if number, ok := in.backup.Detach(s); ok {
			req.Detach = append(req.Detach, &pb.Detaching{Session: uint64(s), Number: number})
		}
	}
	clear(in.unheard) // what isn't confirmed by the next look but one is told again
}

// confirmed takes the primary's confirmations. Called with mu held.
func (in *incarnation) confirmed(detached []*pb.Detached) {
	for _, d := range detached {
		in.backup.Confirmed(orderstate.Epoch(d.GetEpoch()), orderstate.Session(d.GetSession()), d.GetNumber(), orderstate.OrderNum(d.GetUpTo()))
	}
}

// unheardAt is the primary's side: what a follower can't hear, or hears again. All that may have been sent to a session goes to the follower before the confirmation. Called with mu held.
func (in *incarnation) unheardAt(f *follower, req *pb.FollowRequest) {
	for _, d := range req.GetAttach() {
		s := orderstate.Session(d.GetSession())
		if in.primary.Attach(f.id, s, d.GetNumber()) {
			delete(f.deafTo, s)
			in.progressed()
		}
	}
	var confirmed []*pb.Detached
	for _, d := range req.GetDetach() {
		s := orderstate.Session(d.GetSession())
		upTo, ok := in.primary.Detach(f.id, s, d.GetNumber())
		if !ok {
			continue // a joiner that isn't counted yet, or a session that has ended meanwhile
		}
		f.deafTo[s] = true
		in.log.Info("a backup can't hear a session", "backup", f.member.String(), "session", d.GetSession())
		confirmed = append(confirmed, &pb.Detached{Epoch: uint64(in.primary.Epoch()), Session: d.GetSession(), Number: d.GetNumber(), UpTo: uint64(upTo)})
	}
	if len(confirmed) == 0 {
		return
	}
	in.catchUp(f)
	for _, o := range in.primary.PendingSourceOrder() {
		if f.deafTo[o.Session] && !f.joining {
			in.sendMessage(f, o.Message())
		}
	}
	f.out.Detached = append(f.out.Detached, confirmed...)
	signal(f.wake)
}

// mayLeave says whether a reply may be sent (R11). At Stable, a member that can't hear the session can't acknowledge to its source either (R1b): so the reply waits until all members have acknowledged here, and says so by
// its stable point. So does what a read-only method has seen at Stable, which nobody acknowledges to its source. Called with mu held, while leading.
func (in *incarnation) mayLeave(s orderstate.Session, k orderstate.OrderNum, stable, reads bool) bool {
	if !in.primary.MayLeave(s, k) {
		return false
	}
	return !stable || in.primary.Stable() >= k || !reads && len(in.primary.DetachedAt(s)) == 0
}

// sendToDeaf sends a message that has just been ordered to the backups that can't hear its session; its order follows as a null message. Called with mu held.
func (in *incarnation) sendToDeaf(id orderstate.MessageID) {
	for _, r := range in.primary.DetachedAt(id.Session) {
		if f := in.followers[r]; f != nil {
			in.sendMessage(f, id)
		}
	}
}
