package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/understudy-rpc/understudy/election"
	"github.com/understudy-rpc/understudy/election/electiontest"
	"github.com/understudy-rpc/understudy/election/memory"
)

// The election in memory is what tests in virtual time stand on: step by step it answers as etcd
// does.
func TestElectionMemoryIsLikeEtcd(t *testing.T) {
	t.Parallel()
	const steps = 300
	addr := embeddedEtcd(t)
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			ctx := electionContext(t)
			group := fmt.Sprintf("model-%d", seed)
			store := memory.NewStore()
			sides := []*side{
				{name: "etcd", client: newEtcdElection(t, addr, group, electionTTL)},
				{name: "memory", client: store.Client(group)},
			}
			rng := rand.New(rand.NewPCG(seed, 1))
			for step := range steps {
				op := drawOp(rng)
				for _, s := range sides {
					s.do(t, ctx, op)
				}
				real, model := sides[0].answers[step], sides[1].answers[step]
				if real != model {
					t.Fatalf("step %d, %v:\netcd   %s\nmemory %s\nbefore:\n%s", step, op, real, model,
						strings.Join(sides[0].answers[max(0, step-20):step], "\n"))
				}
			}
			kinds := map[string]int{}
			for _, a := range sides[0].answers {
				kind, _, _ := strings.Cut(a, ";")
				kinds[kind]++
			}
			t.Log(kinds)
			for _, s := range sides {
				s.end(ctx)
			}
		})
	}
}

// An op is one step; numbers choose among what a side has, so that it means the same on both.
type op struct {
	kind      string
	who       election.Member
	displaces election.Member
	slot      int  // of a registration
	ofSlot    bool // who is to be added is the slot's
	epoch     int  // how many epochs ago
}

func drawOp(rng *rand.Rand) op {
	draw := func() election.Member {
		return election.Member{Name: string(rune('a' + rng.IntN(3))), Incarnation: 1 + rng.Uint64N(5)/4}
	}
	kinds := []string{"register", "register", "close", "create", "elect", "elect", "elect", "add", "add", "add",
		"remove", "hold", "release"}
	o := op{kind: kinds[rng.IntN(len(kinds))], who: draw(), slot: rng.IntN(4), ofSlot: rng.IntN(2) == 0}
	if rng.IntN(2) == 0 {
		o.displaces = draw()
	}
	if rng.IntN(4) == 0 {
		o.epoch = 1 + rng.IntN(2)
	}
	return o
}

// A side is one implementation under the same steps.
type side struct {
	name     string
	client   electiontest.Client
	slots    [4]election.Registration
	epochs   []uint64
	releases []func()
	holding  bool
	answers  []string
}

// do takes a step, and notes what came of it and what the group is then, epochs being numbered from
// 0.
func (s *side) do(t *testing.T, ctx context.Context, o op) {
	t.Helper()
	answer := s.take(t, ctx, o)
	state, err := s.client.Read(ctx)
	if err != nil {
		t.Fatalf("%s: Read = %v", s.name, err)
	}
	if state.Epoch != 0 && !slices.Contains(s.epochs, state.Epoch) {
		s.epochs = append(s.epochs, state.Epoch) // of a transaction that was held
	}
	if len(s.epochs) > 0 && state.Epoch != slices.Max(s.epochs) {
		t.Errorf("%s: epoch %d of %v", s.name, state.Epoch, s.epochs)
	}
	var lost []string
	for i, r := range s.slots {
		if r != nil && r.Err() != nil {
			lost = append(lost, fmt.Sprint(i))
		}
	}
	s.answers = append(s.answers,
		fmt.Sprintf("%s %s; group %x, primary %v in epoch %d, in sync %v, alive %v, lost %v", o.kind, answer,
			state.Group.ID, state.Primary, len(s.epochs), state.InSync, state.Replicas, lost))
}

func (s *side) take(t *testing.T, ctx context.Context, o op) string {
	var epoch uint64
	if i := len(s.epochs) - 1 - o.epoch; i >= 0 {
		epoch = s.epochs[i]
	}
	self := s.slots[o.slot]
	switch o.kind {
	case "register":
		if s.holding { // its lease would make the outcome a matter of time
			return "not now"
		}
		r, err := s.client.Register(ctx, election.Replica{Member: o.who, Addr: "h:1"}, o.displaces)
		if err == nil {
			if self != nil {
				_ = self.Close(ctx)
			}
			s.slots[o.slot] = r
			s.settle(t, ctx, r)
		}
		return classify(err)
	case "close":
		if self == nil {
			return "nobody"
		}
		err := self.Close(ctx)
		s.slots[o.slot] = nil
		return classify(err)
	case "create", "elect":
		var err error
		var began uint64
		if self == nil {
			return "nobody"
		} else if o.kind == "create" {
			began, err = s.client.Create(ctx, election.Group{ID: 1 + o.who.Incarnation}, self)
		} else {
			began, err = s.client.Elect(ctx, self, epoch)
		}
		s.sent(err)
		if err == nil {
			s.epochs = append(s.epochs, began)
		}
		return classify(err)
	case "add", "remove":
		var err error
		if o.kind == "add" {
			who := o.who
			if o.ofSlot && self != nil {
				who = self.Replica().Member
			}
			err = s.client.AddInSync(ctx, epoch, who)
		} else {
			err = s.client.RemoveInSync(ctx, epoch, o.who)
		}
		s.sent(err)
		return classify(err)
	case "hold":
		if s.holding || len(s.epochs) == 0 {
			return "not now"
		}
		s.holding = true
		s.releases = append(s.releases, s.client.HoldNext())
		return "ok"
	default:
		for _, release := range s.releases {
			release()
		}
		s.releases, s.holding = nil, false
		return "ok"
	}
}

// sent notes that a held transaction is on its way.
func (s *side) sent(err error) {
	if election.IsUnknown(err) {
		s.holding = false
	}
}

// settle waits until those whose name r has taken know it, which takes etcd a moment.
func (s *side) settle(t *testing.T, ctx context.Context, r election.Registration) {
	for _, other := range s.slots {
		if other == nil || other == r || other.Replica().Name != r.Replica().Name {
			continue
		}
		select {
		case <-other.Lost():
		case <-ctx.Done():
			t.Fatalf("%s: %v never learnt that it lost the name to %v", s.name, other.Replica(), r.Replica())
		}
	}
}

func (s *side) end(ctx context.Context) {
	for _, r := range s.slots {
		if r != nil {
			_ = r.Close(ctx)
		}
	}
}

func classify(err error) string {
	var taken *election.NameTakenError
	switch {
	case err == nil:
		return "ok"
	case election.IsUnknown(err):
		return "unknown"
	case errors.As(err, &taken):
		return "taken by " + taken.Holder.String()
	default:
		return err.Error()
	}
}
