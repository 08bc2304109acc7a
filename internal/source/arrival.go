package source

import (
	"github.com/understudy-rpc/understudy/internal/wire"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// An Arrival is how an attempt has ended.
type Arrival struct {
	Header  *wire.Header // what a replica's middleware has signed; nil: nothing
	Bad     error        // why a header that has come can't be read
	Err     error        // the attempt's own; nil with a response
	Failure Failure      // of which kind that is
	Sent    bool         // the request may have been sent
	Size    int          // bytes of the response's message
}

// Failure is what an attempt's error says of the request.
type Failure uint8

// Failures. Each may come from a replica, from an interceptor on either side, or be made here.
const (
	FailureOther   Failure = iota
	FailureExpired         // the attempt was cancelled, or its time was over
	FailureGone            // the connection is, or the replica: not executed, if a replica says so
	FailureFull            // somebody has no room: not executed, if a replica says so
)

// judge is the first look at an attempt's end.
func (k *call) judge(a *Arrival) verdict {
	s, h := k.session, k.reply.header
	unsigned := h == nil || h.SourceEpoch == 0 && h.Refusal == pb.Refusal_REFUSAL_UNSPECIFIED
	// or its reply was lost here: it was too large, perhaps
	if unsigned || h.OrderNum > 0 && h.Code == 0 && k.reply.err != nil {
		k.reply.header = nil
		return k.foreign(a)
	}
	fenced := h.SourceEpoch != 0 && h.SourceEpoch < s.source.Epoch()
	if fenced {
		s.of.counts.fenced.Add(1)
	}
	before := k.maybe
	k.maybe = true
	switch {
	case h.Refusal == pb.Refusal_REFUSAL_NOT_PRIMARY: // or no longer: it may have been
		return verdictRetry
	case fenced: // R9
		return verdictRetry
	case h.Refusal == pb.Refusal_REFUSAL_UNKNOWN_SESSION:
		s.end(errUnknownSession)
		if !before {
			return verdictMove
		}
		k.reply.err = errDisowned(s.number)
		return verdictUnknown
	case h.Refusal == pb.Refusal_REFUSAL_ORDER_IT && k.reads():
		return verdictOrder
	case h.Refusal != pb.Refusal_REFUSAL_UNSPECIFIED: // answered, which can't be
		k.reply.err = errAnswered(s.number, k.seqNum)
		return verdictUnknown
	case h.OrderNum == 0 && k.reply.err != nil:
		switch a.Failure {
		case FailureExpired: // the RPC ended there, perhaps after its turn; or it is an interceptor's own
			return k.expired(verdictUnknown)
		case FailureGone, FailureFull:
			return verdictRefused
		}
		if before {
			return verdictUnknown
		}
		return verdictRefused // refused before its turn
	}
	return k.decide(s.of.elapsed())
}

// foreign judges an end that no replica's middleware has signed.
func (k *call) foreign(a *Arrival) verdict {
	k.maybe = k.maybe || a.Sent
	r := &k.reply
	switch {
	case r.err == nil:
		r.err = errNoHeader(k.Method, a.Bad)
		return verdictUnknown
	case a.Failure == FailureGone && k.ctx.Err() == nil: // a connection, or a replica, that is gone
		if a.Sent && !k.try.cut {
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
		r.err = errForeign(r.err)
	}
	return v
}

// expired judges an error that this source itself may have caused: v if it hasn't.
func (k *call) expired(v verdict) verdict {
	switch {
	case k.ctx.Err() != nil, k.session.of.ctx.Err() != nil:
		return verdictEnded
	case k.try.cut:
		return verdictRetry
	default:
		return v
	}
}
