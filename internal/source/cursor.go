package source

import (
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// cursor is FIG. 8 for one stream: how far the session's frames, and pendingRemoteOrder, have gone
// there. The zero value has sent nothing.
type cursor struct {
	next      uint64      // the seqNum of the next frame to send
	flushTo   uint64      // frames up to here are sent even to the primary (R12)
	reflected uint64      // as orderstate.Source.Multicast counts
	sent      uint64      // the seqNum of the last frame that was taken for sending
	held      uint64      // the replica has acknowledged frames up to here
	awaits    bool        // patience runs: one that was sent isn't acknowledged
	patience  *time.Timer // nil until it is first needed, and one for all frames
}

// rewind makes it go over all of pendingRemoteOrder again, and over the frames that the stream
// hasn't had, or all that are retained.
func (c *cursor) rewind(f *frames, all bool) {
	if all {
		c.next = f.base
	}
	c.reflected = 0
	c.flushTo = f.next() - 1
}

// isFlushed says whether every frame has gone that goes to the primary, too.
func (c *cursor) isFlushed() bool { return c.next > c.flushTo }

// take moves the cursor over the frames of one message, or over one large frame, in several. To the
// primary the RPCs carry them. It says whether there are no more.
func (c *cursor) take(f *frames, toPrimary bool) (msgs []*pb.AttachRequest, all bool) {
	size := 0
	c.next = max(c.next, f.base)
	for _, r := range f.from(c.next) {
		if toPrimary && c.isFlushed() {
			c.next = f.next()
			return msgs, true
		}
		if r.frame == nil {
			c.next++
			continue
		}
		if size += r.size(); size > wire.ChunkSize && len(msgs) > 0 {
			return msgs, false
		}
		c.next++
		c.sent = r.frame.SeqNum
		if len(r.frame.Message) > wire.ChunkSize {
			for _, chunk := range wire.Chunks(r.frame) {
				msgs = append(msgs, &pb.AttachRequest{Frames: []*pb.Frame{chunk}})
			}
			return msgs, false
		}
		if len(msgs) == 0 {
			msgs = append(msgs, new(pb.AttachRequest))
		}
		msgs[0].Frames = append(msgs[0].Frames, r.frame)
	}
	return msgs, true
}

// takeRuns moves it over pendingRemoteOrder, which goes with the last of the messages, or in
// further ones.
func (c *cursor) takeRuns(s *orderstate.Source, msgs []*pb.AttachRequest) []*pb.AttachRequest {
	var runs []orderstate.Announcement
	runs, c.reflected = s.Multicast(c.reflected)
	last := msgs[len(msgs)-1]
	size := 0
	for _, r := range runs {
		if size += len(r.Sealed); size > wire.ChunkSize && len(last.DestOrderInfo) > 0 {
			last = new(pb.AttachRequest)
			msgs = append(msgs, last)
			size = len(r.Sealed)
		}
		last.DestOrderInfo = append(last.DestOrderInfo, wire.RunToProto(r, false))
	}
	return msgs
}

// calm ends the wait for an acknowledgement.
func (c *cursor) calm() {
	if c.awaits {
		c.patience.Stop()
		c.awaits = false
	}
}
