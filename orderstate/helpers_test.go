package orderstate

import (
	"fmt"
	"testing"
)

// message is a session's message with its digest, as every sender of it would make it.
func message(s Session, q, mark SeqNum) Message {
	return Message{MessageID: MessageID{s, q}, AnsweredUpTo: mark, Digest: digest(fmt.Sprint("message ", s, q, mark)),
		Size: int(q)}
}

func opening(n Session, nonce byte) Message {
	return Message{MessageID: MessageID{n, 0}, Nonce: Nonce{nonce}, Digest: digest(fmt.Sprint("opening ", nonce))}
}

// digest is FNV-1a.
func digest(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// moves is must, of an event that says what it has moved.
func moves(t testing.TB) func(Moved, error) Moved {
	return func(m Moved, err error) Moved {
		t.Helper()
		must(t, err)
		return m
	}
}

func newHistory(t testing.TB) *History {
	t.Helper()
	h, err := NewHistory(0, 0, nil, nil)
	must(t, err)
	return h
}

// newPrimary founds a group: epoch 1, and one session per nonce, numbered from 1.
func newPrimary(t testing.TB, members []Replica, nonces ...byte) *Primary {
	t.Helper()
	p, err := NewPrimary(newHistory(t), 1, 0, members, 32)
	must(t, err)
	for _, n := range nonces {
		p.Open(Nonce{n}, opening(0, n).Digest, nil, 1)
	}
	return p
}

// newBackup founds a backup of the same group.
func newBackup(t testing.TB) *Backup {
	t.Helper()
	b, err := NewBackup(newHistory(t), 1, 1)
	must(t, err)
	return b
}

// order orders a fresh message.
func order(t testing.TB, p *Primary, m Message) OrderNum {
	t.Helper()
	o, v, _ := p.Order(m, 1)
	if v != Fresh {
		t.Fatalf("%v is %v", m.MessageID, v)
	}
	return o.OrderNum
}

// feed gives a backup all that a primary holds above k: announcements, and the messages.
func feed(t testing.TB, b *Backup, p *Primary, k OrderNum) {
	t.Helper()
	moves(t)(b.Receive(p.run(k, p.Last(), nil)))
	for i := 0; i < 3; i++ {
		for _, id := range b.Lacks(100) {
			if m, ok := p.h.Has(id); ok {
				b.Message(m)
			}
		}
	}
}

// runs makes of what a replica or a source knows what it would send to a takeover: runs of one
// epoch with no gap.
func runs(known []Ordered, h *History) []Run {
	var rs []Run
	for _, o := range known {
		last := len(rs) - 1
		if last < 0 || rs[last].Epoch != o.Epoch || rs[last].Last()+1 != o.OrderNum {
			first, ok := h.StartOf(o.Epoch)
			if !ok {
				panic(fmt.Sprintf("it isn't known any more where the epoch of %v, %d, starts: %v", o, o.Epoch,
					h.Starts()))
			}
			rs, last = append(rs, Run{Envelope: Envelope{Epoch: o.Epoch, EpochFirst: first, First: o.OrderNum}}), last+1
		}
		rs[last].Count++
		rs[last].Entries = append(rs[last].Entries, o.OrderInfo)
	}
	return rs
}
