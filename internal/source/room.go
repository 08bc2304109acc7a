package source

import (
	"context"
	"slices"
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has how calls enter a session that has room for few.

// place is a call's, in the line of a session that had no room; the zero value is none.
type place struct {
	session *session
	turn    chan struct{} // has room for one: it is first, or may enter now
}

// entrance is what a call waits for that can't begin yet: any of these.
type entrance struct {
	opens, changed <-chan struct{}
	after          time.Duration // 0: no time brings it
	full           bool          // it has a session, and no room there
}

// admit says whether a request of so many bytes may be issued at all, and what it waits for while
// no session is open.
func (src *Source) admit(size int) (until entrance, err error) {
	s := src.session
	if err, src.loss = src.loss, nil; err != nil {
		return until, err
	}
	if err = src.unavailable(); err != nil {
		return until, err
	}
	if s.number == 0 {
		return entrance{opens: s.begun, changed: src.changed}, src.refused()
	}
	if size <= wire.MaxInMessage { // enough for any primary
		return until, nil
	}
	if l := src.toPrimary(); l != nil && l.peer.most > 0 && uint64(size) > l.peer.most {
		return until, errTooLarge(size, l.peer.most)
	}
	return until, nil
}

// enter says what a call of so many bytes waits for, in its place in the line, while there is no
// room for it, or others came before.
func (p *place) enter(s *session, size int, reads bool) (until entrance) {
	if p.session != s {
		if (reads || len(s.line) == 0) && s.takes(size, reads) {
			return until
		}
		p.leave()
		*p = place{s, make(chan struct{}, 1)}
		s.line = append(s.line, p.turn)
	}
	if s.line[0] == p.turn && s.takes(size, reads) {
		return until
	}
	until = entrance{opens: p.turn, changed: s.ended, full: true}
	if s.line[0] == p.turn && !reads && s.frames.full(size) {
		s.askPrimary(&pb.WaitingFor{Epoch: uint64(s.source.Epoch()), Stable: true})
		until.after = askEvery
	}
	return until
}

// leave takes the call out of the line, where the next one may have room.
func (p *place) leave() {
	if s := p.session; s != nil {
		s.line = slices.DeleteFunc(s.line, func(other chan struct{}) bool { return other == p.turn })
		s.makeRoom()
	}
}

// newCall begins a call in a session that has room.
func (s *session) newCall(ctx context.Context, r *Request, reads bool) *call {
	k := &call{Request: r, ctx: ctx, session: s}
	if r.Level > s.of.level {
		k.level = r.Level
	}
	if reads {
		s.reads[k] = struct{}{}
		return k
	}
	k.retained = s.frames.add(&pb.Frame{Group: s.of.group.id, Session: s.number, Method: r.Method, Message: r.Message,
		Level: k.level}, k)
	k.seqNum, k.outstanding = k.retained.frame.SeqNum, k.retained.frame.Outstanding
	for _, l := range s.of.links {
		if l.session == s {
			l.enqueued(k.isStable())
		}
	}
	return k
}
