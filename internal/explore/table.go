package explore

// table is the set of states visited, by 128 bits of a hash of each: of 10^7 states two are taken
// for one with a probability of 10^-25.
type table struct {
	slots [][2]uint64
	count int
}

func newTable() *table { return &table{slots: make([][2]uint64, 1<<12)} }

// add says whether a state is new.
func (t *table) add(v vector) bool {
	if 4*t.count > 3*len(t.slots) {
		old := t.slots
		t.slots = make([][2]uint64, 2*len(old))
		for _, h := range old {
			if h != [2]uint64{} {
				*t.slot(h) = h
			}
		}
	}
	h := hash(v)
	slot := t.slot(h)
	if *slot == h {
		return false
	}
	*slot = h
	t.count++
	return true
}

func (t *table) slot(h [2]uint64) *[2]uint64 {
	for i := h[0]; ; i++ {
		slot := &t.slots[i&uint64(len(t.slots)-1)]
		if *slot == h || *slot == [2]uint64{} {
			return slot
		}
	}
}

// hash is two independent multiply-and-fold hashes of a state's parts, the same in every run.
func hash(v vector) [2]uint64 {
	a, b := uint64(0x9e3779b97f4a7c15), uint64(0xc2b2ae3d27d4eb4f)
	for _, x := range v {
		a = mix(a^uint64(x), 0xff51afd7ed558ccd)
		b = mix(b+uint64(x), 0xc4ceb9fe1a85ec53)
	}
	return [2]uint64{mix(a, 0x94d049bb133111eb) | 1, b} // never zero: that is an empty slot
}

func mix(x, by uint64) uint64 {
	x ^= x >> 32
	x *= by
	x ^= x >> 29
	x *= by
	return x ^ x>>32
}
