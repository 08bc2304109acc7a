package replica

import (
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
)

// reply is what a turn has said: one entry of the reply log.
type reply struct {
	orderNum        orderstate.OrderNum
	payload         []byte      // the reply's bytes, when st is nil
	st              *spb.Status // why not
	header, trailer metadata.MD
	ended           bool // its source has said that it won't ask for it again: nothing but its place is here
	size            int  // as it counts in the reply log
}

// replyOverhead is what a logged reply counts besides its own bytes.
const replyOverhead = 128

// bytes is what a reply counts.
func (r *reply) bytes() int {
	n := replyOverhead + len(r.payload)
	if r.st != nil {
		n += proto.Size(r.st)
	}
	for _, md := range [...]metadata.MD{r.header, r.trailer} {
		for k, vs := range md {
			n += len(k)
			for _, v := range vs {
				n += len(v)
			}
		}
	}
	return n
}

func (r *reply) err() error {
	if r.st == nil {
		return nil
	}
	return status.FromProto(r.st).Err()
}

// replyLog holds what executed turns have said, until their session's source has it, and what each
// session is as of the last executed turn. It isn't safe for concurrent use.
type replyLog struct {
	sessions map[orderstate.Session]*repliesOf
	waiting  map[orderstate.MessageID]chan struct{}
	bytes    int // of all replies
}

type repliesOf struct {
	nonce    orderstate.Nonce
	token    uint64 // what its requests carry; 0 until incarnation.token is asked for it
	answered orderstate.SeqNum
	replies  map[orderstate.SeqNum]*reply
	bytes    int           // of them
	freed    chan struct{} // closed when there are fewer; nil while nobody waits for that
	done     done
	rpcs     rpcs // of those that wait here
}

// done is which calls of a session its source has said to be done with.
type done struct {
	upTo  orderstate.SeqNum
	from  orderstate.SeqNum // above says of from+1, from+2, …
	above []byte
}

func (e *done) has(q orderstate.SeqNum) bool {
	if q <= e.upTo {
		return true
	}
	i := q - e.from - 1
	return q > e.from && i/8 < orderstate.SeqNum(len(e.above)) && e.above[i/8]>>(i%8)&1 != 0
}

func newReplyLog() *replyLog {
	return &replyLog{sessions: map[orderstate.Session]*repliesOf{}, waiting: map[orderstate.MessageID]chan struct{}{}}
}

func (l *replyLog) open(s orderstate.Session, n orderstate.Nonce) {
	l.sessions[s] = &repliesOf{nonce: n, replies: map[orderstate.SeqNum]*reply{}}
}

func (l *replyLog) expire(n orderstate.Session) {
	if s := l.sessions[n]; s != nil {
		l.bytes -= s.bytes
		s.free()
		delete(l.sessions, n)
	}
}

// keep logs a session's reply, or nothing but its place.
func (l *replyLog) keep(s *repliesOf, q orderstate.SeqNum, r *reply) {
	l.forget(s, q)
	if s.done.has(q) && !r.ended {
		r = &reply{orderNum: r.orderNum, ended: true}
	}
	r.size = r.bytes()
	s.replies[q] = r
	s.bytes += r.size
	l.bytes += r.size
}

func (l *replyLog) forget(s *repliesOf, q orderstate.SeqNum) {
	if r := s.replies[q]; r != nil {
		s.bytes -= r.size
		l.bytes -= r.size
		delete(s.replies, q)
	}
}

// declared: a source has said which of its calls have ended. Their replies are dropped at once.
// What is ordered, and what becomes of a message, doesn't depend on that: whoever asks for such a
// reply all the same is told that it was answered.
func (l *replyLog) declared(n orderstate.Session, upTo orderstate.SeqNum, above []byte) {
	s := l.sessions[n]
	if s == nil || upTo < s.done.upTo {
		return
	}
	s.done.upTo = upTo
	if above != nil {
		s.done.from, s.done.above = upTo, above
	}
	for q, r := range s.replies {
		if !r.ended && s.done.has(q) {
			l.keep(s, q, r)
		}
	}
	s.free()
}

// beyond says whether a session's replies are more than its share of what all may have, and how
// many bytes they are.
func (l *replyLog) beyond(n orderstate.Session) (bytes int, beyond bool) {
	s := l.sessions[n]
	if s == nil || s.bytes == 0 {
		return 0, false
	}
	return s.bytes, s.bytes > min(maxReplyBytes/16, (maxReplyBytes-l.bytes)/8)
}

// freed returns a channel that is closed when a session has fewer replies, or none any more.
func (l *replyLog) freed(n orderstate.Session) <-chan struct{} {
	s := l.sessions[n]
	if s.freed == nil {
		s.freed = make(chan struct{})
	}
	return s.freed
}

func (s *repliesOf) free() {
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// put logs a reply, and forgets those that its message's mark says are answered. Who waits for it
// is woken.
func (l *replyLog) put(id orderstate.MessageID, answeredUpTo orderstate.SeqNum, r *reply) {
	if s := l.sessions[id.Session]; s != nil {
		l.keep(s, id.SeqNum, r)
		if answeredUpTo > s.answered {
			l.answer(s, answeredUpTo)
			s.free()
		}
	}
	if w, ok := l.waiting[id]; ok {
		close(w)
		delete(l.waiting, id)
	}
}

// answer forgets the replies up to a mark, in no more steps than these are numbers, or replies.
func (l *replyLog) answer(s *repliesOf, upTo orderstate.SeqNum) {
	if upTo-s.answered > orderstate.SeqNum(len(s.replies)) {
		for q := range s.replies {
			if q <= upTo {
				l.forget(s, q)
			}
		}
		s.answered = upTo
	}
	for s.answered < upTo {
		s.answered++
		l.forget(s, s.answered)
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
	for _, s := range l.sessions {
		s.free()
	}
	for id, w := range l.waiting {
		close(w)
		delete(l.waiting, id)
	}
}
