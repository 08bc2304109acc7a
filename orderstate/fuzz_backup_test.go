package orderstate

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// hostile reads numbers from bytes: small ones, mostly, and those at which arithmetic breaks.
type hostile struct{ data []byte }

func (h *hostile) byte() int {
	if len(h.data) == 0 {
		return 0
	}
	b := h.data[0]
	h.data = h.data[1:]
	return int(b)
}

func (h *hostile) number() uint64 {
	b := h.byte()
	switch {
	case b < 200:
		return uint64(b % 12)
	case b < 220:
		return math.MaxUint64 - uint64(b%4)
	case b < 230:
		return 1<<63 - 2 + uint64(b%5)
	case b < 240:
		return 1<<32 - 1 + uint64(b%3)
	}
	var raw [8]byte
	n := copy(raw[:], h.data)
	h.data = h.data[n:]
	return binary.LittleEndian.Uint64(raw[:])
}

// rarely is true one time in n.
func (h *hostile) rarely(n int) bool { return h.byte()%n == n-1 }

// session is one that the backup knows, mostly.
func (h *hostile) session(b *Backup) Session {
	open := b.h.Sessions()
	if len(open) == 0 || h.rarely(6) {
		return Session(h.number())
	}
	return open[h.byte()%len(open)]
}

func (h *hostile) digest() uint64 {
	if h.rarely(12) {
		return 1
	}
	return 0
}

func (h *hostile) message(b *Backup) Message {
	m := Message{MessageID: MessageID{h.session(b), SeqNum(1 + h.byte()%8)}, Digest: h.digest(),
		Nonce: Nonce{byte(h.byte())}, Size: h.byte()}
	if h.rarely(3) {
		m.AnsweredUpTo = SeqNum(h.byte() % 8)
	}
	if h.rarely(8) {
		m.SeqNum, m.AnsweredUpTo = SeqNum(h.number()), SeqNum(h.number())
	}
	if h.rarely(6) { // an opening
		m.Session, m.SeqNum = Session(b.Last())+1+Session(h.byte()%4), 0
	}
	return m
}

func (h *hostile) run(b *Backup, epoch Epoch) Run {
	r := Run{Envelope: Envelope{Epoch: epoch, EpochFirst: 1, First: b.Last() + 1 + OrderNum(h.byte()%3)}}
	if first, ok := b.h.epochs.first(epoch); ok {
		r.EpochFirst = first
	}
	if h.rarely(8) {
		r.Epoch, r.EpochFirst, r.First = Epoch(h.number()), OrderNum(h.number()), OrderNum(h.number())
	}
	for i := range h.byte() % 5 {
		o := OrderInfo{OrderNum: r.First + OrderNum(i), Session: h.session(b), SeqNum: SeqNum(1 + h.byte()%8),
			Digest: h.digest(), First: 1}
		switch h.byte() % 8 {
		case 0, 1, 2:
			o.Kind, o.Session, o.SeqNum = Open, Session(o.OrderNum), 0
		case 3:
			o.Kind, o.SeqNum = Expire, 0
		case 4:
			o.Kind, o.SeqNum, o.Time, o.First = Kind(h.byte()%4), SeqNum(h.number()), int64(h.byte()%3),
				Epoch(h.number())
		}
		r.Entries = append(r.Entries, o)
	}
	r.Count = len(r.Entries)
	if h.rarely(30) {
		r.Count = int(h.number())
	}
	return r
}

type backupRole interface {
	Receive(Run) (Moved, error)
	Start(Epoch, OrderNum, []Start) (Moved, error)
	AppendTo([]byte) []byte
	Valid() error
}

// Whatever comes, a backup doesn't panic, keeps its invariants, and holds no more than it was
// given; and no more does who takes over from it.
func FuzzBackup(f *testing.F) {
	random := rand.New(rand.NewPCG(5, 6))
	for range 8 {
		data := make([]byte, 300)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { assail(t, data[:min(len(data), 1500)]) })
}

func TestBackupsKeepTheirInvariantsWhateverComes(t *testing.T) {
	for seed := range uint64(600) {
		random := rand.New(rand.NewPCG(seed, 2))
		data := make([]byte, random.IntN(700))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		assail(t, data)
	}
}

func assail(t *testing.T, data []byte) {
	h := &hostile{data}
	history, err := NewHistory(OrderNum(h.byte()%3), 0, []Start{{1, 1}},
		[]SessionState{{Session: Session(h.byte() % 2)}})
	if err != nil {
		return
	}
	b, err := NewBackup(history, 1, 1)
	must(t, err)
	var taken *Takeover
	role := func() backupRole {
		if taken != nil {
			return taken
		}
		return b
	}
	messages, entries, executed := 0, 0, b.executed
	for len(h.data) > 0 {
		state, copied := role().AppendTo(nil), clone(role())
		before := b.Last()
		wasStarted, lacked, stable := b.Started(), len(b.Lacks(1)) > 0, b.Stable()
		var moved Moved // what the caller is told
		message := func(m Message) {
			_, more := b.Message(m)
			moved = moved.With(more)
			messages++
		}
		switch h.byte() % 16 {
		case 0, 1, 2, 3:
			message(h.message(b))
		case 4, 5, 6, 7:
			r := h.run(b, b.Epoch())
			entries += len(r.Entries)
			moved, _ = role().Receive(r)
		case 8:
			for _, id := range b.Lacks(h.byte()) { // as it should be
				m := h.message(b)
				m.MessageID = id
				message(m)
			}
		case 9:
			moved = b.LearnStable(Epoch(h.number()), OrderNum(h.number()))
			moved = moved.With(b.LearnStable(b.Epoch(), OrderNum(h.number())))
		case 10:
			if o, m, ok := b.Next(); ok {
				executed++
				if o.OrderNum != executed || o.Kind != Expire && m.MessageID != o.Message() {
					t.Fatalf("executes %v with %v as %d", o, m, executed)
				}
			}
			b.Executed(OrderNum(h.number()))
		case 11:
			if h.rarely(3) {
				_, _ = b.Answer(Epoch(h.number()))
			}
		case 12:
			first := b.Last() + 1
			if h.rarely(4) {
				first = OrderNum(h.number())
			}
			var earlier []Start
			if h.rarely(4) {
				earlier = []Start{{Epoch(h.number()), OrderNum(h.number())}}
			}
			moved, _ = role().Start(b.Epoch(), first, earlier)
		case 13:
			if taken == nil && h.byte()%4 == 0 {
				taken, _ = b.Elected(b.Epoch()+Epoch(h.byte()%3), []Replica{"S2"}[:h.byte()%2], h.byte()%2 == 0)
			}
		case 14:
			if taken != nil {
				r := h.run(b, b.Epoch()-1)
				entries += len(r.Entries)
				_ = taken.PeerKnows(slices.Clone(b.h.epochs.starts), []Run{r})
				if h.rarely(4) {
					_ = taken.PeerKnows([]Start{{Epoch(h.number()), OrderNum(h.number())}}, nil)
				}
				_ = taken.SessionKnows([]Run{h.run(b, b.Epoch()-1)})
				entries += 5
				taken.Lacks(h.byte())
			}
		case 15:
			if taken != nil && h.byte()%4 == 0 {
				taken.PeerAnswered("S2")
				for _, n := range b.h.Sessions() {
					taken.SessionAnswered(n)
				}
				if p, _, err := taken.Fix(32); err == nil {
					if err := p.Valid(); err != nil {
						t.Fatal(err)
					}
					return
				}
			}
		}
		if !wasStarted && !b.Started() && b.Last() != before {
			t.Fatalf("B3: grows from %d to %d before the epoch starts", before, b.Last())
		}
		if moved.Grown != int(b.Last()-before) || moved.Stable != (b.Stable() > stable) ||
			taken == nil && !lacked && !moved.Lacks && len(b.Lacks(1)) > 0 {
			t.Fatalf("from %d to %d, stable from %d to %d, lacks %v: the caller is told %+v", before, b.Last(), stable,
				b.Stable(), b.Lacks(1), moved)
		}
		if err := role().Valid(); err != nil {
			t.Fatal(err)
		}
		early := 0
		for _, qs := range b.early {
			early += len(qs)
		}
		if b.h.Held() > messages || len(b.pendingDestOrder)+b.h.order.len() > entries || early > messages ||
			len(b.h.epochs.starts) > 2*len(data) {
			t.Fatalf("holds %d messages of %d, %d entries of %d, %d early, %d starts", b.h.Held(), messages,
				len(b.pendingDestOrder)+b.h.order.len(), entries, early, len(b.h.epochs.starts))
		}
		if once, again := role().AppendTo(nil), role().AppendTo(nil); string(once) != string(again) {
			t.Fatal("the encoding isn't deterministic")
		}
		if string(copied.AppendTo(nil)) != string(state) {
			t.Fatal("a clone has changed with what it was cloned from")
		}
	}
}
