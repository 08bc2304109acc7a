package source

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// attempts is an Attempt that a test answers.
type attempts func(replica string, h wire.Header) Arrival

func (a attempts) Invoke(_ context.Context, replica string, h wire.Header) Arrival {
	return a(replica, h)
}

// ordered is a primary's signed answer: the call is the first of its epoch, and 2 is its orderNum.
func ordered(epoch orderstate.Epoch) Arrival {
	h := &wire.Header{SourceEpoch: epoch, OrderNum: 2, AuthorityUs: uint64(time.Second / time.Microsecond)}
	h.Announce(orderstate.Announcement{Envelope: orderstate.Envelope{Epoch: epoch, EpochFirst: 2, First: 2, Count: 1}})
	return Arrival{Header: h, Sent: true}
}

// TestCallOutlivesItsPrimary: it is issued again, under its seqNum, to the one that another
// replica's stream names.
func TestCallOutlivesItsPrimary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		src, l := welcomed(t)
		var to []string
		err := src.Call(t.Context(), &Request{Method: "/a/b"}, attempts(func(replica string, h wire.Header) Arrival {
			to = append(to, replica)
			if h.SeqNum != 1 || h.Session != 1 || h.Token != 1 {
				t.Errorf("issued with %+v", h)
			}
			if replica == "b" {
				return ordered(20)
			}
			time.AfterFunc(time.Second, func() {
				err := l.Receive(&pb.AttachResponse{
					NewEpoch:   &pb.NewEpoch{Epoch: 20, Primary: "b", Incarnation: 2},
					EpochStart: &pb.EpochStart{Epoch: 20, FirstOrderNum: 2, Stable: 1},
				})
				if err != nil {
					t.Error(err)
				}
			})
			return Arrival{Err: errors.New("it is gone"), Failure: FailureGone, Sent: true}
		}))
		if err != nil || len(to) < 2 || to[0] != "a" || to[len(to)-1] != "b" {
			t.Errorf("%v, issued to %v", err, to)
		}
		if s := src.Stats(); s.Primary != "b" || s.Failovers != 1 || int(s.Reissued) != len(to)-1 {
			t.Errorf("%+v", s)
		}
	})
}

// TestErrorsSayWhetherACallWasExecuted: by their kind, whatever ends the call.
func TestErrorsSayWhetherACallWasExecuted(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	refusal := func(r pb.Refusal) Arrival {
		return Arrival{Header: &wire.Header{SourceEpoch: 10, Refusal: r}, Err: broken, Sent: true}
	}
	for name, tt := range map[string]struct {
		end  Arrival
		kind Kind
	}{
		"nobody has signed an error":       {Arrival{Err: broken, Sent: true}, Foreign},
		"nobody has signed a response":     {Arrival{Sent: true}, Broken},
		"it was answered before":           {refusal(pb.Refusal_REFUSAL_ANSWERED), Broken},
		"its session is unknown meanwhile": {refusal(pb.Refusal_REFUSAL_UNKNOWN_SESSION), Unknown},
		"every attempt may arrive":         {Arrival{Err: broken, Failure: FailureGone, Sent: true}, Ended},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				src, _ := welcomed(t)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				made := 0
				err := src.Call(ctx, &Request{Method: "/a/b"}, attempts(func(string, wire.Header) Arrival {
					if made++; made == 1 { // it may have been executed
						return Arrival{Err: broken, Failure: FailureGone, Sent: true}
					}
					return tt.end
				}))
				var why *Error
				if !errors.As(err, &why) || why.Kind != tt.kind || why.Kind == Ended && !why.Sent {
					t.Errorf("%+v; want the kind %d", err, tt.kind)
				}
			})
		})
	}
}
