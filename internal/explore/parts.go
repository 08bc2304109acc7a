package explore

import (
	"slices"

	"github.com/understudy-rpc/understudy/orderstate"
)

// fate is where a process is in its life.
type fate uint8

const (
	up     fate = iota
	absent      // yet to join
	gone        // crashed, evicted, or told that its session is lost
	asleep      // evicted, and cut off from all: it doesn't know it
)

// record is etcd's, and what the outside knows: how often each fault may still happen, who is cut
// off.
type record struct {
	id       uint32
	epoch    epoch
	primary  int8
	inSync   uint8 // a bit per replica
	left     Faults
	broken   uint8    // a bit per source and replica: they can't hear each other
	passed   epoch    // what is from below has no authority any more (R10)
	accepted orderNum // the highest of what sources have accepted, in scopes with reads
	restored bool     // the store has gone back: what was stable may be lost, if it is told
	skipped  uint8    // sources that a takeover has given up while they lived: what they alone knew may be lost
}

func (g *record) appendTo(b []byte) []byte {
	f := g.left
	if g.restored {
		b = append(b, 'r')
	}
	b = append(b, byte(g.epoch), byte(g.primary), g.inSync, g.broken, g.skipped, byte(g.passed), byte(g.accepted))
	for _, n := range [...]int{f.Crashes, f.Deaths, f.Losses, f.Cuts, f.Breaks, f.Depositions, f.Evictions, f.Skips,
		f.Restores} {
		b = append(b, byte(n))
	}
	return b
}

// turn is what agreement is about (I1).
type turn struct {
	session session
	seqNum  seqNum
	kind    orderstate.Kind
	time    int64
	first   epoch
}

func turned(o orderstate.Ordered) turn { return turn{o.Session, o.SeqNum, o.Kind, o.Time, o.First} }

// owed is a reply that mustn't leave yet (R11).
type owed struct {
	source   int8
	seqNum   seqNum
	orderNum orderNum
	held     orderNum
}

// replica is a process of the group, in one role.
type replica struct {
	id       uint32
	fate     fate
	backup   *orderstate.Backup
	takeover *orderstate.Takeover
	primary  *orderstate.Primary
	executed []turn // from orderNum 1
	owed     []owed
	open     bool  // the gate (R12.4)
	leader   int8  // who leads the epoch that it follows
	acked    acked // what it has said last
	joining  orderNum
	sent     [maxSources]orderNum // to a source, in mutants only
	heard    uint8                // sources that have answered it, at Stable
	ended    uint8                // sources whose end it has seen, and has pushed for (R4)
	answered [maxSources]epoch    // by a source on its present stream, in scopes with attaching
}

type acked struct {
	epoch epoch
	k     orderNum
}

func (r *replica) appendTo(b []byte) []byte {
	if b = append(b, byte(r.fate)); r.fate != up && r.fate != asleep {
		return b
	}
	switch {
	case r.primary != nil:
		b = r.primary.AppendTo(b)
	case r.takeover != nil:
		b = r.takeover.AppendTo(b)
	default:
		b = r.backup.AppendTo(b)
	}
	b = appendInts(b, uint64(len(r.executed)), uint64(len(r.owed)), uint64(r.leader), uint64(r.acked.epoch),
		uint64(r.acked.k), uint64(r.joining), uint64(r.ended), uint64(r.heard))
	for _, t := range r.executed {
		b = appendInts(b, uint64(t.session), uint64(t.seqNum), uint64(t.kind), uint64(t.time), uint64(t.first))
	}
	for _, o := range r.owed {
		b = appendInts(b, uint64(o.source), uint64(o.seqNum), uint64(o.orderNum), uint64(o.held))
	}
	return appendBools(appendInts(appendInts(b, r.sent[:]...), r.answered[:]...), r.open)
}

func (r *replica) clone() *replica {
	c := *r
	switch {
	case r.primary != nil:
		c.primary = r.primary.Clone()
	case r.takeover != nil:
		c.takeover = r.takeover.Clone()
	case r.backup != nil:
		c.backup = r.backup.Clone()
	}
	c.executed, c.owed = slices.Clone(r.executed), slices.Clone(r.owed)
	return &c
}

func (r *replica) history() *orderstate.History {
	if r.primary != nil {
		return r.primary.History()
	}
	return r.follows().History()
}

// follower is what a backup has in common with a takeover, which may be deposed, and then follows.
type follower interface {
	History() *orderstate.History
	Epoch() epoch
	Message(message) (bool, orderstate.Moved)
	Receive(run) (orderstate.Moved, error)
	Start(epoch, orderNum, []orderstate.Start) (orderstate.Moved, error)
	Answer(epoch) ([]orderstate.Ordered, error)
	Lacks(limit int) []orderstate.MessageID
	Next() (orderstate.Ordered, message, bool)
	Executed(orderNum)
	LearnStable(epoch, orderNum) orderstate.Moved
	Acknowledgement() (epoch, orderNum, bool)
	Attach(session) bool
	Confirmed(n session, number uint64, upTo orderNum)
}

// follows is the replica in so far as it follows; nil if it leads.
func (r *replica) follows() follower {
	switch {
	case r.takeover != nil:
		return r.takeover
	case r.backup != nil:
		return r.backup
	}
	return nil
}

// call is one of a source's calls.
type call struct {
	message message
	done    bool
	// where it was accepted.
	epoch    epoch
	orderNum orderNum
	// the RPC: on its way to a replica, or back, or arrived and waiting (R1).
	to      int8
	flight  *packet
	waiting orderstate.Reply
}

// source is an unreplicated client.
type source struct {
	id     uint32
	fate   fate
	told   bool // that a reply which it has accepted is lost
	state  *orderstate.Source
	leader int8
	ready  bool // it knows where its epoch starts

	marks [maxReplicas]uint64
	calls []call
	read  read
	reads int // issued
}

func (s *source) appendTo(b []byte) []byte {
	if b = append(b, byte(s.fate)); s.fate != up {
		return appendBools(b, s.told)
	}
	b = s.state.AppendTo(b)
	b = appendInts(b, uint64(s.leader), uint64(s.reads), uint64(len(s.calls)))
	b = s.read.appendTo(b)
	b = appendInts(b, s.marks[:]...)
	b = appendBools(b, s.ready)
	for _, c := range s.calls {
		b = appendInts(b, uint64(c.message.Digest), uint64(c.epoch), uint64(c.orderNum), uint64(c.to),
			uint64(c.waiting.Epoch), uint64(c.waiting.OrderNum), c.waiting.Number)
		b = appendBools(b, c.done, c.flight != nil)
		if c.flight != nil {
			b = appendInts(b, c.flight.id)
		}
	}
	return b
}

func (s *source) clone() *source {
	c := *s
	c.state = s.state.Clone()
	c.calls = slices.Clone(s.calls)
	return &c
}

// answered is the source's low-water mark.
func (s *source) answered() seqNum {
	for i, c := range s.calls {
		if !c.done {
			return seqNum(i)
		}
	}
	return seqNum(len(s.calls))
}

// messages is what a source still holds: all that it has sent.
func (s *source) messages() []message {
	list := make([]message, len(s.calls))
	for i, c := range s.calls {
		list[i] = c.message
	}
	return list
}
