package replica

import (
	"time"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/internal/clock"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// role is what a replica is in its group now, with all that it knows as that, and not longer. It is
// guarded by the incarnation's mu.
type role interface {
	public() Role                 // as Status has it
	epoch() orderstate.Epoch      // the acknowledged one; 0 without a state
	history() *orderstate.History // what is held; nil without a state
	stable() orderstate.OrderNum
}

// joining is a replica without a state.
type joining struct{}

func (joining) public() Role                 { return Joining }
func (joining) epoch() orderstate.Epoch      { return 0 }
func (joining) history() *orderstate.History { return nil }
func (joining) stable() orderstate.OrderNum  { return 0 }

// following is a backup: FIG. 10.
type following struct {
	m        *member
	backup   *orderstate.Backup
	start    *pb.EpochStart // of the acknowledged epoch, once known
	inSync   bool
	lacking  chan struct{} // capacity 1: messages are ordered and not held
	suspects map[orderstate.Session]*suspect
	gave     uint64 // bytes of the last snapshot that it gave; 0 once the primary was told
}

func newFollowing(m *member, b *orderstate.Backup, start *pb.EpochStart) *following {
	return &following{
		m: m, backup: b, start: start, lacking: make(chan struct{}, 1),
		suspects: map[orderstate.Session]*suspect{},
	}
}

func (*following) public() Role                   { return Following }
func (f *following) epoch() orderstate.Epoch      { return f.backup.Epoch() }
func (f *following) history() *orderstate.History { return f.backup.History() }
func (f *following) stable() orderstate.OrderNum  { return f.backup.Stable() }

// takingOver is a backup that was elected: R12, until N is fixed.
type takingOver struct {
	m       *member
	former  *following // what it was, and holds
	state   *orderstate.Takeover
	peers   others // in-sync, and not evicted
	givenUp int
	awaited int // how many sessions may answer before reconcile looks again: each look is at all of them
}

func (*takingOver) public() Role                   { return TakingOver }
func (t *takingOver) epoch() orderstate.Epoch      { return t.former.epoch() }
func (t *takingOver) history() *orderstate.History { return t.former.history() }
func (t *takingOver) stable() orderstate.OrderNum  { return t.former.stable() }

// leading is the primary: FIG. 7, 8 and 9.
type leading struct {
	m       *member
	primary *orderstate.Primary
	tail    *orderstate.Tail // what a takeover found ordered, and isn't executed yet; nil without one
	start   *pb.EpochStart   // of its epoch
	roster  roster

	gate      bool          // calls may be ordered (R12.4)
	authority time.Duration // up to this reading of the clock it may transmit (R10)
	wall      *clock.Steady // what is recorded as a turn's time
	push      chan struct{} // capacity 1: a null message is due

	// requests between the front door and their turn; a channel where a copy waits
	arriving map[orderstate.MessageID]chan struct{}
	asking   map[*attachment]struct{} // whose sources wait for what is to become stable
	crowded  int                      // how many openings wait for a session to end

	stoodAt    orderstate.OrderNum // what was executed when it moved last, or when no backup was ahead
	stoodSince time.Duration       // when that was
	warned     time.Duration       // when it has last warned of a large state
}

func (*leading) public() Role                   { return Leading }
func (l *leading) epoch() orderstate.Epoch      { return l.primary.Epoch() }
func (l *leading) history() *orderstate.History { return l.primary.History() }
func (l *leading) stable() orderstate.OrderNum  { return l.primary.Stable() }

// over says whether the incarnation has ended.
func (l *leading) over() bool { return l.m.role != role(l) }

// ended is what an incarnation was.
type ended struct{ role }

func (ended) public() Role { return Ended }

// leads makes this incarnation its group's primary, with what a takeover has left. Called with mu
// held.
func (m *member) leads(p *orderstate.Primary, tail *orderstate.Tail, peers others) *leading {
	l := &leading{
		m: m, primary: p, tail: tail, wall: clock.NewSteady(m.r.wall, m.r.clock), push: make(chan struct{}, 1),
		start: &pb.EpochStart{
			Epoch: uint64(p.Epoch()), FirstOrderNum: uint64(p.First()), Stable: uint64(p.Stable()),
			Earlier: wire.StartsToProto(p.History().Starts()),
		},
		arriving: map[orderstate.MessageID]chan struct{}{}, asking: map[*attachment]struct{}{},
	}
	l.roster = roster{m: m, l: l, peers: peers}
	m.role, m.leader = l, m.self
	now := m.r.clock()
	for _, s := range p.History().Sessions() {
		if m.sources.bySession[s] != nil {
			continue
		}
		// Who has had no stream here for long may have had one at the former primary: it has a
		// little to come.
		since, ok := m.sources.absent[s]
		if least := now - (sessionTimeout - sessionGrace); !ok {
			since = now
		} else if since < least {
			since = least
		}
		m.sources.absent[s] = since
	}
	m.after(moved{rare: true, begun: true}) // what is up to N may be executed
	return l
}

// epoch is the acknowledged epoch. Called with mu held.
func (m *member) epoch() orderstate.Epoch { return m.role.epoch() }

// history is what this replica holds; nil without a state. Called with mu held.
func (m *member) history() *orderstate.History { return m.role.history() }

// leading is this replica as primary, nil if it isn't. Called with mu held.
func (m *member) leading() *leading {
	l, _ := m.role.(*leading)
	return l
}

// ordering is this replica as a primary whose gate is open, nil if it isn't. Called with mu held.
func (m *member) ordering() *leading {
	if l := m.leading(); l != nil && l.gate {
		return l
	}
	return nil
}

// takingOver is this replica as one that was elected, nil if it isn't. Called with mu held.
func (m *member) takingOver() *takingOver {
	t, _ := m.role.(*takingOver)
	return t
}

// following is this replica as a backup, nil if it isn't. Called with mu held.
func (m *member) following() *following {
	f, _ := m.role.(*following)
	return f
}

// logs is what messages and order are logged to: by a backup, also while it takes over. The primary
// has its messages from the RPCs. Called with mu held.
func (m *member) logs() *following {
	switch role := m.role.(type) {
	case *following:
		return role
	case *takingOver:
		return role.former
	}
	return nil
}

// replicaID is how a member is called in acknowledgements and required sets.
func replicaID(m election.Member) orderstate.Replica { return orderstate.Replica(m.String()) }
