package replica

import (
	"context"
)

// outbox is what a stream sends next, as one message, and how much that is. The message is filled
// in place until whoever sends takes it, whole: nothing is copied field by field. It is guarded by
// the member's mu.
type outbox[M any] struct {
	wake chan struct{} // capacity 1: there may be something to send
	cut  context.CancelCauseFunc
	next *M  // nil: nothing is to be sent
	size int // bytes that are queued in it
}

func newOutbox[M any](cut context.CancelCauseFunc) outbox[M] {
	return outbox[M]{wake: make(chan struct{}, 1), cut: cut}
}

// say returns the message that is sent next, to be added to, and wakes who sends it.
func (o *outbox[M]) say() *M {
	signal(o.wake)
	return o.message()
}

// message is say for who sends it.
func (o *outbox[M]) message() *M {
	if o.next == nil {
		o.next = new(M)
	}
	return o.next
}

// take takes the message that is to be sent now, and how many bytes were queued in it; nil if there
// is nothing to say. It isn't changed any more.
func (o *outbox[M]) take() (out *M, size int) {
	out, size = o.next, o.size
	o.next, o.size = nil, 0
	return out, size
}

// signal rings a bell of capacity 1, unless it rings already.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
