package source

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/understudy-rpc/understudy/internal/wire"
	"github.com/understudy-rpc/understudy/orderstate"
	pb "github.com/understudy-rpc/understudy/proto/understudy/v1"
)

// TestFramesAreForgottenWhenNobodyNeedsThem: which requests are retained, after each of these
// steps.
func TestFramesAreForgottenWhenNobodyNeedsThem(t *testing.T) {
	t.Parallel()
	const none = 0
	for _, tt := range []struct {
		name string
		do   func(f *frames, r []*retained) // of seqNums 1 to 4, in flight
		want string
	}{
		{"in flight", func(f *frames, r []*retained) { f.sweep(99, func() uint64 { return 4 }) }, "[1 2 3 4] 0"},
		{"accepted, not stable", func(f *frames, r []*retained) { f.end(r[0], endAccepted, 10, 9) }, "[1 2 3 4] 1"},
		{"accepted, stable already", func(f *frames, r []*retained) { f.end(r[0], endAccepted, 10, 10) }, "[2 3 4] 1"},
		{"accepted, stable later", func(f *frames, r []*retained) {
			f.end(r[0], endAccepted, 10, 9)
			f.sweep(10, nil)
		}, "[2 3 4] 1"},
		{"accepted out of order", func(f *frames, r []*retained) {
			f.end(r[2], endAccepted, 12, 9)
			f.end(r[1], endAccepted, 11, 9)
			f.sweep(11, nil)
		}, "[1 3 4] 0"},
		{"refused", func(f *frames, r []*retained) { f.end(r[1], endRefused, none, 0) }, "[1 3 4] 0"},
		{"accepted without an orderNum", func(f *frames, r []*retained) {
			f.end(r[0], endAccepted, none, 0)
		}, "[2 3 4] 1"},
		{"abandoned", func(f *frames, r []*retained) { f.end(r[0], endAbandoned, none, 99) }, "[1 2 3 4] 1"},
		{"abandoned, acknowledged by few", func(f *frames, r []*retained) {
			f.end(r[1], endAbandoned, none, 0)
			f.sweep(99, func() uint64 { return 1 })
		}, "[1 2 3 4] 0"},
		{"abandoned, acknowledged by all", func(f *frames, r []*retained) {
			f.end(r[1], endAbandoned, none, 0)
			f.sweep(0, func() uint64 { return 2 })
		}, "[1 3 4] 0"},
		{"abandoned, a later mark is accepted", func(f *frames, r []*retained) {
			f.end(r[0], endAbandoned, none, 0)
			f.end(f.add(new(pb.Frame), new(call)), endAccepted, 20, 19) // declares mark 1
		}, "[1 2 3 4 5] 1"},
		{"abandoned, a later mark is stable", func(f *frames, r []*retained) {
			f.end(r[0], endAbandoned, none, 0)
			f.end(r[1], endAbandoned, none, 0)
			f.end(r[2], endAccepted, 19, 18) // declares 0
			later := f.add(new(pb.Frame), new(call))
			if later.frame.SeqNum != 5 || later.frame.Outstanding != 2 {
				t.Errorf("%v", later.frame)
			}
			f.end(later, endAccepted, 20, 20)
		}, "[4] 3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newFrames()
			var r []*retained
			for range 4 {
				r = append(r, f.add(new(pb.Frame), new(call)))
			}
			tt.do(&f, r)
			var left []uint64
			for _, r := range f.from(0) {
				if r.frame != nil {
					left = append(left, r.frame.SeqNum)
				}
			}
			if got := fmt.Sprint(left, " ", f.mark); got != tt.want {
				t.Errorf("retained, mark: %s; want %s", got, tt.want)
			}
			if f.bytes != len(left)*frameOverhead {
				t.Errorf("%d bytes for %d frames", f.bytes, len(left))
			}
		})
	}
}

// TestFramesAddUp ends random calls at random, and checks what must hold after every step.
func TestFramesAddUp(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	f := newFrames()
	flying := map[*retained]bool{}
	var order, stable orderstate.OrderNum
	for range 20_000 {
		switch n := rng.IntN(10); {
		case n < 4 && f.fits(10):
			flying[f.add(&pb.Frame{Message: make([]byte, 10)}, new(call))] = true
		case n < 8:
			for r := range flying {
				order++
				f.end(r, ending(rng.IntN(3)), order, stable)
				delete(flying, r)
				break
			}
		default:
			stable += orderstate.OrderNum(rng.IntN(int(order-stable) + 1))
			f.sweep(stable, nil)
		}
		bytes, seen := 0, 0
		for i, r := range f.list {
			if r.call != nil {
				seen++
				if f.base+uint64(i) <= f.mark {
					t.Fatalf("seqNum %d is in flight, the mark is %d", f.base+uint64(i), f.mark)
				}
				if r.frame == nil {
					t.Fatalf("seqNum %d is in flight, and forgotten", f.base+uint64(i))
				}
			}
			if r.frame != nil {
				bytes += r.size()
				if r.frame.SeqNum != f.base+uint64(i) || r.frame.Outstanding > r.frame.SeqNum ||
					r.frame.Outstanding == 0 {
					t.Fatalf("frame %v at %d", r.frame, f.base+uint64(i))
				}
			}
		}
		if bytes != f.bytes || seen != len(flying) || len(f.list) > 0 && f.list[0].frame == nil {
			t.Fatalf("%d bytes of %d, %d in flight of %d", f.bytes, bytes, seen, len(flying))
		}
	}
}

// TestEndsAreToldOnce: what replicas are told of the calls that have ended, and what the next
// request tells them anyway.
func TestEndsAreToldOnce(t *testing.T) {
	f := newFrames()
	var r []*retained
	for range 12 {
		r = append(r, f.add(&pb.Frame{}, &call{}))
	}
	end := func(q int, bytes int) {
		r[q-1].reply = bytes
		f.end(r[q-1], endAccepted, orderstate.OrderNum(q), 0)
	}
	unsaid := func(when string, want int) {
		t.Helper()
		if f.unsaid != want {
			t.Errorf("%s: %d bytes are unsaid, want %d", when, f.unsaid, want)
		}
	}
	end(1, 10)
	end(2, 20)
	end(4, 40)
	unsaid("three have ended", 70)
	f.add(&pb.Frame{}, &call{})
	unsaid("a request has declared two", 40)
	end(11, 110)
	end(5, 50)
	if e := f.ended(); e.UpTo != 2 || !slices.Equal(e.Above, []byte{0b110, 0b1}) {
		t.Errorf("told %v", e)
	}
	unsaid("all is told", 0)
	end(3, 30)
	unsaid("one more", 30)
	if e := f.ended(); e.UpTo != 5 || !slices.Equal(e.Above, []byte{0b100000}) {
		t.Errorf("told %v", e)
	}
	f.add(&pb.Frame{}, &call{})
	unsaid("what was told isn't again", 0)
}

// TestFramesAreBounded: in number, and in the bytes that are retained; a request alone always has
// room.
func TestFramesAreBounded(t *testing.T) {
	t.Parallel()
	f := newFrames()
	if !f.fits(wire.MaxMessage) {
		t.Error("no room for one request")
	}
	for range maxOutstanding {
		if !f.fits(1) {
			t.Fatal("no room")
		}
		f.add(new(pb.Frame), new(call))
	}
	if f.fits(1) {
		t.Error("more are outstanding than may be")
	}
	f = newFrames()
	big := f.add(&pb.Frame{Message: make([]byte, maxRetained/2)}, new(call))
	if f.fits(maxRetained / 2) {
		t.Error("more is retained than may be")
	}
	f.end(big, endRefused, 0, 0)
	if !f.fits(maxRetained / 2) {
		t.Error("no room")
	}
}
