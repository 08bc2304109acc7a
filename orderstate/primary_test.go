package orderstate

import (
	"math"
	"testing"
)

func TestHostileHeldUpTo(t *testing.T) {
	p := newPrimary(t, []Replica{"S2"}, 'a')
	for _, held := range []OrderNum{0, 1, 2, math.MaxUint64 - 1, math.MaxUint64} {
		for _, k := range []OrderNum{0, 1, 2, math.MaxUint64} {
			if r := p.Multicast(held, k); r.First == 0 || r.Count != len(r.Entries) || r.Count > 0 && r.Last() > p.Last() || r.Count == 0 && r.First > p.Last()+1 {
				t.Errorf("Multicast(%d, %d) is %v", held, k, r)
			}
		}
	}
}

func TestMalformedReflections(t *testing.T) {
	for name, e := range malformed {
		p := newPrimary(t, []Replica{"S2"}, 'a')
		p.Receive(1, []Envelope{e})
		if k := p.Reflected(1); k > 0 {
			t.Errorf("%s: reflected up to %d", name, k)
		}
	}
}
