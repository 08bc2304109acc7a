package source

import (
	"container/heap"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

const (
	// maxOutstanding bounds the seqNums from the lowest call that hasn't ended to the next one.
	maxOutstanding = 8192
	// maxRetained bounds the bytes that a session retains.
	maxRetained = 16 << 20
	// frameOverhead is what a retained frame is counted for besides its message.
	frameOverhead = 256
)

// retained is one request of the session, for as long as it may have to be sent again.
//
// It is forgotten when every in-sync replica is known to hold it, or nobody will ever execute it:
//
//	accepted   its reply was handed over: when its orderNum is stable
//	refused    the group has said that it isn't executed and never will be: at once
//	abandoned  nobody knows whether it is executed: when every member of the required set has
//	           acknowledged the frame, or when a later message,
//	           by whose mark it can't be ordered any more, is stable itself
type retained struct {
	frame *pb.Frame // nil: forgotten
	call  *call     // nil: ended
	mark  uint64    // the low-water mark that it declares
	order orderstate.OrderNum
	reply int // bytes of the reply, once the call has ended, while replicas may keep it
}

func (r *retained) size() int { return len(r.frame.GetMessage()) + frameOverhead }

// frames are the requests of one session, from the lowest that is retained, with no gap in seqNum.
type frames struct {
	base  uint64 // the seqNum of list[0]
	list  []*retained
	mark  uint64 // every seqNum up to here has its reply handed over, or was abandoned
	bytes int
	// flying is how many of list have calls.
	flying int
	// accepted and not known stable, lowest orderNum first.
	accepted byOrder
	// abandoned and not forgotten, lowest seqNum first.
	abandoned []*retained
	// unsaid are the bytes of replies to calls that have ended, as far as replicas haven't been
	// told that; below are those up to mark, which the next request tells.
	unsaid, below int
	// settled is the highest mark of a message that is stable: nothing up to it will be ordered any
	// more.
	settled uint64
}

func newFrames() frames { return frames{base: 1} }

// next is the next seqNum.
func (f *frames) next() uint64 { return f.base + uint64(len(f.list)) }

// fits says whether a request of so many bytes may be added now. One that is alone always does.
func (f *frames) fits(size int) bool {
	return f.next()-f.mark <= maxOutstanding && !f.full(size)
}

// full says whether so many bytes are too many to retain besides what is.
func (f *frames) full(size int) bool { return f.bytes > 0 && f.bytes+size+frameOverhead > maxRetained }

// add gives the frame its seqNum, and its mark.
func (f *frames) add(frame *pb.Frame, k *call) *retained {
	frame.SeqNum = f.next()
	frame.Outstanding = frame.SeqNum - f.mark
	f.unsaid, f.below = f.unsaid-f.below, 0
	f.flying++
	r := &retained{frame: frame, call: k, mark: f.mark}
	f.list = append(f.list, r)
	f.bytes += r.size()
	return r
}

// from returns the retained frames from a seqNum on; some of them may be forgotten.
func (f *frames) from(seqNum uint64) []*retained {
	return f.list[min(max(seqNum, f.base)-f.base, uint64(len(f.list))):]
}

// inFlight are the calls that haven't ended.
func (f *frames) inFlight(yield func(*call) bool) {
	for _, r := range f.from(f.mark + 1) {
		if r.call != nil && !yield(r.call) {
			return
		}
	}
}

// How a call ended.
type ending uint8

const (
	endAbandoned ending = iota // the outcome is unknown
	endRefused                 // not executed, and never will be
	endAccepted                // its reply was handed over
)

// end says how the call with this frame has ended; order is its orderNum, if it was accepted.
func (f *frames) end(r *retained, how ending, order, stable orderstate.OrderNum) {
	r.call, r.order = nil, order
	f.flying--
	f.unsaid += r.reply
	switch {
	case how == endAbandoned:
		f.abandoned = append(f.abandoned, r)
	case how == endRefused || order == 0:
		f.forget(r)
	default:
		heap.Push(&f.accepted, r)
	}
	for _, r := range f.from(f.mark + 1) {
		if r.call != nil {
			break
		}
		f.mark++
		f.below += r.reply
		r.reply = 0
	}
	f.sweep(stable, nil)
}

// ended is what replicas are told of the calls that have ended.
func (f *frames) ended() *pb.Ended {
	e := &pb.Ended{UpTo: f.mark}
	for i, r := range f.from(f.mark + 1) {
		if r.call != nil {
			continue
		}
		for len(e.Above) <= i/8 {
			e.Above = append(e.Above, 0)
		}
		e.Above[i/8] |= 1 << (i % 8)
		r.reply = 0
	}
	f.unsaid, f.below = 0, 0
	return e
}

// sweep forgets what it can. acknowledged is the lowest seqNum up to which every member of the
// required set has acknowledged frames; nil if it isn't known.
func (f *frames) sweep(stable orderstate.OrderNum, acknowledged func() uint64) {
	for len(f.accepted) > 0 && f.accepted[0].order <= stable {
		r := heap.Pop(&f.accepted).(*retained)
		f.settled = max(f.settled, r.mark)
		f.forget(r)
	}
	if len(f.abandoned) > 0 {
		upTo := f.settled
		if acknowledged != nil {
			upTo = max(upTo, acknowledged())
		}
		kept := f.abandoned[:0]
		for _, r := range f.abandoned {
			if r.frame.SeqNum <= upTo {
				f.forget(r)
			} else {
				kept = append(kept, r)
			}
		}
		clear(f.abandoned[len(kept):])
		f.abandoned = kept
	}
	n := 0
	for n < len(f.list) && f.list[n].frame == nil {
		f.list[n] = nil
		n++
	}
	f.list = f.list[n:]
	f.base += uint64(n)
}

func (f *frames) forget(r *retained) {
	f.bytes -= r.size()
	r.frame = nil
}

// byOrder is a heap.
type byOrder []*retained

func (h byOrder) Len() int           { return len(h) }
func (h byOrder) Less(i, j int) bool { return h[i].order < h[j].order }
func (h byOrder) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *byOrder) Push(x any)        { *h = append(*h, x.(*retained)) }
func (h *byOrder) Pop() any {
	old := *h
	r := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return r
}
