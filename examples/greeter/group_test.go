package main

import (
	"strings"
	"testing"

	"github.com/understudy-rpc/understudy/replica"
)

// says makes a view of lines "name role epoch executed [in-sync]"; "name down" doesn't answer.
func says(t *testing.T, lines ...string) view {
	t.Helper()
	var v view
	for _, line := range lines {
		f := strings.Fields(line)
		r := viewed{name: f[0], up: f[1] != "down"}
		if r.up {
			r.status.Role = replica.Role(strings.ReplaceAll(f[1], "_", " "))
			r.status.Epoch, r.status.Executed = number(t, f[2]), number(t, f[3])
			r.status.InSync = f[4:]
		}
		v = append(v, r)
	}
	return v
}

func number(t *testing.T, s string) (n uint64) {
	t.Helper()
	for _, d := range s {
		n = n*10 + uint64(d-'0')
	}
	return n
}

func TestView(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		claim  string
		view   view
		leader string
		whole  string // the objection; empty if none
		even   string
	}{
		{"all is well", says(t, "a leading 5 9 a b c", "b following 5 9", "c following 5 9"), "a", "", ""},
		{"alone is whole", says(t, "a leading 5 9 a"), "a", "", ""},
		{"nobody leads", says(t, "a following 5 9", "b taking_over 5 9"), "", "nobody leads", "nobody leads"},
		{"one is down", says(t, "a leading 5 9 a b", "b down"), "a", "b doesn't answer", "b doesn't answer"},
		{"one that is down counts as in-sync still", says(t, "a down", "b leading 7 9 a b c", "c following 7 9"), "b",
			"a doesn't answer", "a doesn't answer"},
		{"one joins", says(t, "a leading 5 9 a", "b joining 0 0"), "a",
			"b is joining in epoch 0, a leads in epoch 5", "b is joining in epoch 0, a leads in epoch 5"},
		{"one follows, but isn't in-sync", says(t, "a leading 5 9 a c", "b following 5 9", "c following 5 9"), "a",
			"b isn't in-sync yet", "b isn't in-sync yet"},
		{"one was deposed and doesn't know", says(t, "a leading 5 9 a b", "b leading 7 9 b"), "b",
			"a is leading in epoch 5, b leads in epoch 7", "a is leading in epoch 5, b leads in epoch 7"},
		{"one is an epoch behind", says(t, "a leading 7 9 a b", "b following 5 9"), "a",
			"b is following in epoch 5, a leads in epoch 7", "b is following in epoch 5, a leads in epoch 7"},
		{"one hasn't executed as far", says(t, "a leading 5 9 a b", "b following 5 8"), "a", "",
			"a has executed up to 9, b to 8"},
		{"a backup is behind one that is named later", says(t, "a following 5 8", "b leading 5 9 a b"), "b", "",
			"a has executed up to 8, b to 9"},
		{"a backup is asked later, and is ahead", says(t, "a following 5 9", "b leading 5 8 a b"), "b", "",
			"a has executed up to 9, b to 8"},
	} {
		t.Run(c.claim, func(t *testing.T) {
			t.Parallel()
			leader, ok := c.view.leader()
			if leader.name != c.leader || ok != (c.leader != "") {
				t.Errorf("leader() = %q, %v", leader.name, ok)
			}
			if text(c.view.whole()) != c.whole {
				t.Errorf("whole: %v", c.view.whole())
			}
			if text(c.view.even()) != c.even {
				t.Errorf("even: %v", c.view.even())
			}
		})
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestViewString(t *testing.T) {
	t.Parallel()
	for want, v := range map[string]view{
		"primary b   epoch 12   in-sync b c":              says(t, "a down", "b leading 12 9 c b", "c following 12 9"),
		"no primary (a down, b taking over, c following)": says(t, "a down", "b taking_over 12 9", "c following 5 9"),
	} {
		if got := v.String(); got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
}

func TestReference(t *testing.T) {
	t.Parallel()
	v := says(t, "a down", "b following 5 9", "c leading 5 9 b c")
	for _, c := range []struct{ known, want string }{{"b c", "c"}, {"b", "b"}, {"a b", "a"}, {"", ""}} {
		states := map[string]map[string]uint64{}
		for _, name := range strings.Fields(c.known) {
			states[name] = nil
		}
		if got := reference(v, states); got != c.want {
			t.Errorf("of %q: %q, want %q", c.known, got, c.want)
		}
	}
}
