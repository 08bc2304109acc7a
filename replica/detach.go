package replica

import (
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has detaching (R11): a backup tells the primary which sessions it hears, on streams of
// their own; a takeover of that backup waits for these, and replies to all others wait for that
// backup.

// isHeard says whether a source has acknowledged the epoch on its stream, before which it has sent
// all that it holds (R12.1), and is trusted to send the rest. Called with mu held, while following.
func (in *incarnation) isHeard(a *attachment) bool {
	if a == nil || a.acknowledged < in.backup.Epoch() {
		return false
	}
	s := in.suspects[a.session]
	return s == nil || s.until == 0
}

// tellAll begins anew with the primary, on a new stream: there no session is attached but those
// that are told from now on. Called with mu held.
func (in *incarnation) tellAll() {
	if in.backup == nil {
		return
	}
	in.tellHeard()
	for _, s := range in.backup.Attached() {
		if !in.isHeard(in.bySession[s]) {
			in.cantHear(s)
		}
	}
}

// tellHeard tells all that are heard: on a new stream, and when the epoch has started. Called with
// mu held, while following.
func (in *incarnation) tellHeard() {
	for _, a := range in.bySession {
		in.canHear(a)
	}
}

// canHear: a source has sent something, or this backup's epoch has started. Called with mu held,
// while following.
func (in *incarnation) canHear(a *attachment) {
	if in.isHeard(a) && in.backup.Attach(a.session) {
		in.upstream.attached(a.session)
	}
}

// cantHear: the session's stream has ended. Called with mu held, while following.
func (in *incarnation) cantHear(s orderstate.Session) {
	if number, ok := in.backup.Detach(s); ok {
		in.upstream.detached(s, number)
	}
}

// confirmed takes the primary's confirmations. Called with mu held.
func (in *incarnation) confirmed(detached []*pb.Detached) {
	for _, d := range detached {
		in.backup.Confirmed(orderstate.Session(d.GetSession()), d.GetNumber(), orderstate.OrderNum(d.GetUpTo()))
	}
}

// errUnheard ends a stream that carries nothing, while the session's messages are ordered: nothing
// tells this backup that a network drops what the source sends.
var errUnheard = status.Error(codes.Unavailable,
	"understudy: nothing comes on the stream, and the session's messages are ordered")

// suspect is a session whose messages had to be fetched, though its source has a stream here. Each
// fetch holds up what is ordered after the message, whoever it is of, and a crash of the primary
// meanwhile would lose that. So who makes this backup fetch again and again is as good as detached
// for a while: the primary sends its messages with the order, and only its own replies wait.
type suspect struct {
	// grows with each time that something was fetched, and goes back with each message that is
	// ordered
	score   int
	until   time.Duration // as good as detached until then; 0: no
	penalty time.Duration // for how long, the last time
}

const (
	suspectStep  = 16
	suspectLimit = 5 * suspectStep / 2 // the third time, unless much was ordered between
	suspectFirst = time.Second
	suspectMost  = time.Minute
)

// missed notes that messages have to be fetched whose sources have streams here; before has those
// of the look before. Called with mu held, while following.
func (in *incarnation) missed(ids []orderstate.MessageID, before map[orderstate.MessageID]bool) {
	now := in.r.clock()
	counted := map[orderstate.Session]bool{}
	for _, id := range ids {
		a := in.bySession[id.Session]
		if a == nil {
			continue
		}
		if a.missed == 0 {
			a.missed = now
		}
		if before[id] || counted[id.Session] || !in.isHeard(a) {
			continue
		}
		counted[id.Session] = true
		s := in.suspects[id.Session]
		if s == nil {
			s = new(suspect)
			in.suspects[id.Session] = s
		}
		if s.score += suspectStep; s.score >= suspectLimit {
			s.penalty = min(max(suspectFirst, 2*s.penalty), suspectMost)
			s.score, s.until = 0, now+s.penalty
			in.cantHear(id.Session)
		}
	}
}

// forgive tries again with those whose time is over. Called with mu held, while following.
func (in *incarnation) forgive() {
	now := in.r.clock()
	for n, s := range in.suspects {
		if s.until != 0 && now >= s.until {
			s.until = 0
			in.canHear(in.bySession[n])
		}
	}
}

// cutUnheard ends the streams on which nothing has come for too long. Called with mu held, while
// following.
func (in *incarnation) cutUnheard() {
	now := in.r.clock()
	for _, a := range in.bySession {
		if a.missed != 0 && now-a.missed > silence {
			a.out.cut(errUnheard)
		}
	}
}

// heardBy is the primary's side: whom a follower hears, and whom it doesn't any more. All that may
// have been sent to a session goes to the follower before the confirmation. Called with mu held.
func (in *incarnation) heardBy(f *follower, req *pb.FollowRequest) {
	var moved orderstate.Moved
	for _, s := range req.GetAttach() {
		moved = moved.With(in.primary.Attach(f.peer.id, orderstate.Session(s)))
	}
	if moved.Leave {
		in.progressed()
	}
	var sessions []orderstate.Session
	var confirmed []*pb.Detached
	for _, d := range req.GetDetach() {
		s := orderstate.Session(d.GetSession())
		if upTo, ok := in.primary.Detach(f.peer.id, s); ok { // else the session has ended meanwhile
			in.rarely(slog.LevelInfo, "a backup can't hear a session", "backup", f.peer.member.String(), "session",
				d.GetSession())
			sessions = append(sessions, s)
			confirmed = append(confirmed,
				&pb.Detached{Session: d.GetSession(), Number: d.GetNumber(), UpTo: uint64(upTo)})
		}
	}
	if len(confirmed) == 0 {
		return
	}
	in.catchUp(f)
	in.sendMessages(f, func(s orderstate.Session) bool { return slices.Contains(sessions, s) })
	out := f.out.say()
	out.Detached = append(out.Detached, confirmed...)
}

// hearsAll says whether a follower hears every session that has a stream here. Called with mu held,
// while leading.
func (in *incarnation) hearsAll(f *follower) bool {
	for s := range in.bySession {
		if !in.primary.Hears(f.peer.id, s) {
			return false
		}
	}
	return true
}

// mayLeave says whether a reply may be sent (R11). At Stable, a member that can't hear the session
// can't acknowledge to its source either (R1b): so the reply waits until all members have
// acknowledged here, and says so by its stable point. So does what a read-only method has seen at
// Stable, which nobody acknowledges to its source. Called with mu held, while leading.
func (in *incarnation) mayLeave(s orderstate.Session, k orderstate.OrderNum, stable, reads bool) bool {
	if !in.primary.MayLeave(s, k) {
		return false
	}
	return !stable || in.primary.Stable() >= k || !reads && in.primary.Attached(s)
}

// sendToDeaf sends a message that has just been ordered to the backups that don't hear its session;
// its order follows as a null message. A joiner has its messages with that. Called with mu held.
func (in *incarnation) sendToDeaf(id orderstate.MessageID) {
	for _, r := range in.primary.DetachedAt(id.Session) {
		if p := in.roster[r]; p != nil && p.stream != nil && !p.stream.joins() {
			in.sendMessage(p.stream, id)
		}
	}
}
