package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// report is all that a run has found.
type report struct {
	Begun      time.Time     `json:"begun"`
	Took       time.Duration `json:"took"`
	Machine    machine       `json:"machine"`
	LoadBefore string        `json:"load_before"` // load averages
	LoadAfter  string        `json:"load_after"`
	Config     config        `json:"config"`
	Disturbed  int           `json:"disturbed"` // windows that were thrown away
	Notes      []string      `json:"notes,omitempty"`
	Figures    []figure      `json:"figures"`
	Rounds     []round       `json:"rounds"`
}

// of are the rounds of one system at one number of callers.
func (r *report) of(system string, callers int) (rounds []round) {
	for _, round := range r.Rounds {
		if round.Window.System == system && round.Window.Callers == callers {
			rounds = append(rounds, round)
		}
	}
	return rounds
}

// rounds is how many there were of each system at each number of callers.
func (r *report) rounds() int {
	return len(r.Rounds) / max(1, len(r.Config.Systems)*len(r.Config.Callers))
}

func (r *report) writeJSON(out io.Writer) error {
	for _, callers := range r.Config.Callers {
		for _, s := range r.Config.Systems {
			for _, m := range metrics {
				r.Figures = append(r.Figures, figureOf(m, r.of(s, callers)))
			}
		}
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "\t")
	return enc.Encode(r)
}

func (r *report) writeText(out io.Writer) error {
	m, cfg := r.Machine, r.Config
	fmt.Fprintf(out, "\n%v\n", m)
	fmt.Fprintf(out, "%s, %v long; load average %s before, %s after\n", r.Begun.UTC().Format("2006-01-02 15:04 MST"),
		r.Took.Round(time.Second), r.LoadBefore, r.LoadAfter)
	fmt.Fprintf(out, "%d replicas, all executing; requests of %d bytes; %s%d windows of %v each, between windows of "+
		"plain gRPC; %d thrown away\n",
		cfg.Replicas, cfg.Request, cfg.delayText(), r.rounds(), cfg.Window, r.Disturbed)
	for _, n := range r.Notes {
		fmt.Fprintln(out, n)
	}
	fmt.Fprintln(out, "value, × ratio to plain gRPC in the adjacent windows: median (least-most)")
	for _, callers := range cfg.Callers {
		fmt.Fprintln(out)
		if err := r.table(out, callers); err != nil {
			return err
		}
	}
	return nil
}

func (r *report) table(out io.Writer, callers int) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\tplain\t%s\n", countOf(callers), strings.Join(r.Config.Systems, "\t"))
	for _, m := range metrics {
		fmt.Fprint(w, m.text)
		for i, s := range r.Config.Systems {
			f := figureOf(m, r.of(s, callers))
			if i == 0 {
				fmt.Fprintf(w, "\t%s", number(r.plain(m, callers)))
			}
			fmt.Fprintf(w, "\t%s", number(f.Value))
			if f.Ratio > 0 {
				fmt.Fprintf(w, " ×%.2f (%.2f-%.2f)", f.Ratio, f.Least, f.Most)
			}
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// plain is the median over plain gRPC's windows beside all systems.
func (r *report) plain(m metric, callers int) float64 {
	var values []float64
	for _, s := range r.Config.Systems {
		for i, round := range r.of(s, callers) {
			if i == 0 {
				values = append(values, m.of(round.Before))
			}
			values = append(values, m.of(round.After))
		}
	}
	return median(values)
}

// number has about three significant figures.
func number(v float64) string {
	switch {
	case v == 0:
		return "-"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	case v < 100:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}
