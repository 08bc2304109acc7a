package orderstate

import "fmt"

type (
	// Epoch numbers the reigns of a group's primaries; epochs only grow. 0 is no epoch.
	Epoch uint64
	// OrderNum is per group, from 1: the order in which the primary executes messages of all its connections (¶97).
	OrderNum uint64
	// SeqNum is per session, from 1: reliable delivery and duplicate detection (¶96).
	SeqNum uint64
	// Session is one source on the connection; its number is the orderNum of its opening.
	Session uint64
	// Replica names one incarnation of a replica.
	Replica string
)

// Kind says what an orderInfo orders.
type Kind uint8

const (
	// Request is a message of a session, to be delivered to the application.
	Request Kind = iota
	// Open opens a session: Session equals OrderNum, SeqNum is 0, and the message's body is the source's nonce.
	Open
	// Expire ends a session; there is no message to it.
	Expire
)

// OrderInfo is the patent's structure of the same name (¶98): the place of one message in the order.
type OrderInfo struct {
	OrderNum OrderNum
	SeqNum   SeqNum
	Session  Session // the patent's C
	Kind     Kind
	// First is the epoch in which the message was first ordered: Rand is seeded from it, so it survives re-announcement.
	First Epoch
	// Time is the turn's recorded time in microseconds since 1970; it never goes back along the order.
	Time int64
	// Digest binds the order to the message's bytes, under the group's secret.
	Digest uint64
}

// Message returns the name of the message that the entry orders.
func (o OrderInfo) Message() MessageID { return MessageID{o.Session, o.SeqNum} }

func (o OrderInfo) String() string {
	switch o.Kind {
	case Open:
		return fmt.Sprintf("%d:open", o.OrderNum)
	case Expire:
		return fmt.Sprintf("%d:expire %d", o.OrderNum, o.Session)
	default:
		return fmt.Sprintf("%d:%d/%d", o.OrderNum, o.Session, o.SeqNum)
	}
}

// MessageID names a message: at most one execution per MessageID (I4).
type MessageID struct {
	Session Session
	SeqNum  SeqNum
}

func (m MessageID) String() string { return fmt.Sprintf("%d/%d", m.Session, m.SeqNum) }

// Message is a message in the log. Body is the caller's, and never looked at.
type Message struct {
	MessageID
	// AnsweredUpTo is the session's low-water mark as this message declares it: every seqNum at or below has its reply, or was abandoned.
	// It takes effect when the message is ordered, so that it does at the same place on every replica.
	AnsweredUpTo SeqNum
	Digest       uint64
	// Nonce is set in a message that opens a session.
	Nonce Nonce
	Body  any
	// Size is what the message counts in History.Bytes.
	Size int
}

// Nonce is made by a source for its session's opening: it deduplicates the opening and proves who owns the session.
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

func (e Envelope) String() string {
	return fmt.Sprintf("[%d..%d]@%d", e.First, e.Last(), e.Epoch)
}

// Run is orderInfos of one epoch with no gap, as a primary makes them and a backup reads them.
type Run struct {
	Envelope
	Entries []OrderInfo
}

// Announcement is a run as it travels through a source: its envelope, and the rest sealed. The source stores and reflects it verbatim.
type Announcement struct {
	Envelope
	Sealed []byte
}

// Ordered is an entry with the epoch whose primary announced it, which decides between entries for one orderNum after takeovers.
type Ordered struct {
	OrderInfo
	Epoch Epoch
}
