package replica

import (
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// What comes without a frame doesn't put off that the source's messages are fetched: else any client could, and hold up what is ordered after them.
func TestOnlyFramesAreHeard(t *testing.T) {
	t.Parallel()
	in := backup(t)
	now := time.Hour
	in.r.clock = func() time.Duration { return now }
	a := &attachment{in: in, bound: true, session: 1, wake: make(chan struct{}, 1)}
	in.attached[a] = struct{}{}
	for _, tt := range []struct {
		req   *pb.AttachRequest
		heard bool
	}{
		{&pb.AttachRequest{}, false},
		{&pb.AttachRequest{WaitingFor: &pb.WaitingFor{Epoch: 1}}, false},
		{&pb.AttachRequest{Frames: []*pb.Frame{{Group: in.group, Session: 1, SeqNum: 1, Outstanding: 1, Method: "/m", Message: []byte("x"), More: 1}}}, true},
	} {
		now += time.Second
		if err := a.take(tt.req, new(wire.Assembler)); err != nil {
			t.Fatal(err)
		}
		if heard := a.heard == now; heard != tt.heard {
			t.Errorf("after %v: heard is %v", tt.req, heard)
		}
	}
}

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
