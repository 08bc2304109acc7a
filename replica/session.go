package replica

import (
	"cmp"
	"context"
	"crypto/subtle"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has the life of a session at a replica (R11): it is opened, its source is welcomed,
// parts, says goodbye, or is expired. What its streams carry is in attach.go.

// attach binds a stream to its session: it opens one (R11), or finds the one that the source names,
// and then welcomes the source. A session that nobody opened is refused. It takes mu.
func (ss *sources) attach(ctx context.Context, a *attachment) error {
	ss.m.mu.Lock()
	defer ss.m.mu.Unlock()
	ss.attached[a] = struct{}{}
	if n := len(ss.attached) - len(ss.bySession); n > maxSessions && !ss.knows(a.nonce) {
		return status.Errorf(codes.ResourceExhausted,
			"understudy: %d streams wait for their sessions here, at most %d may: try again later", n, maxSessions)
	}
	opens, began := false, ss.m.r.clock()
	defer func() {
		if opens {
			<-ss.openings
		}
	}()
	for {
		s, known := ss.m.history().Opened(a.nonce)
		l := ss.m.ordering()
		switch {
		case known && a.session != 0 && a.session != s:
			return status.Errorf(codes.PermissionDenied, "understudy: session %d belongs to another source", a.session)
		case known:
			a.session = s
			return ss.welcome(ctx, a)
		// who leads knows all
		case a.session != 0 && (ss.m.history().Last() >= orderstate.OrderNum(a.session) || l != nil):
			return errSessionLost("understudy: session %d is unknown: it was never opened, or it expired", a.session)
		// some at once: whoever waits for the stable point costs the others something
		case a.session == 0 && l != nil && !opens:
			ss.m.mu.Unlock()
			select {
			case ss.openings <- struct{}{}:
				opens = true
			case <-ctx.Done():
			case <-ss.m.ctx.Done():
			}
			ss.m.mu.Lock()
			if !opens {
				return cmp.Or(context.Cause(ctx), context.Cause(ss.m.ctx))
			}
			continue
		case a.session == 0 && l != nil:
			if err := l.awaitSession(ctx); err != nil {
				return err
			}
			ss.m.mu.Unlock()
			_, err := l.ownTurn(ctx, func(at int64) (orderstate.OrderInfo, bool) {
				if l.primary.History().OpenSessions() >= maxSessions {
					return orderstate.OrderInfo{}, false
				}
				o, v, _ := l.primary.Open(a.nonce, ss.m.seal.DigestOpening(a.nonce), nil, at)
				if v != orderstate.Fresh {
					return o, false
				}
				ss.m.own(o)
				ss.opened(a.nonce)
				ss.absent[o.Session] = ss.m.r.clock() // until its source is welcomed, which may be gone
				l.roster.sendOpening(o)
				return o, false
			})
			ss.m.mu.Lock()
			if err != nil && ss.m.leading() != nil {
				return err
			}
			continue
		}
		if ss.m.r.clock()-began > reconcileTimeout { // else who waits for what never comes would keep others out
			return status.Error(codes.Unavailable, "understudy: the session isn't known here yet: attach again")
		}
		if err := ss.comes(ctx, a.nonce); err != nil {
			return err
		}
	}
}

// welcome tells the source that its session is known here. The primary does so only when every
// in-sync backup knows it (R11).
func (ss *sources) welcome(ctx context.Context, a *attachment) error {
	err := ss.m.awaitProgress(ctx, func() bool {
		switch role := ss.m.role.(type) {
		case *following, *takingOver:
			return true
		case *leading:
			return role.gate && role.primary.Stable() >= orderstate.OrderNum(a.session)
		}
		return false
	})
	if err != nil {
		return err
	}
	if !ss.m.history().Known(a.session) {
		return errSessionLost("understudy: session %d expired before its source was welcomed", a.session)
	}
	if old := ss.bySession[a.session]; old != nil && old != a {
		old.out.cut(status.Error(codes.Aborted, "understudy: the session was attached by another stream"))
		if f := ss.m.following(); f != nil {
			f.cantHear(a.session)
		}
	}
	ss.bySession[a.session] = a
	delete(ss.absent, a.session)
	a.bound = true
	welcome := &pb.Welcome{
		Protocol: wire.Protocol, Session: uint64(a.session), Group: ss.m.group, Replica: ss.m.self.Name,
		Incarnation: ss.m.self.Incarnation,
		Level:       pb.Level(ss.m.r.config.level + 1),
		Token:       ss.token(a.session, a.nonce), MaxRequest: uint64(ss.m.r.maxRequest),
		Primary: newEpochToProto(ss.m.epoch(), ss.m.leader, ss.m.fence),
	}
	switch role := ss.m.role.(type) {
	case *leading:
		welcome.EpochStart, welcome.RequiredSet = a.starts(role.start), role.required()
	case *following:
		welcome.EpochStart = a.starts(role.start)
		a.acknowledge(role.backup)
	}
	out := a.out.say()
	out.Welcome, out.Mark = welcome, ss.m.sealedMark()
	return nil
}

// token is what the requests of a session that is open here must carry. It is made once, so that no
// call pays for it.
func (ss *sources) token(s orderstate.Session, n orderstate.Nonce) uint64 {
	of := ss.known[s]
	if of == nil {
		of = &knownSession{token: ss.m.seal.Token(s, n)}
		ss.known[s] = of
	}
	return of.token
}

// owns checks that a request is of the source to which its session belongs: anyone can guess the
// session's number. One whose session isn't open is left to Judge.
func (ss *sources) owns(h *wire.Header) error {
	nonce, open := ss.m.history().Nonce(h.Session)
	switch {
	case !open && ss.m.leading() != nil:
		return nil
	case !open: // whoever was told of it has it from one that every in-sync replica knows
		return errNotPrimary
	}
	if d := h.Token ^ ss.token(h.Session, nonce); subtle.ConstantTimeEq(int32(d), 0)&subtle.ConstantTimeEq(int32(d>>32),
		0) == 0 {
		return errAnothers(h.Session)
	}
	return nil
}

func (ss *sources) detach(a *attachment) {
	ss.m.mu.Lock()
	defer ss.m.mu.Unlock()
	delete(ss.attached, a)
	a.gone = true
	ss.partial -= a.partial
	a.partial = 0
	a.unqueue()
	if l := ss.m.leading(); l != nil {
		delete(l.asking, a)
	}
	if !a.bound || ss.bySession[a.session] != a {
		return
	}
	delete(ss.bySession, a.session)
	ss.absent[a.session] = ss.m.r.clock()
	switch role := ss.m.role.(type) {
	case *leading:
		role.roster.pushSession(a.session) // R4
	case *following:
		role.cantHear(a.session)
	case *takingOver:
		ss.m.after(moved{rare: true}) // it waits less long for a session without a stream
	}
}

// goodbye ends the session of a source that has closed its connection in an orderly way, so that no
// takeover waits for it. Anyone but the primary only loses the stream. It takes mu.
func (ss *sources) goodbye(ctx context.Context, a *attachment) {
	ss.m.mu.Lock()
	l := ss.m.leading()
	ss.m.mu.Unlock()
	if l == nil { // then the session expires by its time-out
		return
	}
	_, _ = l.ownTurn(ctx, func(at int64) (orderstate.OrderInfo, bool) {
		o, v, _ := l.primary.Expire(a.session, at)
		if v == orderstate.Fresh {
			delete(ss.bySession, a.session)
			ss.m.own(o)
		}
		return o, true
	})
}
