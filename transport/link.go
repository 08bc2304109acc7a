package transport

import (
	"context"
	"errors"
	"runtime"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

const (
	// linger is how long a frame waits for others, below Stable, unless batch of them are there.
	linger = 3 * time.Millisecond
	batch  = 128
	// maxStreamMessage bounds one message of a stream, received or sent: chunks and their runs.
	maxStreamMessage = 4 << 20
	// farewell bounds how long closing waits for the primary to have ended the session.
	farewell = 100 * time.Millisecond
	// unheard is how long a replica may take to acknowledge a frame, or the beginning of a stream;
	// then it gets a new connection and a new stream, so that the replica learns that it can't be
	// heard (R11). It acknowledges within 250 ms, and a stream at once.
	unheard = time.Second
)

// link is the stream to one replica, made anew whenever it ends. What isn't said to be constant is
// guarded by Client.mu.
type link struct {
	client     *Client // constant, as are the next four
	name, addr string
	ctx        context.Context // ends with the link
	stop       context.CancelFunc
	wake       chan struct{} // wakes the sender; has room for one

	restart context.CancelFunc // ends the present stream; nil without one
	session *session           // of the present stream
	up      bool               // the replica has welcomed this stream
	number  uint64             // of the session, as it was welcomed
	member  election.Member    // who welcomed it, as of the last Welcome
	most    uint64             // bytes of a request that it takes; 0: not known
	id      orderstate.Replica // the same, as acknowledgements and required sets name it
	problem error              // why the last stream ended
	dialled error              // why the last connection failed; nil: there is one, or none was tried
	unknown bool               // by saying that it doesn't know the session

	// FIG. 8, for this stream:
	cursor    uint64 // the seqNum of the next frame to send
	reflected uint64 // as Source.Multicast counts
	flushTo   uint64 // frames up to here are sent even to the primary (R12)
	held      uint64 // the replica has acknowledged frames up to here

	sent      uint64      // the seqNum of the last frame that was taken for sending
	expecting bool        // patience runs: one that was sent isn't acknowledged
	patience  *time.Timer // nil until it is first needed, and one for all frames

	gone chan struct{} // not nil: say goodbye; closed when the stream has ended

	queued   int  // frames added since the sender last looked
	urgent   bool // no lingering
	answer   orderstate.Epoch
	question *pb.WaitingFor
	ended    *pb.Ended // which calls have ended; nil: nothing new

	// late.go:
	connection int    // which one is wanted
	hail       bool   // ask the replica to answer
	asked      uint64 // at this look, nothing having come since; 0: it wasn't
}

func (l *link) run() {
	select {
	case <-l.client.life.bound:
	case <-l.ctx.Done():
		return
	}
	pause := pauses{base: 10 * time.Millisecond, max: time.Second}
	for l.ctx.Err() == nil {
		welcomed, err := l.attach()
		if l.ctx.Err() != nil {
			break
		}
		if welcomed {
			pause.reset()
		}
		l.client.cfg.log.Info("a stream ended", "replica", l.name, "addr", l.addr, "err", err)
		timer := time.NewTimer(pause.next())
		select {
		case <-timer.C:
		case <-l.ctx.Done():
			timer.Stop()
		}
	}
}

// attach keeps one stream, until it ends. It says whether the replica welcomed it.
func (l *link) attach() (welcomed bool, err error) {
	c := l.client
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()

	c.mu.Lock()
	s := c.session
	l.session, l.restart = s, cancel
	hello := &pb.Hello{Nonce: s.nonce[:], Session: s.number, Group: c.group, Mark: c.mark, ToldEpoch: uint64(s.told)}
	c.mu.Unlock()

	sending := make(chan struct{})
	close(sending)
	inOrder := false
	defer func() {
		cancel()
		<-sending
		c.mu.Lock()
		wasUp := l.up
		if wasUp && inOrder {
			c.parts(l.member)
		}
		l.calm()
		l.restart, l.session, l.up, l.problem = nil, nil, false, err
		if l.gone != nil {
			close(l.gone)
			l.gone = nil
			l.stop()
		}
		if status.Code(err) == codes.NotFound && hello.Session != 0 {
			c.disowned(l, s)
		}
		if c.refused() != nil {
			c.broadcast()
		}
		c.mu.Unlock()
		if wasUp {
			c.lookAgain()
		}
		if bad := new(malformedError); errors.As(err, &bad) {
			c.counts.malformed.Add(1)
			c.cfg.log.Error("a stream was cut", "replica", l.name, "addr", l.addr, "err", err)
		}
	}()

	to := &route.Choice{Replica: l.name, Wait: true}
	stream, err := pb.NewConnectionClient(c.life.conn).Attach(to.In(ctx), grpc.MaxCallRecvMsgSize(maxStreamMessage),
		grpc.MaxCallSendMsgSize(maxStreamMessage), grpc.ForceCodecV2(linkCodec{standardCodec()}))
	if err != nil {
		return false, err
	}
	if err := stream.Send(&pb.AttachRequest{Hello: hello}); err != nil {
		_, err = stream.Recv() // has the reason
		return false, err
	}
	hung := time.AfterFunc(unheard, l.renew)
	_, _ = stream.Header() // comes at once; if it doesn't, Recv knows why
	hung.Stop()
	for {
		msg, err := stream.Recv()
		if err != nil {
			inOrder = len(stream.Trailer().Get(wire.HeaderKey)) > 0 // the replica's own word, that it lives
			return welcomed, err
		}
		if err := c.receive(l, s, msg); err != nil {
			return welcomed, err
		}
		if !welcomed {
			welcomed = true
			sending = make(chan struct{})
			go func() {
				defer close(sending)
				l.send(ctx, stream)
			}()
		}
	}
}

// linkCodec is gRPC's for protobuf, but that retained messages that are large aren't copied for
// each replica.
type linkCodec struct{ encoding.CodecV2 }

// Marshal implements encoding.CodecV2.
func (c linkCodec) Marshal(v any) (mem.BufferSlice, error) {
	req, ok := v.(*pb.AttachRequest)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	parts, err := wire.Parts(req)
	switch {
	case err != nil:
		return nil, err
	case parts == nil:
		return c.CodecV2.Marshal(v)
	}
	buffers := make(mem.BufferSlice, len(parts))
	for i, part := range parts {
		buffers[i] = mem.SliceBuffer(part)
	}
	return buffers, nil
}

// send is the sender of one stream. It ends with ctx, or when the stream doesn't take anything any
// more, as the receiver will notice.
func (l *link) send(ctx context.Context, stream grpc.BidiStreamingClient[pb.AttachRequest, pb.AttachResponse]) {
	timer := time.NewTimer(linger)
	defer timer.Stop()
	for {
		select {
		case <-l.wake:
		case <-ctx.Done():
			return
		}
		if l.mayLinger() {
			timer.Reset(linger)
			select {
			case <-timer.C:
			case <-l.wake:
			case <-ctx.Done():
				return
			}
		} else {
			runtime.Gosched() // callers that are ready come first: one message takes all their frames
		}
		for {
			msgs := l.take()
			if len(msgs) == 0 {
				break
			}
			for i, msg := range msgs {
				if err := stream.Send(msg); err != nil {
					return
				}
				if i > 0 {
					l.moves()
				}
			}
			l.expect()
		}
		if l.leaves() {
			_ = stream.CloseSend() // never fails, says its documentation; the receiver sees the end
			return
		}
	}
}

// expect waits for the acknowledgement of the frames that were sent. A network that drops what is
// sent says nothing, and ends nothing.
func (l *link) expect() {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	l.expects()
}

// moves: another part of a large frame has gone, so that the frame, or one before it, may take
// longer to be acknowledged.
func (l *link) moves() {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	if l.expecting {
		l.patience.Reset(unheard)
	}
}

// expects is called with mu held.
func (l *link) expects() {
	switch {
	case l.expecting || l.sent <= l.held || l.restart == nil:
		return
	case l.patience == nil:
		l.patience = time.AfterFunc(unheard, l.unacknowledged)
	default:
		l.patience.Reset(unheard)
	}
	l.expecting = true
}

// acknowledged notes that the replica holds the frames up to one. mu is held.
func (l *link) acknowledged(upTo uint64) {
	if upTo <= l.held {
		return
	}
	l.held = upTo
	l.calm()
	l.expects()
}

// calm is called with mu held.
func (l *link) calm() {
	if l.expecting {
		l.patience.Stop()
		l.expecting = false
	}
}

func (l *link) mayLinger() bool {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	return !l.urgent && l.queued < batch
}

// leave lets the sender say goodbye, and returns a channel that is closed when the stream has
// ended. mu is held.
func (l *link) leave() chan struct{} {
	l.gone = make(chan struct{})
	l.urgent = true
	l.notify()
	return l.gone
}

func (l *link) leaves() bool {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	return l.gone != nil
}

// notify wakes the sender. mu is held.
func (l *link) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// enqueued tells the link that a frame was added. mu is held.
func (l *link) enqueued(urgent bool) {
	if !l.up || l.isPrimary() {
		return
	}
	l.queued++
	wake := l.queued == 1 || l.queued == batch || urgent && !l.urgent
	l.urgent = l.urgent || urgent
	if wake {
		l.notify()
	}
}

// isPrimary says whether the stream is the one to the primary of the acknowledged epoch, whom the
// RPCs reach. mu is held.
func (l *link) isPrimary() bool {
	return !l.client.primary.IsZero() && l.member == l.client.primary
}

// reflect makes the link send the frames that it hasn't sent yet, or all that are retained, then
// all of pendingRemoteOrder, then that the epoch is acknowledged (R12). mu is held.
func (l *link) reflect(all bool) {
	s := l.session
	if all {
		l.cursor = s.frames.base
	}
	l.reflected = 0
	l.flushTo = s.frames.next() - 1
	l.answer = s.source.Epoch()
	l.urgent = true
	l.notify()
}

// take is FIG. 8's second loop for this stream: the messages to send next, none if there is nothing
// to say.
func (l *link) take() []*pb.AttachRequest {
	c := l.client
	c.mu.Lock()
	defer c.mu.Unlock()
	s := l.session
	if s == nil || !l.up {
		return nil
	}
	msgs, all := l.takeFrames(s)
	if all {
		l.queued, l.urgent = 0, false
	}
	answer := orderstate.Epoch(0)
	if l.cursor > l.flushTo {
		answer, l.answer = l.answer, 0
	}
	question, ended, hail := l.question, l.ended, l.hail
	l.question, l.ended, l.hail = nil, nil, false
	if len(msgs) == 0 && answer == 0 && question == nil && ended == nil && !hail {
		return nil
	}
	if len(msgs) == 0 {
		msgs = append(msgs, new(pb.AttachRequest))
	}

	var runs []orderstate.Announcement
	runs, l.reflected = s.source.Multicast(l.reflected)
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
	if answer != 0 {
		last.ToldEpoch = uint64(s.told)
	}
	last.AcknowledgedEpoch, last.WaitingFor, last.Ended, last.Hail = uint64(answer), question, ended, hail
	return msgs
}

// takeFrames moves the cursor over the frames of one message, or over one large frame, in several.
// It says whether there are no more.
func (l *link) takeFrames(s *session) (msgs []*pb.AttachRequest, all bool) {
	primary := l.isPrimary()
	size := 0
	l.cursor = max(l.cursor, s.frames.base)
	for _, r := range s.frames.from(l.cursor) {
		if primary && l.cursor > l.flushTo { // the RPCs carry them
			l.cursor = s.frames.next()
			return msgs, true
		}
		if r.frame == nil {
			l.cursor++
			continue
		}
		if size += r.size(); size > wire.ChunkSize && len(msgs) > 0 {
			return msgs, false
		}
		l.cursor++
		l.sent = r.frame.SeqNum
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
