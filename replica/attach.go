package replica

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// brought is what a message of the source has brought, checked.
type brought struct {
	messages []orderstate.Message // of the frames that are whole now
	stable   bool                 // a frame is at Stable
	runs     []orderstate.Run     // reflected
}

// check reads what must be right of a message of the source, whatever this member is.
func (e *common) check(req *pb.AttachRequest, assembler *wire.Assembler) (b brought, err error) {
	if req.GetHello() != nil {
		return b, errors.New("a second hello")
	}
	for _, chunk := range req.GetFrames() {
		f, err := assembler.Add(chunk)
		if err != nil {
			return b, err
		}
		if f == nil {
			continue
		}
		if f.GetGroup() != e.group {
			return b, fmt.Errorf("a frame for group %x, this is a replica of group %x", f.GetGroup(), e.group)
		}
		id, answeredUpTo := wire.FrameMessage(f)
		b.stable = b.stable || f.GetLevel() == pb.Level_LEVEL_STABLE
		b.messages = append(b.messages, orderstate.Message{
			MessageID: id, AnsweredUpTo: answeredUpTo,
			Digest: e.seal.Digest(id, answeredUpTo, f.GetMethod(), f.GetMessage()),
			Body:   &machine.Body{Method: f.GetMethod(), Payload: f.GetMessage()},
			Size:   len(f.GetMessage()) + len(f.GetMethod()),
		})
	}
	announced, err := wire.RunsFromProto(req.GetDestOrderInfo())
	if err != nil {
		return b, err
	}
	if n := len(req.GetEnded().GetAbove()); n > maxOutstanding/8 {
		return b, fmt.Errorf("%d bytes say which calls have ended, at most %d may", n, maxOutstanding/8)
	}
	b.runs = e.open(announced)
	// no good source has one: it reflects what replicas have sealed
	if forged := len(announced) - len(b.runs); forged > 0 {
		return b, fmt.Errorf(
			"%d announcements whose seals don't fit: the source has changed them, or they are another group's", forged,
		)
	}
	return b, nil
}

// take processes one message of the source: frames to the log, announcements to FIG. 10. It takes
// mu.
func (a *attachment) take(req *pb.AttachRequest, assembler *wire.Assembler) error {
	m := a.m
	b, err := m.check(req, assembler)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.gone {
		return errors.New("the stream has ended") // what gRPC had received before must leave nothing behind
	}
	if !a.bound {
		return errors.New("a source must wait for its welcome")
	}
	a.stable = a.stable || b.stable
	if a.brings(b.messages, assembler) { // nothing else says that a message is on its way
		a.heard, a.missed = m.r.clock(), 0
	}
	a.keeps(assembler)
	for _, msg := range b.messages {
		if msg.Session != a.session {
			return fmt.Errorf("a frame of session %d on the stream of session %d", msg.Session, a.session)
		}
		a.dropped = !a.logFrame(msg) || a.dropped
		if !a.dropped {
			a.frames = max(a.frames, msg.SeqNum)
		}
	}
	if a.frames-a.framesTold >= lazyFrames {
		signal(a.out.wake)
	}
	if err := m.sources.reflected(a, b.runs); err != nil {
		return err
	}
	a.says(req)
	return nil
}

// says takes what the source says of itself: what it waits for, which of its calls have ended, and
// which epochs it knows.
func (a *attachment) says(req *pb.AttachRequest) {
	if w := req.GetWaitingFor(); w != nil {
		a.waits(w)
	}
	if e := req.GetEnded(); e != nil {
		if a.ended = e; a.m.r.clock()-a.endedAt >= endedEvery {
			a.declares()
		}
	}
	a.told = max(a.told, orderstate.Epoch(req.GetToldEpoch()))
	if req.GetHail() {
		a.out.say().Hailed = true
	}
	e := orderstate.Epoch(req.GetAcknowledgedEpoch())
	if e <= a.acknowledged {
		return
	}
	a.acknowledged = e
	switch role := a.m.role.(type) {
	case *takingOver:
		if e == role.epoch() {
			role.answered(a.session)
		}
	case *following:
		role.canHear(a)
	}
}

// brings says whether the stream gets on: a source sends frames in the order of their seqNums. What
// comes again may come for ever.
func (a *attachment) brings(messages []orderstate.Message, frames *wire.Assembler) bool {
	news := len(messages) == 0 && frames.Begun() > a.newest
	for _, m := range messages {
		if m.SeqNum > a.newest {
			a.newest, news = m.SeqNum, true
		}
	}
	return news
}

// reflected takes announcements that a source reflects: FIG. 9 at the primary, FIG. 10 at a backup,
// R12 in a takeover.
func (ss *sources) reflected(a *attachment, runs []orderstate.Run) error {
	if len(runs) == 0 {
		return nil
	}
	switch role := ss.m.role.(type) {
	case *leading:
		for _, r := range runs {
			role.primary.Receive(a.session, 0, []orderstate.Envelope{r.Envelope})
		}
	case *takingOver:
		for _, r := range runs {
			if r.Epoch >= role.epoch() {
				continue
			}
			if err := role.state.SessionKnows([]orderstate.Run{r}); err != nil {
				return err
			}
		}
	case *following:
		received, err := role.receive(runs)
		if err != nil {
			return err
		}
		ss.m.after(moved{Moved: received})
	}
	return nil
}

// newEpoch tells the source who was elected (R12.1).
func (a *attachment) newEpoch() {
	if !a.bound {
		return // its welcome says it
	}
	m := a.m
	a.out.say().NewEpoch = newEpochToProto(m.epoch(), m.self, m.fence)
}

// lead tells the source where the epoch of this primary starts, and its required set (R12.4).
func (a *attachment) lead(start *pb.EpochStart, set *pb.RequiredSet) {
	if !a.bound {
		return // its welcome says all that
	}
	out := a.out.say()
	out.EpochStart, out.RequiredSet = a.starts(start), set
}

// sourceRun bounds the entries of a run on a source's stream, so that no message on it is larger
// than least.
var sourceRun = wire.FewestEntries(wire.ChunkSize)

// announce sends the source a run of this primary's, but for what its stream has carried already
// (R5). The source holds what is below the run, or it is stable, or announced.
func (a *attachment) announce(r orderstate.Run) {
	if a.announced >= r.First {
		_, r = split(r, int(min(a.announced, r.Last())-r.First+1))
	}
	for r.Count > 0 {
		var run orderstate.Run
		run, r = split(r, min(r.Count, sourceRun))
		a.announced = run.Last()
		a.addRun(a.m.seal.Close(run))
	}
}

// addRun queues one announcement.
func (a *attachment) addRun(run orderstate.Announcement) {
	size := len(run.Sealed)
	if !fits(maxQueueBytes, a.m.sources.queued, a.out.size, size) {
		a.out.cut(status.Errorf(codes.ResourceExhausted,
			"understudy: %d bytes are queued for the source, which doesn't read, and %d for all; a sixteenth of %d "+
				"is its share", a.out.size, a.m.sources.queued, maxQueueBytes))
		return
	}
	out := a.out.say()
	out.SourceOrderInfo = append(out.SourceOrderInfo, wire.RunToProto(run, false))
	a.out.size += size
	a.m.sources.queued += size
}

// waits answers a source that waits under R1: a null message with what it lacks (R4). One that
// waits for room hears what is stable, and again when that has moved.
func (a *attachment) waits(w *pb.WaitingFor) {
	l := a.m.ordering()
	if l == nil || orderstate.Epoch(w.GetEpoch()) != l.primary.Epoch() {
		return
	}
	p := l.primary
	if w.GetStable() {
		if a.tellStable(p); p.Stable() < p.Last() {
			l.asking[a] = struct{}{} // the backups, whose logs are as full, acknowledge unasked
		}
		return
	}
	r := p.Multicast(a.session, orderstate.OrderNum(w.GetHeldUpTo()), p.Last(), nil)
	if r.Count > wire.MaxRun {
		r, _ = split(r, wire.MaxRun)
	}
	a.unqueue()               // what isn't sent is in what it lacks, or it holds it
	a.announced = r.First - 1 // what it lacks it is told again
	a.announce(r)
	a.out.say().RequiredSet = l.required()
	a.tellStable(p)
}

// declares drops the replies that the source has said not to need.
func (a *attachment) declares() {
	if a.ended != nil {
		a.m.machine.Declared(a.session, orderstate.SeqNum(a.ended.GetUpTo()), a.ended.GetAbove())
		a.ended, a.endedAt = nil, a.m.r.clock()
	}
}

// fewStarts are told to whoever asks: it takes more to find out who needs them.
const fewStarts = 16

// starts is where an epoch starts, without those before it that decide nothing for the source: it
// knows of them, or they start before its session was opened. Sources take no more than 1,024.
func (a *attachment) starts(s *pb.EpochStart) *pb.EpochStart {
	if len(s.GetEarlier()) <= fewStarts {
		return s
	}
	mine := &pb.EpochStart{Epoch: s.Epoch, FirstOrderNum: s.FirstOrderNum, Stable: s.Stable}
	for _, e := range s.Earlier {
		if orderstate.Epoch(e.GetEpoch()) > a.told && e.GetFirstOrderNum() > uint64(a.session) {
			mine.Earlier = append(mine.Earlier, e)
		}
	}
	return mine
}

// unqueue takes all announcements back that aren't sent.
func (a *attachment) unqueue() {
	a.m.sources.queued -= a.out.size
	a.out.size = 0
	if a.out.next != nil {
		a.out.next.SourceOrderInfo = nil
	}
}

// tellLazily acknowledges what frames the source has sent since it was last told; and tells it, if
// it makes no calls, what has become stable of its own, so that it can forget that.
func (a *attachment) tellLazily() {
	a.declares()
	if a.frames > a.framesTold {
		signal(a.out.wake)
	}
	if l := a.m.leading(); l != nil && a.stableTold < a.lastOrder && l.primary.Stable() >= a.lastOrder {
		a.tellStable(l.primary)
	}
}

// next takes what is to be sent next, nil if there is nothing: of the runs no more than a chunk, or
// one. It takes mu.
func (a *attachment) next() *pb.AttachResponse {
	a.m.mu.Lock()
	defer a.m.mu.Unlock()
	if !a.bound {
		return nil
	}
	if a.frames > a.framesTold {
		a.out.message().FramesUpTo = uint64(a.frames)
		a.framesTold = a.frames
	}
	out, queued := a.out.take()
	size := 0
	for i, r := range out.GetSourceOrderInfo() {
		if size += len(r.Sealed); size > wire.ChunkSize && i > 0 {
			size -= len(r.Sealed)
			a.out.say().SourceOrderInfo = out.SourceOrderInfo[i:]
			out.SourceOrderInfo = out.SourceOrderInfo[:i:i]
			break
		}
	}
	a.out.size = queued - size
	a.m.sources.queued -= size
	return out
}
