package replica

import (
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/orderstate"
)

// A message that its source's stream is bringing isn't fetched, unless that takes too long.
func TestLate(t *testing.T) {
	const lacked = time.Hour
	on := func(change func(*attachment)) *attachment {
		a := &attachment{frames: 6, heard: lacked}
		change(a)
		return a
	}
	coming := on(func(a *attachment) { a.heard = lacked + 2*fetchAfter })
	for name, tt := range map[string]struct {
		a     *attachment // of the message's session; nil: none
		since time.Duration
		late  bool
	}{
		"just ordered, without a stream": {nil, fetchAfter - 1, false},
		"without a stream":               {nil, fetchAfter, true},
		"on its way":                     {coming, 3*fetchAfter - 1, false},
		"the stream is silent":           {coming, 3 * fetchAfter, true},
		"too long on its way":            {on(func(a *attachment) { a.heard = lacked + fetchAnyway }), fetchAnyway, true},
		"nearly so":                      {on(func(a *attachment) { a.heard = lacked + fetchAnyway }), fetchAnyway - 1, false},
		"the stream has brought later":   {on(func(a *attachment) { a.heard, a.frames = lacked+fetchAfter, 7 }), fetchAfter, true},
		"it was dropped, or one before":  {on(func(a *attachment) { a.heard, a.dropped = lacked+fetchAfter, true }), fetchAfter, true},
		"dropped, and ordered just now":  {on(func(a *attachment) { a.heard, a.dropped = lacked+fetchAfter, true }), fetchAfter - 1, false},
	} {
		in := &incarnation{bySession: map[orderstate.Session]*attachment{}}
		if tt.a != nil {
			in.bySession[1] = tt.a
		}
		if late := in.late(orderstate.MessageID{Session: 1, SeqNum: 7}, lacked, lacked+tt.since); late != tt.late {
			t.Errorf("%s: late is %v", name, late)
		}
	}
}
