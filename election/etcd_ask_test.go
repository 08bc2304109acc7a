package election

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// member is one that answers after a while, or never.
type member struct {
	after  time.Duration // below 0: never
	answer verdict
}

var errAnswer = errors.New("not that")

// askAll asks members in turn, the last one again and again, and says how many were asked, and how
// long it took.
func askAll(
	t *testing.T, limit time.Duration, members ...member,
) (answer verdict, how asked, took time.Duration, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	began, next := time.Now(), make(chan member, 1000)
	for _, m := range members {
		next <- m
	}
	request := func(ctx context.Context) (verdict, error) {
		m := members[len(members)-1]
		select {
		case m = <-next:
		default:
		}
		if m.after < 0 {
			<-ctx.Done()
			return open, ctx.Err()
		}
		select {
		case <-time.After(m.after):
		case <-ctx.Done():
			return open, ctx.Err()
		}
		if m.answer == settled {
			return settled, nil
		}
		return m.answer, errAnswer
	}
	answer, how, err = ask(ctx, request, func(v verdict, _ error) verdict { return v })
	return answer, how, time.Since(began), err
}

// TestAsk: a member that hangs costs one wait, a store that is slow is waited for, and isn't asked
// much more often by that; what fails at once fails at once. Pauses are jittered by a fifth.
func TestAsk(t *testing.T) {
	t.Parallel()
	never, quick := member{after: -1}, member{after: time.Millisecond}
	for _, test := range []struct {
		name    string
		limit   time.Duration
		members []member
		answer  verdict
		begun   int
		took    time.Duration
	}{
		{"at once", time.Second, []member{quick}, settled, 1, time.Millisecond},
		{"one hangs", time.Second, []member{never, quick}, settled, 3, askAgain + time.Millisecond},
		{"two hang", time.Second, []member{never, never, quick}, settled, 3, askAgain + time.Millisecond},
		{"slow", 2 * time.Second, []member{{after: 900 * time.Millisecond}}, settled, 5, 900 * time.Millisecond},
		{"slow, one hangs", 2 * time.Second, []member{never, {after: 900 * time.Millisecond}}, settled, 5, time.Second},
		{"all hang", time.Second, []member{never}, open, 5, time.Second},
		{"all hang for long", time.Minute, append(slices.Repeat([]member{never}, 9), quick), settled, 10,
			5501 * time.Millisecond},
		{"refused", time.Second, []member{{time.Millisecond, open}}, open, 1, time.Millisecond},
		{"final", time.Second, []member{{time.Millisecond, final}}, final, 1, time.Millisecond},
		{"one hangs, then final", 2 * time.Second, []member{never, {time.Millisecond, final}}, final, 3,
			201 * time.Millisecond},
		{"late, and it was it", time.Second, []member{{after: 150 * time.Millisecond}, {time.Millisecond, final}},
			settled, 3, 150 * time.Millisecond},
		{"one hangs, one is gone", time.Second, []member{never, {time.Millisecond, open}, quick}, settled, 3,
			101 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer, how, took, err := askAll(t, test.limit, test.members...)
				if answer != test.answer || (err == nil) != (answer == settled) {
					t.Errorf("answer %v, %v", answer, err)
				}
				jitter := test.took / 5
				if how.begun != test.begun || took < test.took-jitter || took > test.took+jitter {
					t.Errorf("%d requests in %v, want %d in %v", how.begun, took, test.begun, test.took)
				}
			})
		})
	}
}
