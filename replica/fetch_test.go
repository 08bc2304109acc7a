package replica

import (
	"testing"
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// What comes without a frame, or with one that has come before, doesn't put off that the source's
// messages are fetched: else any client could, and hold up what is ordered after them.
func TestOnlyNewFramesAreHeard(t *testing.T) {
	t.Parallel()
	in := backup(t)
	now := time.Hour
	in.r.clock = func() time.Duration { return now }
	a := &attachment{m: in.m, bound: true, session: 1, out: newOutbox[pb.AttachResponse](nil)}
	in.m.sources.attached[a] = struct{}{}
	var frames wire.Assembler
	frame := func(q uint64, more uint32) *pb.AttachRequest {
		f := &pb.Frame{Group: in.group, Session: 1, SeqNum: q, Outstanding: q, Method: "/m", Message: []byte("x"),
			More: more}
		if q == 0 { // the rest
			f = &pb.Frame{Message: []byte("y")}
		}
		return &pb.AttachRequest{Frames: []*pb.Frame{f}}
	}
	for _, tt := range []struct {
		req   *pb.AttachRequest
		heard bool
	}{
		{&pb.AttachRequest{}, false},
		{&pb.AttachRequest{WaitingFor: &pb.WaitingFor{Epoch: 1}}, false},
		{frame(5, 1), true},
		{frame(0, 0), true},
		{frame(5, 0), false}, // again
		{frame(4, 0), false}, // from before
		{frame(4, 1), false},
		{frame(0, 0), false},
		{frame(6, 0), true},
	} {
		now += time.Second
		if err := a.take(tt.req, &frames); err != nil {
			t.Fatal(err)
		}
		if heard := a.heard == now; heard != tt.heard {
			t.Errorf("after %v: heard is %v", tt.req, heard)
		}
	}
}

// A message that its source's stream is bringing isn't fetched, unless that takes too long.
func TestMessagesOnTheirWayArentFetched(t *testing.T) {
	const lacked = time.Hour
	on := func(change func(*attachment)) *attachment {
		a := &attachment{came: came{frames: 6, heard: lacked}}
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
		"too long on its way": {on(func(a *attachment) {
			a.heard = lacked + fetchAnyway
		}), fetchAnyway, true},
		"nearly so": {on(func(a *attachment) {
			a.heard = lacked + fetchAnyway
		}), fetchAnyway - 1, false},
		"the stream has brought later": {on(func(a *attachment) {
			a.heard, a.frames = lacked+fetchAfter, 7
		}), fetchAfter, true},
		"it was dropped, or one before": {on(func(a *attachment) {
			a.heard, a.dropped = lacked+fetchAfter, true
		}), fetchAfter, true},
		"dropped, and ordered just now": {on(func(a *attachment) {
			a.heard, a.dropped = lacked+fetchAfter, true
		}), fetchAfter - 1, false},
	} {
		f := &following{m: newMember(new(common))}
		if tt.a != nil {
			f.m.sources.bySession[1] = tt.a
		}
		late := f.late(orderstate.MessageID{Session: 1, SeqNum: 7}, lacked, lacked+tt.since)
		if late != tt.late {
			t.Errorf("%s: late is %v", name, late)
		}
	}
}

// A session whose messages have to be fetched again and again is as good as detached, for longer
// and longer; one that is late now and then isn't.
func TestSessionsThatAreAlwaysLateAreDetached(t *testing.T) {
	t.Parallel()
	in := backup(t)
	in.m.mu.Lock()
	defer in.m.mu.Unlock()
	streams := knows(t, in, 2)
	hostile, honest := streams[0], streams[1]
	now := time.Hour
	in.r.clock = func() time.Duration { return now }
	in.m.following().tellAll()
	for _, a := range streams {
		a.acknowledged = 1
		in.m.following().canHear(a)
	}
	in.m.upstream.tell(new(pb.FollowRequest))
	q := orderstate.SeqNum(0)
	misses := func(a *attachment) {
		q++
		in.m.following().missed([]orderstate.MessageID{{Session: a.session, SeqNum: q}}, nil)
	}
	orders := func(a *attachment, n int) {
		for range n {
			q++
			last := in.m.following().backup.Last()
			in.m.following().backup.Message(orderstate.Message{MessageID: orderstate.MessageID{Session: a.session,
				SeqNum: q},
				Digest: uint64(q)})
			received, err := in.m.following().backup.Receive(orderstate.Run{
				Envelope: orderstate.Envelope{Epoch: 1, EpochFirst: 3, First: last + 1, Count: 1},
				Entries: []orderstate.OrderInfo{{OrderNum: last + 1, SeqNum: q, Session: a.session, First: 1,
					Digest: uint64(q)}},
			})
			if err != nil {
				t.Fatal(err)
			}
			in.m.after(moved{Moved: received})
		}
	}
	told := func(when string, attached, detached int) {
		t.Helper()
		in.m.following().forgive()
		req := new(pb.FollowRequest)
		in.m.upstream.tell(req)
		if len(req.Attach) != attached || len(req.Detach) != detached {
			t.Errorf("%s: told %v", when, req)
		}
	}
	for range 10 {
		misses(honest)
		orders(honest, 20)
	}
	told("late now and then", 0, 0)
	misses(hostile)
	misses(hostile)
	in.m.following().missed([]orderstate.MessageID{{Session: hostile.session, SeqNum: q}},
		map[orderstate.MessageID]bool{{Session: hostile.session, SeqNum: q}: true})
	told("fetched twice, and once more of it", 0, 0)
	for penalty := suspectFirst; penalty < 2*suspectMost; penalty *= 2 {
		for range 3 {
			misses(hostile)
			orders(hostile, 2) // between them
		}
		told("again and again", 0, 1)
		in.m.following().canHear(hostile)
		now += min(penalty, suspectMost) - 1
		told("for a while", 0, 0)
		now++
		told("then it may try again", 1, 0)
	}
}
