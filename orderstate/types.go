package orderstate

import (
	"fmt"
	"math"
)

type (
	// Epoch numbers the reigns of a group's primaries; epochs only grow. 0 is no epoch.
	Epoch uint64
	// OrderNum is per group, from 1: the order in which the primary executes messages of all its
	// connections (¶97). The highest of all is never used.
	OrderNum uint64
	// SeqNum is per session, from 1: reliable delivery and duplicate detection (¶96).
	SeqNum uint64
	// Session is one source on the connection; its number is the orderNum of its opening.
	Session uint64
	// Replica names one incarnation of a replica.
	Replica string
)

const lastOrderNum OrderNum = math.MaxUint64 - 1

// Kind says what an entry orders, and with that whose it is, what its number counts, and whether
// there is a message to it:
//
//	kind     owner    number                message
//	Request  session  the session's seqNum  the request
//	Open     session  0                     the source's nonce
//	Expire   session  0                     none
//	Break    session  the call's seqNum     none
//	Mark     session  the call's seqNum     none
//	Outcome  group    the group's own       what came out
//	Timer    group    the group's own       none
//
// The last four are notes: what happens to the primary alone, and has to happen at one place of the
// order on every replica. What a session owns of them has no message, so that a MessageID names one
// message, and those of the session 0 are the group's. Their form is fixed, and nothing orders them
// yet: a run that has one is refused.
type Kind uint8

const (
	// Request is a message of a session, to be delivered to the application.
	Request Kind = iota
	// Open opens a session: Session equals OrderNum.
	Open
	// Expire ends a session.
	Expire
	// Break is where a stream of a session's has broken off.
	Break
	// Mark is up to where a stream of a session's has got.
	Mark
	// Outcome is what something outside, a nested call say, has said.
	Outcome
	// Timer is where a timer of the group's own has run out.
	Timer
)

// IsNote says whether an entry of this kind orders what no source has sent.
func (k Kind) IsNote() bool { return k >= Break }

// HasMessage says whether there is a message to an entry of this kind.
func (k Kind) HasMessage() bool { return k == Request || k == Open || k == Outcome }

func (k Kind) String() string {
	names := [...]string{"request", "open", "expire", "break", "mark", "outcome", "timer"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// OrderInfo is the patent's structure of the same name (¶98): the place of one message in the
// order. Kind says what the fields are.
type OrderInfo struct {
	OrderNum OrderNum
	SeqNum   SeqNum  // a number of the owner's
	Session  Session // the owner, the patent's C; 0 is the group
	Kind     Kind
	// First is the epoch in which the message was first ordered: Rand is seeded from it, so it
	// survives re-announcement.
	First Epoch
	// Time is the turn's recorded time in microseconds since 1970; it never goes back along the
	// order.
	Time int64
	// Digest binds the order to the message's bytes, under the group's secret.
	Digest uint64
}

// Message returns the name of the message that the entry orders.
func (o OrderInfo) Message() MessageID { return MessageID{o.Session, o.SeqNum} }

// check says what no primary can have ordered. A session is opened before its messages are ordered,
// so its number is the lower.
func (o OrderInfo) check() error {
	switch {
	case o.Kind == Request && o.SeqNum > 0 && o.Session > 0 && OrderNum(o.Session) < o.OrderNum:
		return nil
	case o.Kind == Open && o.SeqNum == 0 && OrderNum(o.Session) == o.OrderNum:
		return nil
	case o.Kind == Expire && o.SeqNum == 0 && o.Session > 0 && OrderNum(o.Session) < o.OrderNum:
		return nil
	case o.Kind.IsNote():
		return fmt.Errorf("orderstate: the entry at orderNum %d is a note (%v), which this version doesn't order",
			o.OrderNum, o.Kind)
	}
	return fmt.Errorf("orderstate: malformed entry: %v, session %d, seqNum %d at orderNum %d", o.Kind, o.Session,
		o.SeqNum, o.OrderNum)
}

func (o OrderInfo) String() string {
	switch o.Kind {
	case Request:
		return fmt.Sprintf("%d:%d/%d", o.OrderNum, o.Session, o.SeqNum)
	case Open:
		return fmt.Sprintf("%d:open", o.OrderNum)
	case Expire:
		return fmt.Sprintf("%d:expire %d", o.OrderNum, o.Session)
	default:
		return fmt.Sprintf("%d:%v %d/%d", o.OrderNum, o.Kind, o.Session, o.SeqNum)
	}
}

// MessageID names a message: at most one execution per MessageID (I4).
type MessageID struct {
	Session Session
	SeqNum  SeqNum
}

func (m MessageID) String() string { return fmt.Sprintf("%d/%d", m.Session, m.SeqNum) }

// Message is a message in the log. Body is the caller's, and never looked at; Digest stands for it,
// and for all else here: replicas hold the same message when they hold one with the same Digest. So
// a message that is sent again is sent as it was first, with its first AnsweredUpTo.
type Message struct {
	MessageID
	// AnsweredUpTo is the session's low-water mark as this message declares it: every seqNum at or
	// below has its reply, or was abandoned. It takes effect when the message is ordered, so that
	// it does at the same place on every replica.
	AnsweredUpTo SeqNum
	Digest       uint64
	// Nonce is set in a message that opens a session.
	Nonce Nonce
	Body  any
	// Size is what the message counts in History.Bytes.
	Size int
}

// Nonce is made by a source for its session's opening: it deduplicates the opening and proves who
// owns the session.
type Nonce [16]byte

// Envelope is what a source may read of a run.
type Envelope struct {
	Epoch Epoch
	// EpochFirst is the first orderNum of Epoch.
	EpochFirst OrderNum
	First      OrderNum
	Count      int
}

// Last is the orderNum of the run's last entry; First-1 if it is empty.
func (e Envelope) Last() OrderNum { return e.First + OrderNum(e.Count) - 1 }

// check says what no primary can have announced. An envelope that passes has a Last that is at
// least First, and that can be counted on from.
func (e Envelope) check() error {
	if e.Epoch == 0 || e.EpochFirst == 0 || e.First == 0 || e.Count < 1 || lastOrderNum-e.First < OrderNum(e.Count)-1 ||
		e.First > lastOrderNum {
		return fmt.Errorf("orderstate: malformed run: %d from orderNum %d on, of epoch %d that starts at %d", e.Count,
			e.First, e.Epoch, e.EpochFirst)
	}
	return nil
}

func (e Envelope) String() string {
	return fmt.Sprintf("[%d..%d]@%d", e.First, e.Last(), e.Epoch)
}

// Run is orderInfos of one epoch with no gap, as a primary makes them and a backup reads them.
type Run struct {
	Envelope
	Entries []OrderInfo
}

func (r Run) check() error {
	if err := r.Envelope.check(); err != nil {
		return err
	}
	if r.Count != len(r.Entries) {
		return fmt.Errorf("orderstate: run %v has %d entries", r.Envelope, len(r.Entries))
	}
	for i, o := range r.Entries {
		if o.OrderNum != r.First+OrderNum(i) || o.First == 0 || o.First > r.Epoch {
			return fmt.Errorf("orderstate: run %v has entry %v, first ordered in epoch %d, at place %d", r.Envelope, o,
				o.First, i)
		}
		if err := o.check(); err != nil {
			return err
		}
	}
	return nil
}

// Announcement is a run as it travels through a source: its envelope, and the rest sealed. The
// source stores and reflects it verbatim.
type Announcement struct {
	Envelope
	Sealed []byte
}

// Ordered is an entry with the epoch whose primary announced it, which decides between entries for
// one orderNum after takeovers.
type Ordered struct {
	OrderInfo
	Epoch Epoch
}
