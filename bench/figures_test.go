package main

import (
	"strings"
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
	}{{nil, 0.5, 0}, {hundred[:1], 0.99, 1}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred[:2],
		0.5, 1}, {hundred[:3], 0.99, 3}} {
		if got := quantile(c.sorted, c.q); got != c.want {
			t.Errorf("quantile %v of %d: %d, want %d", c.q, len(c.sorted), got, c.want)
		}
	}
}

// A ratio is to plain gRPC's windows around it, so that a machine that becomes slower doesn't
// count.
func TestFigure(t *testing.T) {
	t.Parallel()
	at := func(system string, cpu time.Duration) window {
		return window{System: system, Callers: 4, loadReport: loadReport{Calls: 10, Elapsed: time.Second},
			Client: usage{User: cpu * time.Microsecond}}
	}
	plains := []window{at("plain", 100), at("plain", 100), at("plain", 300), at("plain", 500)}
	var rounds []round
	for i, cpu := range []time.Duration{200, 500, 800} { // 2, 2.5 and 2 times as much
		rounds = append(rounds, round{i, plains[i], at("reflected", cpu), plains[i+1]})
	}
	f := figureOf(metrics[0], rounds)
	want := figure{Metric: "cpu", System: "reflected", Callers: 4, Plain: 20, Value: 50, Ratio: 2, Least: 2, Most: 2.5}
	if f != want {
		t.Errorf("%+v, want %+v", f, want)
	}
}

// Two systems are compared by their ratios to plain gRPC in the same round.
func TestBeside(t *testing.T) {
	t.Parallel()
	at := func(number int, plain, system time.Duration) round {
		used := func(d time.Duration) window {
			return window{Callers: 4, loadReport: loadReport{Calls: 1}, Client: usage{User: d * time.Microsecond}}
		}
		return round{number, used(plain), used(system), used(plain)}
	}
	ours := []round{at(0, 100, 200), at(1, 300, 600)} // 2 times plain
	theirs := []round{at(0, 200, 800), at(1, 100, 400), at(7, 1, 1)}
	if got := beside(findMetric("cpu"), ours, theirs); got != 0.5 {
		t.Errorf("%v, want 0.5", got)
	}
	if got := beside(findMetric("cpu"), ours, theirs[2:]); got != 0 {
		t.Errorf("%v without a round in common", got)
	}
}

// What one of several processes is about isn't lost among them. It doesn't run beside other tests,
// whose allocations are this process's, too.
func TestUsage(t *testing.T) {
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

// The lines of quick have one for each figure and system.
func TestLines(t *testing.T) {
	t.Parallel()
	r := report{Config: quickConfig()}
	for _, callers := range r.Config.Callers {
		for i, s := range r.Config.Systems {
			at := func(system string, allocs uint64) window {
				return window{System: system, Callers: callers,
					loadReport: loadReport{Calls: 1, Elapsed: time.Second,
						P50: 1}, Client: usage{User: time.Duration(allocs), Allocs: allocs}}
			}
			r.Rounds = append(r.Rounds, round{0, at("plain", 10), at(s, 20+10*uint64(i)), at("plain", 10)})
		}
	}
	var b strings.Builder
	r.writeLines(&b)
	for _, line := range []string{"reflected_cpu_x_plain_64=2.00", "reflected_cpu_x_hashicorp_64=0.40",
		"direct_allocs_client_over_plain_64=20", "hashicorp_calls_x_plain_64=1.00", "plain_p50_1=0.00"} {
		if !strings.Contains("\n"+b.String(), "\n"+line+"\n") {
			t.Errorf("%q is missing", line)
		}
	}
	if strings.Contains(b.String(), "hashicorp_cpu_x_hashicorp") || strings.Contains(b.String(), "NaN") {
		t.Error(b.String())
	}
}
