package machine

import (
	"testing"

	"github.com/understudy-rpc/understudy/orderstate"
)

// What a source says of its calls is for the replies alone, and each replica keeps the places.
func TestDeclaredRepliesKeepTheirPlaces(t *testing.T) {
	t.Parallel()
	l := newReplyLog()
	l.open(1)
	put := func(q orderstate.SeqNum) {
		l.put(orderstate.MessageID{Session: 1, SeqNum: q}, 0,
			&Reply{OrderNum: orderstate.OrderNum(q), Payload: make([]byte, 1000)})
	}
	check := func(when string, whole ...bool) {
		t.Helper()
		bytes := 0
		for i, want := range whole {
			r := l.sessions[1].replies[orderstate.SeqNum(i+1)]
			if r == nil || r.Ended == want || (len(r.Payload) > 0) != want || r.OrderNum != orderstate.OrderNum(i+1) {
				t.Errorf("%s: reply %d is %+v", when, i+1, r)
				continue
			}
			bytes += r.size
		}
		if int(l.bytes.Load()) != bytes || l.sessions[1].bytes != bytes {
			t.Errorf("%s: %d bytes, %d of the session; want %d", when, l.bytes.Load(), l.sessions[1].bytes, bytes)
		}
	}
	for q := range orderstate.SeqNum(5) {
		put(q + 1)
	}
	l.declared(1, 1, []byte{0b1010}) // 1, 3, 5
	check("declared", false, true, false, true, false)
	put(6)
	l.declared(1, 0, []byte{0xff})
	check("old news", false, true, false, true, false, true)
	l.declared(1, 2, nil)
	check("by a request", false, false, false, true, false, true)
	l.declared(1, 3, []byte{0, 0b1})
	put(7)
	put(8)
	l.declared(1, 3, []byte{0b100000}) // 9
	put(9)
	check("before it is executed", false, false, false, true, false, true, true, true, false)
	l.declared(2, 3, nil)
	l.expire(1)
	if l.bytes.Load() != 0 {
		t.Errorf("%d bytes are left", l.bytes.Load())
	}
}
