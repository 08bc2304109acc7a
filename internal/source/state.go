// Package source is the source of a group's calls (FIG. 6): requests that are sent to every
// replica, what comes back from each, and what may be believed of it. A call is executed at most
// once, whatever dies, and nothing that its caller has seen is undone, or the caller is told.
//
// It speaks no gRPC. Its user makes one Source for each group that it calls, and drives it: an
// Attempt carries one request to one replica, a Link is told what a replica's stream says and hands
// out what goes there, and the group's election is watched for it. A client process does so today
// (package transport).
//
// Everything is under one lock, which is Source.mu and never held across anything that can block.
// Exported methods take it, and so does what waits (call.go) and what timers call; every other
// method is called with it held. From the bottom up:
//
//	frames.go              requests that may have to be sent again
//	cursor.go, sender.go   what goes on one stream next (FIG. 8), and how soon
//	state.go               what the lock guards
//	link.go                one stream's way out
//	ended.go               which calls have ended, for replicas that keep their replies
//	decide.go              whether a reply may be handed over (FIG. 9, R1, R9, R10)
//	session.go             epochs, announcements, and how a session ends
//	group.go, stream.go    what the store says, and a replica on its stream
//	late.go, poison.go     calls that take long, and calls that kill
//	arrival.go             what becomes of an attempt
//	room.go, call.go       one call
package source

import (
	"context"
	"crypto/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/logs"
	"github.com/understudy-rpc/understudy/internal/trust"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// A Source issues calls to one group. Its methods may run concurrently.
type Source struct {
	ctx     context.Context // ends with the source
	log     *logs.Logger
	elapsed clock.Clock // R10's
	counts  counters
	stale   chan struct{} // see Stale

	mu      sync.Mutex // guards what follows, and all that it leads to
	group   group
	level   pb.Level
	primary election.Member // of the acknowledged epoch; zero while none is known
	session *session
	links   []*Link
	changed chan struct{}            // closed, and another one made, when an attempt that failed may do better
	parted  map[election.Member]bool // who has ended its stream in order
	loss    error                    // *Error of the kind Lost that no call has been told yet
	late    late
}

// group is what the store says of the group.
type group struct {
	id      uint64            // as the store's view has it; 0 before
	trust   *trust.Store      // whether the store may be believed
	mark    *pb.StoreMark     // as a replica has sealed it
	suspect error             // why the store isn't believed now; nil: it is
	down    time.Time         // since when, by this process's clock, no in-sync replica is registered; zero: one is
	inSync  []election.Member // as it was believed last
	adopted bool              // a session was open once
	over    error             // *Error: the group was replaced, and every call fails with it
}

// late is how often calls in flight were looked for that take long (late.go).
type late struct {
	looks   uint64
	looking bool // some are in flight
	timer   *time.Timer
}

// session is the unit of at-most-once: this source on the connection.
type session struct {
	of     *Source
	nonce  orderstate.Nonce
	number uint64        // the orderNum of its opening; 0 while it isn't open
	token  uint64        // proves to the primary that a request is of this session
	begun  chan struct{} // closed when the session is open, or over
	over   error         // why it has ended
	ended  chan struct{} // closed when it has
	before *session      // which has ended, while it has calls in flight

	source *orderstate.Source
	told   orderstate.Epoch // whose start it has taken last, and so all that was known of those before
	frames frames
	reads  map[*call]struct{} // read-only calls in flight
	// announced is the last orderNum of the announcements received in the acknowledged epoch.
	announced orderstate.OrderNum
	// waiting are the calls that hold a reply (R1, R1b).
	waiting []*call
	// suspects are calls with which two primaries have died, in the order in which they are issued,
	// each alone.
	suspects []*call
	line     []chan struct{} // of calls that wait for room, in the order in which they came; each has room for one
	question question        // what was asked last (R1)
	telling  telling
}

// question is what was asked last, and when.
type question struct {
	epoch orderstate.Epoch
	held  orderstate.OrderNum
	at    time.Duration
}

// telling is what replicas are told of the calls that have ended (ended.go).
type telling struct {
	last  *pb.Ended   // what they were told last
	timer *time.Timer // of what is told lazily; nil before the first time
	due   bool        // it runs
}

func newSession(of *Source) *session {
	s := &session{of: of, begun: make(chan struct{}), ended: make(chan struct{}), source: orderstate.NewSource(),
		frames: newFrames(), reads: map[*call]struct{}{}}
	_, _ = rand.Read(s.nonce[:]) // never fails, says its documentation
	return s
}

// A Request is what a caller asks for: the same in every session and every attempt.
type Request struct {
	Method   string   // a full name, as wire.ValidMethod accepts
	Message  []byte   // every frame and attempt carries the same bytes, which a digest binds to the order
	Level    pb.Level // a lower one than the group's changes nothing
	ReadOnly bool     // the method is
}

// call is one unary call on a session, under one seqNum. Its attempts follow each other; each goes
// to the primary of the epoch that is acknowledged then.
type call struct {
	*Request // constant, as is what follows, up to retained
	ctx      context.Context
	session  *session
	level    pb.Level // 0: the group's own is enough
	seqNum   uint64   // 0: read-only, without a frame
	// outstanding is the low-water mark as a difference. Replicas bind it to the order, so that
	// every copy of the message has the same.
	outstanding uint64
	retained    *retained

	try     try
	maybe   bool          // some attempt may have been executed
	verdict verdict       // on the last attempt
	deaths  []death       // of primaries, during an attempt
	reply   reply         // of the last attempt
	wake    chan struct{} // a verdict was found while the reply was held; has room for one; nil before
}

// verdict is what becomes of an attempt.
type verdict uint8

const (
	verdictWait    verdict = iota // hold the reply
	verdictRetry                  // issue the call again
	verdictAccept                 // hand the reply over
	verdictRefused                // hand the error over: the call wasn't executed, and never will be
	verdictUnknown                // hand the error over: nobody knows whether it was executed
	verdictMove                   // make the call on another session
	verdictOrder                  // make the read-only call as one that is ordered
	verdictEnded                  // the call's context has ended
)

// try is a call's present attempt, or the last one.
type try struct {
	epoch  orderstate.Epoch
	cancel context.CancelFunc // nil while there is none
	cut    bool               // this source has cancelled it
	look   uint64             // late.looks when it began
}

// reply is what an attempt has brought.
type reply struct {
	header *wire.Header  // nil: none
	err    error         // nil with a response
	sent   time.Duration // when the request was sent, by the elapsed clock
	size   int           // of the response
}

// death is a primary that broke off while an attempt was with it.
type death struct {
	epoch   orderstate.Epoch
	primary election.Member
	at      time.Duration // by the elapsed clock
}

// A Link is what a source knows of one replica's stream, which is made anew whenever it ends. Its
// user calls Begin, then Receive with each message, and End; and beside that, once the replica has
// welcomed the stream, what sender.go has.
type Link struct {
	// What is exported is constant.
	Name, Addr string
	Ctx        context.Context // ends when the replica is gone from the group, or has another address
	source     *Source
	stop       context.CancelFunc

	// The present stream:
	session *session
	restart context.CancelFunc // ends it; nil without one
	up      bool               // the replica has welcomed it
	number  uint64             // of the session, as it was welcomed
	gone    chan struct{}      // not nil: say goodbye; closed when the stream has ended
	cursor  cursor
	sender  sender

	peer      peer
	problem   error // why the last stream ended
	refused   bool  // by not letting this client in
	unknown   bool  // by not knowing the session
	dialled   error // why the last connection failed; nil: there is one, or none was tried
	connected int   // which connection is wanted: see Address
	hailed    uint64
}

// peer is who welcomed a link's stream, as of the last Welcome.
type peer struct {
	member election.Member
	id     orderstate.Replica // the same, as acknowledgements and required sets name it
	most   uint64             // bytes of a request that it takes; 0: not known
}

// counters are those of Stats; they are counted without a lock.
type counters struct {
	reissued, fenced, expired, failovers, malformed, lost atomic.Uint64
}

// Stats is what a Source knows and has counted; package transport says what each is.
type Stats struct {
	Primary         string
	Epoch, Session  uint64
	Retained        int
	Reissued        uint64
	Fenced, Expired uint64
	Failovers       uint64
	Malformed, Lost uint64
}

// New returns a Source that ends with ctx: every call fails with ErrClosed then. elapsed is the
// clock of R10: it must count the time during which the machine is suspended, and never go back.
func New(ctx context.Context, log *logs.Logger, elapsed clock.Clock) *Source {
	s := &Source{ctx: ctx, log: log, elapsed: elapsed, stale: make(chan struct{}, 1),
		changed: make(chan struct{}), parted: map[election.Member]bool{}}
	s.session = newSession(s)
	return s
}

// Stats returns what was counted until now.
func (src *Source) Stats() Stats {
	src.mu.Lock()
	defer src.mu.Unlock()
	return Stats{
		Primary: src.primary.Name, Epoch: uint64(src.session.source.Epoch()), Session: src.session.number,
		Retained: src.session.frames.bytes, Reissued: src.counts.reissued.Load(), Fenced: src.counts.fenced.Load(),
		Expired: src.counts.expired.Load(), Failovers: src.counts.failovers.Load(),
		Malformed: src.counts.malformed.Load(), Lost: src.counts.lost.Load(),
	}
}

// Primary is the name of the primary, empty while none is known.
func (src *Source) Primary() string {
	src.mu.Lock()
	defer src.mu.Unlock()
	return src.primary.Name
}

// broadcast tells every call whose last attempt failed that the next one may do better.
func (src *Source) broadcast() {
	close(src.changed)
	src.changed = make(chan struct{})
}

// toPrimary is the link to the primary of the acknowledged epoch, whom the RPCs reach, if its
// stream is there.
func (src *Source) toPrimary() *Link {
	for _, l := range src.links {
		if l.up && l.isPrimary() {
			return l
		}
	}
	return nil
}

func (l *Link) isPrimary() bool {
	return !l.source.primary.IsZero() && l.peer.member == l.source.primary
}

// inFlight are the calls that haven't ended.
func (s *session) inFlight(yield func(*call) bool) {
	for k := range s.reads {
		if !yield(k) {
			return
		}
	}
	s.frames.inFlight(yield)
}

// unlessDone is nil if no call of the session is in flight, nor of those before it.
func (s *session) unlessDone() *session {
	if s == nil {
		return nil
	}
	s.before = s.before.unlessDone()
	for range s.inFlight {
		return s
	}
	return s.before
}

// reads says whether the call is read-only.
func (k *call) reads() bool { return k.seqNum == 0 }

// isStable says whether R1b applies.
func (k *call) isStable() bool {
	return max(k.level, k.session.of.level) == pb.Level_LEVEL_STABLE
}

// stop cancels the present attempt.
func (k *call) stop() {
	if k.try.cancel != nil {
		k.try.cut = true
		k.try.cancel()
	}
}
