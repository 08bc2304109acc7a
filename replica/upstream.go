package replica

import (
	"context"
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// upstream is a backup's, or a joiner's, stream to the primary: when that was heard on it, and what
// it has still to carry of what this replica holds, and of whom it hears (R11). Each stream has its
// own: what one that has ended didn't carry, the next one begins with. It is guarded by the
// member's mu.
type upstream struct {
	cut      context.CancelCauseFunc
	heard    time.Duration // when the primary was last heard, or the stream begun
	hearing  bool          // it was heard on this stream
	incoming parts

	due    chan struct{}       // capacity 1: an acknowledgement is
	acked  orderstate.OrderNum // told to the primary
	asked  orderstate.OrderNum // the primary waits for what is held up to here: each step is acknowledged at once
	attach map[orderstate.Session]bool
	detach map[orderstate.Session]uint64 // as which number
}

func newUpstream(now time.Duration, cut context.CancelCauseFunc) *upstream {
	return &upstream{
		cut: cut, heard: now, due: make(chan struct{}, 1),
		attach: map[orderstate.Session]bool{}, detach: map[orderstate.Session]uint64{},
	}
}

// isHeard notes that the primary is.
func (u *upstream) isHeard(now time.Duration) { u.heard, u.hearing = now, true }

// hears says whether the primary is heard. Without a stream it isn't.
func (u *upstream) hears(now time.Duration) bool {
	return u != nil && u.hearing && now-u.heard < silence
}

// isDue asks for an acknowledgement at once. Without a stream, the next one begins with it.
func (u *upstream) isDue() {
	if u != nil {
		signal(u.due)
	}
}

// grows asks for an acknowledgement of a longer order if the primary waits for it, or else would
// hear of much at once.
func (u *upstream) grows(b *orderstate.Backup) {
	if u != nil && (u.acked < u.asked || b.Last() >= u.acked+lazyAck || b.History().Logged() > lazyAckBytes) {
		signal(u.due)
	}
}

// waitsFor: the primary waits for what is held up to k.
func (u *upstream) waitsFor(k orderstate.OrderNum) {
	if k > u.acked {
		u.asked = max(u.asked, k)
		signal(u.due)
	}
}

// attached tells the primary that a session is heard.
func (u *upstream) attached(s orderstate.Session) {
	if u != nil {
		delete(u.detach, s)
		u.attach[s] = true
		signal(u.due)
	}
}

// detached tells the primary that a session isn't heard any more, with the number of that.
func (u *upstream) detached(s orderstate.Session, number uint64) {
	if u != nil {
		delete(u.attach, s)
		u.detach[s] = number
		signal(u.due)
	}
}

// tell puts what there is to say of sessions into a message for the primary.
func (u *upstream) tell(req *pb.FollowRequest) {
	for s := range u.attach {
		req.Attach = append(req.Attach, uint64(s))
	}
	for s, number := range u.detach {
		req.Detach = append(req.Detach, &pb.Detaching{Session: uint64(s), Number: number})
	}
	clear(u.attach)
	clear(u.detach)
}
