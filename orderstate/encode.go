package orderstate

import (
	"cmp"
	"encoding/binary"
	"maps"
	"slices"
)

// The canonical encodings are for explorers, which hash states, and compare them: states of one
// role are equal exactly when their encodings are, but for messages' bodies, which their digests
// stand for. They are neither for the network nor for disk: there is no decoder, and any version
// may change them. All that varies in length is preceded by its length.

// AppendTo appends the canonical encoding of the state.
func (s *Source) AppendTo(b []byte) []byte {
	b = appendUints(append(b, 'S'), uint64(s.epoch), uint64(s.first), uint64(s.stable), uint64(s.stableIn),
		uint64(s.untold), uint64(s.held), s.arrivals, s.number)
	b = appendBools(b, s.started, s.told)
	b = s.epochs.appendTo(b)
	b = appendUints(b, uint64(s.pendingRemoteOrder.len()))
	for _, r := range s.pendingRemoteOrder.all() {
		b = appendUints(b, uint64(r.Epoch), uint64(r.EpochFirst), uint64(r.First), uint64(r.Count), r.arrival)
		b = appendString(b, string(r.Sealed))
	}
	b = appendMap(b, s.accepted, appendUint, appendUint)
	b = appendMap(b, s.acked, appendString, appendUint)
	b = appendUints(b, uint64(len(s.required)))
	for _, m := range s.required {
		b = appendString(b, m)
	}
	return b
}

// AppendTo appends the canonical encoding of the state.
func (p *Primary) AppendTo(b []byte) []byte {
	b = p.h.appendTo(append(b, 'P'))
	b = appendUints(b, uint64(p.epoch), uint64(p.first), p.number, uint64(p.stable), uint64(p.pushed), uint64(p.max))
	b = appendMap(b, p.members, appendString, func(b []byte, a acknowledgement) []byte {
		return appendBools(appendUint(b, a.upTo), a.any, a.joined)
	})
	b = appendMap(b, p.reflected, appendUint, appendUint)
	b = appendMap(b, p.held, appendUint, appendUint)
	b = appendMap(b, p.declared, appendUint, appendUint)
	return appendMap(b, p.attached, appendString, func(b []byte, sessions map[Session]bool) []byte {
		return appendMap(b, sessions, appendUint, appendBool)
	})
}

// AppendTo appends the canonical encoding of the state.
func (b *Backup) AppendTo(buf []byte) []byte { return b.appendTo(append(buf, 'B')) }

func (b *Backup) appendTo(buf []byte) []byte {
	buf = b.h.appendTo(buf)
	buf = appendUints(buf, uint64(b.acknowledged), uint64(b.stable), uint64(b.stableIn), uint64(b.validIn),
		uint64(b.executed), uint64(b.diverged))
	buf = appendBools(buf, b.started)
	buf = appendMap(buf, b.pendingDestOrder, appendUint, appendOrdered)
	buf = appendUints(buf, uint64(b.base), b.detachings)
	buf = appendMap(buf, b.attached, appendUint, func(buf []byte, a attachment) []byte {
		return appendBool(appendUints(buf, a.number, uint64(a.upTo)), a.confirmed)
	})
	return appendMap(buf, b.early, appendUint, func(buf []byte, early []SeqNum) []byte {
		buf = appendUint(buf, len(early))
		for _, q := range slices.Sorted(slices.Values(early)) {
			buf = appendUint(buf, q)
		}
		return buf
	})
}

// AppendTo appends the canonical encoding of the state.
func (t *Takeover) AppendTo(b []byte) []byte {
	b = t.b.appendTo(append(b, 'T'))
	b = appendUint(b, t.epoch)
	b = appendMap(b, t.peers, appendString, appendBool)
	b = appendMap(b, t.inSync, appendString, appendBool)
	return appendMap(b, t.sessions, appendUint, appendBool)
}

func (h *History) appendTo(b []byte) []byte {
	b = h.epochs.appendTo(b)
	b = h.messages.appendTo(b)
	b = appendUints(b, uint64(h.cut), uint64(h.cutTime), uint64(h.lastTime), uint64(h.order.len()))
	for _, o := range h.order.all() {
		b = appendOrdered(b, o)
	}
	return h.sessions.appendTo(b)
}

func (l *messageLog) appendTo(b []byte) []byte {
	b = appendUints(b, uint64(len(l.held)))
	for _, id := range slices.SortedFunc(maps.Keys(l.held), compareIDs) {
		m := l.held[id]
		b = appendUints(b, uint64(id.Session), uint64(id.SeqNum), uint64(m.AnsweredUpTo), m.Digest, uint64(m.Size))
		b = append(b, m.Nonce[:]...)
	}
	return b
}

func (t *sessionTable) appendTo(b []byte) []byte {
	b = appendMap(b, t.known, appendUint, func(b []byte, s *session) []byte {
		b = append(b, s.nonce[:]...)
		b = appendUints(b, uint64(s.answered), uint64(s.atCut), uint64(s.expired))
		return appendMap(b, s.calls, appendUint, appendUint)
	})
	byNonce := make(map[string]Session, len(t.byNonce))
	for nonce, n := range t.byNonce {
		byNonce[string(nonce[:])] = n
	}
	return appendMap(b, byNonce, appendString, appendUint)
}

func (t *epochTable) appendTo(b []byte) []byte {
	b = appendUint(b, len(t.starts))
	for _, s := range t.starts {
		b = appendUints(b, uint64(s.Epoch), uint64(s.First))
	}
	return b
}

func appendOrdered(b []byte, o Ordered) []byte {
	return appendUints(b, uint64(o.OrderNum), uint64(o.SeqNum), uint64(o.Session), uint64(o.Kind), uint64(o.First),
		uint64(o.Time), o.Digest, uint64(o.Epoch))
}

func appendUints(b []byte, vs ...uint64) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func appendUint[T ~uint64 | ~int](b []byte, v T) []byte { return binary.AppendUvarint(b, uint64(v)) }

func appendString[T ~string](b []byte, s T) []byte { return append(appendUint(b, len(s)), s...) }

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendBools(b []byte, vs ...bool) []byte {
	for _, v := range vs {
		b = appendBool(b, v)
	}
	return b
}

// appendMap appends a map by growing keys.
func appendMap[K cmp.Ordered, V any](
	b []byte, m map[K]V, key func([]byte, K) []byte, value func([]byte, V) []byte,
) []byte {
	b = appendUint(b, len(m))
	for _, k := range sorted(maps.Keys(m)) {
		b = value(key(b, k), m[k])
	}
	return b
}

func compareIDs(a, b MessageID) int {
	return cmp.Or(cmp.Compare(a.Session, b.Session), cmp.Compare(a.SeqNum, b.SeqNum))
}
