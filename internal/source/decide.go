package source

import (
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
)

// maxAuthority bounds what a header may say, so that it can't overflow.
const maxAuthority = uint64(time.Hour / time.Microsecond)

// decide is R1, R1b, R9 and R10 for the reply that the call holds.
func (k *call) decide(now time.Duration) verdict {
	h, s := k.reply.header, k.session
	// R10. An interceptor's own answer, which had no turn, has no authority either.
	left := time.Duration(min(h.AuthorityUs, maxAuthority)) * time.Microsecond
	if (left > 0 || h.OrderNum > 0) && now-k.reply.sent >= left {
		s.of.counts.expired.Add(1)
		return verdictRetry
	}
	switch s.source.Accept(orderstate.Reply{
		Epoch: h.SourceEpoch, OrderNum: h.OrderNum, Number: h.RequiredSet, Stable: k.isStable(),
	}) {
	case orderstate.Accept:
		return verdictAccept
	case orderstate.Drop:
		s.of.counts.fenced.Add(1)
		return verdictRetry
	}
	if s.over != nil { // nothing more will be learnt on this session
		k.reply = reply{err: endOf(s.number, s.over)}
		return verdictUnknown
	}
	return verdictWait
}

// examine decides about the replies that wait.
func (s *session) examine() {
	if len(s.waiting) == 0 {
		return
	}
	now := s.of.elapsed()
	kept := s.waiting[:0]
	for _, k := range s.waiting {
		if k.verdict = k.decide(now); k.verdict == verdictWait {
			kept = append(kept, k)
			continue
		}
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
	clear(s.waiting[len(kept):])
	s.waiting = kept
}
