package replica

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/replica/internal/machine"
)

// This file has how large messages travel between replicas: in chunks, so that whoever waits for
// one sees it move, and the heartbeat that every message is doesn't wait for it.

// chunked splits a message of the log into chunks.
func chunked(p *pb.LoggedMessage) []*pb.LoggedMessage {
	if len(p.GetMessage()) <= wire.ChunkSize {
		return []*pb.LoggedMessage{p}
	}
	rest := p.GetMessage()
	var chunks []*pb.LoggedMessage
	for c := (&pb.LoggedMessage{Session: p.Session, SeqNum: p.SeqNum, Outstanding: p.Outstanding,
		Method: p.Method}); len(rest) > 0; c = new(pb.LoggedMessage) {
		n := min(len(rest), wire.ChunkSize)
		c.Message, rest = rest[:n], rest[n:]
		c.More = uint32(len(rest))
		chunks = append(chunks, c)
	}
	return chunks
}

// parts puts the messages of one stream together from their chunks. The zero value is ready.
type parts struct{ partial *pb.LoggedMessage }

// add returns a message when it is whole.
func (a *parts) add(p *pb.LoggedMessage) (*pb.LoggedMessage, error) {
	have, more := len(p.GetMessage()), uint64(p.GetMore())
	if a.partial == nil {
		switch {
		case uint64(have)+more > wire.MaxMessage:
			return nil, fmt.Errorf("replica: a message of %d bytes; at most %d are taken", uint64(have)+more,
				wire.MaxMessage)
		case more == 0:
			return p, nil
		}
		a.partial = p
		return nil, nil
	}
	whole := a.partial
	if p.GetSession() != 0 || have == 0 || uint64(have)+more != uint64(whole.More) {
		return nil, errors.New("replica: a chunk doesn't continue its message")
	}
	whole.Message, whole.More = append(whole.Message, p.GetMessage()...), p.GetMore()
	if more > 0 {
		return nil, nil
	}
	a.partial = nil
	return whole, nil
}

// before splits what a follower is sent, so that no part is much larger than a chunk, and returns
// the parts that come before what is left of it; mostly none. Messages come first, as they come
// before the order in one part, and after the welcome.
func before(out *pb.FollowResponse) []*pb.FollowResponse {
	size := 0
	for _, m := range out.Messages {
		size += len(m.Message)
	}
	if size <= wire.ChunkSize {
		return nil
	}
	part := &pb.FollowResponse{Welcome: out.Welcome, EpochStart: out.EpochStart}
	var split []*pb.FollowResponse
	size = 0
	for _, m := range out.Messages {
		for _, c := range chunked(m) {
			if size += len(c.Message); size > wire.ChunkSize && len(part.Messages) > 0 {
				split = append(split, part)
				part, size = new(pb.FollowResponse), len(c.Message)
			}
			part.Messages = append(part.Messages, c)
		}
	}
	out.Welcome, out.EpochStart, out.Messages = nil, nil, nil
	return append(split, part)
}

// split cuts a run behind its first n entries.
func split(r orderstate.Run, n int) (older, newer orderstate.Run) {
	older, newer = r, r
	older.Count, older.Entries = n, r.Entries[:n]
	newer.First, newer.Count, newer.Entries = r.First+orderstate.OrderNum(n), r.Count-n, r.Entries[n:]
	return older, newer
}

// messageOf checks a message that a peer has sent.
func (e *common) messageOf(p *pb.LoggedMessage) (orderstate.Message, error) {
	id := orderstate.MessageID{Session: orderstate.Session(p.GetSession()), SeqNum: orderstate.SeqNum(p.GetSeqNum())}
	if id.SeqNum == 0 {
		if len(p.GetMessage()) != len(orderstate.Nonce{}) {
			return orderstate.Message{},
				fmt.Errorf("replica: the opening of session %d has a nonce of %d bytes", id.Session,
					len(p.GetMessage()))
		}
		n := orderstate.Nonce(p.GetMessage())
		return orderstate.Message{MessageID: id, Digest: e.seal.DigestOpening(n), Nonce: n, Size: len(n)}, nil
	}
	if p.GetOutstanding() == 0 || p.GetOutstanding() > p.GetSeqNum() {
		return orderstate.Message{}, fmt.Errorf("replica: message %v can't have %d outstanding", id, p.GetOutstanding())
	}
	mark := orderstate.SeqNum(p.GetSeqNum() - p.GetOutstanding())
	return orderstate.Message{
		MessageID: id, AnsweredUpTo: mark, Digest: e.seal.Digest(id, mark, p.GetMethod(), p.GetMessage()),
		Body: &machine.Body{Method: p.GetMethod(), Payload: p.GetMessage()},
		Size: len(p.GetMessage()) + len(p.GetMethod()),
	}, nil
}

// loggedMessage wraps a message of the log; an opening's bytes are its nonce.
func loggedMessage(m orderstate.Message) *pb.LoggedMessage {
	p := &pb.LoggedMessage{Session: uint64(m.Session), SeqNum: uint64(m.SeqNum),
		Outstanding: uint64(m.SeqNum - m.AnsweredUpTo)}
	if body, ok := m.Body.(*machine.Body); ok {
		p.Method, p.Message = body.Method, body.Payload
	} else {
		p.Message = m.Nonce[:]
	}
	return p
}

// open checks the seals of announcements; a forged one is refused and counted (section 11).
func (e *common) open(announced []orderstate.Announcement) []orderstate.Run {
	var runs []orderstate.Run
	for _, a := range announced {
		r, err := e.seal.Open(a)
		if err != nil {
			e.r.stats.forged.Add(1)
			e.rarely(slog.LevelWarn, "refused an announcement", "run", a.Envelope.String(), "error", err)
			continue
		}
		runs = append(runs, r)
	}
	return runs
}
