package source

import (
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// batch is how many frames wait for no others.
const batch = 128

// sender is when one stream's sender is to look, and what it is to say besides what its cursor
// finds.
type sender struct {
	wake     chan struct{}    // has room for one
	queued   int              // frames added since it last looked
	urgent   bool             // no lingering
	answer   orderstate.Epoch // acknowledged, once all is flushed; 0: nothing new
	question *pb.WaitingFor   // nil: none
	ended    *pb.Ended        // which calls have ended; nil: nothing new
	hail     bool             // ask the replica to answer
}

func (s *sender) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *sender) hurry() {
	s.urgent = true
	s.notify()
}

// tell lets it say which calls have ended, whenever it looks.
func (s *sender) tell(ended *pb.Ended) {
	s.ended = ended
	s.notify()
}

// ask lets it ask the replica, at once. What is stable the replica tells whoever asks for
// announcements, too.
func (s *sender) ask(q *pb.WaitingFor) {
	if s.question == nil || s.question.Stable {
		s.question = q
	}
	s.hurry()
}

// enqueued tells it that a frame was added.
func (s *sender) enqueued(urgent bool) {
	s.queued++
	wake := s.queued == 1 || s.queued == batch || urgent && !s.urgent
	s.urgent = s.urgent || urgent
	if wake {
		s.notify()
	}
}
