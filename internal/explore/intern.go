package explore

import "encoding/binary"

// part is a piece of a state. Once interned it is shared by all states that have it, and never
// changed.
type part interface {
	appendTo([]byte) []byte
}

// pool gives equal parts one number, and keeps one of them. Numbers are given in the order of
// discovery, so that the same search gives the same.
type pool[T part] struct {
	ids  map[string]uint32
	all  []T
	buf  []byte
	made func(T) error // checks a part that is new
}

func newPool[T part](made func(T) error) *pool[T] {
	return &pool[T]{ids: map[string]uint32{}, made: made}
}

// intern returns the number of a part, and the one that stands for all that are equal.
func (p *pool[T]) intern(v T) (uint32, T, error) {
	p.buf = v.appendTo(p.buf[:0])
	if id, ok := p.ids[string(p.buf)]; ok {
		return id, p.all[id], nil
	}
	id := uint32(len(p.all))
	p.ids[string(p.buf)] = id
	p.all = append(p.all, v)
	if p.made == nil {
		return id, v, nil
	}
	return id, v, p.made(v)
}

func appendInts[T ~int | ~int8 | ~int64 | ~uint8 | ~uint32 | ~uint64](b []byte, vs ...T) []byte {
	for _, v := range vs {
		b = binary.AppendUvarint(b, uint64(v))
	}
	return b
}

func appendBools(b []byte, vs ...bool) []byte {
	for _, v := range vs {
		if v {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	return b
}
