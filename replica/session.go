package replica

import (
	"cmp"
	"context"
	"crypto/subtle"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// This file has the life of a session at a replica (R11): it is opened, its source is welcomed,
// parts, says goodbye, or is expired. What its streams carry is in attach.go.

// attach binds a stream to its session: it opens one (R11), or finds the one that the source names,
// and then welcomes the source. A session that nobody opened is refused.
func (in *incarnation) attach(ctx context.Context, a *attachment) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.attached[a] = struct{}{}
	if n := len(in.attached) - len(in.bySession); n > maxSessions && !in.knows(a.nonce) {
		return status.Errorf(codes.ResourceExhausted,
			"understudy: %d streams wait for their sessions here, at most %d may: try again later", n, maxSessions)
	}
	opens, began := false, in.r.clock()
	defer func() {
		if opens {
			<-in.openings
		}
	}()
	for {
		s, known := in.history().Opened(a.nonce)
		switch {
		case known && a.session != 0 && a.session != s:
			return status.Errorf(codes.PermissionDenied, "understudy: session %d belongs to another source", a.session)
		case known:
			a.session = s
			return in.welcome(ctx, a)
		// who leads knows all
		case a.session != 0 && (in.history().Last() >= orderstate.OrderNum(a.session) || in.role == leading && in.gate):
			return errSessionLost("understudy: session %d is unknown: it was never opened, or it expired", a.session)
		// some at once: whoever waits for the stable point costs the others something
		case a.session == 0 && in.role == leading && in.gate && !opens:
			in.mu.Unlock()
			select {
			case in.openings <- struct{}{}:
				opens = true
			case <-ctx.Done():
			case <-in.ctx.Done():
			}
			in.mu.Lock()
			if !opens {
				return cmp.Or(context.Cause(ctx), context.Cause(in.ctx))
			}
			continue
		case a.session == 0 && in.role == leading && in.gate:
			if err := in.awaitSession(ctx); err != nil {
				return err
			}
			in.mu.Unlock()
			_, err := in.ownTurn(ctx, func(at int64) (orderstate.OrderInfo, bool) {
				if in.primary.History().OpenSessions() >= maxSessions {
					return orderstate.OrderInfo{}, false
				}
				o, v, _ := in.primary.Open(a.nonce, in.seal.DigestOpening(a.nonce), nil, at)
				if v != orderstate.Fresh {
					return o, false
				}
				in.own(o)
				in.opened(a.nonce)
				in.absent[o.Session] = in.r.clock() // until its source is welcomed, which may be gone
				for _, p := range in.roster {       // R11: nobody else has this message
					if f := p.stream; f != nil {
						in.catchUp(f)
						in.sendMessage(f, o.Message())
					}
				}
				return o, false
			})
			in.mu.Lock()
			if err != nil && in.role == leading {
				return err
			}
			continue
		}
		if in.r.clock()-began > reconcileTimeout { // else who waits for what never comes would keep others out
			return status.Error(codes.Unavailable, "understudy: the session isn't known here yet: attach again")
		}
		if err := in.comes(ctx, a.nonce); err != nil {
			return err
		}
	}
}

// knows says whether a nonce's session is open here. Called with mu held.
func (in *incarnation) knows(n orderstate.Nonce) bool {
	_, known := in.history().Opened(n)
	return known
}

// coming is an opening that streams wait for.
type coming struct {
	opened  chan struct{} // closed then
	streams int
}

// comes waits until a session may have been opened by a nonce here: until it was, or something rare
// has changed. Nothing else wakes it, however much is ordered, since anyone may wait here for what
// never comes. Called with mu held.
func (in *incarnation) comes(ctx context.Context, n orderstate.Nonce) error {
	c := in.coming[n]
	if c == nil {
		c = &coming{opened: make(chan struct{})}
		in.coming[n] = c
	}
	c.streams++
	changed := in.changed
	in.mu.Unlock()
	again := time.NewTimer(lookAgain) // its session may never be opened here
	select {
	case <-c.opened:
	case <-changed:
	case <-again.C:
	case <-ctx.Done():
	case <-in.ctx.Done():
	}
	again.Stop()
	in.mu.Lock()
	if c.streams--; c.streams == 0 && in.coming[n] == c {
		delete(in.coming, n)
	}
	return cmp.Or(context.Cause(in.ctx), context.Cause(ctx))
}

// opened wakes the streams whose session was opened. Called with mu held.
func (in *incarnation) opened(n orderstate.Nonce) {
	if c := in.coming[n]; c != nil {
		close(c.opened)
		delete(in.coming, n)
	}
}

// awaitSession waits while the group has as many sessions as it may have, and refuses when that
// lasts. Those that have had no stream for longest end meanwhile (expireSessions). Called with mu
// held, while leading.
func (in *incarnation) awaitSession(ctx context.Context) error {
	room := func() bool { return in.role != leading || in.primary.History().OpenSessions() < maxSessions }
	if room() {
		return nil
	}
	in.crowded++
	waiting, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	err := in.awaitProgress(waiting, room)
	in.crowded--
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return status.Errorf(codes.ResourceExhausted,
			"understudy: the group has %d sessions, one for each ClientConn, and may have no more: close some, or "+
				"share them", maxSessions)
	}
	return err
}

// changes waits for one change. Called with mu held.
func (in *incarnation) changes(ctx context.Context) error {
	first := true
	return in.await(ctx, func() bool {
		defer func() { first = false }()
		return !first
	})
}

// welcome tells the source that its session is known here. The primary does so only when every
// in-sync backup knows it (R11).
func (in *incarnation) welcome(ctx context.Context, a *attachment) error {
	err := in.awaitProgress(ctx, func() bool {
		return in.role == following || in.role == takingOver || in.role == leading && in.gate &&
			in.primary.Stable() >= orderstate.OrderNum(a.session)
	})
	if err != nil {
		return err
	}
	if !in.history().Known(a.session) {
		return errSessionLost("understudy: session %d expired before its source was welcomed", a.session)
	}
	if old := in.bySession[a.session]; old != nil && old != a {
		old.out.cut(status.Error(codes.Aborted, "understudy: the session was attached by another stream"))
		if in.role == following {
			in.cantHear(a.session)
		}
	}
	in.bySession[a.session] = a
	delete(in.absent, a.session)
	a.bound = true
	welcome := &pb.Welcome{
		Protocol: wire.Protocol, Session: uint64(a.session), Group: in.group,
		Replica: in.self.Name, Incarnation: in.self.Incarnation, Level: pb.Level(in.r.config.level + 1),
		Token: in.token(a.session, a.nonce), MaxRequest: uint64(in.r.maxRequest),
		Primary: newEpochToProto(in.epoch(), in.leader, in.fence),
	}
	switch in.role {
	case leading:
		welcome.EpochStart, welcome.RequiredSet = a.starts(in.start), in.required()
	case following:
		welcome.EpochStart = a.starts(in.start)
		a.acknowledge()
	}
	out := a.out.say()
	out.Welcome, out.Mark = welcome, in.sealedMark()
	return nil
}

// token is what the requests of a session that is open here must carry. It is made once, so that no
// call pays for it. Called with mu held.
func (in *incarnation) token(s orderstate.Session, n orderstate.Nonce) uint64 {
	of := in.known[s]
	if of == nil {
		of = &knownSession{token: in.seal.Token(s, n)}
		in.known[s] = of
	}
	return of.token
}

// owns checks that a request is of the source to which its session belongs: anyone can guess the
// session's number. One whose session isn't open is left to Judge. Called with mu held, while
// leading or taking over.
func (in *incarnation) owns(h *wire.Header) error {
	nonce, open := in.history().Nonce(h.Session)
	switch {
	case !open && in.role == leading:
		return nil
	case !open: // whoever was told of it has it from one that every in-sync replica knows
		return errNotPrimary
	}
	if d := h.Token ^ in.token(h.Session, nonce); subtle.ConstantTimeEq(int32(d), 0)&subtle.ConstantTimeEq(int32(d>>32),
		0) == 0 {
		return errAnothers(h.Session)
	}
	return nil
}

func (in *incarnation) detach(a *attachment) {
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.attached, a)
	delete(in.asking, a)
	a.gone = true
	in.partial -= a.partial
	a.partial = 0
	a.unqueue()
	if !a.bound || in.bySession[a.session] != a {
		return
	}
	delete(in.bySession, a.session)
	in.absent[a.session] = in.r.clock()
	switch in.role {
	case leading:
		in.pushSession(a.session) // R4
	case following:
		in.cantHear(a.session)
	}
	if in.taking != nil {
		in.broadcast() // it waits less long for a session without a stream
	}
}

// pushSession sends the backups a session's messages and orders that they may lack: its source
// can't any more (R4). Called with mu held.
func (in *incarnation) pushSession(s orderstate.Session) {
	for _, p := range in.roster {
		if f := p.stream; f != nil {
			in.catchUp(f)
			in.sendMessages(f, func(of orderstate.Session) bool { return of == s })
		}
	}
}

// goodbye ends the session of a source that has closed its connection in an orderly way, so that no
// takeover waits for it. Anyone but the primary only loses the stream.
func (in *incarnation) goodbye(ctx context.Context, a *attachment) {
	// refused if this replica doesn't lead: then the session expires by its time-out
	_, _ = in.ownTurn(ctx, func(at int64) (orderstate.OrderInfo, bool) {
		o, v, _ := in.primary.Expire(a.session, at)
		if v == orderstate.Fresh {
			delete(in.bySession, a.session)
			in.own(o)
		}
		return o, true
	})
}

// expireSessions orders the end of sessions that have had no stream for too long (R11). While an
// opening waits for one to end, that is not so long.
func (in *incarnation) expireSessions() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.gate {
		return
	}
	now, limit := in.r.clock(), sessionTimeout
	if in.crowded > 0 {
		limit = authority
	}
	var over []orderstate.Session
	for s, since := range in.absent {
		if now-since > limit {
			over = append(over, s)
		}
	}
	if len(over) == 0 {
		return
	}
	if in.crowded > 0 { // no more than are waited for
		slices.SortFunc(over, func(a, b orderstate.Session) int { return cmp.Compare(in.absent[a], in.absent[b]) })
		over = over[:min(len(over), in.crowded)]
	}
	for _, s := range over {
		delete(in.absent, s)
	}
	in.goes(func() {
		for _, s := range over {
			in.expire(s)
		}
	})
}

// expire orders the end of a session, unless its source has come back meanwhile.
func (in *incarnation) expire(s orderstate.Session) {
	_, _ = in.ownTurn(in.ctx, func(at int64) (orderstate.OrderInfo, bool) {
		if in.bySession[s] != nil {
			return orderstate.OrderInfo{}, false
		}
		o, v, moved := in.primary.Expire(s, at)
		if v == orderstate.Fresh {
			in.own(o)
		}
		return o, moved.Push
	})
}
