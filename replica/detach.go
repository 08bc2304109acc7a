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
func (f *following) isHeard(a *attachment) bool {
	if a == nil || a.acknowledged < f.backup.Epoch() {
		return false
	}
	s := f.suspects[a.session]
	return s == nil || s.until == 0
}

// tellAll begins anew with the primary, on a new stream: there no session is attached but those
// that are told from now on. Called with mu held.
func (f *following) tellAll() {
	f.tellHeard()
	for _, s := range f.backup.Attached() {
		if !f.isHeard(f.m.sources.bySession[s]) {
			f.cantHear(s)
		}
	}
}

// tellHeard tells all that are heard: on a new stream, and when the epoch has started. Called with
// mu held, while following.
func (f *following) tellHeard() {
	for _, a := range f.m.sources.bySession {
		f.canHear(a)
	}
}

// canHear: a source has sent something, or this backup's epoch has started. Called with mu held,
// while following.
func (f *following) canHear(a *attachment) {
	if f.isHeard(a) && f.backup.Attach(a.session) {
		f.m.upstream.attached(a.session)
	}
}

// cantHear: the session's stream has ended. Called with mu held, while following.
func (f *following) cantHear(s orderstate.Session) {
	if number, ok := f.backup.Detach(s); ok {
		f.m.upstream.detached(s, number)
	}
}

// confirmed takes the primary's confirmations. Called with mu held.
func (f *following) confirmed(detached []*pb.Detached) {
	for _, d := range detached {
		f.backup.Confirmed(orderstate.Session(d.GetSession()), d.GetNumber(), orderstate.OrderNum(d.GetUpTo()))
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
func (f *following) missed(ids []orderstate.MessageID, before map[orderstate.MessageID]bool) {
	now := f.m.r.clock()
	counted := map[orderstate.Session]bool{}
	for _, id := range ids {
		a := f.m.sources.bySession[id.Session]
		if a == nil {
			continue
		}
		if a.missed == 0 {
			a.missed = now
		}
		if before[id] || counted[id.Session] || !f.isHeard(a) {
			continue
		}
		counted[id.Session] = true
		s := f.suspects[id.Session]
		if s == nil {
			s = new(suspect)
			f.suspects[id.Session] = s
		}
		if s.score += suspectStep; s.score >= suspectLimit {
			s.penalty = min(max(suspectFirst, 2*s.penalty), suspectMost)
			s.score, s.until = 0, now+s.penalty
			f.cantHear(id.Session)
		}
	}
}

// forgive tries again with those whose time is over. Called with mu held, while following.
func (f *following) forgive() {
	now := f.m.r.clock()
	for n, s := range f.suspects {
		if s.until != 0 && now >= s.until {
			s.until = 0
			f.canHear(f.m.sources.bySession[n])
		}
	}
}

// cutUnheard ends the streams on which nothing has come for too long. Called with mu held, while
// following.
func (f *following) cutUnheard() {
	now := f.m.r.clock()
	for _, a := range f.m.sources.bySession {
		if a.missed != 0 && now-a.missed > silence {
			a.out.cut(errUnheard)
		}
	}
}

// heardBy is the primary's side: whom a follower hears, and whom it doesn't any more. All that may
// have been sent to a session goes to the follower before the confirmation. Called with mu held.
func (rs *roster) heardBy(f *follower, req *pb.FollowRequest) {
	var what orderstate.Moved
	for _, s := range req.GetAttach() {
		what = what.With(rs.l.primary.Attach(f.peer.id, orderstate.Session(s)))
	}
	rs.m.after(moved{Moved: what})
	var sessions []orderstate.Session
	var confirmed []*pb.Detached
	for _, d := range req.GetDetach() {
		s := orderstate.Session(d.GetSession())
		if upTo, ok := rs.l.primary.Detach(f.peer.id, s); ok { // else the session has ended meanwhile
			rs.m.rarely(slog.LevelInfo, "a backup can't hear a session", "backup", f.peer.member.String(), "session",
				d.GetSession())
			sessions = append(sessions, s)
			confirmed = append(confirmed,
				&pb.Detached{Session: d.GetSession(), Number: d.GetNumber(), UpTo: uint64(upTo)})
		}
	}
	if len(confirmed) == 0 {
		return
	}
	rs.catchUp(f)
	rs.sendMessages(f, func(s orderstate.Session) bool { return slices.Contains(sessions, s) })
	out := f.out.say()
	out.Detached = append(out.Detached, confirmed...)
}

// hearsAll says whether a follower hears every session that has a stream here. Called with mu held,
// while leading.
func (rs *roster) hearsAll(f *follower) bool {
	for s := range rs.m.sources.bySession {
		if !rs.l.primary.Hears(f.peer.id, s) {
			return false
		}
	}
	return true
}

// mayLeave says whether a reply may be sent (R11). At Stable, a member that can't hear the session
// can't acknowledge to its source either (R1b): so the reply waits until all members have
// acknowledged here, and says so by its stable point. So does what a read-only method has seen at
// Stable, which nobody acknowledges to its source. Called with mu held, while leading.
func (l *leading) mayLeave(s orderstate.Session, k orderstate.OrderNum, stable, reads bool) bool {
	if !l.primary.MayLeave(s, k) {
		return false
	}
	return !stable || l.primary.Stable() >= k || !reads && l.primary.Attached(s)
}

// sendToDeaf sends a message that has just been ordered to the backups that don't hear its session;
// its order follows as a null message. A joiner has its messages with that. Called with mu held.
func (rs *roster) sendToDeaf(id orderstate.MessageID) {
	for _, deaf := range rs.l.primary.DetachedAt(id.Session) {
		if p := rs.peers[deaf]; p != nil && p.stream != nil && !p.stream.joins() {
			rs.sendMessage(p.stream, id)
		}
	}
}
