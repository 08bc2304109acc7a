package transport

import (
	"context"
	"slices"
	"time"

	"google.golang.org/grpc"

	"github.com/understudy-rpc/understudy"
	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

const (
	askAfter = 5 * time.Millisecond  // a reply that has waited so long under R1 makes this source ask
	askEvery = 20 * time.Millisecond // and again
)

// call is one unary call on a session, under one seqNum. Its attempts follow each other; each is an
// RPC to the primary of the epoch that is acknowledged then.
type call struct {
	request // constant, as are those up to retained
	client  *Client
	session *session
	level   pb.Level
	seqNum  uint64 // 0: read-only, without a frame
	// outstanding is the low-water mark as a difference. Replicas bind it to the order, so that
	// every copy of the message has the same.
	outstanding uint64
	retained    *retained

	// Guarded by Client.mu:
	epoch   orderstate.Epoch   // of the present attempt, or the last one
	cancel  context.CancelFunc // of the present attempt; nil without one
	cut     bool               // this client has cancelled the attempt
	maybe   bool               // some attempt may have been executed
	deaths  []death            // of primaries, during an attempt
	reply   reply              // of the last attempt
	verdict verdict            // on it
	wake    chan struct{}      // a verdict was found while the reply was held; has room for one; nil before
	look0   uint64             // Client.looks when the attempt began
}

// invoke makes one call: FIG. 8 on the way out, FIG. 9 on the way back.
func (c *Client) invoke(
	ctx context.Context, method string, req, resp any, conn *grpc.ClientConn, invoker grpc.UnaryInvoker,
	opts []grpc.CallOption,
) error {
	c.counts.calls.Add(1)
	ctx, stop := c.limited(ctx)
	defer stop()
	if err := c.connect(ctx, conn); err != nil {
		return err
	}
	config := conn.GetMethodConfig(method)
	if timeout := config.Timeout; timeout != nil { // for all attempts together
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, *timeout)
		defer cancel()
	}
	if foreignCodec(opts) {
		return statusCodec(method)
	}
	r := request{ctx: ctx, method: method, message: req, response: resp, conn: conn, invoker: invoker, opts: opts}
	switch err := r.marshal(); {
	case err != nil:
		return statusMarshal(err)
	case !wire.ValidMethod(method): // no stream could carry its frame
		return statusMethod(method)
	case len(r.payload) > wire.MaxMessage:
		return statusTooLarge(len(r.payload), wire.MaxMessage)
	}
	if err := r.obey(config.MaxReqSize, config.MaxRespSize); err != nil {
		return err
	}
	level := c.cfg.level
	for _, o := range opts {
		if o, ok := o.(levelOption); ok {
			level = max(level, o.level)
		}
	}
	reads := wire.ReadOnly(method)
	for {
		k, first, err := c.begin(r, level, reads)
		if err != nil {
			return err
		}
		switch v, err := k.run(first); v {
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
func (c *Client) begin(r request, level understudy.Level, reads bool) (*call, *attempt, error) {
	var p place
	for {
		k, first, until, err := c.enter(&r, level, reads, &p)
		if k != nil || err != nil {
			return k, first, err
		}
		if err := c.awaitEntrance(r.ctx, until); err != nil {
			c.leaveLine(&p)
			return nil, nil, err
		}
	}
}

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

// enter begins the call if it can begin now.
func (c *Client) enter(r *request, level understudy.Level, reads bool, p *place) (
	k *call, first *attempt, until entrance, err error,
) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := p.session
	if s == nil || s.over != nil {
		s = c.session
		if until, err = c.admit(len(r.payload)); err != nil || s.number == 0 {
			return nil, nil, until, err
		}
	}
	if until := c.awaitRoom(s, len(r.payload), reads, p); until.full {
		return nil, nil, until, nil
	}
	p.leave()
	k = &call{request: *r, client: c, session: s}
	if asked := levelToProto(level); asked > c.level {
		k.level = asked
	}
	if reads {
		s.reads[k] = struct{}{}
	} else {
		k.retained = s.frames.add(&pb.Frame{Group: c.group, Session: s.number, Method: r.method, Message: r.payload,
			Level: k.level}, k)
		k.seqNum, k.outstanding = k.retained.frame.SeqNum, k.retained.frame.Outstanding
		for _, l := range c.links {
			if l.session == s {
				l.enqueued(k.isStable())
			}
		}
	}
	return k, k.attempt(), until, nil
}

// admit says whether a request of so many bytes may be issued at all, and what it waits for while
// no session is open. mu is held.
func (c *Client) admit(size int) (until entrance, err error) {
	s := c.session
	if err, c.loss = c.loss, nil; err != nil {
		return until, err
	}
	if err = c.unavailable(); err != nil {
		return until, err
	}
	if s.number == 0 {
		return entrance{opens: s.begun, changed: c.changed}, c.refused()
	}
	if most := c.mostOfPrimary(size); most > 0 && uint64(size) > most {
		return until, statusTooLarge(size, int(most))
	}
	return until, nil
}

// awaitRoom says what a call of so many bytes waits for, in its place in the line, while there is
// no room for it, or others came before. mu is held.
func (c *Client) awaitRoom(s *session, size int, reads bool, p *place) (until entrance) {
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
		c.askPrimary(s, &pb.WaitingFor{Epoch: uint64(s.source.Epoch()), Stable: true})
		until.after = askEvery
	}
	return until
}

// awaitEntrance waits. It fails when the call ends first.
func (c *Client) awaitEntrance(ctx context.Context, until entrance) error {
	var after <-chan time.Time
	if until.after > 0 {
		after = time.After(until.after)
	}
	select {
	case <-until.opens:
	case <-until.changed:
	case <-after:
	case <-c.life.ctx.Done():
		return c.life.ended()
	case <-ctx.Done():
		why := "too much is outstanding on the connection, or a call that may end its replica is alone there"
		if !until.full {
			why = c.problem()
		}
		return statusEnded(ctx, false, why)
	}
	return nil
}

// leaveLine is for a call that doesn't begin.
func (c *Client) leaveLine(p *place) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p.leave()
}

// leave takes the call out of the line, where the next one may have room. mu is held.
func (p *place) leave() {
	if s := p.session; s != nil {
		s.line = slices.DeleteFunc(s.line, func(other chan struct{}) bool { return other == p.turn })
		s.makeRoom()
	}
}

// mostOfPrimary is how many bytes of a request the primary takes; 0 if that isn't known, or is
// enough for any that has so few bytes. mu is held.
func (c *Client) mostOfPrimary(size int) uint64 {
	if size <= wire.MaxInMessage {
		return 0
	}
	for _, l := range c.links {
		if l.up && l.isPrimary() {
			return l.most
		}
	}
	return 0
}

// reads says whether the call is read-only.
func (k *call) reads() bool { return k.seqNum == 0 }

// isStable says whether R1b applies. mu is held.
func (k *call) isStable() bool {
	return max(k.level, k.client.level) == pb.Level_LEVEL_STABLE
}

// run makes attempts, of which the first is prepared, until one decides. verdictMove and
// verdictOrder say that nothing was executed, nor will be, and that the call is to be made on
// another session, or as one that is ordered; any other verdict that the call has ended.
func (k *call) run(a *attempt) (v verdict, err error) {
	returned := false
	defer func() { // an interceptor after ours may panic, and a caller's caller recover
		if !returned {
			k.abandon()
		}
	}()
	v, err = k.attempts(a)
	returned = true
	return v, err
}

// abandon ends a call whose goroutine doesn't come back.
func (k *call) abandon() {
	k.client.mu.Lock()
	defer k.client.mu.Unlock()
	k.stop()
	k.session.dropWaiting(k)
	k.leave(endAbandoned)
}

func (k *call) attempts(a *attempt) (verdict, error) {
	c := k.client
	pause := pauses{base: 5 * time.Millisecond, max: 100 * time.Millisecond,
		spread: spread(k.session.nonce, "", k.seqNum)}
	for first := true; ; a = k.next() {
		v := verdictRetry
		if a != nil {
			if !first {
				c.counts.reissued.Add(1)
			}
			first = false
			sent := c.cfg.elapsed()
			v = k.arrived(a.invoke(), sent, &a.Choice)
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
			if c.life.ctx.Err() != nil {
				return v, c.life.ended()
			}
			return v, statusEnded(k.ctx, k.maybe, c.problem())
		}
	}
}

// next prepares another attempt.
func (k *call) next() *attempt {
	k.client.mu.Lock()
	defer k.client.mu.Unlock()
	return k.attempt()
}

// attempt prepares an attempt: FIG. 8. Without a primary, or session, there is none. mu is held.
func (k *call) attempt() *attempt {
	c, s := k.client, k.session
	if s.over != nil || c.primary.IsZero() {
		return nil
	}
	a := &attempt{request: &k.request, Choice: route.Choice{Replica: c.primary.Name}}
	a.Context, k.cancel = context.WithCancel(k.ctx)
	k.epoch, k.cut = s.source.Epoch(), false
	k.attempted()
	held := s.source.HeldUpTo()
	h := wire.Header{
		Session: orderstate.Session(s.number), SeqNum: orderstate.SeqNum(k.seqNum), DestEpoch: k.epoch, HeldUpTo: held,
		Outstanding: orderstate.SeqNum(k.outstanding), Level: k.level, DestOrderInfo: s.envelopes(held), Token: s.token,
	}
	a.carry(&h, c.cfg.inMetadata || k.apart)
	return a
}

// envelopes are those of destOrderInfo that HeldUpTo doesn't say already: announcements above a
// gap. A header has room for a few (R5); the streams carry them all.
func (s *session) envelopes(held orderstate.OrderNum) (runs []orderstate.Announcement) {
	const few = 16
	if s.announced <= held {
		return nil
	}
	all, _ := s.source.Multicast(0)
	for _, a := range all {
		if a.Epoch == s.source.Epoch() && a.First > held && len(runs) < few {
			runs = append(runs, orderstate.Announcement{Envelope: a.Envelope})
		}
	}
	return runs
}

// await holds a reply until there is a verdict (R1, R1b), or the call ends.
func (k *call) await() verdict {
	c := k.client
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
		case <-c.life.ctx.Done():
			over = true
		}
		if v := k.look(late, over); v != verdictWait {
			return v
		}
	}
}

// look says what became of the reply that is held. late: ask for what it waits for.
func (k *call) look(late, over bool) verdict {
	c, s := k.client, k.session
	c.mu.Lock()
	defer c.mu.Unlock()
	if k.verdict == verdictWait {
		now := c.cfg.elapsed()
		switch k.verdict = c.decide(k, now); {
		case k.verdict != verdictWait:
		case over:
			k.verdict = verdictEnded
		default:
			if late {
				c.ask(s, k.reply.header.OrderNum, now)
			}
			return verdictWait
		}
		s.dropWaiting(k)
	}
	if k.verdict == verdictAccept {
		k.leave(endAccepted)
	}
	return k.verdict
}

// ask tells the primary that a reply waits for announcements (R1).
func (c *Client) ask(s *session, order orderstate.OrderNum, now time.Duration) {
	held := s.source.HeldUpTo()
	if held >= order {
		return // R1b: acknowledgements come by themselves
	}
	q := question{s.source.Epoch(), held}
	if q == s.question && now-s.asked < askEvery {
		return
	}
	if c.askPrimary(s, &pb.WaitingFor{Epoch: uint64(q.epoch), HeldUpTo: uint64(q.held)}) {
		s.question, s.asked = q, now
	}
}

// askPrimary sends a question, if the primary has a stream. What is stable it tells whoever asks
// for announcements, too. mu is held.
func (c *Client) askPrimary(s *session, q *pb.WaitingFor) bool {
	for _, l := range c.links {
		if l.up && l.session == s && l.isPrimary() {
			if l.question == nil || l.question.Stable {
				l.question = q
			}
			l.urgent = true
			l.notify()
			return true
		}
	}
	return false
}

// question is what was asked last.
type question struct {
	epoch orderstate.Epoch
	held  orderstate.OrderNum
}

// pause waits until another attempt may do better: at once in another epoch, else after a change,
// or a while.
func (k *call) pause(b *pauses) verdict {
	c, s := k.client, k.session
	c.mu.Lock()
	over, idle, fresh, changed := s.over, c.primary.IsZero(), s.source.Epoch() != k.epoch, c.changed
	maybe := k.maybe
	down := c.unavailable()
	if over != nil && (maybe || !isUnknownSession(over)) {
		k.reply = reply{err: endOf(s)}
	}
	c.mu.Unlock()
	switch {
	case over != nil && !maybe && isUnknownSession(over):
		return verdictMove
	case over != nil:
		return verdictUnknown
	case down != nil && !maybe:
		k.reply = reply{err: down}
		return verdictRefused
	case fresh && !idle:
		b.reset()
		return verdictRetry
	}
	timer := time.NewTimer(b.next())
	defer timer.Stop()
	select {
	case <-changed:
		b.reset()
	case <-timer.C:
	case <-k.ctx.Done():
		return verdictEnded
	case <-c.life.ctx.Done():
		return verdictEnded
	}
	return verdictRetry
}

// fence cancels the present attempt if it is of an epoch below.
func (k *call) fence(epoch orderstate.Epoch) {
	if k.epoch < epoch {
		k.stop()
	}
}

// stop cancels the present attempt.
func (k *call) stop() {
	if k.cancel != nil {
		k.cut = true
		k.cancel()
	}
}

// signal wakes a call that holds a reply. mu is held.
func (k *call) signal() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// end ends the call with another verdict than accept.
func (k *call) end(how ending) {
	k.client.mu.Lock()
	defer k.client.mu.Unlock()
	k.leave(how)
}

// leave takes the call out of its session's flight. mu is held.
func (k *call) leave(how ending) {
	s := k.session
	if len(s.suspects) > 0 { // who may be alone now, or none is left
		s.trust(k)
		k.client.broadcast()
		defer s.makeRoom() // whichever way it leaves
	}
	if k.reads() {
		delete(s.reads, k)
		s.makeRoom()
		return
	}
	var order orderstate.OrderNum
	if k.reply.header != nil {
		order = k.reply.header.OrderNum
	}
	if k.retained.reply = k.reply.size; how == endAbandoned {
		k.retained.reply = lazyEnded // who knows
	}
	s.frames.end(k.retained, how, order, s.source.Stable())
	k.client.ends(s)
	s.makeRoom()
}

func levelToProto(l understudy.Level) pb.Level {
	switch {
	case l >= understudy.Stable:
		return pb.Level_LEVEL_STABLE
	case l == understudy.Direct:
		return pb.Level_LEVEL_DIRECT
	default:
		return pb.Level_LEVEL_REFLECTED
	}
}
