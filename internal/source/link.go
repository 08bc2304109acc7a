package source

import (
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// Unheard is how long a replica may take to acknowledge a frame, or the beginning of a stream;
// then it gets a new connection and a new stream, so that the replica learns that it can't be
// heard (R11). It acknowledges within 250 ms, and a stream at once.
const Unheard = time.Second

// enqueued tells the link that a frame was added.
func (l *Link) enqueued(urgent bool) {
	if l.up && !l.isPrimary() {
		l.sender.enqueued(urgent)
	}
}

// reflect makes the link send the frames that it hasn't sent yet, or all that are retained, then
// all of pendingRemoteOrder, then that the epoch is acknowledged (R12).
func (l *Link) reflect(all bool) {
	l.cursor.rewind(&l.session.frames, all)
	l.sender.answer = l.session.source.Epoch()
	l.sender.hurry()
}

// Wake has a value when there is something to send: call Take then.
func (l *Link) Wake() <-chan struct{} { return l.sender.wake }

// MayLinger says whether what is to be sent may wait for more.
func (l *Link) MayLinger() bool {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	return !l.sender.urgent && l.sender.queued < batch
}

// Take is FIG. 8's second loop for this stream: the messages to send next, none if there is nothing
// to say. Call it until then, and Sent each time when they have gone.
func (l *Link) Take() []*pb.AttachRequest {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	s, out := l.session, &l.sender
	if s == nil || !l.up {
		return nil
	}
	msgs, all := l.cursor.take(&s.frames, l.isPrimary())
	if all {
		out.queued, out.urgent = 0, false
	}
	answer := orderstate.Epoch(0)
	if l.cursor.isFlushed() {
		answer, out.answer = out.answer, 0
	}
	question, ended, hail := out.question, out.ended, out.hail
	out.question, out.ended, out.hail = nil, nil, false
	if len(msgs) == 0 && answer == 0 && question == nil && ended == nil && !hail {
		return nil
	}
	if len(msgs) == 0 {
		msgs = append(msgs, new(pb.AttachRequest))
	}
	msgs = l.cursor.takeRuns(s.source, msgs)
	last := msgs[len(msgs)-1]
	if answer != 0 {
		last.ToldEpoch = uint64(s.told)
	}
	last.AcknowledgedEpoch, last.WaitingFor, last.Ended, last.Hail = uint64(answer), question, ended, hail
	return msgs
}

// Sent says that what was taken has gone. The acknowledgement of its frames is waited for: a
// network that drops what is sent says nothing, and ends nothing.
func (l *Link) Sent() {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	l.expect()
}

// Moved says that another part of a large frame has gone, so that the frame, or one before it, may
// take longer to be acknowledged.
func (l *Link) Moved() {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	if l.cursor.awaits {
		l.cursor.patience.Reset(Unheard)
	}
}

func (l *Link) expect() {
	c := &l.cursor
	switch {
	case c.awaits || c.sent <= c.held || l.restart == nil:
		return
	case c.patience == nil:
		c.patience = time.AfterFunc(Unheard, l.unacknowledged)
	default:
		c.patience.Reset(Unheard)
	}
	c.awaits = true
}

// acknowledged notes that the replica holds the frames up to one.
func (l *Link) acknowledged(upTo uint64) {
	if upTo <= l.cursor.held {
		return
	}
	l.cursor.held = upTo
	l.cursor.calm()
	l.expect()
}

// Leaves says whether the sender is to end the stream in order.
func (l *Link) Leaves() bool {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	return l.gone != nil
}

// Goodbye tells the primary that the session is over, so that no takeover waits for it: an orderly
// close of the stream, which the primary answers with its own. The channel is closed when it has;
// it is nil if there is nobody to tell, or calls are in flight: that session isn't over, and its
// end is left to the primary's time-out.
func (src *Source) Goodbye() <-chan struct{} {
	src.mu.Lock()
	defer src.mu.Unlock()
	l := src.toPrimary()
	if l == nil || l.session != src.session || src.session.unlessDone() != nil {
		return nil
	}
	l.gone = make(chan struct{})
	l.sender.hurry()
	return l.gone
}

// Renew asks for a new connection to the replica: the present one says nothing.
func (l *Link) Renew() {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	l.renew()
}

// unacknowledged also begins the stream anew on the present connection, which may be dead in one
// direction only.
func (l *Link) unacknowledged() {
	l.source.mu.Lock()
	defer l.source.mu.Unlock()
	if !l.cursor.awaits { // it came meanwhile
		return
	}
	l.renew()
	if l.restart != nil {
		l.restart()
	}
}

func (l *Link) renew() {
	l.source.log.Info("nothing is heard on a connection", "replica", l.Name, "addr", l.Addr)
	l.connected++
	l.source.lookAgain()
}

// lookAgain lets who drives the links drop replicas that are gone from the list, now that a stream
// has ended, or make a connection anew.
func (src *Source) lookAgain() {
	select {
	case src.stale <- struct{}{}:
	default:
	}
}
