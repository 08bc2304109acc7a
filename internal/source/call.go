package source

import (
	"context"
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
)

// askAfter is how long a reply has waited under R1 when this source asks.
const askAfter = 5 * time.Millisecond

// An Attempt carries a request to a replica.
type Attempt interface {
	// Invoke makes one attempt, and returns when it has ended, or ctx has. There is one at a time,
	// and each may have to carry the request again.
	Invoke(ctx context.Context, replica string, h wire.Header) Arrival
}

// Call makes one call: FIG. 8 on the way out, FIG. 9 on the way back. It returns nil when the last
// attempt's response is to be handed over; else that attempt's error, if it is the outcome, an
// *Error, or ErrClosed. The message mustn't change, even later: it may have to be sent again.
func (src *Source) Call(ctx context.Context, r *Request, a Attempt) error {
	var first prepared
	for reads := r.ReadOnly; ; {
		k, err := src.begin(ctx, r, reads, &first)
		if err != nil {
			return err
		}
		switch v, err := k.run(a, &first); v {
		case verdictMove:
		case verdictOrder:
			reads = false
		default:
			return err
		}
	}
}

// begin waits for an open session with room for the call, enqueues its frame for every replica but
// the primary, and prepares the first attempt. In that order, seqNums leave on every stream.
//
// A read-only call has no seqNum, and nobody but the primary sees it.
func (src *Source) begin(ctx context.Context, r *Request, reads bool, first *prepared) (*call, error) {
	var p place
	for {
		k, until, err := src.enter(ctx, r, reads, &p, first)
		if k != nil || err != nil {
			return k, err
		}
		if err := src.awaitEntrance(ctx, until); err != nil {
			src.giveUp(&p)
			return nil, err
		}
	}
}

// enter begins the call if it can begin now.
func (src *Source) enter(ctx context.Context, r *Request, reads bool, p *place, first *prepared) (
	k *call, until entrance, err error,
) {
	src.mu.Lock()
	defer src.mu.Unlock()
	s := p.session
	if s == nil || s.over != nil {
		s = src.session
		if until, err = src.admit(len(r.Message)); err != nil || s.number == 0 {
			return nil, until, err
		}
	}
	if until = p.enter(s, len(r.Message), reads); until.full {
		return nil, until, nil
	}
	p.leave()
	k = s.newCall(ctx, r, reads)
	k.prepare(first)
	return k, until, nil
}

// awaitEntrance waits. It fails when the call ends first.
func (src *Source) awaitEntrance(ctx context.Context, until entrance) error {
	var after <-chan time.Time
	if until.after > 0 {
		after = time.After(until.after)
	}
	select {
	case <-until.opens:
	case <-until.changed:
	case <-after:
	case <-src.ctx.Done():
		return ErrClosed
	case <-ctx.Done():
		why := "too much is outstanding on the connection, or a call that may end its replica is alone there"
		if !until.full {
			why = src.why()
		}
		return errEnded(false, why)
	}
	return nil
}

// why is problem, for a call that ends.
func (src *Source) why() string {
	src.mu.Lock()
	defer src.mu.Unlock()
	return src.problem()
}

// giveUp is for a call that doesn't begin.
func (src *Source) giveUp(p *place) {
	src.mu.Lock()
	defer src.mu.Unlock()
	p.leave()
}

// run makes attempts, of which the first is prepared, until one decides. verdictMove and
// verdictOrder say that nothing was executed, nor will be, and that the call is to be made on
// another session, or as one that is ordered; any other verdict that the call has ended.
func (k *call) run(a Attempt, p *prepared) (v verdict, err error) {
	returned := false
	defer func() { // code of the user's may panic in Invoke, and a caller's caller recover
		if !returned {
			k.abandon()
		}
	}()
	v, err = k.attempts(a, p)
	returned = true
	return v, err
}

// abandon ends a call whose goroutine doesn't come back.
func (k *call) abandon() {
	k.session.of.mu.Lock()
	defer k.session.of.mu.Unlock()
	k.stop()
	k.dropWaiting()
	k.leave(endAbandoned)
}

func (k *call) attempts(a Attempt, p *prepared) (verdict, error) {
	src := k.session.of
	pause := Pauses{Base: 5 * time.Millisecond, Max: 100 * time.Millisecond, spread: spread(k.session.nonce, k.seqNum)}
	for made := 0; ; k.next(p) {
		v := verdictRetry
		if p.ctx != nil {
			if made++; made > 1 {
				src.counts.reissued.Add(1)
			}
			sent := src.elapsed()
			v = k.arrived(a.Invoke(p.ctx, p.replica, p.header), sent, p.replica)
			if v == verdictWait {
				v = k.await()
			}
		}
		if v == verdictRetry {
			v = k.pause(&pause)
		}
		if v == verdictRetry && len(k.deaths) > 1 {
			v = k.suspected()
		}
		switch v {
		case verdictRetry:
		case verdictMove, verdictOrder:
			k.end(endRefused)
			return v, nil
		case verdictAccept:
			return v, k.reply.err
		case verdictRefused:
			k.end(endRefused)
			return v, k.reply.err
		case verdictUnknown:
			k.end(endAbandoned)
			return v, k.reply.err
		case verdictEnded:
			k.end(endAbandoned)
			if src.ctx.Err() != nil {
				return v, ErrClosed
			}
			return v, errEnded(k.maybe, src.why())
		}
	}
}

// arrived is FIG. 9, whether or not the reply will be accepted, and then the first judgement of it.
func (k *call) arrived(a Arrival, sent time.Duration, from string) verdict {
	s := k.session
	src := s.of
	src.mu.Lock()
	defer src.mu.Unlock()
	k.try.cancel()
	k.try.cancel = nil
	if a.Bad == nil && a.Header != nil {
		for _, run := range a.Header.SourceOrderInfo {
			if a.Bad == nil {
				a.Bad = s.announce(run)
			}
		}
	}
	if a.Bad != nil {
		src.counts.malformed.Add(1)
		src.log.Error("a reply's header is malformed", "method", k.Method, "replica", from, "err", a.Bad)
		a.Header = nil
	}
	if h := a.Header; h != nil {
		s.source.LearnStable(h.SourceEpoch, h.Stable)
		s.learned()
	}
	k.reply = reply{header: a.Header, err: a.Err, sent: sent, size: a.Size}
	k.verdict = k.judge(&a)
	switch k.verdict {
	case verdictWait:
		if k.wake == nil {
			k.wake = make(chan struct{}, 1)
		}
		s.waiting = append(s.waiting, k)
	case verdictAccept:
		k.leave(endAccepted)
	}
	return k.verdict
}

// next prepares another attempt.
func (k *call) next(p *prepared) {
	k.session.of.mu.Lock()
	defer k.session.of.mu.Unlock()
	k.prepare(p)
}

// end ends the call with another verdict than verdictAccept.
func (k *call) end(how ending) {
	k.session.of.mu.Lock()
	defer k.session.of.mu.Unlock()
	k.leave(how)
}

// await holds a reply until there is a verdict (R1, R1b), or the call ends.
func (k *call) await() verdict {
	timer := time.NewTimer(askAfter)
	defer timer.Stop()
	for {
		late, over := false, false
		select {
		case <-k.wake:
		case <-timer.C:
			late = true
			timer.Reset(askEvery)
		case <-k.ctx.Done():
			over = true
		case <-k.session.of.ctx.Done():
			over = true
		}
		if v := k.look(late, over); v != verdictWait {
			return v
		}
	}
}

// look says what became of the reply that is held. late: ask for what it waits for.
func (k *call) look(late, over bool) verdict {
	s := k.session
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if k.verdict == verdictWait {
		now := s.of.elapsed()
		switch k.verdict = k.decide(now); {
		case k.verdict != verdictWait:
		case over:
			k.verdict = verdictEnded
		default:
			if late {
				s.ask(k.reply.header.OrderNum, now)
			}
			return verdictWait
		}
		k.dropWaiting()
	}
	if k.verdict == verdictAccept {
		k.leave(endAccepted)
	}
	return k.verdict
}

// pause waits until another attempt may do better: at once in another epoch, else after a change,
// or a while.
func (k *call) pause(b *Pauses) verdict {
	src := k.session.of
	v, changed := k.mayRetry()
	switch {
	case v != verdictRetry:
		return v
	case changed == nil:
		b.Reset()
		return verdictRetry
	}
	timer := time.NewTimer(b.Next())
	defer timer.Stop()
	select {
	case <-changed:
		b.Reset()
	case <-timer.C:
	case <-k.ctx.Done():
		return verdictEnded
	case <-src.ctx.Done():
		return verdictEnded
	}
	return verdictRetry
}

// mayRetry says whether there may be another attempt: at once, or after what it returns.
func (k *call) mayRetry() (v verdict, after <-chan struct{}) {
	s := k.session
	src := s.of
	src.mu.Lock()
	defer src.mu.Unlock()
	switch {
	case s.over != nil && !k.maybe && isUnknownSession(s.over):
		return verdictMove, nil
	case s.over != nil:
		k.reply = reply{err: endOf(s.number, s.over)}
		return verdictUnknown, nil
	}
	if down := src.unavailable(); down != nil && !k.maybe {
		k.reply = reply{err: down}
		return verdictRefused, nil
	}
	if !src.primary.IsZero() && s.source.Epoch() != k.try.epoch {
		return verdictRetry, nil
	}
	return verdictRetry, src.changed
}

// suspected holds a call back with which two primaries have died, until it is alone.
func (k *call) suspected() verdict {
	src := k.session.of
	for {
		src.mu.Lock()
		v := k.suspect()
		changed := src.changed
		src.mu.Unlock()
		if v != verdictWait {
			return v
		}
		select {
		case <-changed:
		case <-k.ctx.Done():
		case <-src.ctx.Done():
		}
		if k.ctx.Err() != nil || src.ctx.Err() != nil {
			return verdictEnded
		}
	}
}

// prepared is an attempt that is to be made.
type prepared struct {
	ctx     context.Context // nil: none, without a primary, or session
	replica string
	header  wire.Header
}

// prepare prepares an attempt: FIG. 8.
func (k *call) prepare(p *prepared) {
	s := k.session
	src := s.of
	if p.ctx = nil; s.over != nil || src.primary.IsZero() {
		return
	}
	p.ctx, k.try.cancel = context.WithCancel(k.ctx)
	p.replica = src.primary.Name
	k.try.epoch, k.try.cut = s.source.Epoch(), false
	k.attempted()
	held := s.source.HeldUpTo()
	p.header = wire.Header{
		Session: orderstate.Session(s.number), SeqNum: orderstate.SeqNum(k.seqNum), DestEpoch: k.try.epoch,
		HeldUpTo: held, Outstanding: orderstate.SeqNum(k.outstanding), Level: k.level,
		DestOrderInfo: s.envelopes(held), Token: s.token,
	}
}
