package replica

import (
	"cmp"
	"context"
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// sources are the streams of sources to this replica.
type sources struct {
	m         *member
	attached  map[*attachment]struct{}
	bySession map[orderstate.Session]*attachment
	queued    int                                  // bytes that are queued for them
	partial   int                                  // bytes that are kept of frames that aren't whole yet
	absent    map[orderstate.Session]time.Duration // since when a session has no stream here

	rpcs     rpcs                                 // that wait
	known    map[orderstate.Session]*knownSession // of sessions that are open
	coming   map[orderstate.Nonce]*coming         // streams wait until these have opened their sessions
	openings chan struct{}                        // has room for the openings that are under way
}

func newSources(m *member) sources {
	return sources{
		m: m, attached: map[*attachment]struct{}{}, bySession: map[orderstate.Session]*attachment{},
		absent: map[orderstate.Session]time.Duration{}, known: map[orderstate.Session]*knownSession{},
		coming: map[orderstate.Nonce]*coming{}, openings: make(chan struct{}, maxOpenings),
	}
}

// attachment is one source's stream at this replica. Its fields are guarded by the incarnation's
// mu.
type attachment struct {
	m       *member
	nonce   orderstate.Nonce
	session orderstate.Session // 0 until bound, if the source doesn't know it
	out     outbox[pb.AttachResponse]
	came

	gone         bool             // the stream has ended
	bound        bool             // the session is known here, and the source was welcomed
	told         orderstate.Epoch // the source knows where the epochs up to this one start
	acknowledged orderstate.Epoch // by the source, on this stream: it has sent what it had to (R12.1)
	stable       bool             // it has sent frames at Stable
	ended        *pb.Ended        // what the source has said last of its calls; nil once that has taken effect
	endedAt      time.Duration    // when something of that took effect
	framesTold   orderstate.SeqNum
	lastOrder    orderstate.OrderNum // of a reply to it
	stableTold   orderstate.OrderNum
	announced    orderstate.OrderNum // leading: what the source hadn't said to hold, up to here, is on this stream (R5)
}

// came is what a stream has brought of its session's frames.
type came struct {
	frames  orderstate.SeqNum // held up to here, of those that were sent
	newest  orderstate.SeqNum // of all whole ones that came on the stream
	heard   time.Duration     // when a frame above all that had come, or a part of one, came
	missed  time.Duration     // since when this backup has had to fetch the session's messages; 0: frames come
	dropped bool              // one was dropped: nothing above it may be acknowledged on this stream
	partial int               // bytes of a frame that isn't whole yet
}

// coming is an opening that streams wait for.
type coming struct {
	opened  chan struct{} // closed then
	streams int
}

// knows says whether a nonce's session is open here.
func (ss *sources) knows(n orderstate.Nonce) bool {
	_, known := ss.m.history().Opened(n)
	return known
}

// comes waits until a session may have been opened by a nonce here: until it was, or something rare
// has changed. Nothing else wakes it, however much is ordered, since anyone may wait here for what
// never comes.
func (ss *sources) comes(ctx context.Context, n orderstate.Nonce) error {
	c := ss.coming[n]
	if c == nil {
		c = &coming{opened: make(chan struct{})}
		ss.coming[n] = c
	}
	c.streams++
	changed := ss.m.bells.changed
	ss.m.mu.Unlock()
	again := time.NewTimer(lookAgain) // its session may never be opened here
	select {
	case <-c.opened:
	case <-changed:
	case <-again.C:
	case <-ctx.Done():
	case <-ss.m.ctx.Done():
	}
	again.Stop()
	ss.m.mu.Lock()
	if c.streams--; c.streams == 0 && ss.coming[n] == c {
		delete(ss.coming, n)
	}
	return cmp.Or(context.Cause(ss.m.ctx), context.Cause(ctx))
}

// opened wakes the streams whose session was opened.
func (ss *sources) opened(n orderstate.Nonce) {
	if c := ss.coming[n]; c != nil {
		close(c.opened)
		delete(ss.coming, n)
	}
}

// rpcs counts RPCs that wait.
type rpcs struct{ n, bytes int }

// knownSession is what is kept here of a session that is open, besides its order and its replies.
type knownSession struct {
	token uint64 // what its requests carry
	rpcs  rpcs   // of those that wait here
}

func (r *rpcs) add(n, bytes int) {
	r.n += n
	r.bytes += bytes
}

// acknowledge tells the source what a backup holds (R1b).
func (a *attachment) acknowledge(b *orderstate.Backup) {
	if e, k, ok := b.Acknowledgement(); ok {
		a.out.say().Acknowledgement = &pb.Acknowledgement{Epoch: uint64(e), OrderNum: uint64(k)}
	}
}

// tellStable tells the source what is stable.
func (a *attachment) tellStable(p *orderstate.Primary) {
	out := a.out.say()
	out.Stable, out.StableEpoch = uint64(p.Stable()), uint64(p.Epoch())
	a.stableTold = p.Stable()
}
