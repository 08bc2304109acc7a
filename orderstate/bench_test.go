package orderstate

import "testing"

// steady is a group in its steady state: one call after the other, all of it acknowledged and
// executed within the last window orders.
type steady struct {
	p      *Primary
	b      *Backup
	s      *Source
	q      SeqNum
	window OrderNum
}

func newSteady(tb testing.TB, window OrderNum) *steady {
	g := &steady{p: newPrimary(tb, []Replica{"S2", "S3"}, 'a'), b: newBackup(tb), s: NewSource(), window: window}
	g.s.NewEpoch(1)
	must(tb, g.s.Start(1, 1, 0, nil))
	for _, m := range g.p.h.messages.held {
		g.b.Message(m)
	}
	moves(tb)(g.b.Receive(g.p.Push(0)))
	must(tb, g.s.Receive(Announcement{Envelope: g.p.Push(0).Envelope}))
	g.p.Attach("S2", 1)
	g.p.Attach("S3", 1)
	return g
}

// call is what a call costs each role; the run is what its reply carries.
func (g *steady) call(tb testing.TB) Run {
	g.q++
	m := Message{MessageID: MessageID{1, g.q}, AnsweredUpTo: g.q - 1}
	g.b.Message(m)
	o, v, moved := g.p.Order(m, int64(g.q))
	if v != Fresh {
		tb.Fatal(v)
	}
	if moved.Push {
		g.p.Null()
	}
	return g.p.Multicast(0, o.OrderNum-1, o.OrderNum, nil)
}

func (g *steady) backup(tb testing.TB, r Run) {
	if _, err := g.b.Receive(r); err != nil {
		tb.Fatal(err)
	}
	for {
		if _, _, ok := g.b.Next(); !ok {
			break
		}
	}
}

func (g *steady) source(tb testing.TB, r Run) {
	if err := g.s.Receive(Announcement{Envelope: r.Envelope}); err != nil {
		tb.Fatal(err)
	}
	if d := g.s.Accept(Reply{Epoch: 1, OrderNum: r.Last()}); d != Accept {
		tb.Fatal(d)
	}
}

func (g *steady) stabilise(tb testing.TB) {
	k := g.p.Last()
	if k <= g.window {
		return
	}
	stable := k - g.window
	for _, m := range []Replica{"S2", "S3"} {
		if _, err := g.p.Acknowledge(m, 1, stable); err != nil {
			tb.Fatal(err)
		}
	}
	g.p.Executed(k)
	g.b.LearnStable(1, stable)
	g.b.Executed(k)
	g.s.LearnStable(1, stable)
}

// warm brings every map and list to the size that it keeps.
func (g *steady) warm(tb testing.TB) {
	for range 4 * g.window {
		r := g.call(tb)
		g.backup(tb, r)
		g.source(tb, r)
		g.stabilise(tb)
	}
}

// each runs a benchmark with little, and with much, in flight: what a call costs mustn't depend on
// it.
func each(b *testing.B, run func(b *testing.B, g *steady)) {
	for _, c := range []struct {
		name   string
		window OrderNum
	}{{"window=32", 32}, {"window=16384", 16384}} {
		b.Run(c.name, func(b *testing.B) {
			g := newSteady(b, c.window)
			g.warm(b)
			b.ReportAllocs()
			b.ResetTimer()
			run(b, g)
		})
	}
}

// BenchmarkOrder is FIG. 7, and R11 before the reply, with what R3 and the cut take away later.
func BenchmarkOrder(b *testing.B) {
	each(b, func(b *testing.B, g *steady) {
		for b.Loop() {
			g.q++
			o, _, _ := g.p.Order(Message{MessageID: MessageID{1, g.q}, AnsweredUpTo: g.q - 1}, 1)
			g.p.MayLeave(1, o.OrderNum)
			stable := g.p.Last() - g.window
			_, _ = g.p.Acknowledge("S2", 1, stable)
			_, _ = g.p.Acknowledge("S3", 1, stable)
			g.p.Executed(stable)
		}
	})
}

// BenchmarkMulticast is FIG. 8's first loop for a reply that carries one entry. The one allocation
// is the announcement, which the caller keeps.
func BenchmarkMulticast(b *testing.B) {
	each(b, func(b *testing.B, g *steady) {
		last := g.p.Last()
		for b.Loop() {
			g.p.Multicast(0, last-1, last, nil)
		}
	})
}

// BenchmarkBackupReceive is FIG. 10 for one message and one entry.
func BenchmarkBackupReceive(b *testing.B) {
	each(b, func(b *testing.B, g *steady) {
		r := Run{Envelope{1, 1, 0, 1}, make([]OrderInfo, 1)}
		for b.Loop() {
			g.q++
			m := Message{MessageID: MessageID{1, g.q}, AnsweredUpTo: g.q - 1}
			g.b.Message(m)
			r.First = g.b.Last() + 1
			r.Entries[0] = OrderInfo{OrderNum: r.First, SeqNum: g.q, Session: 1, First: 1, Time: int64(g.q)}
			g.backup(b, r)
			g.b.LearnStable(1, r.First-g.window)
			g.b.Executed(r.First - g.window)
		}
	})
}

// BenchmarkSourceReceive is FIG. 9's second loop, R1 and R2 for a reply that carries one entry.
func BenchmarkSourceReceive(b *testing.B) {
	each(b, func(b *testing.B, g *steady) {
		k := g.p.Last()
		for b.Loop() {
			k++
			g.source(b, Run{Envelope: Envelope{1, 1, k, 1}})
			g.s.LearnStable(1, k-g.window)
			g.s.HeldUpTo()
		}
	})
}

// BenchmarkSourceMulticast is FIG. 8's second loop to two backups. The allocations are the lists,
// which the caller keeps.
func BenchmarkSourceMulticast(b *testing.B) {
	each(b, func(b *testing.B, g *steady) {
		k := g.p.Last()
		_, s2 := g.s.Multicast(0)
		s3 := s2
		for b.Loop() {
			k++
			g.source(b, Run{Envelope: Envelope{1, 1, k, 1}})
			g.s.LearnStable(1, k-g.window)
			_, s2 = g.s.Multicast(s2)
			_, s3 = g.s.Multicast(s3)
		}
	})
}

// TestNoAllocationInTheSteadyState holds the benchmarks to what they say. Maps grow now and then,
// so an allocation in hundreds of calls is none.
func TestNoAllocationInTheSteadyState(t *testing.T) {
	g := newSteady(t, 64)
	g.warm(t)
	k := g.p.Last()
	r := Run{Envelope{1, 1, 0, 1}, make([]OrderInfo, 1)}
	for name, f := range map[string]func(){
		"Order": func() {
			g.q++
			o, _, _ := g.p.Order(Message{MessageID: MessageID{1, g.q}, AnsweredUpTo: g.q - 1}, 1)
			if !g.p.MayLeave(1, o.OrderNum) || g.p.DetachedAt(1) != nil {
				t.Error("a reply waits")
			}
			_, _ = g.p.Acknowledge("S2", 1, g.p.Last()-g.window)
			_, _ = g.p.Acknowledge("S3", 1, g.p.Last()-g.window)
			g.p.Executed(g.p.Last())
		},
		"Source.Receive": func() {
			k++
			g.source(t, Run{Envelope: Envelope{1, 1, k, 1}})
			g.s.LearnStable(1, k-g.window)
		},
		"Backup.Receive": func() {
			q := SeqNum(g.b.Last()) // one message of the session per order, but its opening
			g.b.Message(Message{MessageID: MessageID{1, q}, AnsweredUpTo: q - 1})
			r.First = g.b.Last() + 1
			r.Entries[0] = OrderInfo{OrderNum: r.First, SeqNum: q, Session: 1, First: 1, Time: int64(q)}
			g.backup(t, r)
			g.b.LearnStable(1, r.First-g.window)
			g.b.Executed(r.First)
		},
	} {
		if n := testing.AllocsPerRun(5000, f); n > 0 {
			t.Errorf("%s: %v allocations a call", name, n)
		}
	}
}
