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

// sources are the streams of sources to this replica.
type sources struct {
	m         *member
	attached  map[*attachment]struct{}
	bySession map[orderstate.Session]*attachment
	queued    int                                  // bytes that are queued for them
	partial   int                                  // bytes that are kept of frames that aren't whole yet
	absent    map[orderstate.Session]time.Duration // since when a session has no stream here

	coming   map[orderstate.Nonce]*coming // streams wait until these have opened their sessions
	openings chan struct{}                // has room for the openings that are under way
}

func newSources(m *member) sources {
	return sources{
		m: m, attached: map[*attachment]struct{}{}, bySession: map[orderstate.Session]*attachment{},
		absent: map[orderstate.Session]time.Duration{},
		coming: map[orderstate.Nonce]*coming{}, openings: make(chan struct{}, maxOpenings),
	}
}

// attach binds a stream to its session: it opens one (R11), or finds the one that the source names,
// and then welcomes the source. A session that nobody opened is refused.
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

// knows says whether a nonce's session is open here. Called with mu held.
func (ss *sources) knows(n orderstate.Nonce) bool {
	_, known := ss.m.history().Opened(n)
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
func (ss *sources) comes(ctx context.Context, n orderstate.Nonce) error {
	c := ss.coming[n]
	if c == nil {
		c = &coming{opened: make(chan struct{})}
		ss.coming[n] = c
	}
	c.streams++
	changed := ss.m.bells.changed
	ss.m.mu.Unlock()
	again := time.NewTimer(lookAgain) // its session may never be opened here
	select {
	case <-c.opened:
	case <-changed:
	case <-again.C:
	case <-ctx.Done():
	case <-ss.m.ctx.Done():
	}
	again.Stop()
	ss.m.mu.Lock()
	if c.streams--; c.streams == 0 && ss.coming[n] == c {
		delete(ss.coming, n)
	}
	return cmp.Or(context.Cause(ss.m.ctx), context.Cause(ctx))
}

// opened wakes the streams whose session was opened. Called with mu held.
func (ss *sources) opened(n orderstate.Nonce) {
	if c := ss.coming[n]; c != nil {
		close(c.opened)
		delete(ss.coming, n)
	}
}

// awaitSession waits while the group has as many sessions as it may have, and refuses when that
// lasts. Those that have had no stream for longest end meanwhile (expireSessions). Called with mu
// held, while leading.
func (l *leading) awaitSession(ctx context.Context) error {
	room := func() bool { return l.over() || l.primary.History().OpenSessions() < maxSessions }
	if room() {
		return nil
	}
	l.crowded++
	waiting, cancel := context.WithTimeout(ctx, reconcileTimeout)
	defer cancel()
	err := l.m.awaitProgress(waiting, room)
	l.crowded--
	if err != nil && ctx.Err() == nil && waiting.Err() != nil {
		return status.Errorf(codes.ResourceExhausted,
			"understudy: the group has %d sessions, one for each ClientConn, and may have no more: close some, or "+
				"share them", maxSessions)
	}
	return err
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
		Token:       ss.m.token(a.session, a.nonce), MaxRequest: uint64(ss.m.r.maxRequest),
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
// call pays for it. Called with mu held.
func (m *member) token(s orderstate.Session, n orderstate.Nonce) uint64 {
	of := m.known[s]
	if of == nil {
		of = &knownSession{token: m.seal.Token(s, n)}
		m.known[s] = of
	}
	return of.token
}

// owns checks that a request is of the source to which its session belongs: anyone can guess the
// session's number. One whose session isn't open is left to Judge. Called with mu held, while
// leading or taking over.
func (m *member) owns(h *wire.Header) error {
	nonce, open := m.history().Nonce(h.Session)
	switch {
	case !open && m.leading() != nil:
		return nil
	case !open: // whoever was told of it has it from one that every in-sync replica knows
		return errNotPrimary
	}
	if d := h.Token ^ m.token(h.Session, nonce); subtle.ConstantTimeEq(int32(d), 0)&subtle.ConstantTimeEq(int32(d>>32),
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

// pushSession sends the backups a session's messages and orders that they may lack: its source
// can't any more (R4). Called with mu held.
func (rs *roster) pushSession(s orderstate.Session) {
	for _, p := range rs.peers {
		if f := p.stream; f != nil {
			rs.catchUp(f)
			rs.sendMessages(f, func(of orderstate.Session) bool { return of == s })
		}
	}
}

// goodbye ends the session of a source that has closed its connection in an orderly way, so that no
// takeover waits for it. Anyone but the primary only loses the stream.
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

// expireSessions orders the end of sessions that have had no stream for too long (R11). While an
// opening waits for one to end, that is not so long.
func (l *leading) expireSessions() {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	if !l.gate {
		return
	}
	now, limit := l.m.r.clock(), sessionTimeout
	if l.crowded > 0 {
		limit = authority
	}
	var over []orderstate.Session
	for s, since := range l.m.sources.absent {
		if now-since > limit {
			over = append(over, s)
		}
	}
	if len(over) == 0 {
		return
	}
	if l.crowded > 0 { // no more than are waited for
		slices.SortFunc(over, func(a, b orderstate.Session) int {
			return cmp.Compare(l.m.sources.absent[a],
				l.m.sources.absent[b])
		})
		over = over[:min(len(over), l.crowded)]
	}
	for _, s := range over {
		delete(l.m.sources.absent, s)
	}
	l.m.goes(func() {
		for _, s := range over {
			l.expire(s)
		}
	})
}

// expire orders the end of a session, unless its source has come back meanwhile.
func (l *leading) expire(s orderstate.Session) {
	_, _ = l.ownTurn(l.m.ctx, func(at int64) (orderstate.OrderInfo, bool) {
		if l.m.sources.bySession[s] != nil {
			return orderstate.OrderInfo{}, false
		}
		o, v, moved := l.primary.Expire(s, at)
		if v == orderstate.Fresh {
			l.m.own(o)
		}
		return o, moved.Push
	})
}
