package explore

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/understudy-rpc/understudy/orderstate"
)

type (
	epoch    = orderstate.Epoch
	orderNum = orderstate.OrderNum
	seqNum   = orderstate.SeqNum
	session  = orderstate.Session
	name     = orderstate.Replica
	message  = orderstate.Message
	run      = orderstate.Run
)

// kind is what a packet says.
type kind uint8

const (
	frame      kind = iota // a source to a replica: messages and reflected announcements
	hello                  // the same, on a new stream: all that the source holds
	request                // the RPC
	reply                  // its reply
	ack                    // a backup: order and messages are held up to k
	push                   // a primary: order, and maybe messages
	newEpoch               // who was elected
	peerKnows              // the answer of a peer
	sessionHas             // and of a session
	starts                 // a primary: where its epoch starts
	requires               // a primary to a source: the required set
	deaf                   // a backup can't hear a session (R11)
	confirmed              // the primary has noted it, and all up to k was sent before
	hears                  // a backup hears a session
)

var kinds = [...]string{"frame", "hello", "request", "reply", "ack", "push", "new epoch", "answer", "answer", "start",
	"required set", "can't hear", "confirmation", "hears"}

// packet is on its way. It never changes.
type packet struct {
	id      uint32
	kind    kind
	epoch   epoch
	first   orderNum
	k       orderNum
	stable  orderNum
	number  uint64
	members []name
	session session
	table   []orderstate.Start
	runs    []run
	sealed  []orderstate.Announcement // what of runs is for a source to carry
	list    []message
}

func (p *packet) appendTo(b []byte) []byte {
	b = appendInts(b, uint64(p.kind), uint64(p.epoch), uint64(p.first), uint64(p.k), uint64(p.stable), p.number,
		uint64(p.session), uint64(len(p.members)))
	for _, m := range p.members {
		b = append(b, m...)
	}
	b = appendInts(b, len(p.table))
	for _, s := range p.table {
		b = appendInts(b, uint64(s.Epoch), uint64(s.First))
	}
	b = appendInts(b, len(p.runs))
	for _, r := range p.runs {
		b = appendRun(b, r)
	}
	b = appendInts(b, len(p.sealed))
	for _, a := range p.sealed {
		b = appendInts(b, len(a.Sealed))
		b = append(b, a.Sealed...)
	}
	b = appendInts(b, len(p.list))
	for _, m := range p.list {
		b = appendInts(b, uint64(m.Session), uint64(m.SeqNum), m.Digest)
	}
	return b
}

func appendRun(b []byte, r run) []byte {
	b = appendInts(b, uint64(r.Epoch), uint64(r.EpochFirst), uint64(r.First), uint64(r.Count))
	for _, o := range r.Entries {
		b = appendInts(b, uint64(o.SeqNum), uint64(o.Session), uint64(o.Kind), uint64(o.First), uint64(o.Time),
			o.Digest)
	}
	return b
}

// seal hides a run from the source that carries it.
func seal(r run) orderstate.Announcement {
	return orderstate.Announcement{Envelope: r.Envelope, Sealed: appendRun(nil, r)}
}

func unseal(a orderstate.Announcement) run {
	b := a.Sealed
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		b = b[n:]
		return v
	}
	r := run{Envelope: orderstate.Envelope{Epoch: epoch(next()), EpochFirst: orderNum(next()), First: orderNum(next()),
		Count: int(next())}}
	for i := range r.Count {
		r.Entries = append(r.Entries, orderstate.OrderInfo{
			OrderNum: r.First + orderNum(i), SeqNum: seqNum(next()), Session: session(next()),
			Kind: orderstate.Kind(next()), First: epoch(next()), Time: int64(next()), Digest: next(),
		})
	}
	return r
}

func unsealAll(list []orderstate.Announcement) []run {
	rs := make([]run, len(list))
	for i, a := range list {
		rs[i] = unseal(a)
	}
	return rs
}

func (p *packet) String() string {
	words := []string{kinds[p.kind]}
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	switch p.kind {
	case newEpoch, peerKnows, sessionHas:
		say("%d", p.epoch)
	case starts:
		say("%d at %d", p.epoch, p.first)
	case ack:
		say("%d in epoch %d", p.k, p.epoch)
	case reply:
		say("%d", p.k)
	case requires:
		say("%d %v", p.number, p.members)
	case deaf:
		say("C%d (%d)", p.session, p.number)
	case hears:
		say("C%d", p.session)
	case confirmed:
		say("C%d (%d) after %d", p.session, p.number, p.k)
	}
	for _, m := range p.list {
		say("%s", called(m.MessageID))
	}
	for _, r := range p.runs {
		say("%s", inWords(r))
	}
	for _, a := range p.sealed {
		say("%s", inWords(unseal(a)))
	}
	return strings.Join(words, " ")
}

// inWords prints a run as a reader of the patent would.
func inWords(r run) string {
	words := make([]string, len(r.Entries))
	for i, o := range r.Entries {
		words[i] = fmt.Sprintf("%s=%d", what(o), o.OrderNum)
	}
	return fmt.Sprintf("[%s]@%d", strings.Join(words, " "), r.Epoch)
}

func what(o orderstate.OrderInfo) string {
	if o.Kind == orderstate.Request {
		return called(o.Message())
	}
	return o.String()
}

// called is the name of the message q of session n: c1.2.
func called(id orderstate.MessageID) string {
	if id.SeqNum == 0 {
		return fmt.Sprintf("open%d", id.Session)
	}
	return fmt.Sprintf("c%d.%d", id.Session, id.SeqNum)
}

// link is what is on its way from one to another, in order.
type link struct {
	id      uint32
	packets []*packet
}

func (l *link) appendTo(b []byte) []byte {
	for _, p := range l.packets {
		b = appendInts(b, p.id)
	}
	return b
}
