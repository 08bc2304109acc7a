package main

import (
	"slices"
	"time"
)

// A metric is one figure of a window.
type metric struct {
	name string // in JSON
	text string // in the table; what is part of another is indented
	of   func(window) float64
}

func perCall(count uint64, w window) float64 { return float64(count) / float64(w.Calls) }

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func cpuPerCall(d time.Duration, w window) float64 { return microseconds(d) / float64(w.Calls) }

// all is what every process of the system used.
func (w window) all() usage { return w.Client.plus(w.Primary).plus(w.Backups) }

var callRate = metric{"calls_per_second", "calls/s", func(w window) float64 {
	return float64(w.Calls) / w.Elapsed.Seconds()
}}

var metrics = []metric{
	{"cpu", "CPU, µs/call", func(w window) float64 { return cpuPerCall(w.all().cpu(), w) }},
	{"cpu_client", "  client", func(w window) float64 { return cpuPerCall(w.Client.cpu(), w) }},
	{"cpu_primary", "  primary", func(w window) float64 { return cpuPerCall(w.Primary.cpu(), w) }},
	{"cpu_backups", "  backups, together", func(w window) float64 { return cpuPerCall(w.Backups.cpu(), w) }},
	{"cpu_kernel", "  of all, in the kernel", func(w window) float64 { return cpuPerCall(w.all().System, w) }},
	{"p50", "p50, µs", func(w window) float64 { return microseconds(w.P50) }},
	{"p99", "p99, µs", func(w window) float64 { return microseconds(w.P99) }},
	callRate,
	{"allocs_client", "allocations/call, client", func(w window) float64 { return perCall(w.Client.Allocs, w) }},
	{"allocs_primary", "  primary", func(w window) float64 { return perCall(w.Primary.Allocs, w) }},
	{"allocs_backups", "  backups, together", func(w window) float64 { return perCall(w.Backups.Allocs, w) }},
	{"alloc_bytes_client", "bytes allocated/call, client", func(w window) float64 {
		return perCall(w.Client.AllocBytes, w)
	}},
	{"alloc_bytes_primary", "  primary", func(w window) float64 { return perCall(w.Primary.AllocBytes, w) }},
	{"alloc_bytes_backups", "  backups, together", func(w window) float64 { return perCall(w.Backups.AllocBytes, w) }},
	{"bytes_primary", "bytes sent/call, client ↔ primary", func(w window) float64 {
		return perCall(w.ToPrimary.bytes(), w)
	}},
	{"bytes_backups", "  client ↔ backups", func(w window) float64 { return perCall(w.ToBackups.bytes(), w) }},
	{"bytes_servers", "  primary ↔ backups", func(w window) float64 { return perCall(w.BetweenServers.bytes(), w) }},
	{"writes_client", "writes/call, client", func(w window) float64 {
		return perCall(w.ToPrimary.plus(w.ToBackups).Writes, w)
	}},
	{"writes_primary", "  primary, to the client", func(w window) float64 {
		return perCall(w.Primary.Flows.Accepted.Writes, w)
	}},
	{"switches", "context switches/call", func(w window) float64 { return perCall(w.all().Switches, w) }},
	{"cores", "cores busy", func(w window) float64 { return w.all().cpu().Seconds() / w.Elapsed.Seconds() }},
	{"rest", "etcd and bench, cores busy", func(w window) float64 { return w.Rest.cpu().Seconds() / w.Took.Seconds() }},
}

// A figure is one metric of one system at one number of callers.
type figure struct {
	Metric  string  `json:"metric"`
	System  string  `json:"system"`
	Callers int     `json:"callers"`
	Plain   float64 `json:"plain"` // the median
	Value   float64 `json:"value"` // the median
	// Ratio is the median over the rounds of the window's value to the mean of plain gRPC's before
	// and after it; Least and Most are the spread. All are 0 where plain gRPC has none of it.
	Ratio float64 `json:"ratio"`
	Least float64 `json:"least"`
	Most  float64 `json:"most"`
}

// figureOf makes one of the rounds of one system at one number of callers.
func figureOf(m metric, rounds []round) figure {
	if len(rounds) == 0 {
		return figure{Metric: m.name}
	}
	f := figure{Metric: m.name, System: rounds[0].Window.System, Callers: rounds[0].Window.Callers}
	plains, values, ratios := []float64{m.of(rounds[0].Before)}, []float64{}, []float64{}
	for _, r := range rounds {
		plains = append(plains, m.of(r.After))
		values = append(values, m.of(r.Window))
		if ratio := m.ratio(r); ratio > 0 {
			ratios = append(ratios, ratio)
		}
	}
	f.Plain, f.Value = median(plains), median(values)
	if len(ratios) > 0 {
		f.Ratio, f.Least, f.Most = median(ratios), slices.Min(ratios), slices.Max(ratios)
	}
	return f
}

// beside is one system's median ratio to another one's, measured in the same rounds: each is first
// compared with plain gRPC beside it.
func beside(m metric, rounds, others []round) float64 {
	var ratios []float64
	for _, r := range rounds {
		for _, o := range others {
			mine, its := m.ratio(r), m.ratio(o)
			if r.Number == o.Number && r.Window.Callers == o.Window.Callers && its > 0 {
				ratios = append(ratios, mine/its)
			}
		}
	}
	return median(ratios)
}

// ratio is the window's value to the mean of plain gRPC's before and after it; 0 where plain gRPC
// has none of it.
func (m metric) ratio(r round) float64 {
	plain := (m.of(r.Before) + m.of(r.After)) / 2
	if plain <= 0 {
		return 0
	}
	return m.of(r.Window) / plain
}

func findMetric(name string) metric {
	i := slices.IndexFunc(metrics, func(m metric) bool { return m.name == name })
	return metrics[i]
}

// median sorts values.
func median(values []float64) float64 {
	slices.Sort(values)
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}
