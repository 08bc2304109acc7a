package machine

import (
	"context"
	"sync"
	"sync/atomic"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/understudy-rpc/understudy/orderstate"
)

// MaxReplyBytes bounds the bytes of the replies that are kept at the primary: a session beyond its
// share of it waits.
const MaxReplyBytes = 256 << 20

// Reply is what a turn has said: one entry of the reply log. It is constant once it is logged.
type Reply struct {
	OrderNum        orderstate.OrderNum
	Payload         []byte // the reply's bytes, unless it is an error
	Header, Trailer metadata.MD
	Ended           bool // its source has said that it won't ask for it again: nothing but its place is here

	st   *spb.Status // the error
	size int         // as it counts in the reply log
}

// replyOverhead is what a logged reply counts besides its own bytes.
const replyOverhead = 128

// bytes is what a reply counts.
func (r *Reply) bytes() int {
	n := replyOverhead + len(r.Payload)
	if r.st != nil {
		n += proto.Size(r.st)
	}
	for _, md := range [...]metadata.MD{r.Header, r.Trailer} {
		for k, vs := range md {
			n += len(k)
			for _, v := range vs {
				n += len(v)
			}
		}
	}
	return n
}

// Err is the error that the turn has said; nil if it has said a reply.
func (r *Reply) Err() error {
	if r.st == nil {
		return nil
	}
	return status.FromProto(r.st).Err()
}

// replyLog holds what executed turns have said, until their session's source has it. Which sessions
// there are, and what is ordered of them, is orderstate's to know.
type replyLog struct {
	bytes atomic.Int64 // of all replies

	mu       sync.Mutex // guards what follows
	sessions map[orderstate.Session]*repliesOf
	waiting  map[orderstate.MessageID]chan struct{}
	closed   bool
}

// repliesOf is one session's.
type repliesOf struct {
	replies   map[orderstate.SeqNum]*Reply
	forgotten orderstate.SeqNum // up to here
	bytes     int               // of replies
	freed     chan struct{}     // closed when there are fewer; nil while nobody waits for that
	done      done
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

// do does the turns of some entries: what is said of a request is logged, and who waits for it is
// woken.
func (l *replyLog) do(turns []Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, t := range turns {
		if t.Kind == orderstate.Request {
			l.put(t.Message(), t.Logged.AnsweredUpTo, t.said)
		} else {
			l.owned(t.OrderInfo)
		}
	}
}

// own is do for one entry of the group's own.
func (l *replyLog) own(o orderstate.OrderInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owned(o)
}

func (l *replyLog) owned(o orderstate.OrderInfo) {
	switch o.Kind {
	case orderstate.Open:
		l.open(o.Session)
	case orderstate.Expire:
		l.expire(o.Session)
	}
}

// log is do for one request.
func (l *replyLog) log(id orderstate.MessageID, answeredUpTo orderstate.SeqNum, said *Reply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.put(id, answeredUpTo, said)
}

func (l *replyLog) open(s orderstate.Session) *repliesOf {
	of := &repliesOf{replies: map[orderstate.SeqNum]*Reply{}}
	l.sessions[s] = of
	return of
}

func (l *replyLog) expire(n orderstate.Session) {
	if s := l.sessions[n]; s != nil {
		l.bytes.Add(-int64(s.bytes))
		s.free()
		delete(l.sessions, n)
	}
}

// keep logs a session's reply, or nothing but its place.
func (l *replyLog) keep(s *repliesOf, q orderstate.SeqNum, r *Reply) {
	l.forget(s, q)
	if s.done.has(q) && !r.Ended {
		r = &Reply{OrderNum: r.OrderNum, Ended: true}
	}
	r.size = r.bytes()
	s.replies[q] = r
	s.bytes += r.size
	l.bytes.Add(int64(r.size))
}

func (l *replyLog) forget(s *repliesOf, q orderstate.SeqNum) {
	if r := s.replies[q]; r != nil {
		s.bytes -= r.size
		l.bytes.Add(-int64(r.size))
		delete(s.replies, q)
	}
}

// declared: a source has said which of its calls have ended. Their replies are dropped at once.
// What is ordered, and what becomes of a message, doesn't depend on that: whoever asks for such a
// reply all the same is told that it was answered.
func (l *replyLog) declared(n orderstate.Session, upTo orderstate.SeqNum, above []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sessions[n]
	if s == nil || upTo < s.done.upTo {
		return
	}
	s.done.upTo = upTo
	if above != nil {
		s.done.from, s.done.above = upTo, above
	}
	for q, r := range s.replies {
		if !r.Ended && s.done.has(q) {
			l.keep(s, q, r)
		}
	}
	s.free()
}

// beyond says whether a session's replies are more than its share of what all may have.
func (l *replyLog) beyond(n orderstate.Session) bool {
	if l.bytes.Load() <= MaxReplyBytes/16 { // as it is nearly always: nobody is
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, beyond := l.share(n)
	return beyond
}

// share says how many bytes a session's replies are, and whether that is beyond its share.
func (l *replyLog) share(n orderstate.Session) (bytes int, beyond bool) {
	s := l.sessions[n]
	if s == nil || s.bytes == 0 {
		return 0, false
	}
	return s.bytes, s.bytes > min(MaxReplyBytes/16, (MaxReplyBytes-int(l.bytes.Load()))/8)
}

// awaitShare waits until a session's replies are within its share, or the log is closed. If ctx
// ends before, it says false, and how many bytes they are, and all are.
func (l *replyLog) awaitShare(ctx context.Context, n orderstate.Session) (own, all int, within bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed {
		bytes, beyond := l.share(n)
		if !beyond {
			break
		}
		s, all := l.sessions[n], int(l.bytes.Load())
		if s.freed == nil {
			s.freed = make(chan struct{})
		}
		freed := s.freed
		l.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
		}
		l.mu.Lock()
		if ctx.Err() != nil {
			return bytes, all, false
		}
	}
	return 0, 0, true
}

func (s *repliesOf) free() {
	if s.freed != nil {
		close(s.freed)
		s.freed = nil
	}
}

// put logs a reply, and forgets those that its message's mark says are answered. Who waits for it
// is woken.
func (l *replyLog) put(id orderstate.MessageID, answeredUpTo orderstate.SeqNum, r *Reply) {
	if s := l.sessions[id.Session]; s != nil {
		l.keep(s, id.SeqNum, r)
		if answeredUpTo > s.forgotten {
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
	if upTo-s.forgotten > orderstate.SeqNum(len(s.replies)) {
		for q := range s.replies {
			if q <= upTo {
				l.forget(s, q)
			}
		}
		s.forgotten = upTo
	}
	for s.forgotten < upTo {
		s.forgotten++
		l.forget(s, s.forgotten)
	}
}

// await returns a reply once it is there: of an execution that is over, or in progress. It returns
// nil if ctx ends before, or the log is closed.
func (l *replyLog) await(ctx context.Context, id orderstate.MessageID) *Reply {
	for {
		said, logged := l.get(id)
		if logged == nil {
			return said
		}
		select {
		case <-logged:
		case <-ctx.Done():
			return nil
		}
	}
}

// get returns a reply, or a channel that is closed when it is there; neither from a closed log.
func (l *replyLog) get(id orderstate.MessageID) (*Reply, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, nil
	}
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

// begin makes the log one that holds what other does, which nobody else has.
func (l *replyLog) begin(other *replyLog) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions = other.sessions
	l.bytes.Store(other.bytes.Load())
}

// close ends every wait.
func (l *replyLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, s := range l.sessions {
		s.free()
	}
	for id, w := range l.waiting {
		close(w)
		delete(l.waiting, id)
	}
}
