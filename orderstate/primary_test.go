package orderstate

import (
	"math"
	"testing"
)

func TestMulticastStaysWithinTheOrder(t *testing.T) {
	p := newPrimary(t, []Replica{"S2"}, 'a')
	for _, held := range []OrderNum{0, 1, 2, math.MaxUint64 - 1, math.MaxUint64} {
		for _, k := range []OrderNum{0, 1, 2, math.MaxUint64} {
			if r := p.Multicast(0, held, k, nil); r.First == 0 || r.Count != len(r.Entries) || r.Count > 0 &&
				r.Last() > p.Last() || r.Count == 0 && r.First > p.Last()+1 {
				t.Errorf("Multicast(%d, %d) is %v", held, k, r)
			}
		}
	}
}

func TestMalformedReflectionsArePassedOver(t *testing.T) {
	for name, e := range malformed {
		p := newPrimary(t, []Replica{"S2"}, 'a')
		p.Receive(1, 0, []Envelope{e})
		if k := p.reflected[1]; k > 0 {
			t.Errorf("%s: reflected up to %d", name, k)
		}
	}
}

// TestMulticastSkipsWhatIsHeld: a reply leaves out what any request of its session has said is
// held, and what another session's has isn't (R2).
func TestMulticastSkipsWhatIsHeld(t *testing.T) {
	t.Parallel()
	p := newPrimary(t, []Replica{"S2"}, 'a', 'b')
	for q := SeqNum(1); p.Last() < 9; q++ {
		order(t, p, message(1, q, 0))
	}
	p.Receive(1, 4, nil)
	scratch := make([]OrderInfo, 0, 9)
	for _, tt := range []struct {
		session Session
		held    OrderNum
		first   OrderNum
	}{{1, 2, 5}, {1, 6, 7}, {1, 0, 5}, {2, 2, 3}} {
		if r := p.Multicast(tt.session, tt.held, 9, scratch); r.First != tt.first || r.Last() != 9 ||
			&r.Entries[0] != &scratch[:1][0] {
			t.Errorf("Multicast(%d, %d, 9) is %v", tt.session, tt.held, r)
		}
	}
}
