package main

import (
	"testing"
	"time"
)

// Each peer executes the callers' calls, the same ones in the same order on every server; also when
// all is delayed.
func TestPeers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts many processes")
	}
	for _, c := range []struct {
		system string
		cfg    config
	}{
		{"hashicorp", config{Replicas: 3}},
		{"etcdraft", config{Replicas: 3}},
		{"dragonboat", config{Replicas: 3}},
		{"etcd", config{Replicas: 3}},
		{"etcdraft", config{Replicas: 2, Delay: time.Millisecond}},
		{"dragonboat", config{Replicas: 2, Delay: time.Millisecond}},
		{"etcd", config{Replicas: 2, Delay: time.Millisecond}},
	} {
		name := c.system
		if c.cfg.Delay > 0 {
			name += ", delayed"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.cfg.Request, c.cfg.Deadline, c.cfg.Tight = 100, 10*time.Second, true
			s, ok := findSystem(c.system)
			if !ok {
				t.Fatal("there is no such system")
			}
			f, err := startFleet(t.Context(), s, c.cfg, "")
			defer f.stop()
			if err != nil {
				t.Fatal(err)
			}
			w, err := f.window(t.Context(), 4, 10*time.Millisecond, 50*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if w.Calls == 0 || w.ToPrimary.Out < uint64(100*w.Calls) {
				t.Errorf("%d calls, %+v", w.Calls, w.ToPrimary)
			}
			// Two delays from client to leader and back, two more between the servers.
			if least := 4 * c.cfg.Delay; w.P50 < least {
				t.Errorf("p50 is %v, less than %v", w.P50, least)
			}
			if bytes := w.BetweenServers.bytes(); bytes == 0 &&
				(s.name == "hashicorp" || s.name == "etcdraft" || c.cfg.Delay > 0) {
				t.Error("nothing is counted between the servers")
			}
			if err := f.check(t.Context()); err != nil {
				t.Error(err)
			}
			f.expect.Adds++
			if err := f.check(t.Context()); err == nil {
				t.Error("a call too few isn't noticed")
			}
			t.Log(w.Calls, w.P50, w.all().cpu()/time.Duration(w.Calls))
		})
	}
}
