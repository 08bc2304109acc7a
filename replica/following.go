package replica

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// following is a backup: FIG. 10. It tells the primary which sessions it hears, on streams of their
// own; a takeover of this backup waits for these, and replies to all others wait for it (R11).
type following struct {
	m        *member
	backup   *orderstate.Backup
	start    *pb.EpochStart // of the acknowledged epoch, once known
	inSync   bool
	lacking  chan struct{} // capacity 1: messages are ordered and not held
	suspects map[orderstate.Session]*suspect
	gave     uint64 // bytes of the last snapshot that it gave; 0 once the primary was told
}

func (*following) public() Role                   { return Following }
func (f *following) epoch() orderstate.Epoch      { return f.backup.Epoch() }
func (f *following) history() *orderstate.History { return f.backup.History() }
func (f *following) stable() orderstate.OrderNum  { return f.backup.Stable() }
func (f *following) wasInSync() bool              { return f.inSync }
func (*following) others() others                 { return nil }
func (f *following) logs() *following             { return f }

func newFollowing(m *member, b *orderstate.Backup, start *pb.EpochStart) *following {
	return &following{
		m: m, backup: b, start: start, lacking: make(chan struct{}, 1),
		suspects: map[orderstate.Session]*suspect{},
	}
}

// isHeard says whether a source has acknowledged the epoch on its stream, before which it has sent
// all that it holds (R12.1), and is trusted to send the rest.
func (f *following) isHeard(a *attachment) bool {
	if a == nil || a.acknowledged < f.backup.Epoch() {
		return false
	}
	s := f.suspects[a.session]
	return s == nil || s.until == 0
}

// tellAll begins anew with the primary, on a new stream: there no session is attached but those
// that are told from now on.
func (f *following) tellAll() {
	f.tellHeard()
	for _, s := range f.backup.Attached() {
		if !f.isHeard(f.m.sources.bySession[s]) {
			f.cantHear(s)
		}
	}
}

// tellHeard tells all that are heard: on a new stream, and when the epoch has started.
func (f *following) tellHeard() {
	for _, a := range f.m.sources.bySession {
		f.canHear(a)
	}
}

// canHear: a source has sent something, or this backup's epoch has started.
func (f *following) canHear(a *attachment) {
	if f.isHeard(a) && f.backup.Attach(a.session) {
		f.m.upstream.attached(a.session)
	}
}

// cantHear: the session's stream has ended.
func (f *following) cantHear(s orderstate.Session) {
	if number, ok := f.backup.Detach(s); ok {
		f.m.upstream.detached(s, number)
	}
}

// confirmed takes the primary's confirmations.
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
// of the look before.
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

// forgive tries again with those whose time is over.
func (f *following) forgive() {
	now := f.m.r.clock()
	for n, s := range f.suspects {
		if s.until != 0 && now >= s.until {
			s.until = 0
			f.canHear(f.m.sources.bySession[n])
		}
	}
}

// cutUnheard ends the streams on which nothing has come for too long.
func (f *following) cutUnheard() {
	now := f.m.r.clock()
	for _, a := range f.m.sources.bySession {
		if a.missed != 0 && now-a.missed > silence {
			a.out.cut(errUnheard)
		}
	}
}

// grows acknowledges what the order has grown by, and fetches what it lacks.
func (f *following) grows(what orderstate.Moved) {
	if what.Lacks {
		signal(f.lacking)
	}
	if what.Grown > 0 {
		f.m.upstream.grows(f.backup)
	}
	for _, o := range f.backup.History().Newest(what.Grown) {
		if o.Kind == orderstate.Open {
			m, _ := f.backup.History().Has(o.Message())
			f.m.sources.opened(m.Nonce)
			f.m.upstream.isDue()
			continue
		}
		if len(f.suspects) > 0 {
			if s := f.suspects[o.Session]; s != nil && s.score > 0 {
				s.score--
			}
		}
		if a := f.m.sources.bySession[o.Session]; a != nil && f.backup.Started() &&
			(a.stable || f.m.r.config.level == understudy.Stable) {
			a.acknowledge(f.backup)
		}
	}
}

// says is what a backup says now.
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

// followed takes one message of the primary. It takes mu.
func (f *following) followed(u *upstream, resp *pb.FollowResponse) error {
	announced, err := wire.RunsFromProto(resp.GetSourceOrderInfo())
	if err != nil {
		return err
	}
	runs := f.m.open(announced)
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	u.isHeard(f.m.r.clock())
	var what moved
	defer func() { f.m.after(what) }() // what has moved has, whatever is wrong with the rest
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
	what.kept = true
	return nil
}

// receive is FIG. 10 for announcements that were checked.
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

// logMessage logs a message that a peer has sent, once the last part of it has come.
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

// late says whether a message that is lacked since then must be fetched: its source's stream has
// brought nothing for as long, or later messages, or is too slow. Large messages are long on their
// way, and to fetch them would make that longer.
func (f *following) late(id orderstate.MessageID, since, now time.Duration) bool {
	if now-since < fetchAfter {
		return false
	}
	a := f.m.sources.bySession[id.Session]
	return a == nil || a.dropped || a.frames >= id.SeqNum || now-a.heard >= fetchAfter || now-since >= fetchAnyway
}

// runsOf makes runs of entries: of one epoch each, without gaps.
func (f *following) runsOf(known []orderstate.Ordered) ([]*pb.Run, error) {
	var runs []*pb.Run
	for len(known) > 0 {
		first := known[0]
		start, ok := f.backup.History().StartOf(first.Epoch)
		if !ok {
			return nil, fmt.Errorf("replica: no start is known of epoch %d", first.Epoch)
		}
		r := orderstate.Run{Envelope: orderstate.Envelope{Epoch: first.Epoch, EpochFirst: start, First: first.OrderNum}}
		for r.Count < len(known) && r.Count < wire.MaxRun && known[r.Count].Epoch == first.Epoch &&
			known[r.Count].OrderNum == first.OrderNum+orderstate.OrderNum(r.Count) {
			r.Entries = append(r.Entries, known[r.Count].OrderInfo)
			r.Count++
		}
		known = known[r.Count:]
		runs = append(runs, wire.RunToProto(f.m.seal.Close(r), false))
	}
	return runs, nil
}
