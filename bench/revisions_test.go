package main

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// The places of the least and the most are those of tables of the sign test.
func TestMedianInterval(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ n, low, high int }{{6, 1, 6}, {8, 1, 8}, {9, 2, 8}, {20, 6, 15}, {50, 18, 33}} {
		var values []float64
		for i := range c.n {
			values = append(values, float64(i+1))
		}
		rand.Shuffle(c.n, func(i, j int) { values[i], values[j] = values[j], values[i] })
		if low, high := medianInterval(values); low != float64(c.low) || high != float64(c.high) {
			t.Errorf("of %d: %v to %v, want %d to %d", c.n, low, high, c.low, c.high)
		}
	}
}

// It fails only when the interval lies wholly above the limit, each metric's own.
func TestCostlierRevisionIsTold(t *testing.T) {
	t.Parallel()
	// at is n rounds in which the tree's CPU and allocations are so many times the base's, each a
	// little more or less.
	at := func(n int, cpu, allocs, noise float64) ratios {
		r := ratios{cfg: config{Systems: []string{"reflected"}, Callers: []int{4}, Rounds: n}}
		for i := range n {
			off := 1 + noise*(float64(i)/float64(n-1)-0.5)
			used := func(cpu, allocs float64) window {
				return window{System: "reflected", Callers: 4,
					loadReport: loadReport{Calls: 1000, Elapsed: time.Second},
					Client:     usage{User: time.Duration(1e8 * cpu), Allocs: uint64(1e5 * allocs), AllocBytes: 1e6},
					Primary:    usage{Allocs: 1e5, AllocBytes: 1e6}}
			}
			r.pairs = append(r.pairs, neighbours{i, [2]window{atBase: used(1, 1), atTree: used(cpu*off, allocs)}})
		}
		return r
	}
	for _, c := range []struct {
		name   string
		ratios ratios
		fails  string // part of the error
	}{
		{"the same", at(20, 1, 1, 0.1), ""},
		{"dearer by less than the limit", at(20, 1.02, 1, 0.01), ""},
		{"dearer, but too noisy to say", at(20, 1.05, 1, 0.3), ""},
		{"dearer", at(20, 1.05, 1, 0.02), "cpu × 1.050"},
		{"one allocation in a hundred more", at(20, 1, 1.02, 0), "allocs_client × 1.020"},
		{"cheaper", at(20, 0.9, 0.9, 0.02), ""},
		{"too few rounds", at(5, 1, 1, 0), "too busy"},
	} {
		err := c.ratios.judge(io.Discard, 1.03, 1.01)
		if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: %v", c.name, err)
		}
		if costs := strings.Contains(c.fails, "×"); costs != errors.Is(err, errCostsMore) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// The whole, with this program as both revisions, over the round at which all processes are started
// again.
func TestRevisions(t *testing.T) {
	if testing.Short() {
		t.Skip("starts an etcd and 16 processes")
	}
	cfg := config{
		Systems: []string{"reflected"}, Callers: []int{2}, Rounds: renewEvery + 1, Window: 50 * time.Millisecond,
		WarmUp: 10 * time.Millisecond, Replicas: 3, Request: 100, Deadline: 10 * time.Second,
	}
	r, err := compareRevisions(t.Context(), cfg, [2]string{}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if pairs := r.of("reflected", 2); len(pairs) != cfg.Rounds {
		t.Errorf("%d rounds, want %d", len(pairs), cfg.Rounds)
	}
	for _, p := range r.pairs {
		first, second := p.windows[p.number%2], p.windows[1-p.number%2]
		if ratio := p.ratio(revisionCPU); ratio <= 0 || !first.At.Before(second.At) {
			t.Errorf("round %d: ratio %v, windows at %v and %v", p.number, ratio, first.At, second.At)
		}
	}
}
