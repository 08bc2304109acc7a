package orderstate

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// oracle is a source that keeps everything, and derives what a source says by its definition.
type oracle struct {
	epoch    Epoch
	first    OrderNum // 0: not known
	told     bool
	stable   OrderNum
	stableIn Epoch
	untold   OrderNum // of this epoch
	starts   map[Epoch]OrderNum
	arrived  []pendingRun
	arrivals uint64
	accepted map[Epoch]OrderNum
	required []Replica
	number   uint64
	acked    map[Replica]OrderNum
}

func newOracle() *oracle {
	return &oracle{starts: map[Epoch]OrderNum{}, accepted: map[Epoch]OrderNum{}, acked: map[Replica]OrderNum{}}
}

func (o *oracle) void(a Epoch, k OrderNum) bool {
	for b, first := range o.starts {
		if b > a && first <= k {
			return true
		}
	}
	return false
}

// holds says whether an announcement of k in epoch e has arrived, and isn't void.
func (o *oracle) holds(e Epoch, k OrderNum) bool {
	return !o.void(e, k) && slices.ContainsFunc(o.arrived, func(r pendingRun) bool {
		return r.Epoch == e && r.First <= k && k <= r.Last()
	})
}

func (o *oracle) heldUpTo() OrderNum {
	if o.first == 0 {
		return 0
	}
	k := o.stable
	for o.holds(o.epoch, k+1) {
		k++
	}
	return k
}

func (o *oracle) lost() bool {
	for a, k := range o.accepted {
		if o.void(a, k) {
			return true
		}
	}
	return o.stable > 0 && o.void(o.stableIn, o.stable)
}

func (o *oracle) learnStable(k OrderNum) {
	switch {
	case !o.told:
		o.untold = max(o.untold, k)
	case k > o.stable:
		o.stable, o.stableIn = k, o.epoch
	}
}

func (o *oracle) accept(r Reply) Decision {
	if r.Epoch != o.epoch || r.Epoch == 0 {
		return Drop
	}
	if r.OrderNum == 0 {
		return Accept
	}
	if o.heldUpTo() < r.OrderNum || !o.told {
		return Wait
	}
	if r.Stable && o.stable < r.OrderNum {
		if o.number == 0 || o.number < r.Number {
			return Wait
		}
		for _, m := range o.required {
			if o.acked[m] < r.OrderNum {
				return Wait
			}
		}
	}
	o.accepted[r.Epoch] = max(o.accepted[r.Epoch], r.OrderNum)
	return Accept
}

// A source holds what it should, and no more, whatever comes in whatever order: against an oracle
// that keeps everything.
func FuzzSource(f *testing.F) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 8 {
		data := make([]byte, 120)
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) { compareSources(t, data[:min(len(data), 400)]) })
}

func TestSourcesKeepWhatASimplerOneKeeps(t *testing.T) {
	for seed := range uint64(1500) {
		random := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, random.IntN(250))
		for i := range data {
			data[i] = byte(random.Uint32())
		}
		compareSources(t, data)
	}
}

const orders = 24 // of the group: a byte's worth of places, so that runs meet

func compareSources(t *testing.T, data []byte) {
	s, o := NewSource(), newOracle()
	streams := map[int]uint64{} // what each of three streams has reflected
	reflected := map[int]map[string]bool{0: {}, 1: {}, 2: {}}
	starts := map[Epoch]OrderNum{1: 1} // what is so; known or not
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	var log []string
	begin := func(e Epoch) OrderNum {
		if starts[e] == 0 {
			starts[e] = OrderNum(1 + next()%orders)
		}
		return starts[e]
	}
	for len(data) > 0 {
		state, copied := s.AppendTo(nil), s.Clone()
		var err, lost error
		switch op := next() % 16; op {
		case 0: // an epoch
			e := s.Epoch() + Epoch(next()%3)
			log = append(log, fmt.Sprintf("NewEpoch(%d)", e))
			if s.NewEpoch(e) {
				o.epoch, o.first, o.told, o.untold = e, 0, len(o.accepted) == 0 && o.stable == 0, 0
				o.number, o.required = 0, nil
				clear(o.acked)
			}
		case 1: // its start, and what the primary knows of earlier ones
			if s.Epoch() == 0 {
				continue
			}
			var earlier []Start
			for e := Epoch(1); e < s.Epoch(); e++ {
				earlier = append(earlier, Start{e, begin(e)})
			}
			stable := OrderNum(next() % orders)
			log = append(log, fmt.Sprintf("Start(%d, %d, %d, %v)", s.Epoch(), begin(s.Epoch()), stable, earlier))
			err = s.Start(s.Epoch(), begin(s.Epoch()), stable, earlier)
			for _, st := range append(earlier, Start{s.Epoch(), begin(s.Epoch())}) {
				o.starts[st.Epoch] = st.First
			}
			o.first = begin(s.Epoch())
			if o.lost() {
				lost = &LostError{}
			} else {
				o.told = true
				o.learnStable(max(stable, o.untold))
			}
		case 2, 3: // the stable point
			stable := OrderNum(next() % orders)
			log = append(log, fmt.Sprintf("LearnStable(%d, %d)", s.Epoch(), stable))
			s.LearnStable(s.Epoch(), stable)
			if s.Epoch() > 0 {
				o.learnStable(stable)
			}
		case 4, 5: // a reply
			r := Reply{Epoch: s.Epoch() - Epoch(next()%8/7), OrderNum: OrderNum(next() % orders),
				Number: uint64(next() % 3), Stable: next()%4 == 0}
			log = append(log, fmt.Sprintf("Accept(%+v)", r))
			if got, want := s.Accept(r), o.accept(r); got != want {
				t.Fatalf("%v\n%v, not %v", log, got, want)
			}
		case 6: // a stream carries what it hasn't yet
			i := next() % 3
			list, now := s.Multicast(streams[i])
			log = append(log, fmt.Sprintf("Multicast(%d): %v", streams[i], list))
			for _, a := range list {
				if reflected[i][string(a.Sealed)] {
					t.Fatalf("%v\n%v again", log, a)
				}
				reflected[i][string(a.Sealed)] = true
			}
			streams[i] = now
			for _, a := range s.PendingRemoteOrder() {
				if !reflected[i][string(a.Sealed)] {
					t.Fatalf("%v\n%v isn't reflected", log, a)
				}
			}
		case 7:
			if next()%4 == 0 { // a new stream
				i := next() % 3
				streams[i], reflected[i] = 0, map[string]bool{}
			}
			continue
		case 8:
			n, m := uint64(next()%3), []Replica{"S2", "S3", "S4"}[:next()%4]
			log = append(log, fmt.Sprintf("Require(%d, %v)", n, m))
			s.Require(s.Epoch(), n, m)
			if n > o.number {
				o.number, o.required = n, m
			}
		case 9:
			m, k := []Replica{"S2", "S3", "S4"}[next()%3], OrderNum(next()%orders)
			log = append(log, fmt.Sprintf("Acknowledge(%s, %d)", m, k))
			s.Acknowledge(m, s.Epoch(), k)
			s.Acknowledge(m, s.Epoch()+1, orders)
			o.acked[m] = max(o.acked[m], k)
		default: // a run
			e := s.Epoch()
			if next()%8 == 0 || e == 0 {
				e++
			}
			a := Announcement{Envelope: Envelope{Epoch: e, First: OrderNum(1 + next()%orders), Count: 1 + next()%6}}
			if e == s.Epoch() && e != 0 {
				a.EpochFirst = begin(e)
			}
			o.arrivals++
			a.Sealed = fmt.Append(nil, o.arrivals)
			log = append(log, fmt.Sprintf("Receive(%v)", a.Envelope))
			err = s.Receive(a)
			if e == s.Epoch() && e != 0 {
				if o.first == 0 {
					o.first, o.starts[e] = a.EpochFirst, a.EpochFirst
				}
				o.arrived = append(o.arrived, pendingRun{Announcement: a})
			}
		}
		if (err == nil) != (lost == nil) {
			t.Fatalf("%v\nreturns %v, lost is %v", log, err, lost != nil)
		}
		same(t, s, o, log)
		if string(copied.AppendTo(nil)) != string(state) {
			t.Fatalf("%v\na clone has changed with what it was cloned from", log)
		}
	}
}

// same compares what a source says with what the oracle does.
func same(t *testing.T, s *Source, o *oracle, log []string) {
	t.Helper()
	if err := s.Valid(); err != nil {
		t.Fatalf("%v\n%v", log, err)
	}
	if o.told {
		maps.DeleteFunc(o.accepted, func(_ Epoch, k OrderNum) bool { return k <= o.stable })
	}
	if s.HeldUpTo() != o.heldUpTo() || s.Stable() != o.stable || !maps.Equal(s.accepted, o.accepted) {
		t.Fatalf("%v\nheld up to %d, stable %d, accepted %v; not %d, %d, %v", log, s.HeldUpTo(), s.Stable(), s.accepted,
			o.heldUpTo(), o.stable, o.accepted)
	}
	list := s.PendingRemoteOrder()
	for e := range o.epoch + 1 {
		for k := o.stable + 1; k < 2*orders; k++ {
			got := slices.ContainsFunc(list, func(a Announcement) bool {
				return a.Epoch == e && a.First <= k && k <= a.Last()
			})
			if want := o.holds(e, k); want != got && (want || !o.void(e, k)) {
				t.Fatalf("%v\n%d of epoch %d: covered is %v, not %v: %v", log, k, e, got, want, list)
			}
		}
	}
}
