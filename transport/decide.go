package transport

import (
	"errors"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
	"github.com/understudy-rpc/understudy/transport/internal/route"
)

// verdict is what becomes of an attempt.
type verdict uint8

const (
	verdictWait    verdict = iota // hold the reply
	verdictRetry                  // issue the call again
	verdictAccept                 // hand the reply over
	verdictRefused                // hand the error over: the call wasn't executed, and never will be
	verdictUnknown                // hand the error over: nobody knows whether it was executed
	verdictMove                   // make the call on another session
	verdictOrder                  // make the read-only call as one that is ordered
	verdictEnded                  // the call's context has ended
)

// reply is what an attempt has brought: err is the RPC's own, nil with a response.
type reply struct {
	header *wire.Header // nil: none
	err    error
	sent   time.Duration // when the request was sent, by the elapsed clock
	size   int           // of the message
}

// maxAuthority bounds what a header may say, so that it can't overflow.
const maxAuthority = uint64(time.Hour / time.Microsecond)

// arrived is FIG. 9, whether or not the reply will be accepted, and then the first judgement of it.
func (k *call) arrived(a arrival, sent time.Duration, to *route.Choice) verdict {
	c, s := k.client, k.session
	h, bad := a.header, a.bad
	c.mu.Lock()
	defer c.mu.Unlock()
	k.cancel()
	k.cancel = nil
	if bad == nil && h != nil {
		for _, run := range h.SourceOrderInfo {
			if bad == nil {
				bad = s.announce(run)
			}
		}
	}
	if bad != nil {
		c.counts.malformed.Add(1)
		c.cfg.log.Error("a reply's header is malformed", "method", k.method, "replica", to.Replica, "err", bad)
		h = nil
	}
	if h != nil {
		s.source.LearnStable(h.SourceEpoch, h.Stable)
		c.learned(s)
	}
	k.reply = reply{header: h, err: a.err, sent: sent, size: a.size}
	k.verdict = c.judge(k, to, bad)
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

// judge is the first look at an attempt's end.
func (c *Client) judge(k *call, to *route.Choice, bad error) verdict {
	s, h := k.session, k.reply.header
	unsigned := h == nil || h.SourceEpoch == 0 && h.Refusal == pb.Refusal_REFUSAL_UNSPECIFIED
	// or its reply was lost here: it was too large, perhaps
	if unsigned || h.OrderNum > 0 && h.Code == codes.OK && k.reply.err != nil {
		k.reply.header = nil
		return k.foreign(to, bad)
	}
	fenced := h.SourceEpoch != 0 && h.SourceEpoch < s.source.Epoch()
	if fenced {
		c.counts.fenced.Add(1)
	}
	before := k.maybe
	k.maybe = true
	switch {
	case h.Refusal == pb.Refusal_REFUSAL_NOT_PRIMARY: // or no longer: it may have been
		return verdictRetry
	case fenced: // R9
		return verdictRetry
	case h.Refusal == pb.Refusal_REFUSAL_UNKNOWN_SESSION:
		c.endSession(s, errUnknownSession)
		if !before {
			return verdictMove
		}
		k.reply.err = statusUnknownSession(s.number)
		return verdictUnknown
	case h.Refusal == pb.Refusal_REFUSAL_ORDER_IT && k.reads():
		return verdictOrder
	case h.Refusal != pb.Refusal_REFUSAL_UNSPECIFIED: // answered, which can't be
		k.reply.err = statusAnswered(s.number, k.seqNum)
		return verdictUnknown
	case h.OrderNum == 0 && k.reply.err != nil:
		switch status.Code(k.reply.err) {
		// the RPC ended there, perhaps after its turn; or they are an interceptor's own
		case codes.Canceled, codes.DeadlineExceeded:
			return k.expired(verdictUnknown)
		case codes.Unavailable, codes.ResourceExhausted:
			return verdictRefused
		}
		if before {
			return verdictUnknown
		}
		return verdictRefused // refused before its turn
	}
	return c.decide(k, c.cfg.elapsed())
}

// foreign judges an end that no replica's middleware has signed.
func (k *call) foreign(to *route.Choice, bad error) verdict {
	sent := to.Picked()
	k.maybe = k.maybe || sent
	r := &k.reply
	switch {
	case r.err == nil:
		r.err = statusNoHeader(k.method, bad)
		return verdictUnknown
	case status.Code(r.err) == codes.Unavailable && k.ctx.Err() == nil: // a connection, or a replica, that is gone
		if sent && !k.cut {
			k.brokeOff()
		}
		return verdictRetry
	}
	v := verdictUnknown
	if !k.maybe {
		v = verdictRefused
	}
	// an interceptor's: of the server, before ours, or of the client, after ours
	if v = k.expired(v); v == verdictUnknown || v == verdictRefused {
		r.err = statusForeign(r.err)
	}
	return v
}

// expired judges an error that this client itself may have caused: v if it hasn't.
func (k *call) expired(v verdict) verdict {
	switch {
	case k.ctx.Err() != nil, k.client.life.ctx.Err() != nil:
		return verdictEnded
	case k.cut:
		return verdictRetry
	default:
		return v
	}
}

// decide is R1, R1b, R9 and R10 for a reply. mu is held.
func (c *Client) decide(k *call, now time.Duration) verdict {
	h, s := k.reply.header, k.session
	// R10. An interceptor's own answer, which had no turn, has no authority either.
	left := time.Duration(min(h.AuthorityUs, maxAuthority)) * time.Microsecond
	if (left > 0 || h.OrderNum > 0) && now-k.reply.sent >= left {
		c.counts.expired.Add(1)
		return verdictRetry
	}
	switch s.source.Accept(orderstate.Reply{
		Epoch: h.SourceEpoch, OrderNum: h.OrderNum, Number: h.RequiredSet, Stable: k.isStable(),
	}) {
	case orderstate.Accept:
		return verdictAccept
	case orderstate.Drop:
		c.counts.fenced.Add(1)
		return verdictRetry
	}
	if s.over != nil { // nothing more will be learnt on this session
		k.reply = reply{err: endOf(s)}
		return verdictUnknown
	}
	return verdictWait
}

func (s *session) dropWaiting(k *call) {
	if i := slices.Index(s.waiting, k); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
	}
}

func isUnknownSession(over error) bool { return errors.Is(over, errUnknownSession) }
