package main

import (
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1}, 5}, {[]float64{3, 100, 1}, 3}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median %v, want %v", got, c.want)
		}
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, c := range []struct {
		sorted []time.Duration
		q      float64
		want   time.Duration
	}{{nil, 0.5, 0}, {hundred[:1], 0.99, 1}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred[:2], 0.5, 1}, {hundred[:3], 0.99, 3}} {
		if got := quantile(c.sorted, c.q); got != c.want {
			t.Errorf("quantile %v of %d: %d, want %d", c.q, len(c.sorted), got, c.want)
		}
	}
}

// A ratio is to plain gRPC's windows around it, so that a machine that becomes slower doesn't count.
func TestFigure(t *testing.T) {
	t.Parallel()
	at := func(system string, cpu time.Duration) window {
		return window{System: system, Callers: 4, loadReport: loadReport{Calls: 10, Elapsed: time.Second}, Client: usage{User: cpu * time.Microsecond}}
	}
	plains := []window{at("plain", 100), at("plain", 100), at("plain", 300), at("plain", 500)}
	var rounds []round
	for i, cpu := range []time.Duration{200, 500, 800} { // 2, 2.5 and 2 times as much
		rounds = append(rounds, round{plains[i], at("reflected", cpu), plains[i+1]})
	}
	f := figureOf(metrics[0], rounds)
	want := figure{Metric: "cpu", System: "reflected", Callers: 4, Plain: 20, Value: 50, Ratio: 2, Least: 2, Most: 2.5}
	if f != want {
		t.Errorf("%+v, want %+v", f, want)
	}
}

// What one of several processes is about isn't lost among them.
func TestUsage(t *testing.T) {
	t.Parallel()
	m := newMeter(0)
	before, err := readUsage(m)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Millisecond); time.Now().Before(deadline); {
		sink = make([]byte, 1<<10)
	}
	now, err := readUsage(m)
	if u := now.since(before); err != nil || u.cpu() <= 0 || u.Allocs == 0 || u.AllocBytes < 1<<10*u.Allocs/2 {
		t.Errorf("%+v, %v", u, err)
	}
}

var sink []byte
