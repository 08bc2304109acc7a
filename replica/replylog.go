package replica

import (
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/orderstate"
)

// reply is what a turn has said: one entry of the reply log.
type reply struct {
	orderNum        orderstate.OrderNum
	payload         []byte      // the reply's bytes, when st is nil
	st              *spb.Status // why not
	header, trailer metadata.MD
}

func (r *reply) err() error {
	if r.st == nil {
		return nil
	}
	return status.FromProto(r.st).Err()
}

// replyLog holds what executed turns have said, until their session's source has it, and what each session is as of the last executed turn. It isn't safe for concurrent use.
type replyLog struct {
	sessions map[orderstate.Session]*repliesOf
	waiting  map[orderstate.MessageID]chan struct{}
}

type repliesOf struct {
	nonce    orderstate.Nonce
	token    uint64 // what its requests carry; 0 until incarnation.token is asked for it
	answered orderstate.SeqNum
	replies  map[orderstate.SeqNum]*reply
}

func newReplyLog() *replyLog {
	return &replyLog{sessions: map[orderstate.Session]*repliesOf{}, waiting: map[orderstate.MessageID]chan struct{}{}}
}

func (l *replyLog) open(s orderstate.Session, n orderstate.Nonce) {
	l.sessions[s] = &repliesOf{nonce: n, replies: map[orderstate.SeqNum]*reply{}}
}

func (l *replyLog) expire(s orderstate.Session) { delete(l.sessions, s) }

// put logs a reply, and forgets those that its message's mark says are answered. Who waits for it is woken.
func (l *replyLog) put(id orderstate.MessageID, answeredUpTo orderstate.SeqNum, r *reply) {
	if s := l.sessions[id.Session]; s != nil {
		s.replies[id.SeqNum] = r
		if answeredUpTo > s.answered {
			for q := range s.replies {
				if q <= answeredUpTo {
					delete(s.replies, q)
				}
			}
			s.answered = answeredUpTo
		}
	}
	if w, ok := l.waiting[id]; ok {
		close(w)
		delete(l.waiting, id)
	}
}

// get returns a reply, or a channel that is closed when it is there.
func (l *replyLog) get(id orderstate.MessageID) (*reply, <-chan struct{}) {
	if s := l.sessions[id.Session]; s != nil {
		if r, ok := s.replies[id.SeqNum]; ok {
			return r, nil
		}
	}
	w, ok := l.waiting[id]
	if !ok {
		w = make(chan struct{})
		l.waiting[id] = w
	}
	return nil, w
}

// wake lets everyone who waits look again.
func (l *replyLog) wake() {
	for id, w := range l.waiting {
		close(w)
		delete(l.waiting, id)
	}
}
