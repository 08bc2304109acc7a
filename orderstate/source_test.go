package orderstate

import (
	"errors"
	"math"
	"testing"
)

func TestNothingOvertakesTheLoss(t *testing.T) {
	for name, overtakes := range map[string]func(s *Source) error{
		"nothing":          func(s *Source) error { return nil },
		"the stable point": func(s *Source) error { s.LearnStable(3, 12); return nil },
		"a run":            func(s *Source) error { return s.Receive(Announcement{Envelope: Envelope{3, 10, 9, 3}}) },
		"a run, then stable": func(s *Source) error {
			err := s.Receive(Announcement{Envelope: Envelope{3, 10, 9, 3}})
			s.LearnStable(3, 12)
			return err
		},
		"a run that tells it": func(s *Source) error { return s.Receive(Announcement{Envelope: Envelope{3, 8, 8, 3}}) },
	} {
		t.Run(name, func(t *testing.T) {
			s := NewSource()
			s.NewEpoch(1)
			must(t, s.Start(1, 1, 0, nil))
			must(t, s.Receive(Announcement{Envelope: Envelope{1, 1, 1, 8}}))
			if d := s.Accept(Reply{Epoch: 1, OrderNum: 8}); d != Accept {
				t.Fatal(d)
			}
			s.NewEpoch(3) // and 2 started at 8
			var lost *LostError
			err := overtakes(s)
			if d := s.Accept(Reply{Epoch: 3, OrderNum: 11}); d == Accept {
				t.Error("accepts a reply of epoch 3, not knowing yet whether 8 is in it")
			}
			first := OrderNum(10)
			if name == "a run that tells it" {
				first = 8
			}
			if err == nil {
				err = s.Start(3, first, 12, []Start{{1, 1}, {2, 8}})
			}
			if !errors.As(err, &lost) || lost.OrderNum != 8 || lost.Epoch != 1 {
				t.Errorf("told %v", err)
			}
			if err := s.Start(3, first, 12, []Start{{1, 1}, {2, 8}}); !errors.As(err, &lost) {
				t.Errorf("told only once: %v", err)
			}
		})
	}
}

var malformed = map[string]Envelope{
	"negative count": {1, 1, 2, -1},
	"least count":    {1, 1, 2, math.MinInt},
	"zero":           {1, 1, 0, 2},
	"overflow":       {1, 1, math.MaxUint64, 2},
	"last":           {1, 1, math.MaxUint64, 1},
	"far overflow":   {1, 1, math.MaxUint64 - 5, math.MaxInt},
	"no start":       {1, 0, 1, 1},
}

func TestMalformedAnnouncementsAreRefused(t *testing.T) {
	for name, e := range malformed {
		s := NewSource()
		s.NewEpoch(1)
		must(t, s.Receive(Announcement{Envelope: Envelope{1, 1, 3, 1}}))
		if err := s.Receive(Announcement{Envelope: e}); err == nil {
			t.Errorf("%s: accepted; the list is %v", name, s.PendingRemoteOrder())
		}
	}
}

func TestWhatIsStableCoversRuns(t *testing.T) {
	s := NewSource()
	s.NewEpoch(1)
	must(t, s.Receive(Announcement{Envelope: Envelope{1, 1, 1, 4}}))
	must(t, s.Receive(Announcement{Envelope: Envelope{1, 1, 3, 6}}))
	s.LearnStable(1, 2)
	if list := s.PendingRemoteOrder(); len(list) != 1 {
		t.Errorf("%v: 2 is stable, so the second covers the first", list)
	}
}
